//! An event, with who told it and when: a line of a journal.

use super::{Event, Process, Side};
use crate::{clock::Clock, journal::SCHEMA};
use mc_core::id::Name;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Which process says what happens, as the journal has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The VM.
    pub vm: Name,
    /// Which side of it.
    pub side: Side,
    /// This host.
    pub node: Name,
    /// Which process of that side.
    pub process: Process,
    /// Its number.
    pub pid: u32,
}

/// An event as it is kept. As JSON: one flat object.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who told it; `None` if that cannot be read.
    pub who: Option<Who>,
    /// Milliseconds since 1970.
    pub at_ms: f64,
    /// Which boot of the host it was in; empty where nobody says.
    pub boot: String,
    /// Milliseconds since that boot, if known.
    pub boot_ms: Option<f64>,
    /// What happened.
    pub event: Event,
    /// The line that it was read from, without its newline; empty before it is written.
    pub line: String,
}

impl Record {
    /// One that happens now.
    pub(super) fn now(event: Event, who: Option<Who>, boot: &str) -> Self {
        let boot_ms = rounded(Clock.now().0 as f64 / 1e6);
        let at_ms = rounded(unix_ms());
        Self { who, at_ms, boot: boot.to_owned(), boot_ms: Some(boot_ms), event, line: String::new() }
    }

    /// Reads a line of a journal.
    ///
    /// # Errors
    /// Why it is none, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))?;
        match fields.get("schema").and_then(Value::as_u64) {
            Some(SCHEMA) => {}
            _ => return Err(format!("of schema {:?}; only {SCHEMA} is known", fields.get("schema"))),
        }
        let time = |name: &str| fields.get(name).and_then(Value::as_f64).filter(|ms| (0.0..1e14).contains(ms));
        if !fields.get("event").is_some_and(Value::is_string) {
            return Err("no \"event\"".to_owned());
        }
        let at_ms = time("at_ms").ok_or("no \"at_ms\", or none that is a time")?;
        let boot_ms = time("boot_ms");
        let boot = fields.get("boot").and_then(Value::as_str).filter(|_| boot_ms.is_some()).unwrap_or_default();
        let boot = boot.to_owned();
        let who = Who::deserialize(Value::Object(fields.clone())).ok();
        let event = Event::deserialize(Value::Object(fields)).map_err(|e| format!("no event: {e}"))?;
        Ok(Self { who, at_ms, boot, boot_ms, event, line: text.to_owned() })
    }

    /// How long after `earlier` it was, ms: by the clock that nobody sets, where both were in one boot.
    #[must_use]
    pub fn after_ms(&self, earlier: &Self) -> f64 {
        match (self.boot_ms, earlier.boot_ms) {
            (Some(now), Some(then)) if self.boot == earlier.boot => now - then,
            _ => self.at_ms - earlier.at_ms,
        }
    }

    /// As it is on stdout: the event and when it was.
    pub(super) fn short(&self) -> Map<String, Value> {
        let mut line = match serde_json::to_value(&self.event) {
            Ok(Value::Object(fields)) => fields,
            // (A path that is not UTF-8.)
            _ => Map::from_iter([("event".to_owned(), json!(self.event.name()))]),
        };
        line.insert("at_ms".to_owned(), json!(self.at_ms));
        line
    }

    /// As it is in the journal; `short` is [`Record::short`].
    pub(super) fn whole(&self, short: Map<String, Value>) -> Map<String, Value> {
        let mut line = match serde_json::to_value(self.who) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        line.insert("schema".to_owned(), json!(SCHEMA));
        line.insert("boot".to_owned(), json!(self.boot));
        line.extend(short);
        line.insert("boot_ms".to_owned(), json!(self.boot_ms));
        line
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.whole(self.short()).serialize(to)
    }
}

/// Milliseconds since 1970, so that the events of several hosts can be put in one order.
fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// To the microsecond.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
