//! A journal and the stories from it: never a panic; every line is an event or is named.

use afterimage::why;
use node::journal;
use std::path::Path;

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    let read = journal::parse(Path::new("web.standby.journal"), bytes);
    assert_eq!(read.records.len() + read.skipped.len() + read.more_skipped, lines);
    for side in ["primary", "standby"] {
        let _ = why::told(read.clone(), "web", side);
    }
}
