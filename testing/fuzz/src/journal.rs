//! A journal and the stories from it: never a panic; every line is an event or is named.

use node::{events::Side, journal};
use std::path::Path;
use why::{Journals, Report, SCHEMA, render};

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    let read = journal::parse(Path::new("web.standby.journal"), bytes);
    assert_eq!(read.records.len() + read.skipped.len() + read.more_skipped, lines);
    let journal::Journal { records, skipped, more_skipped } = read;
    for side in [Side::Primary, Side::Standby] {
        let mut journals = Journals::default();
        journals.add("web", side, Vec::new(), records.clone());
        let (incidents, skipped) = (journals.told(None, None), skipped.clone());
        let _ = render(&Report { schema: SCHEMA, incidents, skipped, more_skipped });
    }
}
