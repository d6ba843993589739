//! Entries for fuzzing: a module for each parser of foreign bytes, whose `run` panics where the parser is wrong.
//!
//! `scripts/fuzz` lets libFuzzer find bytes (`fuzz_targets/`). The bytes that were found, in `seeds/` and `corpus/`, are put
//! through the same entries by a plain test (`tests/replay.rs`).

pub mod beat;
pub mod control;
pub mod framing;
pub mod journal;
pub mod probe;
pub mod qemu_stream;
pub mod qmp_line;
pub mod qtree;
pub mod slab;
pub mod wire;

/// Puts bytes through a parser.
pub type Entry = fn(&[u8]);

/// All entries, by the names of their directories below `seeds/`.
pub const ENTRIES: &[(&str, Entry)] = &[
    ("beat", beat::run),
    ("control", control::run),
    ("framing", framing::run),
    ("journal", journal::run),
    ("probe", probe::run),
    ("qemu_stream", qemu_stream::run),
    ("qmp_line", qmp_line::run),
    ("qtree", qtree::run),
    ("slab", slab::run),
    ("wire", wire::run),
];
