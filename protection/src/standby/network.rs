//! The network of the VM that runs here: a keeper has it, and is started again if it dies.

use crate::{keeper, keeper::Charge, keeper::Keeper};
use mc_core::{gate::OutputGate, id::Time};
use node::{
    clock::Clock,
    events::{Event, KeeperEnded, KeeperStarted, emit},
    exit,
    inbox::{self, readable},
};
use rustix::event::PollFd;
use std::{os::fd::AsFd, time::Duration};
use vmm_qemu::gate::{NicGate, TapPort};

/// From one attempt to start a keeper to the next: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Between two looks whether the TAP devices are there, and up.
const TAPS: Duration = Duration::from_secs(1);

/// The keeper of the VM's network, and when to start another.
#[derive(Debug)]
pub(super) struct Network {
    /// What a keeper is to keep; `None` while the register does not say that the VM is this node's.
    charge: Option<Charge>,
    /// The gate that the VM was taken over with, until a keeper has it.
    gate: Option<NicGate>,
    keeper: Option<Keeper>,
    try_at: Time,
    pause: Duration,
    trouble: Option<String>,
    /// The TAP device that is not there, or down.
    missing: Option<String>,
    taps_at: Time,
}

impl Network {
    /// Of a VM that was just taken over, with its open gate.
    pub(super) fn taken_over(charge: Charge, gate: NicGate) -> Self {
        Self { gate: Some(gate), charge: Some(charge), ..Self::found(None) }
    }

    /// Of a VM that was found running here, with its keeper if it has one.
    pub(super) fn found(keeper: Option<Keeper>) -> Self {
        Self {
            charge: None,
            gate: None,
            keeper,
            try_at: Time(0),
            pause: RETRY.0,
            trouble: None,
            missing: None,
            taps_at: Time(0),
        }
    }

    /// The register says (solo, this node): the network may be kept.
    pub(super) fn entitle(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    pub(super) fn is_entitled(&self) -> bool {
        self.charge.is_some()
    }

    /// What to wait for before the next look.
    pub(super) fn wait_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if let Some(gate) = &self.gate {
            inbox::gate(fds, gate);
        }
        fds.extend(self.keeper.iter().map(|keeper| readable(keeper.as_fd())));
    }

    /// When to look again at the latest.
    pub(super) fn deadline(&self) -> Option<Time> {
        let wanted = self.keeper.is_none() && self.charge.as_ref().is_some_and(|charge| !charge.nics.is_empty());
        wanted.then_some(self.try_at)
    }

    /// Passes packets while that is ours to do, and sees to it that it is not.
    pub(super) fn look(&mut self) {
        let now = Clock.now();
        if let Some(gate) = &mut self.gate {
            gate.tick(now);
            if let Err(error) = gate.poll() {
                tracing::debug!(%error, "gate");
            }
        }
        if let Some(keeper) = &mut self.keeper
            && keeper.has_ended()
        {
            let pid = keeper.pid();
            tracing::warn!(pid, "the keeper of the VM's network ended; starting another");
            emit(Event::KeeperEnded(KeeperEnded { keeper: pid }));
            self.keeper = None;
        }
        if self.taps_at <= now {
            self.taps_at = now.after(TAPS);
            self.look_for_taps();
        }
        if self.deadline().is_some_and(|at| at <= now) {
            self.start(now);
        }
    }

    /// A NIC whose TAP device is missing, or down, has no network. Whoever has the packets opens it as soon as it is there.
    fn look_for_taps(&mut self) {
        let Some(charge) = &self.charge else { return };
        let found = match &mut self.gate {
            Some(gate) => gate.mend_ports(&charge.nics),
            None => charge.nics.iter().try_for_each(|nic| TapPort::is_up(&nic.tap)),
        };
        let missing = found.err().map(|error| error.to_string());
        if let Some(why) = missing.as_ref().filter(|why| self.missing.as_ref() != Some(why)) {
            tracing::error!(why, "a NIC of the VM has no network; trying again");
        }
        self.missing = missing;
    }

    /// For the status: what does not work.
    pub(super) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    fn start(&mut self, now: Time) {
        let Some(charge) = &self.charge else { return };
        // An operator may have started one.
        let there = keeper::running(&charge.run_dir, charge.vm).map(|keeper| Ok(Some(keeper)));
        let started = there.unwrap_or_else(|| keeper::take_network(charge, self.gate.as_mut()));
        match started {
            Ok(Some(keeper)) => {
                let handed_over = self.gate.take().is_some();
                let (pid, generation) = (keeper.pid(), charge.generation);
                tracing::info!(pid, "a keeper has the VM's network");
                emit(Event::KeeperStarted(KeeperStarted { keeper: pid, generation, handed_over }));
                (self.keeper, self.trouble, self.pause) = (Some(keeper), None, RETRY.0);
            }
            Ok(None) => {}
            Err(error) => {
                let why = exit::words(&error);
                if self.trouble.as_ref() != Some(&why) {
                    tracing::error!(why, "no keeper for the VM's network; trying again");
                    emit(Event::KeeperFailed(why.as_str().into()));
                }
                self.trouble = Some(why);
                self.try_at = Time(now.0.saturating_add(u64::try_from(self.pause.as_nanos()).unwrap_or(u64::MAX)));
                self.pause = (self.pause * 2).min(RETRY.1);
            }
        }
    }

    /// The gate, while packets still pass through this process.
    pub(super) fn gate(&self) -> Option<&NicGate> {
        self.gate.as_ref()
    }

    /// Who has the network, for the operator.
    pub(super) fn note(&self) -> Option<String> {
        let trouble = self.trouble.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        match (&self.keeper, &self.gate, &self.charge) {
            (Some(keeper), ..) => {
                Some(format!("process {} keeps the VM's network, so this process can end without harm", keeper.pid()))
            }
            (None, Some(gate), _) if gate.nics().next().is_some() => {
                Some(format!("the VM's network passes through this process and would end with it{trouble}"))
            }
            (None, None, Some(charge)) if !charge.nics.is_empty() => Some(format!("the VM has no network{trouble}")),
            _ => None,
        }
    }
}
