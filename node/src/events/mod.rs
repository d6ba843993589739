//! What happens, typed: [`Event`]. Told as lines of JSON on stdout, for scripts and for the demo; and in the journal, for
//! `afterimage why`. Narration goes to stderr. The same with names, times and units: `docs/EVENTS.md`.
//!
//! | module | events of |
//! |---|---|
//! | `role` | what a process is to its VM, and how things stand |
//! | `swap` | the register |
//! | `suspicion` | silence, and absences of one's own |
//! | `link` | sessions |
//! | `vm` | the VM, its QEMU, its image |
//! | `output` | the gate, NICs, keepers |
//! | `witness` | the arbiter, identities |
//! | `operator` | orders, signals, ends |
//!
//! Events come from loops that hold a VM's output: none of them may wait for a pipe that nobody reads, or for a slow disk. So
//! stdout and the journal have a thread each, behind a queue that is bounded ([`crate::journal::LineWriter`]); what finds it
//! full is counted, and dropped.

mod event;
mod link;
mod operator;
mod output;
mod record;
mod role;
mod suspicion;
mod swap;
#[cfg(test)]
mod tests;
mod vm;
mod why;
mod witness;

pub use event::Event;
pub use link::{
    BeatsWish, Before, EpochRefused, FellBack, KeepaliveSet, Nack, NoSession, Refused, Rejoining, Set, Syncing,
    Transport,
};
pub use operator::{Ended, Exit, Operator, OperatorRefused, Order, Signal};
pub use output::{GateOutputs, KeeperEnded, KeeperStarted, Keeping, OutputFigures};
pub use record::{Record, Who};
pub use role::{
    Epochs, Goodbye, Process, Role, RoleChange, Side, StandbyStanding, Standing, Started, Waiting, WaitingForArbiter,
};
pub use suspicion::{OwnLate, PathSilence, Silence, Stalled, Suspect};
pub use swap::{
    Answered, Asking, CopyMissed, Fenced, HandBack, Lost, Outcome, RegisterRead, Renouncing, WaitingForStandby,
    Yielding,
};
pub use vm::{
    Abandoned, Attached, DataPathDied, Discarded, Exported, HealthChanged, ImageFound, ImageKept, LeftoverRemoved,
    QemuCommandChanged, QemuTimes, Reattached, Rehearsed, Rehearsing, Running, SourceBroken, Takeover, TakeoverFailed,
    VmGone, VmHealth,
};
pub use why::{Other, Unexplained, Why, WhyNow};
pub use witness::{ArbiterFault, ArbiterState, NewIdentity, WitnessAccepted};

use crate::{
    identity,
    journal::{Journals, LineWriter},
};
use mc_core::id::Name;
use serde_json::{Map, Value};
use std::{io::Write, path::Path, sync::OnceLock, time::Duration};

#[derive(Debug)]
struct Recorder {
    who: Who,
    boot: String,
    journal: Journals,
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();
/// Started by the first event. `None`: there is no thread to be had, and no reason to wait for a pipe instead.
static STDOUT: OnceLock<Option<LineWriter>> = OnceLock::new();

fn stdout() -> Option<&'static LineWriter> {
    let spawn = || LineWriter::spawn("stdout", |line| std::io::stdout().lock().write_all(line.as_bytes())).ok();
    STDOUT.get_or_init(spawn).as_ref()
}

/// ms, to the microsecond: as events have times.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// From now on this process's events go to the journal of its side of `vm` too. Called once, before the first event; a journal
/// that cannot be written is a warning, and no reason not to protect.
///
/// # Errors
/// There is no thread to be had.
pub fn record(vm: Name, side: Side, node: Name, process: Process, state_dir: &Path) -> std::io::Result<()> {
    let journal = Journals::spawn(state_dir, vm, side.as_str())?;
    let who = Who { vm, side, node, process, pid: std::process::id() };
    let _ = RECORDER.set(Recorder { who, boot: identity::boot_id().unwrap_or_default().to_owned(), journal });
    Ok(())
}

/// Tells an event. Never waits; a stdout that is gone is no reason to stop protecting a VM.
pub fn emit(event: Event) {
    #[cfg(feature = "testing")]
    if crate::outside::world::told(&event) {
        return;
    }
    let recorder = RECORDER.get();
    let (who, boot) = recorder.map_or((None, ""), |recorder| (Some(recorder.who), recorder.boot.as_str()));
    let record = Record::now(event, who, boot);
    let line = record.short();
    if let Some(stdout) = stdout() {
        stdout.put(as_line(&line));
    }
    if let Some(recorder) = recorder {
        recorder.journal.put(&record.event, as_line(&record.whole(line)));
    }
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
