//! The example is run.

use std::{path::PathBuf, process::Command};

#[test]
fn a_vm_of_an_embedder_outlives_its_process() {
    let own = std::env::current_exe().unwrap();
    let program: PathBuf = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples/embed");
    let out = Command::new(&program).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && said.contains("the next one after is"),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
