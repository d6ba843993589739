//! What a supervisor does with a VM over QMP: starts and leaves COLO, fences.
//!
//! It looks before it touches, and undoes what it did, nothing else: a VM that its operator paused stays paused, a migration
//! that its operator began goes on. Ours are those that have the capability x-colo, which is switched off when one ends.
//!
//! ```text
//!              start_colo                     (initial copy done)
//!  None ───────────────────> Active ──────────────────────────────> Colo
//!   ^                          │ migrate_cancel                       │ x-colo-lost-heartbeat
//!   └── Completed, Cancelled, Failed <── leave_colo ──────────────────┘   then `cont` where QEMU stopped the VM for good
//! ```
//!
//! `leave_colo` comes before the next `start_colo`, always: a QEMU 7.2 that is told to migrate while it is still in COLO
//! can never leave it again, and if its VM was stopped it stays so.

use super::qmp::{Qmp, QmpError};
use node::units::spoken;
use serde_json::{Value, json};
use std::{
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

/// For each command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// For a VM to come back after COLO, or QEMU to end.
const SETTLE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(2);
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// QEMU's name for its end of the stream.
const STREAM: &str = "afterimage";
/// Parameters that are set for checkpoints.
const PARAMETERS: [&str; 2] = ["max-bandwidth", "x-checkpoint-delay"];
/// Capabilities that change the stream, or do not go with COLO.
const OFF: &[&str] = &[
    "return-path",
    "multifd",
    "xbzrle",
    "postcopy-ram",
    "compress",
    "x-ignore-shared",
    "background-snapshot",
    "mapped-ram",
    "rdma-pin-all",
    "zero-copy-send",
    "block",
    "dirty-bitmaps",
    "release-ram",
    "pause-before-switchover",
    "auto-converge",
];

/// Why a VM could not be controlled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// This QEMU has no COLO.
    #[error("this QEMU ({version}) has no migration capability x-colo: it cannot send checkpoints")]
    NoColo {
        /// Its version.
        version: String,
    },
    /// COLO asks for more than is known here.
    #[error(
        "this QEMU ({version}) takes checkpoints only with the migration capability return-path (11.0 and later do), which \
         afterimage does not speak yet: use QEMU 7.2 (Debian 12) or 10.0.13 (Debian 13)"
    )]
    ReturnPath {
        /// Its version.
        version: String,
    },
    /// A migration is under way.
    #[error("a migration of the VM is under way, which afterimage did not begin ({0:?})")]
    Busy(MigrationState),
    /// Checkpoints of an earlier session.
    #[error("the VM is still in checkpoint mode")]
    InColo,
    /// The VM does not run.
    #[error("the VM must be running to be protected; it is {status:?}")]
    NotRunning {
        /// QEMU's word.
        status: String,
    },
    /// The machine hides what the end of the device state is recognised by.
    #[error("the VM's machine has suppress-vmdesc=on: start QEMU without it")]
    NoDescription,
    /// QEMU does not do what it was told.
    #[error("the VM is {status:?} and its migration {state:?}, {} after QEMU was told to {what}", spoken(*after))]
    Stuck {
        /// What it was told.
        what: &'static str,
        /// QEMU's word for the VM.
        status: String,
        /// The migration.
        state: MigrationState,
        /// For how long.
        after: Duration,
    },
}

/// Where QEMU's migration stands (`query-migrate`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// There was none.
    None,
    /// The initial copy is under way.
    Active,
    /// Checkpoints are being taken, or wait for us.
    Colo,
    /// Over. After COLO the VM runs; if COLO never began (QEMU 10.0.2), QEMU has stopped it.
    Completed,
    /// Given up on request.
    Cancelled,
    /// Failed; QEMU's reason, if it has one.
    Failed(String),
}

/// What is found of a VM before anything is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It runs, and nobody migrates it.
    Running,
    /// It is in checkpoint mode, or was stopped by it: whoever began that is dead. [`leave_colo`] comes first.
    LeftOver,
}

/// Looks whether a VM can be protected. Changes nothing.
pub fn look(qmp: &mut Qmp) -> Result<Found, ControlError> {
    let (state, ours) = (colo_state(qmp)?, is_colo(qmp)?);
    let status = run_state(qmp)?;
    match state {
        MigrationState::Colo => Ok(Found::LeftOver),
        MigrationState::Active if ours => Ok(Found::LeftOver),
        MigrationState::Active => Err(ControlError::Busy(state)),
        MigrationState::Completed if ours && status == "postmigrate" => Ok(Found::LeftOver),
        _ if status == "running" => Ok(Found::Running),
        _ => Err(ControlError::NotRunning { status }),
    }
}

