//! The QEMU that waits is looked after: one that died is started again, and a host that cannot do that says so, to its operator and
//! to the primary. One that is there and does nothing is as good as dead. Its NICs come back, too.

use super::main_loop::{NIC_PATIENCE, Node, VM_CHECK};
use anyhow::Result;
use mc_core::{
    id::{Epoch, Time},
    register::Owner,
    standby::Role,
};
use node::{
    events::{Event, Unexplained, emit},
    exit,
};
use std::time::Duration;
use vmm_qemu::standby::Look;

/// How long starting a QEMU may take before this loop counts as standing still.
const QEMU_START: Duration = Duration::from_secs(10);
/// Nothing was committed for so long, and for so many times the usual: nothing is committed any more. (How long an epoch is, is the
/// primary's affair.)
const NO_COMMIT: Duration = Duration::from_secs(5);
const TIMES: u32 = 10;

/// A TAP device that is missing, or down, for so long is not being mended at this moment.
const NO_TAP: Duration = Duration::from_secs(2);

/// A TAP device is missing, or down.
#[derive(Debug)]
pub(super) struct NoTap {
    why: String,
    since: Time,
    /// The primary was told.
    told: bool,
}

impl Node {
    /// A waiting QEMU that died is started again.
    pub(super) fn look_after_vm(&mut self) {
        let now = self.run.host.now();
        if now.since(self.checked_vm_at) < VM_CHECK || self.pending.is_some() {
            return;
        }
        self.checked_vm_at = now;
        self.look_after_taps(now);
        let Some(vm) = &mut self.vm else { return };
        let rests = vm.rests();
        let silent = match vm.look() {
            Look::Waits => {
                self.silent = None;
                return self.mend_nics();
            }
            // It may be let go on in a moment.
            Look::Stopped(why) => return self.tell_silent(why),
            Look::Silent(why) => {
                self.tell_silent(why);
                self.silent.as_ref()
            }
            Look::Ended => None,
        };
        let (due, news) = self.revival.found_dead(now);
        if news && !rests {
            tracing::warn!(why = silent, "the waiting QEMU died; starting it again over the same RAM file");
            emit(Event::WaitingQemuDied(Unexplained { why: silent.cloned() }));
        }
        if due {
            self.revive();
        }
    }

    /// It is there, and does nothing: it would not take the VM.
    fn tell_silent(&mut self, why: String) {
        if self.silent.is_none() {
            tracing::warn!("the QEMU that waits here {why}");
            emit(Event::WaitingQemuSilent(why.as_str().into()));
        }
        self.silent = Some(why);
    }

    fn revive(&mut self) {
        self.run.host.progress.busy(QEMU_START);
        let restarted = self.restart_vm();
        self.run.host.progress.mark();
        let now = self.run.host.now();
        match restarted {
            Ok(owner) => {
                if self.revival.unable().is_some() {
                    tracing::info!("the waiting QEMU starts again");
                    emit(Event::WaitingQemuStarts);
                }
                self.revival.succeeded(now);
                self.silent = None;
                self.run.driver.set_owner(owner);
                // One that was killed, and is not gone, holds its ends still.
                self.gate.hang_up();
                if let Err(error) = self.gate.connect(NIC_PATIENCE) {
                    self.mending.lost(now, error.to_string());
                }
            }
            Err(error) => {
                let why = exit::words(&error);
                tracing::warn!(why, "the waiting QEMU does not start");
                if self.revival.failed(now, why.clone()) {
                    tracing::error!(why, "this host cannot run the VM; telling the primary to go on alone");
                    emit(Event::WaitingQemuFails(why.as_str().into()));
                    self.run.driver.unable(format!("the QEMU that waits there died, and does not start again: {why}"));
                }
            }
        }
    }

    fn restart_vm(&mut self) -> Result<Owner> {
        let this = self.run.this;
        let vm = self.vm.as_mut().ok_or_else(|| anyhow::anyhow!("no VM waits here"))?;
        vm.restart()?;
        vm.owner(this)
    }

