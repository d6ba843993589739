//! What the program needs to start, and what it does on a host that has nothing else.

use mc_core::testing::skip;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

fn words_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn no_library_of_rdma_is_needed_to_start() {
    let section = words_of(Command::new("readelf").args(["--dynamic", PROGRAM]));
    let needed: Vec<&str> = section.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert!(needed.iter().any(|line| line.contains("libc.so.6")), "{section}");
    for library in ["libibverbs", "librdmacm", "libnl", "libmlx"] {
        assert!(!needed.iter().any(|line| line.contains(library)), "{needed:?}");
    }
    // What the program defines in place of the library's, no other library may find here: `ffi/library.rs`.
    let symbols = words_of(Command::new("readelf").args(["--dyn-syms", "--wide", PROGRAM]));
    let verbs: Vec<&str> = symbols.lines().filter(|line| line.contains(" ibv_")).collect();
    assert!(verbs.is_empty(), "{verbs:?}");
}

/// A directory with the program, and with those libraries only that it needs to start.
fn bare_host() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let bring = |from: &Path| {
        let to = root.path().join(from.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, &to).unwrap();
    };
    // `name => /path (address)`, or `/path (address)` for the dynamic linker.
    for line in words_of(Command::new("ldd").arg(PROGRAM)).lines() {
        line.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).for_each(|file| bring(&file));
    }
    fs::copy(PROGRAM, root.path().join("afterimage")).unwrap();
    root
}

#[test]
fn a_host_without_the_verbs_library_runs_the_program_which_says_what_is_missing() {
    if !rustix::process::geteuid().is_root() {
        return skip("chroot(2) needs root");
    }
    let host = bare_host();
    let run = |args: &[&str]| -> Output {
        Command::new("chroot").arg(host.path()).arg("/afterimage").args(args).output().unwrap()
    };
    let version = run(&["--version"]);
    assert!(version.status.success(), "{version:?}");
    for args in [&["rdma", "devices"][..], &["rdma", "devices", "--json"]] {
        let Output { status, stdout, stderr } = run(args);
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), stdout.as_slice()), (Some(6), &b""[..]), "{stderr}");
        let words = match cfg!(feature = "rdma") {
            true => "no RDMA: libibverbs.so.1 is not installed; package libibverbs1, ibverbs-providers",
            false => "without RDMA",
        };
        assert!(stderr.contains(words) && stderr.contains("what to do:"), "{stderr}");
    }
}
