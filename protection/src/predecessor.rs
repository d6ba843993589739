//! Whoever has the VM on this node already: it is asked to make way, and relieved.

use crate::keeper;
use anyhow::Result;
use api::{Control, ControlError, PATIENCE, RUNNING, Request, Response, Side, WAITING, ask_any, socket_path};
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use std::{
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Between two looks whether a place is free.
const STEP: Duration = Duration::from_millis(2);

/// What became of a process on this node that runs the VM solo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// No process of this VM answers here.
    Nobody,
    /// It goes on being the VM's way to its network until [`relieve_primary`] has it leave.
    MadeWay,
    /// A standby tells of the VM that it took over, and a keeper has the VM's network. It stays until [`relieve_teller`] has it leave.
    Tells,
    /// There is none, and a keeper passes the VM's packets, until a gate opens: see [`keeper::relieve`].
    Kept,
}

/// If a process on this node runs the VM solo, has it make way; and one whose supervisor is dead, which ends protection first. Its gate
/// was the VM's network: the caller must stay even if no standby is found.
///
/// # Errors
/// It does not: the VM is protected there.
pub fn ask_to_make_way(run_dir: &Path, vm: Name) -> Result<Predecessor> {
    let primary = socket_path(run_dir, vm, Side::Primary);
    if is_waiting(&primary) {
        tell_predecessor(&primary, vm, &Request::Handover)?;
        wait_until_gone(&primary)?;
    } else if tell_predecessor(&primary, vm, &Request::MakeWay)? {
        // Where it was protected, that ends first.
        await_its_end_of_protection(&primary)?;
        tell_predecessor(&primary, vm, &Request::MakeWay)?;
        return Ok(Predecessor::MadeWay);
    }
    let standby = socket_path(run_dir, vm, Side::Standby);
    match ask_any(&standby, &Request::Status, PATIENCE) {
        Err(ControlError::Io { .. }) => {}
        // It has let go of QEMU's control connection.
        Ok(Response::Status(status)) if status.role == RUNNING => return Ok(Predecessor::Tells),
        Err(error) => return Err(error.into()),
        Ok(_) => relieve_teller(run_dir, vm)?, // it says why not
    }
    Ok(keeper::running(run_dir, vm).map_or(Predecessor::Nobody, |_| Predecessor::Kept))
}

/// Whether somebody on this node has the VM, or its network.
#[must_use]
pub fn is_anybody_here(run_dir: &Path, vm: Name) -> bool {
    let there = |side| UnixStream::connect(socket_path(run_dir, vm, side)).is_ok();
    [Side::Primary, Side::Standby, Side::Keeper].into_iter().any(there)
}

/// Has a standby leave that tells of the VM that it took over. Its keeper stays.
///
/// # Errors
/// It does not leave.
pub fn relieve_teller(run_dir: &Path, vm: Name) -> Result<()> {
    let standby = socket_path(run_dir, vm, Side::Standby);
    if tell_predecessor(&standby, vm, &Request::Handover)? {
        wait_until_gone(&standby)?;
    }
    Ok(())
}

/// Whether it has not begun: its gate is closed, and the VM has no network to lose.
fn is_waiting(path: &Path) -> bool {
    let status = ask_any(path, &Request::Status, PATIENCE);
    matches!(status, Ok(Response::Status(status)) if status.role == WAITING)
}

/// Waits while who was told to make way ends protection through the arbiter.
fn await_its_end_of_protection(path: &Path) -> Result<()> {
    let start = Instant::now();
    while let Ok(Response::Status(status)) = ask_any(path, &Request::Status, PATIENCE) {
        if !matches!(status.role.as_str(), "registering" | "holding" | "protected" | "claiming") {
            break;
        }
        let what = format!(
            "the process at {} was told to end protection but has not; its role is {}",
            path.display(),
            status.role
        );
        anyhow::ensure!(start.elapsed() < PATIENCE * 5, what);
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// False: nobody is there (any more).
fn tell_predecessor(path: &Path, vm: Name, request: &Request) -> Result<bool> {
    match ask_any(path, request, PATIENCE) {
        Err(ControlError::Io { .. }) => Ok(false),
        // It may be gone before its answer is out.
        Err(ControlError::Answer { answer, .. }) if answer.is_empty() => Ok(true),
        Err(error) => Err(error.into()),
        Ok(Response::Done { .. }) => Ok(true),
        Ok(Response::Refused { message, .. }) => {
            let what = format!("another afterimage process on this node runs {vm}: {message}");
            Err(ExitError::new(Code::Failed, what).into())
        }
        Ok(Response::Away { message, remedy }) => {
            Err(ExitError::new(Code::Prerequisite, message).remedy(remedy).into())
        }
        Ok(other) => anyhow::bail!("{} answered with {other:?}", path.display()),
    }
}

/// Has the process that made way leave now, if it is there.
///
/// # Errors
/// It does not leave.
pub fn relieve_primary(run_dir: &Path, vm: Name) -> Result<()> {
    tell_predecessor(&socket_path(run_dir, vm, Side::Primary), vm, &Request::Handover).map(drop)
}

/// Serves the primary's control socket; `relieved`: in the place of a process that may still be leaving.
pub fn take_place(dirs: (&Path, &Path), (vm, node): (Name, Name), relieved: bool) -> Result<Control> {
    let start = Instant::now();
    loop {
        match Control::listen(dirs, vm, node, Side::Primary) {
            Err(error) if relieved && is_busy(&error) && start.elapsed() < PATIENCE => std::thread::sleep(STEP),
            listening => return listening,
        }
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ControlError::Busy { .. }))
}

fn wait_until_gone(path: &Path) -> Result<()> {
    let start = Instant::now();
    while ask_any(path, &Request::Status, PATIENCE).is_ok() {
        anyhow::ensure!(
            start.elapsed() < PATIENCE,
            "the process at {} agreed to leave, but is still running",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
