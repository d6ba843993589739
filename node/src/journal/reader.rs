//! Reads a journal: foreign bytes. What is no event is named, and skipped; what is too long is not read.

use super::{LONGEST, SCHEMA, older};
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Bytes of a file that are read at most: more than any of ours has. Of a larger one, the end.
const LARGEST: u64 = 4 << 20;
/// Bad lines that are named; the rest is counted.
const NAMED: usize = 100;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: f64,
    /// Which boot of the host it was in; empty in lines of an older afterimage.
    pub boot: String,
    /// Milliseconds since that boot, if known.
    pub boot_ms: Option<f64>,
    /// Its name.
    pub event: String,
    /// Everything else.
    pub fields: Map<String, Value>,
    /// The line itself.
    pub line: String,
}

impl Entry {
    /// How long after `earlier` it was, ms: by the clock that nobody sets, where both were in one boot.
    #[must_use]
    pub fn after_ms(&self, earlier: &Self) -> f64 {
        match (self.boot_ms, earlier.boot_ms) {
            (Some(now), Some(then)) if self.boot == earlier.boot => now - then,
            _ => self.at_ms - earlier.at_ms,
        }
    }

    /// A text among the fields.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(Value::as_str)
    }

    /// A number among the fields.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<f64> {
        self.fields.get(name).and_then(Value::as_f64)
    }
}

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
    pub entries: Vec<Entry>,
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
                Ok(entry) => self.entries.push(entry),
                Err(why) if self.skipped.len() < NAMED => {
                    self.skipped.push(Skipped { file: file.to_owned(), line: index + 1, why });
                }
                Err(_) => self.more_skipped += 1,
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Entry, String> {
    if line.len() > LONGEST {
        return Err(format!("{} bytes, and {LONGEST} is the most that an event has", line.len()));
    }
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
    let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| format!("no JSON object: {e}"))?;
    match fields.remove("schema").as_ref().and_then(Value::as_u64) {
        Some(SCHEMA) => {}
        other => return Err(format!("of schema {other:?}; only {SCHEMA} is known")),
    }
    let Some(Value::String(event)) = fields.remove("event") else { return Err("no \"event\"".to_owned()) };
    let at_ms = fields.remove("at_ms").and_then(|v| v.as_f64()).filter(|ms| (0.0..1e14).contains(ms));
    let at_ms = at_ms.ok_or("no \"at_ms\", or none that is a time")?;
    let boot_ms = fields.remove("boot_ms").and_then(|v| v.as_f64()).filter(|ms| (0.0..1e14).contains(ms));
    let boot = fields.remove("boot").and_then(|v| v.as_str().map(str::to_owned)).filter(|_| boot_ms.is_some());
    Ok(Entry { at_ms, boot: boot.unwrap_or_default(), boot_ms, event, fields, line: text.to_owned() })
}
