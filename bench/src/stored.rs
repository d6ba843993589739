//! Records from files, as `mc-bench report` and `compare` read them. A file may come from anywhere: its size is bounded, and so
//! is what it makes of itself in memory.

use crate::record::{Record, SCHEMA};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, de::IgnoredAny};
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
    parse(&text).with_context(|| format!("{} is not a record that can be shown", path.display()))
}

/// As much of a record as says whether it can be read, and takes next to no memory.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    schema: Option<u64>,
    machine: OutlineMachine,
    sections: Vec<OutlineSection>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OutlineMachine {
    commit: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OutlineSection {
    measures: Vec<IgnoredAny>,
}

/// Reads one from its text.
///
/// # Errors
/// As above.
pub fn parse(text: &str) -> Result<Record> {
    ensure!(text.len() as u64 <= LARGEST, "it is larger than {} MiB", LARGEST >> 20);
    serde_json::from_str::<IgnoredAny>(text).context("it is not JSON (what `mc-bench ... --json` prints is)")?;
    let outline: Outline = serde_json::from_str(text).context("it is not from mc-bench")?;
    let commit = outline.machine.commit.map(|commit| format!(", commit {commit:?}")).unwrap_or_default();
    match outline.schema {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => {
            bail!("its schema is {schema}, and this mc-bench reads {SCHEMA}: use the mc-bench that wrote it{commit}")
        }
        None => bail!("it has no schema number: it is not from mc-bench"),
    }
    let count: usize = outline.sections.iter().map(|s| s.measures.len()).sum();
    ensure!(count <= MOST_MEASURES, "it has {count} figures; at most {MOST_MEASURES} are read");
    serde_json::from_str(text).with_context(|| format!("something in it is not as schema {SCHEMA} has it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begun, Better, Measure, Section, Unit};
    use mc_core::histogram::Histogram;

    fn record(measures: usize) -> String {
        let mut section = Section::new("transport", "");
        let mut times = Histogram::new();
        (1..200).for_each(|us| times.record(std::time::Duration::from_micros(us * us)));
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

    /// Bytes of a good record, changed here and there: it is refused, or shown on every face.
    #[test]
    fn a_mangled_record_is_refused_or_shown() {
        let good = record(3).into_bytes();
        let mut random = fastrand::Rng::with_seed(11);
        let mut shown = 0;
        for _ in 0..3000 {
            let mut text = good.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..text.len());
                let byte = b"0123456789eE.-+,:[]{}\"\\nul "[random.usize(..27)];
                if random.bool() { text[at] = byte } else { text.insert(at, byte) }
            }
            let Ok(record) = parse(&String::from_utf8_lossy(&text)) else { continue };
            assert!(
                !crate::face::text::lines(&record).is_empty()
                    && crate::face::page::html(&record).ends_with("</html>\n")
            );
            shown += 1;
        }
        assert!(shown > 100, "{shown}");
    }

    #[test]
    fn what_is_no_record_is_refused_in_words() {
        let refused = |text: &str| format!("{:#}", parse(text).unwrap_err());
        for (text, words) in [
            ("", "not JSON"),
            ("[]", "no schema number"),
            (r#"{"schema":1,"machine":{"commit":"abc"}}"#, "schema is 1, and this mc-bench reads 2: use the mc-bench"),
            (r#"{"schema":2}"#, "missing field `command`"),
            (&record(2).replace("\"usec\"", "\"hour\""), "unknown variant `hour`"),
            (&record(2).replace("\"sum\":", "\"sum\":-"), "invalid value"),
            (&record(MOST_MEASURES), "at most 2000 are read"),
        ] {
            assert!(refused(text).contains(words), "{words}: {}", refused(text));
        }
        assert!(refused(&" ".repeat(65 << 20)).contains("larger than 64 MiB"));
        let error = format!("{:#}", read(Path::new("/nonexistent.json")).unwrap_err());
        assert!(error.contains("opening /nonexistent.json"), "{error}");
    }
}
