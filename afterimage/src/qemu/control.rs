//! What a supervisor does to QEMU: into checkpoint mode, out of it, and to an end.

use super::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Leaving COLO joins a thread of QEMU's.
const LEAVING: Duration = Duration::from_secs(10);

/// What QEMU's migration is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColoState {
    /// Nothing, ever.
    None,
    /// The initial copy is on its way.
    Active,
    /// In checkpoint mode.
    Colo,
    /// It ended as a plain migration: this QEMU does not do COLO.
    Completed,
    /// Something else, in QEMU's words.
    Other(String),
}

/// What `query-migrate` says.
pub fn colo_state(qmp: &mut Qmp) -> Result<ColoState, QmpError> {
    let answer = qmp.execute("query-migrate", &json!({}), TIMEOUT)?;
    Ok(match answer["status"].as_str() {
        None => ColoState::None,
        Some("setup" | "active" | "pre-switchover" | "device") => ColoState::Active,
        Some("colo") => ColoState::Colo,
        Some("completed") => ColoState::Completed,
        Some(other) => ColoState::Other(other.to_owned()),
    })
}

/// Tells QEMU to send checkpoints to the socket at `path`.
pub fn start_colo(qmp: &mut Qmp, path: &Path) -> Result<(), QmpError> {
    let off = ["return-path", "multifd", "xbzrle", "postcopy-ram"];
    let mut capabilities: Vec<Value> = off.iter().map(|c| json!({ "capability": c, "state": false })).collect();
    capabilities.push(json!({ "capability": "x-colo", "state": true }));
    qmp.execute("migrate-set-capabilities", &json!({ "capabilities": capabilities }), TIMEOUT)?;
    // A delay of 1 ms: QEMU asks for the next checkpoint at once, and we pace by not answering (0 would make it spin).
    let parameters = json!({ "max-bandwidth": 10_000_000_000_u64, "x-checkpoint-delay": 1 });
    qmp.execute("migrate-set-parameters", &parameters, TIMEOUT)?;
    qmp.execute("migrate", &json!({ "uri": format!("unix:{}", path.display()) }), TIMEOUT)?;
    Ok(())
}

/// Ends checkpoint mode, from whatever point it has reached, and sees that the VM runs. Harmless when there is nothing to end.
///
/// The order matters: a `migrate` before `x-colo-lost-heartbeat` would leave QEMU 7.2 in a state that it cannot leave.
pub fn leave_colo(qmp: &mut Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + LEAVING;
    let mut told = false;
    loop {
        match colo_state(qmp)? {
            ColoState::Colo if !told => {
                qmp.execute("x-colo-lost-heartbeat", &json!({}), TIMEOUT)?;
                told = true;
            }
            ColoState::Active if !told => {
                qmp.execute("migrate_cancel", &json!({}), TIMEOUT)?;
                told = true;
            }
            ColoState::Colo | ColoState::Active => {}
            ColoState::Other(state) if state == "cancelling" => {}
            ColoState::None | ColoState::Completed | ColoState::Other(_) => return ensure_running(qmp),
        }
        if Instant::now() >= deadline {
            return Err(QmpError::Timeout { command: "x-colo-lost-heartbeat".to_owned(), timeout: LEAVING });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets a VM run that was stopped by migration, not by its operator.
pub fn ensure_running(qmp: &mut Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let status = qmp.execute("query-status", &json!({}), TIMEOUT)?;
        match status["status"].as_str().unwrap_or_default() {
            "postmigrate" | "finish-migrate" => drop(qmp.execute("cont", &json!({}), TIMEOUT)?),
            "colo" | "restore-vm" if Instant::now() < deadline => {}
            _ => return Ok(()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops a copy that lost the arbitration, for good.
pub fn fence(qmp: &mut Qmp) -> Result<(), QmpError> {
    let stopped = qmp.execute("stop", &json!({}), TIMEOUT);
    match qmp.execute("quit", &json!({}), TIMEOUT) {
        Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
        Err(error) => stopped.map(|_| ()).and(Err(error)),
    }
}
