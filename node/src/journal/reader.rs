//! Reads a journal: foreign bytes. What is no event is named, and skipped; what is too long is not read.

use super::{LONGEST, older};
use crate::events::Record;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Bytes of a file that are read at most: more than any of ours has. Of a larger one, the end.
const LARGEST: u64 = 4 << 20;
/// Bad lines that are named; the rest is counted.
const NAMED: usize = 100;

/// A line that is no event.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Which file.
    pub file: PathBuf,
    /// From 1; of a file too large to be read whole, from its tail on.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// What one journal holds, the older file first.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// The events, in the order in which they were written.
    pub records: Vec<Record>,
    /// The first of the lines that are none.
    pub skipped: Vec<Skipped>,
    /// How many more there are.
    pub more_skipped: usize,
}

/// Reads both files of a journal; one that is not there is empty.
pub fn read(path: &Path) -> io::Result<Journal> {
    let mut journal = Journal::default();
    for file in [older(path), path.to_owned()] {
        match tail(&file) {
            Ok(bytes) => journal.add(&file, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(journal)
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LARGEST);
    let mut bytes = Vec::new();
    if start == 0 {
        file.take(LARGEST).read_to_end(&mut bytes)?;
    } else {
        bytes.resize(usize::try_from(LARGEST).map_err(io::Error::other)?, 0);
        let read = file.read_at(&mut bytes, start)?;
        bytes.truncate(read);
    }
    Ok(bytes)
}

/// The events in `bytes`, which come from `file`: for the fuzz target.
#[cfg(feature = "testing")]
#[must_use]
pub fn parse(file: &Path, bytes: &[u8]) -> Journal {
    let mut journal = Journal::default();
    journal.add(file, bytes);
    journal
}

impl Journal {
    fn add(&mut self, file: &Path, bytes: &[u8]) {
        for (index, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            match event(line) {
                Ok(record) => self.records.push(record),
                Err(why) if self.skipped.len() < NAMED => {
                    self.skipped.push(Skipped { file: file.to_owned(), line: index + 1, why });
                }
                Err(_) => self.more_skipped += 1,
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Record, String> {
    if line.len() > LONGEST {
        return Err(format!("{} bytes, and {LONGEST} is the most that an event has", line.len()));
    }
    Record::parse(std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?)
}
