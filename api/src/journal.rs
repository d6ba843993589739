//! The newest events of a journal, for the API.

use node::{
    events::Record,
    journal::{SCHEMA, read},
};
use serde::Serialize;
use std::{io, path::Path};

/// Bytes of events at most, as they stand in the journal.
const MAX_BYTES: usize = 1 << 20;

/// What is answered.
#[derive(Debug, Serialize)]
pub(crate) struct Events {
    schema: u64,
    /// The oldest first.
    events: Vec<Record>,
    /// Whether there were older ones that were asked for.
    more: bool,
}

/// The newest events, `limit` at most, none of them from before `since_ms`.
pub(crate) fn newest(file: &Path, limit: usize, since_ms: u64) -> io::Result<Events> {
    let wanted = read(file)?.records.into_iter().filter(|record| record.at_ms >= since_ms as f64);
    let wanted: Vec<Record> = wanted.collect();
    let (count, mut bytes) = (wanted.len(), 0);
    let fits = |record: &Record| {
        bytes += record.line.len();
        bytes <= MAX_BYTES
    };
    let mut events: Vec<Record> = wanted.into_iter().rev().take(limit).take_while(fits).collect();
    events.reverse();
    Ok(Events { schema: SCHEMA, more: events.len() < count, events })
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
            (events.iter().map(|record| record.at_ms).collect::<Vec<f64>>(), more)
        };
        assert_eq!(told(5, 0), (vec![], false), "no journal yet");
        let line = |at_ms: u64, pad: usize| {
            format!(
                "{{\"schema\":1,\"event\":\"arbiter-unreachable\",\"at_ms\":{at_ms},\"why\":\"{}\"}}\n",
                "x".repeat(pad)
            )
        };
        fs::write(&file, (1..=9).map(|at_ms| line(at_ms, 1)).collect::<String>() + "torn").unwrap();
        assert_eq!(told(100, 0), ((1..=9).map(f64::from).collect(), false));
        assert_eq!(told(2, 0), (vec![8.0, 9.0], true));
        assert_eq!(told(100, 7), (vec![7.0, 8.0, 9.0], false));
        assert_eq!(told(0, 0), (vec![], true));
        fs::write(&file, (1..=90).map(|at_ms| line(at_ms, 15 << 10)).collect::<String>()).unwrap();
        let (events, more) = told(1000, 0);
        assert!(more && events.len() > 60 && events.last() == Some(&90.0), "{}", events.len());
    }
}
