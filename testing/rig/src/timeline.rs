//! Events of all processes in one order, and waiting for one of them.
//!
//! An event is one line of JSON: `{"event": NAME, "at_ms": unix milliseconds, ...}`. Times of hosts whose clock is not
//! this machine's are corrected by how far that clock was found to be ahead.

use crate::sys;
use anyhow::{Result, bail};
use mc_core::register::Register;
use node::events::{Answered, Event, Outcome};
use serde_json::{Map, Value};
use std::{
    fmt::Write as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Longest line that is taken as an event; longer ones are cut and will not parse.
pub const LINE_MAX: usize = 64 * 1024;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: f64,
    /// Which process said so: `protect`, `standby`, `witness`, `client`, `rig`.
    pub source: String,
    /// Its name.
    pub event: String,
    /// Everything else it carries.
    pub fields: Map<String, Value>,
    /// What it means, where it is one of the program under test.
    pub told: Option<Event>,
}

impl Entry {
    /// Reads one line of `source`. A line that is no event is one named `says`, with its text: nothing is swallowed.
    #[must_use]
    pub fn parse(source: &str, line: &str) -> Self {
        let parsed = serde_json::from_str::<Map<String, Value>>(line).ok();
        if let Some(mut fields) = parsed
            && let Some(Value::String(event)) = fields.remove("event")
        {
            let at_ms = fields.remove("at_ms").and_then(|v| v.as_f64()).unwrap_or_else(now_ms);
            let told = Event::NAMES.contains(&event.as_str()).then(|| serde_json::from_str(line).ok()).flatten();
            return Self { at_ms, source: source.to_owned(), event, fields, told };
        }
        let fields = Map::from_iter([("text".to_owned(), Value::from(line))]);
        Self { at_ms: now_ms(), source: source.to_owned(), event: "says".to_owned(), fields, told: None }
    }

    /// The same, with a time that was read on a clock so much ahead of ours. (Lines that are no events were timed
    /// here.)
    #[must_use]
    pub fn on_our_clock(mut self, ahead_ms: f64) -> Self {
        if self.event != "says" {
            self.at_ms -= ahead_ms;
        }
        self
    }

    /// What `source` told; `None` of others.
    #[must_use]
    pub fn told_by(&self, source: &str) -> Option<&Event> {
        self.told.as_ref().filter(|_| self.source == source)
    }

    /// What the register holds since a swap was won.
    #[must_use]
    pub fn won(&self) -> Option<&Register> {
        match self.told.as_ref()? {
            Event::Cas(Answered { outcome: Outcome::Won, register, .. }) => register.as_ref(),
            _ => None,
        }
    }

    /// Whether it is `event` of `source`.
    #[must_use]
    pub fn is(&self, source: &str, event: &str) -> bool {
        self.source == source && self.event == event
    }

