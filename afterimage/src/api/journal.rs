//! The newest events of a journal, for the API.

use node::{
    events::Record,
    journal::{SCHEMA, read},
};
use serde::Serialize;
use serde_json::Value;
use std::{io, path::Path};

/// Bytes of events at most, as they stand in the journal.
const MAX_BYTES: usize = 1 << 20;

/// What is answered.
#[derive(Debug, Serialize)]
pub(super) struct Events {
    schema: u64,
    /// The oldest first.
    events: Vec<Value>,
    /// Whether there were older ones that were asked for.
    more: bool,
}

/// The newest events, `limit` at most, none of them from before `since_ms`.
pub(super) fn newest(file: &Path, limit: usize, since_ms: u64) -> io::Result<Events> {
    let entries = read(file)?.records;
    let wanted: Vec<&Record> = entries.iter().filter(|entry| entry.at_ms >= since_ms as f64).collect();
    let mut bytes = 0;
    let fits = |entry: &&&Record| {
        bytes += entry.line.len();
        bytes <= MAX_BYTES
    };
    // What was read as an event is JSON.
    let value = |entry: &&Record| serde_json::from_str(&entry.line).unwrap_or_default();
    let mut events: Vec<Value> = wanted.iter().rev().take(limit).take_while(fits).map(value).collect();
    events.reverse();
    Ok(Events { schema: SCHEMA, more: events.len() < wanted.len(), events })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_newest_are_told_and_not_more_than_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.primary.journal");
        let told = |limit, since_ms| {
            let Events { events, more, .. } = newest(&file, limit, since_ms).unwrap();
            (events.iter().map(|event| event["at_ms"].as_u64().unwrap()).collect::<Vec<_>>(), more)
        };
        assert_eq!(told(5, 0), (vec![], false), "no journal yet");
        let line = |at_ms: u64, pad: usize| {
            format!("{{\"schema\":1,\"event\":\"e\",\"at_ms\":{at_ms},\"pad\":\"{}\"}}\n", "x".repeat(pad))
        };
        fs::write(&file, (1..=9).map(|at_ms| line(at_ms, 1)).collect::<String>() + "torn").unwrap();
        assert_eq!(told(100, 0), ((1..=9).collect(), false));
        assert_eq!(told(2, 0), (vec![8, 9], true));
        assert_eq!(told(100, 7), (vec![7, 8, 9], false));
        assert_eq!(told(0, 0), (vec![], true));
        fs::write(&file, (1..=90).map(|at_ms| line(at_ms, 15 << 10)).collect::<String>()).unwrap();
        let (events, more) = told(1000, 0);
        assert!(more && events.len() > 60 && events.last() == Some(&90), "{}", events.len());
    }
}
