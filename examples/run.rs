//! The example is run: over TCP, and over RDMA where there are devices (`scripts/lab run`).

use mc_core::testing::skip;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What it said: at the end, and of what happened.
fn embed(args: &[&str]) -> (String, String) {
    let own = std::env::current_exe().unwrap();
    let program: PathBuf = own.parent().and_then(Path::parent).unwrap().join("examples/embed");
    let out = Command::new(&program).args(args).output().unwrap();
    let [said, happened] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(out.status.success() && said.contains("the next one after is"), "{said}{happened}");
    (said, happened)
}

#[test]
fn a_vm_of_an_embedder_outlives_its_process() {
    embed(&[]);
}

/// The lab's machine has two devices; the standby is at the second one's address.
#[test]
fn and_by_rdma_where_there_is_a_device() {
    if !Path::new("/sys/class/infiniband/rxe1").exists() {
        return skip("there is no RDMA device rxe1; scripts/lab has them");
    }
    let (_, happened) = embed(&["10.77.1.2"]);
    assert!(happened.contains(r#""transport":"rdma""#), "{happened}");
}