    /// One line for people, with the time relative to `origin_ms`.
    #[must_use]
    pub fn line(&self, origin_ms: f64) -> String {
        let mut line = format!("{:>+11.1} ms  {:<8} {}", self.at_ms - origin_ms, self.source, self.event);
        // What is nested is for programs, but for who owns the VM and what took how long.
        let told = |(name, value): &(&String, &Value)| {
            !(value.is_object() || value.is_array()) || matches!(name.as_str(), "register" | "since_suspicion")
        };
        for (name, value) in self.fields.iter().filter(told) {
            let text = value.to_string();
            let shown: String = text.chars().take(120).collect();
            let _ = write!(line, "  {name}={shown}");
        }
        line
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// A growing list of events, shared by the threads that read the processes' output.
#[derive(Clone, Debug)]
pub struct Timeline {
    entries: Arc<(Mutex<Vec<Entry>>, Condvar)>,
    /// Where to count from when events are shown as they come; None: not shown.
    live_from_ms: Option<f64>,
}

/// A place in a [`Timeline`]: everything that was known when it was taken lies before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark(usize);

impl Timeline {
    /// An empty one. A `live` one narrates on standard error.
    #[must_use]
    pub fn new(live: bool) -> Self {
        Self { entries: Arc::default(), live_from_ms: live.then(now_ms) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub fn push(&self, entry: Entry) {
        if let Some(origin) = self.live_from_ms {
            eprintln!("{}", entry.line(origin));
        }
        self.lock().push(entry);
        self.entries.1.notify_all();
    }

    /// Adds something that the rig itself did, now. Returns when that was.
    pub fn note(&self, event: &str) -> f64 {
        let at_ms = now_ms();
        self.push(Entry { at_ms, source: "rig".to_owned(), event: event.to_owned(), fields: Map::new(), told: None });
        at_ms
    }

    /// The present end.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.lock().len())
    }

    /// Everything after `mark`, ordered by time.
    #[must_use]
    pub fn since(&self, mark: Mark) -> Vec<Entry> {
        let mut entries = self.lock().get(mark.0..).unwrap_or_default().to_vec();
        entries.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        entries
    }

    /// The first event after `mark` that `wanted` accepts, or None when `patience` has passed.
    ///
    /// # Errors
    /// Somebody interrupted the rig.
    pub fn wait(&self, mark: Mark, patience: Duration, wanted: impl Fn(&Entry) -> bool) -> Result<Option<Entry>> {
        let start = Instant::now();
        let mut seen = mark.0;
        let mut entries = self.lock();
        loop {
            if let Some(entry) = entries.get(seen..).unwrap_or_default().iter().find(|e| wanted(e)) {
                return Ok(Some(entry.clone()));
            }
            seen = entries.len().max(mark.0);
            if sys::interrupted() {
                bail!("interrupted");
            }
            let Some(left) = patience.checked_sub(start.elapsed()) else { return Ok(None) };
            let turn = left.min(Duration::from_millis(50));
            entries = self.entries.1.wait_timeout(entries, turn).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Waits until `ready` says so. False when `patience` has passed.
///
/// # Errors
/// Somebody interrupted the rig.
pub fn poll(patience: Duration, mut ready: impl FnMut() -> bool) -> Result<bool> {
    let start = Instant::now();
    while !ready() {
        if sys::interrupted() {
            bail!("interrupted");
        }
        if start.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

/// Lets time pass.
///
/// # Errors
/// Somebody interrupted the rig.
pub fn pass(time: Duration) -> Result<()> {
    poll(time, || false).map(drop)
}

/// Events as the program tells them.
#[cfg(test)]
pub(crate) mod sample {
    use super::Entry;
    use serde_json::{Value, json};

    /// A register that the standby has won.
    pub(crate) fn register(generation: u64) -> Value {
        let node = json!({ "name": "host-b", "id": "0b".repeat(16) });
        json!({ "generation": generation, "owner": { "node": node, "instance": 1 }, "mode": "solo" })
    }

    /// A swap that was won.
    pub(crate) fn won(generation: u64, at_ms: f64) -> Value {
        json!({ "event": "cas", "at_ms": at_ms, "outcome": "won", "register": register(generation), "took_ms": 3.0 })
    }

    /// `event` with how a standby stood, which had committed 55 ms before.
    pub(crate) fn standing(source: &str, mut event: Value) -> Entry {
        event["role"] = json!("claiming");
        event["epochs"] = json!({ "generation": 2, "committed": 7, "last_commit_ago_ms": 55.0 });
        event["output"] = json!({ "held": 0, "held_bytes": 0, "released": 0, "dropped": 0 });
        event["arbiter"] = json!({ "spec": "manual", "reachable": true });
        Entry::parse(source, &event.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_other_lines() {
        let entry = Entry::parse("protect", r#"{"event":"stalled","at_ms":12.5,"away_ms":51}"#);
        let Some(Event::Stalled(stalled)) = entry.told_by("protect") else { panic!("{entry:?}") };
        assert_eq!((entry.at_ms, stalled.away_ms), (12.5, 51.0));
        assert_eq!(entry.line(10.0), "       +2.5 ms  protect  stalled  away_ms=51");
        let entry = Entry::parse("client", r#"{"event":"reply","at_ms":12.5}"#);
        assert!(entry.is("client", "reply") && entry.told.is_none());
        for line in ["", "Segmentation fault", "[1]", r#"{"event":3}"#, r#"{"at_ms":1}"#] {
            let entry = Entry::parse("standby", line);
            assert_eq!((entry.event.as_str(), &entry.fields["text"]), ("says", &Value::from(line)));
        }
    }

    #[test]
    fn waits_only_for_what_comes_after_the_mark() {
        let timeline = Timeline::new(false);
        timeline.note("solo");
        let mark = timeline.mark();
        let none = timeline.wait(mark, Duration::ZERO, |e| e.event == "solo").unwrap();
        assert_eq!(none, None);
        let other = timeline.clone();
        let thread = std::thread::spawn(move || other.note("solo"));
        let found = timeline.wait(mark, Duration::from_secs(10), |e| e.event == "solo").unwrap();
        let at_ms = thread.join().unwrap();
        assert_eq!(found.map(|e| e.at_ms), Some(at_ms));
        assert_eq!(timeline.since(Mark::default()).len(), 2);
    }
}
