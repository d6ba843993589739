//! A primary whose VM provably does not run ([`super::vm_health`]) does not hold on to it: it sends no beats, so that its
//! standby suspects it, and does not ask the arbiter for what the standby wants. It reads the register instead: it is fenced when the
//! standby has won, and asks after all when its VM runs again before anybody took it.

use super::{data_path::DataPath, vm_health::Health};
use mc_core::{
    id::Time,
    primary::{Event, Role},
    register::Swap,
};
use node::{
    arbiter::Ask,
    events::{Event as Told, HealthChanged, Yielding, emit},
};
use std::time::Duration;

/// Between two readings of the register.
const READ: Duration = Duration::from_secs(1);

/// A swap that is not asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    pub(super) swap: Swap,
    pub(super) read_at: Time,
}

impl DataPath {
    /// Looks whether the VM runs, and yields or goes on.
    pub(super) fn look_at_the_vm(&mut self) {
        let now = self.run.host.now();
        let before = self.vm.health().clone();
        let health = self.vm.look(now).clone();
        if health != before {
            tracing::warn!(why = health.why().unwrap_or("it runs"), "the VM");
            emit(Told::VmHealth(HealthChanged { health: health.into() }));
        }
        let yields = self.yields();
        if let Some(beats) = self.run.host.beats() {
            beats.withhold(yields);
        }
        if yields {
            // Whoever takes the VM over has all that was ACKed; nothing more leaves here before a fresh ACK.
            self.run.driver.event(Event::Stalled);
        }
        if yields { self.read_for_parked(now) } else { self.ask_parked() }
    }

    /// Whether somebody else had better run the VM.
    pub(super) fn yields(&self) -> bool {
        let shared = matches!(self.run.driver.machine().role(), Role::Protected | Role::Claiming);
        shared && matches!(self.vm.health(), Health::Halted(_))
    }

    /// Does not ask for a VM that would not run here.
    pub(super) fn park(&mut self, swap: Swap) {
        emit(Told::Yielding(Yielding { why: self.vm.health().why().map(str::to_owned), expect: swap.expect }));
        self.parked = Some(Parked { swap, read_at: self.run.host.now() });
        self.run.host.arbiter.ask(Ask::Read);
    }

    fn read_for_parked(&mut self, now: Time) {
        if let Some(parked) = self.parked.as_mut().filter(|parked| now.since(parked.read_at) >= READ) {
            parked.read_at = now;
            self.run.host.arbiter.ask(Ask::Read);
        }
    }

    /// It runs again, or an operator decides: asks after all.
    pub(super) fn ask_parked(&mut self) {
        let Some(Parked { swap, .. }) = self.parked.take() else { return };
        if self.run.driver.machine().role() == Role::Claiming {
            self.ask_for(swap);
        }
    }

    /// The register was read, and the machine has heard it. If it names another owner above, this copy is fenced; then there is nothing to
    /// ask for.
    pub(super) fn forget_what_is_decided(&mut self) {
        self.parked.take_if(|_| self.run.role() != Role::Claiming);
    }
}
