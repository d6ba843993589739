//! What fuzzing found is put through the parsers again: no fuzzer and no nightly toolchain are needed for that.

use afterimage_fuzz::{ENTRIES, Entry};
use std::{
    env, fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// The files of a directory, in order; none if there is no such directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Those that fail.
fn replay(name: &str, entry: Entry) -> Vec<PathBuf> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let seeds = files(&here.join("seeds").join(name));
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let found = ["corpus", "artifacts"].map(|dir| files(&here.join(dir).join(name)));
    let all = seeds.into_iter().chain(found.into_iter().flatten());
    all.filter(|file| catch_unwind(|| entry(&fs::read(file).unwrap())).is_err()).collect()
}

#[test]
fn what_was_found_once_is_parsed() {
    let failed: Vec<_> = ENTRIES.iter().flat_map(|(name, entry)| replay(name, *entry)).collect();
    assert!(failed.is_empty(), "these files make a parser fail: {failed:?}");
}

/// A target that is not in the list would never be replayed.
#[test]
fn every_target_has_an_entry() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let targets = files(&here.join("fuzz_targets"));
    let names: Vec<_> = targets.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ENTRIES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}
