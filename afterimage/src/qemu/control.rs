//! What a supervisor does with a VM over QMP: starts and leaves COLO, fences.
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
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// For each command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// For a VM to come back after COLO, or QEMU to end.
const SETTLE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(2);
const TELL_AGAIN: Duration = Duration::from_millis(200);
/// Bytes of a unix socket's path at most (`sun_path`, with its end).
const MAX_SOCKET_PATH: usize = 107;
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
    /// A migration is under way.
    #[error("a migration is under way already ({0:?}): leave it first")]
    Busy(MigrationState),
    /// The VM does not run.
    #[error("the VM is {status:?}, and has to run to be protected")]
    NotRunning {
        /// QEMU's word.
        status: String,
    },
    /// The machine hides what the end of the device state is recognised by.
    #[error("the VM's machine has suppress-vmdesc=on: start QEMU without it")]
    NoDescription,
    /// The socket's path.
    #[error("{}: a socket's path has at most {MAX_SOCKET_PATH} bytes, of UTF-8", .0.display())]
    Path(PathBuf),
    /// QEMU does not do what it was told.
    #[error("the VM is {status:?} and its migration {state:?}, {after:?} after QEMU was told to {what}")]
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
    /// Over. After COLO the VM runs; if COLO never began (QEMU 10.0, 10.1), QEMU has stopped it.
    Completed,
    /// Given up on request.
    Cancelled,
    /// Failed; QEMU's reason, if it has one.
    Failed(String),
}

/// Tells QEMU to send checkpoints to the unix socket at `path`. Returns at once; [`colo_state`] tells how it goes.
pub fn start_colo(qmp: &mut Qmp, path: &Path) -> Result<(), ControlError> {
    let uri = match path.to_str() {
        Some(text) if text.len() <= MAX_SOCKET_PATH => format!("unix:{text}"),
        _ => return Err(ControlError::Path(path.to_owned())),
    };
    let state = colo_state(qmp)?;
    if matches!(state, MigrationState::Active | MigrationState::Colo) {
        return Err(ControlError::Busy(state));
    }
    let status = run_state(qmp)?;
    if status != "running" {
        return Err(ControlError::NotRunning { status });
    }
    let suppressed = json!({ "path": "/machine", "property": "suppress-vmdesc" });
    if matches!(qmp.execute("qom-get", suppressed, TIMEOUT), Ok(Value::Bool(true))) {
        return Err(ControlError::NoDescription);
    }
    set_capabilities(qmp)?;
    // The delay is QEMU's timer between LOADED and the next REQUEST. 0 would burn a third of a core; pacing is ours anyway.
    let parameters = json!({ "max-bandwidth": 10_000_000_000_u64, "x-checkpoint-delay": 1 });
    qmp.execute("migrate-set-parameters", parameters, TIMEOUT)?;
    qmp.execute("migrate", json!({ "uri": uri }), TIMEOUT)?;
    Ok(())
}

fn set_capabilities(qmp: &mut Qmp) -> Result<(), ControlError> {
    let found = qmp.execute("query-migrate-capabilities", Value::Null, TIMEOUT)?;
    let has = |name: &str, on: bool| {
        let mut entries = found.as_array().into_iter().flatten();
        entries.any(|entry| entry["capability"] == name && (!on || entry["state"] == true))
    };
    if !has("x-colo", false) {
        return Err(ControlError::NoColo { version: qmp.version() });
    }
    let off = OFF.iter().filter(|name| has(name, true)).map(|name| json!({ "capability": name, "state": false }));
    let mut list: Vec<Value> = off.collect();
    list.push(json!({ "capability": "x-colo", "state": true }));
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": list }), TIMEOUT)?;
    Ok(())
}

/// Where QEMU's migration stands.
pub fn colo_state(qmp: &mut Qmp) -> Result<MigrationState, QmpError> {
    let found = qmp.execute("query-migrate", Value::Null, TIMEOUT)?;
    Ok(match found["status"].as_str() {
        None | Some("none") => MigrationState::None,
        Some("colo") => MigrationState::Colo,
        Some("completed") => MigrationState::Completed,
        Some("cancelled") => MigrationState::Cancelled,
        Some("failed") => MigrationState::Failed(found["error-desc"].as_str().unwrap_or_default().into()),
        Some(_) => MigrationState::Active,
    })
}

/// The VM's state, in QEMU's words (`query-status`): `running`, `paused`, `colo`, `postmigrate`, `inmigrate`, …
pub fn run_state(qmp: &mut Qmp) -> Result<String, QmpError> {
    let found = qmp.execute("query-status", Value::Null, TIMEOUT)?;
    let missing = QmpError::Answer { command: "query-status".into(), missing: "status" };
    found["status"].as_str().map(str::to_owned).ok_or(missing)
}

/// Ends a COLO session, wherever it stands, and returns once the VM runs. Without one, it just makes sure that the VM
/// runs. Can be repeated.
///
/// Only for the one who may run the VM (solo in the register).
pub fn leave_colo(qmp: &mut Qmp) -> Result<(), ControlError> {
    let deadline = Instant::now() + SETTLE;
    let mut told: Option<(&str, Instant)> = None;
    loop {
        let state = colo_state(qmp)?;
        let (what, command) = match state {
            MigrationState::Colo => ("leave COLO", "x-colo-lost-heartbeat"),
            MigrationState::Active => ("cancel its migration", "migrate_cancel"),
            _ => break,
        };
        // Again after a while: QEMU forgets one that comes just when COLO begins. It refuses what it has heard already.
        if told.is_none_or(|(earlier, when)| earlier != command || when.elapsed() > TELL_AGAIN) {
            tell(qmp, command)?;
            told = Some((command, Instant::now()));
        }
        wait_step(qmp, deadline, what)?;
    }
    ensure_running(qmp)
}

/// Makes sure that the VM runs. It says `cont` if QEMU has stopped the VM for good (after a migration that completed, or a
/// `stop`), and waits if QEMU is about to resume it.
pub fn ensure_running(qmp: &mut Qmp) -> Result<(), ControlError> {
    let deadline = Instant::now() + SETTLE;
    let mut continued = false;
    loop {
        match run_state(qmp)?.as_str() {
            "running" => return Ok(()),
            "postmigrate" | "paused" | "prelaunch" if !continued => {
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
fn tell(qmp: &mut Qmp, command: &str) -> Result<(), QmpError> {
    match qmp.execute(command, Value::Null, TIMEOUT) {
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