/// QEMU's settings as they were before [`start_colo`]: for [`leave_colo`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Before {
    capabilities: Vec<Value>,
    parameters: Value,
}

/// Tells QEMU to send checkpoints into `stream`, of which it takes a copy. Returns at once, with what [`leave_colo`] puts
/// back; [`colo_state`] tells how it goes.
pub fn start_colo(qmp: &mut Qmp, stream: BorrowedFd<'_>) -> Result<Before, ControlError> {
    match look(qmp)? {
        Found::Running => {}
        Found::LeftOver => return Err(ControlError::InColo),
    }
    let suppressed = json!({ "path": "/machine", "property": "suppress-vmdesc" });
    if matches!(qmp.execute("qom-get", suppressed, TIMEOUT), Ok(Value::Bool(true))) {
        return Err(ControlError::NoDescription);
    }
    let before = before(qmp)?;
    if let Err(error) = begin(qmp, stream) {
        put_back(qmp, &before)?;
        return Err(error);
    }
    Ok(before)
}

fn begin(qmp: &mut Qmp, stream: BorrowedFd<'_>) -> Result<(), ControlError> {
    set_capabilities(qmp)?;
    // The delay is QEMU's timer between LOADED and the next REQUEST. 0 would burn a third of a core; pacing is ours anyway.
    let parameters = json!({ "max-bandwidth": 10_000_000_000_u64, "x-checkpoint-delay": 1 });
    qmp.execute("migrate-set-parameters", parameters, TIMEOUT)?;
    qmp.execute_with("getfd", json!({ "fdname": STREAM }), stream, TIMEOUT)?;
    let begun = qmp.execute("migrate", json!({ "uri": format!("fd:{STREAM}") }), TIMEOUT);
    if begun.is_err() {
        // QEMU may have taken it already.
        tell(qmp, "closefd", json!({ "fdname": STREAM }))?;
    }
    begun?;
    Ok(())
}

fn before(qmp: &mut Qmp) -> Result<Before, ControlError> {
    let found = qmp.execute("query-migrate-capabilities", Value::Null, TIMEOUT)?;
    if !has_capability(&found, "x-colo", false) {
        return Err(ControlError::NoColo { version: qmp.version() });
    }
    let mut capabilities: Vec<Value> =
        OFF.iter().filter(|name| has_capability(&found, name, true)).map(|name| capability(name, true)).collect();
    capabilities.push(capability("x-colo", false));
    let found = qmp.execute("query-migrate-parameters", Value::Null, TIMEOUT)?;
    let known = PARAMETERS.into_iter().filter(|name| !found[name].is_null());
    Ok(Before { capabilities, parameters: known.map(|name| (name.to_owned(), found[name].clone())).collect() })
}

fn set_capabilities(qmp: &mut Qmp) -> Result<(), ControlError> {
    let found = qmp.execute("query-migrate-capabilities", Value::Null, TIMEOUT)?;
    let off = OFF.iter().filter(|name| has_capability(&found, name, true)).map(|name| capability(name, false));
    let mut list: Vec<Value> = off.collect();
    list.push(capability("x-colo", true));
    match qmp.execute("migrate-set-capabilities", json!({ "capabilities": list }), TIMEOUT) {
        Err(QmpError::Command { desc, .. }) if desc.contains("return-path") => {
            Err(ControlError::ReturnPath { version: qmp.version() })
        }
        set => Ok(set.map(drop)?),
    }
}

fn has_capability(found: &Value, name: &str, on: bool) -> bool {
    let mut entries = found.as_array().into_iter().flatten();
    entries.any(|entry| entry["capability"] == name && (!on || entry["state"] == true))
}

fn capability(name: &str, on: bool) -> Value {
    json!({ "capability": name, "state": on })
}

/// Whether QEMU's migration is, or was, one of ours.
fn is_colo(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let found = qmp.execute("query-migrate-capabilities", Value::Null, TIMEOUT)?;
    Ok(has_capability(&found, "x-colo", true))
}

/// QEMU refuses while a migration is under way; then the next one's settings are wrong, and nothing else.
fn put_back(qmp: &mut Qmp, before: &Before) -> Result<(), QmpError> {
    tell(qmp, "migrate-set-capabilities", json!({ "capabilities": before.capabilities }))?;
    if before.parameters.as_object().is_some_and(|parameters| !parameters.is_empty()) {
        tell(qmp, "migrate-set-parameters", before.parameters.clone())?;
    }
    Ok(())
}

/// Where QEMU's migration stands.
pub fn colo_state(qmp: &mut Qmp) -> Result<MigrationState, QmpError> {
    Ok(migration_state(&qmp.execute("query-migrate", Value::Null, TIMEOUT)?))
}

