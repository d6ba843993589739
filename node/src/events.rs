//! What happens, as lines of JSON on stdout: for scripts, and for the demo; and in the journal, for `afterimage why`. Narration
//! goes to stderr.
//!
//! Events come from loops that hold a VM's output: none of them may wait for a pipe that nobody reads, or for a slow disk. So
//! stdout and the journal have a thread each, behind a queue that is bounded ([`crate::journal::LineWriter`]); what finds it
//! full is counted, and dropped.

use crate::{
    clock::Clock,
    journal::{self, Journals, LineWriter},
};
use mc_core::id::Name;
use serde_json::{Map, Value, json};
use std::{
    io::Write,
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Which process says what happens, as the journal has it.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The VM.
    pub vm: Name,
    /// "primary" or "standby".
    pub side: &'static str,
    /// This host.
    pub node: Name,
    /// "supervisor", "data-path" or "standby".
    pub process: &'static str,
}

#[derive(Debug)]
struct Recorder {
    who: Map<String, Value>,
    journal: Journals,
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();
/// Started by the first event. `None`: there is no thread to be had, and no reason to wait for a pipe instead.
static STDOUT: OnceLock<Option<LineWriter>> = OnceLock::new();

fn stdout() -> Option<&'static LineWriter> {
    let spawn = || LineWriter::spawn("stdout", |line| std::io::stdout().lock().write_all(line.as_bytes())).ok();
    STDOUT.get_or_init(spawn).as_ref()
}

/// Milliseconds since 1970, so that the events of several hosts can be put in one order.
#[must_use]
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// Which boot of this host it is; empty where nobody says.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// To the microsecond.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// From now on this process's events go to its journal too. Called once, before the first event; a journal that cannot be
/// written is a warning, and no reason not to protect.
pub fn record(who: Who, state_dir: &Path) -> std::io::Result<()> {
    let fields = json!({
        "schema": journal::SCHEMA, "vm": who.vm, "side": who.side, "node": who.node, "process": who.process,
        "pid": std::process::id(), "boot": boot(),
    });
    let Value::Object(fields) = fields else { return Ok(()) };
    let journal = Journals::spawn(state_dir, who.vm, who.side)?;
    let recorder = Recorder { who: fields, journal };
    let _ = RECORDER.set(recorder);
    Ok(())
}

/// Writes one event. `fields` must be an object; a stdout that is gone is no reason to stop protecting a VM.
pub fn emit(event: &str, fields: Value) {
    let mut line = Map::new();
    line.insert("event".to_owned(), json!(event));
    line.insert("at_ms".to_owned(), json!(rounded(unix_ms())));
    if let Value::Object(fields) = fields {
        line.extend(fields);
    }
    if let Some(stdout) = stdout() {
        stdout.put(as_line(&line));
    }
    let Some(recorder) = RECORDER.get() else { return };
    let mut whole = recorder.who.clone();
    whole.extend(line);
    whole.insert("boot_ms".to_owned(), json!(rounded(Clock.now().0 as f64 / 1e6)));
    recorder.journal.put(event, as_line(&whole));
}

fn as_line(line: &Map<String, Value>) -> String {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    text
}

/// Whether this process keeps a journal.
#[must_use]
pub fn is_recorded() -> bool {
    RECORDER.get().is_some()
}

/// Lines that the journal of this process lost: its queue was full, or its disk.
#[must_use]
pub fn journal_lost() -> u64 {
    RECORDER.get().map_or(0, |recorder| recorder.journal.lost())
}

/// Before the process ends: waits until everything is written, `patience` at most for each of both.
pub fn flush(patience: Duration) {
    if let Some(Some(stdout)) = STDOUT.get() {
        stdout.flush(patience);
    }
    if let Some(recorder) = RECORDER.get() {
        recorder.journal.flush(patience);
    }
}
