//! Records from files, as `mc-bench report` and `compare` read them. A file may come from anywhere: its size is bounded, and so
//! is what it makes of itself in memory.

use crate::record::{Record, SCHEMA};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{fs::File, io::Read, path::Path};

/// The largest file that is read: 64 MiB.
pub const LARGEST: u64 = 64 << 20;
/// The most figures of a record. Each may have a histogram, which takes 240 KiB however little is written of it.
pub const MOST_MEASURES: usize = 2000;

/// Reads one.
///
/// # Errors
/// The file cannot be read, is too large, or is no record of this schema; the message names it and says what to do.
pub fn read(path: &Path) -> Result<Record> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(LARGEST + 1).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no record that can be shown", path.display()))
}

/// Reads one from its text.
///
/// # Errors
/// As above.
pub fn parse(text: &str) -> Result<Record> {
    ensure!(text.len() as u64 <= LARGEST, "it is larger than {} MiB", LARGEST >> 20);
    let value: Value = serde_json::from_str(text).context("it is no JSON (what `mc-bench ... --json` prints is)")?;
    match value["schema"].as_u64() {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => bail!(
            "its schema is {schema}, and this mc-bench reads {SCHEMA}: use the mc-bench that wrote it{}",
            value["machine"]["commit"].as_str().map(|c| format!(", commit {c:?}")).unwrap_or_default()
        ),
        None => bail!("it has no schema number: it is not from mc-bench"),
    }
    let measures = |section: &Value| section["measures"].as_array().map_or(0, Vec::len);
    let count: usize = value["sections"].as_array().map_or(0, |all| all.iter().map(measures).sum());
    ensure!(count <= MOST_MEASURES, "it has {count} figures; at most {MOST_MEASURES} are read");
    serde_json::from_value(value).context("something in it is not as schema 2 has it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begun, Better, Measure, Section, Unit};
    use mc_core::histogram::Histogram;

    fn record(measures: usize) -> String {
        let mut section = Section::new("transport", "");
        let times = Histogram::new();
        section.measures =
            (0..measures).map(|n| Measure::new("a", n.to_string(), Unit::Usec, Better::Lower, vec![1.0])).collect();
        section.measures.push(Measure::new("b", "", Unit::Usec, Better::Lower, vec![]).times(times));
        serde_json::to_string(&Begun::now().done(vec![section])).unwrap()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let text = record(2);
        assert_eq!(serde_json::to_string(&parse(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn what_is_no_record_is_refused_in_words() {
        let refused = |text: &str| format!("{:#}", parse(text).unwrap_err());
        for (text, words) in [
            ("", "no JSON"),
            ("[]", "no schema number"),
            (r#"{"schema":1,"machine":{"commit":"abc"}}"#, "schema is 1, and this mc-bench reads 2: use the mc-bench"),
            (r#"{"schema":2}"#, "missing field `command`"),
            (&record(2).replace("\"usec\"", "\"hour\""), "unknown variant `hour`"),
            (&record(2).replace("\"sum\":0", "\"sum\":-1"), "invalid value"),
            (&record(MOST_MEASURES), "at most 2000 are read"),
        ] {
            assert!(refused(text).contains(words), "{words}: {}", refused(text));
        }
        assert!(refused(&" ".repeat(65 << 20)).contains("larger than 64 MiB"));
        let error = format!("{:#}", read(Path::new("/nonexistent.json")).unwrap_err());
        assert!(error.contains("opening /nonexistent.json"), "{error}");
    }
}