/// What an answer to `query-migrate` says.
pub(super) fn migration_state(found: &Value) -> MigrationState {
    match found["status"].as_str() {
        None | Some("none") => MigrationState::None,
        Some("colo") => MigrationState::Colo,
        Some("completed") => MigrationState::Completed,
        Some("cancelled") => MigrationState::Cancelled,
        Some("failed") => MigrationState::Failed(found["error-desc"].as_str().unwrap_or_default().into()),
        Some(_) => MigrationState::Active,
    }
}

/// The VM's state, in QEMU's words (`query-status`): `running`, `paused`, `colo`, `postmigrate`, `inmigrate`, …
pub fn run_state(qmp: &mut Qmp) -> Result<String, QmpError> {
    let found = qmp.execute("query-status", Value::Null, TIMEOUT)?;
    let missing = QmpError::Answer { command: "query-status".into(), missing: "status" };
    found["status"].as_str().map(str::to_owned).ok_or(missing)
}

/// Ends a COLO session, wherever it stands, and returns once the VM runs, its settings as they were `before` (`None`: this
/// process began none; one of a dead process may be there). Without one, it does nothing: not to a VM that somebody paused,
/// and not to a migration that somebody else began. Can be repeated.
///
/// Only for the one who may run the VM (solo in the register).
pub fn leave_colo(qmp: &mut Qmp, before: Option<&Before>) -> Result<(), ControlError> {
    if before.is_none() && !is_colo(qmp)? {
        return Ok(());
    }
    let deadline = Instant::now() + SETTLE;
    let mut told: Option<(&str, Instant)> = None;
    let ended = loop {
        let state = colo_state(qmp)?;
        let (what, command) = match state {
            MigrationState::Colo => ("leave COLO", "x-colo-lost-heartbeat"),
            MigrationState::Active => ("cancel its migration", "migrate_cancel"),
            state => break state,
        };
        // Again after a while: QEMU forgets one that comes just when COLO begins. It refuses what it has heard already.
        if told.is_none_or(|(earlier, when)| earlier != command || when.elapsed() > TELL_AGAIN) {
            tell(qmp, command, Value::Null)?;
            told = Some((command, Instant::now()));
        }
        wait_step(qmp, deadline, what)?;
    };
    let settled = settle(qmp, ended == MigrationState::Completed);
    if !matches!(settled, Ok(()) | Err(ControlError::NotRunning { .. })) {
        return settled;
    }
    let off = Before { capabilities: vec![capability("x-colo", false)], parameters: Value::Null };
    put_back(qmp, before.unwrap_or(&off))?;
    settled
}

/// Waits until QEMU has resumed its VM after a migration. `completed`: it has not, if the migration completed as an ordinary
/// one does; then it is told to.
fn settle(qmp: &mut Qmp, completed: bool) -> Result<(), ControlError> {
    let deadline = Instant::now() + SETTLE;
    let mut continued = false;
    loop {
        match run_state(qmp)?.as_str() {
            // Whoever paused it while the initial copy ran wants it paused.
            "running" | "paused" => return Ok(()),
            "postmigrate" if completed && !continued => {
                qmp.execute("cont", Value::Null, TIMEOUT)?;
                continued = true;
            }
            // An incoming VM is not ours to start: its memory is not there yet.
            status @ ("inmigrate" | "suspended" | "io-error" | "internal-error" | "shutdown" | "guest-panicked") => {
                return Err(ControlError::NotRunning { status: status.into() });
            }
            _ => wait_step(qmp, deadline, "continue")?,
        }
    }
}

/// Ends a VM for good: stops it at once, then ends its QEMU. Works in COLO too. If QEMU does not answer, kill it
/// ([`super::qmp::kill_instance`]).
pub fn fence(qmp: &mut Qmp) -> Result<(), ControlError> {
    match qmp.execute("stop", Value::Null, TIMEOUT) {
        Ok(_) | Err(QmpError::Command { .. }) => {}
        Err(QmpError::Closed) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match qmp.send_only("quit", TIMEOUT) {
        Ok(()) => Ok(qmp.wait_closed(SETTLE)?),
        Err(QmpError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A command that may come too late: then QEMU refuses, and the state tells.
fn tell(qmp: &mut Qmp, command: &str, arguments: Value) -> Result<(), QmpError> {
    match qmp.execute(command, arguments, TIMEOUT) {
        Ok(_) | Err(QmpError::Command { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn wait_step(qmp: &mut Qmp, deadline: Instant, what: &'static str) -> Result<(), ControlError> {
    if Instant::now() >= deadline {
        let (status, state) = (run_state(qmp)?, colo_state(qmp)?);
        return Err(ControlError::Stuck { what, status, state, after: SETTLE });
    }
    thread::sleep(STEP);
    Ok(())
}
