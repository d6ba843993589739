//! Finds the process of a VM that a command is for, and reports when there is none.

use api::{Side, ended, is_served, socket_path};
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use std::path::{Path, PathBuf};

/// The control socket of the first of the `wanted` sides that lives here for `vm`; `command` is what wants it.
///
/// # Errors
/// There is none: another side runs here, or the wanted one died, or nothing runs.
pub(crate) fn find(run_dir: &Path, vm: Name, wanted: &[Side], command: &str) -> Result<(PathBuf, Side), ExitError> {
    let lives = |side: &Side| is_served(&socket_path(run_dir, vm, *side));
    if let Some(side) = wanted.iter().copied().find(lives) {
        return Ok((socket_path(run_dir, vm, side), side));
    }
    let Some(here) = Side::ALL.into_iter().find(lives) else {
        return Err(dead(run_dir, vm, wanted).unwrap_or_else(|| nobody(Some(vm), run_dir)));
    };
    Err(another(here, vm, wanted, command))
}

/// The same, for who shows what was left of a process that died, too.
pub(crate) fn left(run_dir: &Path, vm: Name, wanted: &[Side], command: &str) -> Result<(), ExitError> {
    match wanted.iter().any(|side| socket_path(run_dir, vm, *side).exists()) {
        true => Ok(()),
        false => find(run_dir, vm, wanted, command).map(drop),
    }
}

fn another(here: Side, vm: Name, wanted: &[Side], command: &str) -> ExitError {
    let of = wanted.iter().map(|side| side.as_str()).collect::<Vec<_>>().join(" or the ");
    let what = format!("`{command}` is for the {of} of {vm}; what runs on this host is its {}", here.as_str());
    let remedy = match here {
        Side::Keeper => "nobody protects the VM: start `afterimage protect` (a keeper only passes the VM's packets)",
        Side::Primary | Side::Standby => {
            "run it on the other host of the pair; `afterimage status` shows what runs on a host"
        }
    };
    ExitError::new(Code::Failed, what).remedy(remedy)
}

/// A wanted side that left its socket.
fn dead(run_dir: &Path, vm: Name, wanted: &[Side]) -> Option<ExitError> {
    let side = wanted.iter().copied().find(|side| socket_path(run_dir, vm, *side).exists())?;
    let path = socket_path(run_dir, vm, side);
    let (what, remedy) = ended(&path, vm, side);
    Some(
        ExitError::new(Code::Failed, format!("the {} of {vm} does not run any more: {what}", side.as_str()))
            .remedy(remedy),
    )
}

/// Nothing runs here: for that VM, or for any.
pub(crate) fn nobody(vm: Option<Name>, run_dir: &Path) -> ExitError {
    let whom = vm.map_or_else(String::new, |vm| format!(" for {vm}"));
    let what = format!("nothing runs here{whom}: no control socket in {}", run_dir.display());
    // A process that was fenced has left with its socket.
    let ended = vm.map_or_else(|| "`afterimage why`".to_owned(), |vm| format!("`afterimage why --vm {vm}`"));
    ExitError::new(Code::Failed, what).remedy(format!(
        "start `afterimage protect` or `afterimage standby`; if they use another --run-dir, give the same here; if one ran here, \
         {ended} shows how it ended"
    ))
}
