//! `--rejoin`: a primary that was fenced becomes the next standby, so that the VM, which runs on the other host now, is protected
//! again as soon as that host looks for a standby here.

use crate::processes::{Program, Rejoin};
use anyhow::Result;
use node::{
    events::{self, Event, Rejoining, emit},
    exit::{Code, ExitError, words},
};
use std::{
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};
use vmm_qemu::qmp::has_ended;

/// For the fenced QEMU to end: it was told to.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

/// Replaces this process by the next standby, once the fenced QEMU, of this pid and instance, is gone. Returns
/// only when that cannot be.
pub(super) fn stand_by(program: Program, next: &Rejoin, qemu: (u32, u64), fenced: &anyhow::Error) -> Result<Code> {
    let why = words(fenced);
    if !is_gone(qemu) {
        let what = format!("{why}. Its QEMU (process {}) is still there, so this host does not stand by yet", qemu.0);
        let remedy = "end that QEMU, then start `afterimage standby`";
        return Err(ExitError::new(Code::Fenced, what).remedy(remedy).into());
    }
    tracing::warn!(why, "fenced; standing by for {} now, at {}", next.vm, next.listen);
    emit(Event::Rejoining(Rejoining { vm: next.vm, listen: next.listen, why: why.clone() }));
    events::flush(Duration::from_secs(1));
    let program = (program.path)();
    let error = Command::new(&program).args(&next.arguments).exec();
    Err(ExitError::new(Code::Fenced, format!("{why}. Starting {} failed: {error}", program.display())).into())
}

fn is_gone((pid, instance): (u32, u64)) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !has_ended(pid, instance) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}