    /// A VM that is taken over without its TAP device is mute, and so it is while the device is down. So this host counts as one that
    /// cannot run it meanwhile: that is said at once, and to the primary unless the device is back in a moment.
    fn look_after_taps(&mut self, now: Time) {
        let Err(error) = self.gate.mend_ports(&self.config.nics) else {
            if self.no_tap.take().is_some() && self.vm.is_none() {
                self.mending.forget();
            }
            return;
        };
        let (since, told) = self.no_tap.as_ref().map_or((now, false), |missing| (missing.since, missing.told));
        let why = format!("a NIC of the VM would not work on this host: {error}");
        let tells = !told && now.since(since) >= NO_TAP;
        if tells {
            self.run.driver.unable(format!("a NIC of the VM would not work there: {error}"));
        }
        self.mending.lost(now, error.to_string());
        self.no_tap = Some(NoTap { why, since, told: told || tells });
    }

    /// NICs of a QEMU that waits; one that is gone has none.
    fn mend_nics(&mut self) {
        let Some(pid) = self.vm.as_mut().and_then(|vm| vm.pid()) else { return };
        let specs = self.config.nics.clone();
        // What fails is noted, and tried again.
        let _ = self.mending.mend(self.run.host.now(), &mut self.gate, &specs, Some(pid));
    }

    /// The gate could not be polled.
    pub(super) fn gate_failed(&mut self, why: String) {
        let now = self.run.host.now();
        if self.pending.is_none() {
            self.look_after_taps(now);
        }
        if self.no_tap.is_some() {
            return;
        }
        if self.vm.as_mut().is_some_and(|vm| vm.is_alive()) && self.pending.is_none() {
            self.mending.lost(now, why);
        } else {
            tracing::debug!(why, "gate");
        }
    }

    /// Why this side does not do its work, in words.
    pub(super) fn why_stalled(&self) -> Option<String> {
        let unable = self.revival.unable().map(|why| format!("the QEMU that waits here does not start: {why}"));
        let silent = self.silent.as_ref().map(|why| format!("the QEMU that waits here {why}"));
        let no_tap = self.no_tap.as_ref().map(|missing| missing.why.clone());
        let unstartable = self
            .unstartable
            .as_ref()
            .map(|why| format!("the waiting QEMU could not be started at the last try: {why}"));
        unable.or(silent).or(no_tap).or(unstartable).or_else(|| self.uncommitted())
    }

    /// Whether this host could run the VM now, as far as the primary was told of it.
    pub(super) fn would_run(&self) -> Result<(), String> {
        if let Some(why) = self.revival.unable() {
            return Err(format!("the QEMU that waits there died, and does not start again: {why}"));
        }
        match &self.no_tap {
            Some(missing) => Err(format!("there, {}", missing.why)),
            None => Ok(()),
        }
    }

    fn uncommitted(&self) -> Option<String> {
        if self.rehearsal.is_some() {
            return None; // who waits here is the primary
        }
        let machine = self.run.driver.machine();
        let figures = self.run.driver.figures();
        let last = figures.last_commit_at.filter(|_| machine.role() == Role::Protecting)?;
        let since = self.run.host.now().since(last);
        let limit = limit(last.since(figures.synced_at?), machine.committed().1);
        (since >= limit)
            .then(|| format!("no commit for {} s: check that the VM and its QEMU run on the primary", since.as_secs()))
    }
}

/// From the commit of the full synchronisation, which may take any time, to that of the newest epoch it was so long: how long none may be
/// committed.
fn limit(all: Duration, newest: Epoch) -> Duration {
    let epochs = u32::try_from(newest.0 - Epoch::FULL_SYNC.0).unwrap_or(u32::MAX).max(1);
    NO_COMMIT.max(all / epochs * TIMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_that_do_not_come_are_missed_by_how_long_they_used_to_take() {
        let limit = |ms, newest| limit(Duration::from_millis(ms), Epoch(newest)).as_secs();
        assert_eq!((limit(0, 1), limit(20, 2), limit(2000, 101)), (5, 5, 5), "short ones");
        assert_eq!((limit(1000, 2), limit(100_000, 101)), (10, 10), "of a second each");
    }
}
