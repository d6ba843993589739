//! Which process of a VM a command is for; and the one way to say that there is none.

use super::socket_path;
use crate::{
    cli::Side,
    exit::{Code, ExitError},
};
use mc_core::id::Name;
use std::path::{Path, PathBuf};

/// What may run here for a VM.
pub(super) const SIDES: [Side; 3] = [Side::Primary, Side::Standby, Side::Keeper];

/// The control socket of the first of the `wanted` sides that runs here for `vm`; `command` is what wants it.
///
/// # Errors
/// There is none: another side runs here, or nothing does.
pub(crate) fn find(run_dir: &Path, vm: Name, wanted: &[Side], command: &str) -> Result<(PathBuf, Side), ExitError> {
    let there = |side: &Side| socket_path(run_dir, vm, *side).exists();
    if let Some(side) = wanted.iter().copied().find(there) {
        return Ok((socket_path(run_dir, vm, side), side));
    }
    let Some(here) = SIDES.into_iter().find(there) else { return Err(nobody(Some(vm), run_dir)) };
    let of = wanted.iter().map(|side| side.as_str()).collect::<Vec<_>>().join(" or the ");
    let what = format!("`{command}` is for the {of} of {vm}; what runs on this host is its {}", here.as_str());
    let remedy = match here {
        Side::Keeper => "nobody protects the VM: start `afterimage protect` (a keeper only passes the VM's packets)",
        Side::Primary | Side::Standby => {
            "run it on the other host of the pair; `afterimage status` shows what runs on a host"
        }
    };
    Err(ExitError::new(Code::Failed, what).remedy(remedy))
}

/// Nothing runs here: for that VM, or for any.
pub(crate) fn nobody(vm: Option<Name>, run_dir: &Path) -> ExitError {
    let whom = vm.map_or_else(String::new, |vm| format!(" for {vm}"));
    let what = format!("nothing runs here{whom}: no control socket in {}", run_dir.display());
    ExitError::new(Code::Failed, what)
        .remedy("start `afterimage protect` or `afterimage standby`, or name the --run-dir that they use")
}
