//! The takeover: the VM is ours, and has to run here. What stands in the way is said, and tried again for ever: the register
//! names this node, so nobody else may run it, and this image is the last copy.
//!
//! ```text
//!   TakeOver ──> gate there? ──> a QEMU waits? ──yes──────────────────> gate opens, QEMU is fed ──> runs
//!                  │ no             │ no                 ^                │ no
//!                  │                └──> one is started ─┘                │
//!                  └──────────> said; in 0, 1, 2, 4 … 30 s again <────────┘
//! ```
//!
//! QEMU is started and fed on a thread: the loop goes on pumping the gate and answering its operator.

use super::{
    main_loop::{NIC_PATIENCE, Node},
    running,
    task::Task,
    vm::Lent,
    why_not::protect_again,
};
use anyhow::{Context, Result};
use mc_core::{gate::OutputGate, id::Time, standby::Event};
use node::{
    events::{self, Event as Told, QemuTimes, TakeoverFailed, emit},
    exit,
    standby::{StandbyLoop, Won},
    units::spoken,
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};
use vmm_qemu::standby::{StandbyError, TakeoverTimes};

/// Between two attempts at most.
const LONGEST: Duration = Duration::from_secs(30);

/// A takeover that has not succeeded yet.
#[derive(Debug)]
pub(super) struct Pending {
    won: Won,
    pub(super) attempt: Option<Task<Attempt>>,
    failures: u32,
    /// Why the last attempt failed.
    why: String,
    /// `None` while one is under way, and when there is no use in another.
    again_at: Option<Time>,
    /// Since when one is under way.
    tried_at: Time,
}

/// What a thread brings back.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) lent: Lent,
    /// Of a QEMU that was only started, nothing.
    outcome: Result<Option<TakeoverTimes>, StandbyError>,
}

impl Attempt {
    /// Whether its guest may have written to the image.
    pub(super) fn has_run(&self) -> bool {
        match &self.outcome {
            Ok(times) => times.is_some(),
            Err(error) => error.is_spoiled(),
        }
    }
}

impl Pending {
    /// Whether a guest may have written to the image, so that there is no use in another attempt.
    pub(super) fn is_spoiled(&self) -> bool {
        self.attempt.is_none() && self.again_at.is_none()
    }

    /// For status.
    pub(super) fn note(&self, vm: &str, now: Time) -> Option<String> {
        let tried = now.since(self.tried_at).as_secs();
        if self.failures == 0 {
            return Some(format!("the takeover is being tried for {tried} s"));
        }
        let (times, why) = (self.failures, &self.why);
        let next = match self.again_at {
            Some(at) => format!("tried again in {} s", at.since(now).as_secs_f64().ceil()),
            None if self.attempt.is_some() => format!("being tried again for {tried} s"),
            None => "not tried again".to_owned(),
        };
        Some(format!(
            "the takeover failed {times} times, {next}: {why}. Image, device state and register are kept. {}",
            remedy(vm)
        ))
    }
}

fn remedy(vm: &str) -> String {
    format!("What to do: fix the named cause, or export the VM with `afterimage image export --vm {vm} --to DIR`")
}

impl Node {
    /// The VM is ours.
    pub(super) fn begin_takeover(&mut self, won: Won) -> Result<()> {
        if self.vm.is_none() || self.run.driver.image().is_none() {
            anyhow::bail!("{} is ours, but there is no VM to run: this is a bug", won.generation);
        }
        self.pending =
            Some(Pending { won, attempt: None, failures: 0, why: String::new(), again_at: None, tried_at: won.at });
        self.call_export_off();
        self.attempt();
        Ok(())
    }

    /// Whether QEMU is being started or fed.
    pub(super) fn is_attempting(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.attempt.is_some())
    }

    /// What to wait for.
    pub(super) fn attempt_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pending.as_ref()?.attempt.as_ref().map(AsFd::as_fd)
    }

    /// Goes on with a takeover: what came of an attempt, or the next one. An export that an operator asked for comes first.
    pub(super) fn pursue_takeover(&mut self) {
        let now = self.run.host.now();
        let Some(pending) = &mut self.pending else { return };
        if let Some(ended) = pending.attempt.as_ref().and_then(Task::take) {
            pending.attempt = None;
            return self.attempted(ended);
        }
        if self.export.is_none() && pending.again_at.is_some_and(|at| now >= at) {
            pending.again_at = None;
            self.attempt();
        }
    }

    fn attempt(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.tried_at = self.run.host.now();
        }
        if let Err(error) = self.try_attempt() {
            self.failed(&error, true);
        }
    }

    fn try_attempt(&mut self) -> Result<()> {
        self.mend_gate();
        let mut lent = self.vm.as_mut().context("a waiting VM")?.lend();
        if lent.is_alive() {
            return self.feed(lent);
        }
        self.on_a_thread("starting QEMU", move || Attempt { outcome: lent.start().map(|()| None), lent })
    }

    /// Its gate opens before it runs: from here on it is the one visible copy.
    fn feed(&mut self, mut lent: Lent) -> Result<()> {
        let (Some(vm), Some(image)) = (&self.vm, self.run.driver.image()) else { anyhow::bail!("there is no image") };
        let state = vm.state(image);
        if let Err(error) = self.gate.open() {
            self.give_back(lent);
            return Err(error).context("opening the gate");
        }
        self.on_a_thread("takeover", move || Attempt { outcome: lent.take_over(&state).map(Some), lent })
    }

    fn on_a_thread(&mut self, name: &str, work: impl FnOnce() -> Attempt + Send + 'static) -> Result<()> {
        let task = Task::spawn(name, work).context("a thread for the takeover")?;
        if let Some(pending) = &mut self.pending {
            pending.attempt = Some(task);
        }
        Ok(())
    }

    fn give_back(&mut self, lent: Lent) {
        if let Some(vm) = &mut self.vm {
            vm.give_back(lent);
        }
    }

    fn attempted(&mut self, ended: std::io::Result<Attempt>) {
        let Attempt { mut lent, outcome } = match ended {
            Ok(attempt) => attempt,
            Err(error) => return self.failed(&error.into(), true),
        };
        match outcome {
            Ok(Some(times)) => {
                self.give_back(lent);
                self.succeeded(times);
            }
            Ok(None) => {
                // A QEMU waits: its NICs are ours to connect, and then it is fed. One that was killed, and is not gone, holds its ends.
                if !lent.is_alive() {
                    self.give_back(lent);
                    return self.failed(&anyhow::anyhow!("the QEMU that was started has ended again"), true);
                }
                self.gate.hang_up();
                let fed = match self.gate.connect(NIC_PATIENCE) {
                    Ok(()) => self.feed(lent),
                    Err(error) => {
                        self.give_back(lent);
                        Err(error.into())
                    }
                };
                if let Err(error) = fed {
                    self.failed(&error, true);
                }
            }
            Err(error) => {
                self.give_back(lent);
                let again = !error.is_spoiled();
                self.failed(&error.into(), again);
            }
        }
    }

    fn succeeded(&mut self, times: TakeoverTimes) {
        let Some(pending) = self.pending.take() else { return };
        if let Some(vm) = &self.vm {
            vm.runs();
        }
        self.claim = None;
        // What was wrong with the QEMU that waited, or with its network, is another matter from now on.
        (self.revival, self.silent, self.no_tap, self.unstartable) = Default::default();
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let qemu = QemuTimes { sent_ms: ms(times.sent), resumed_ms: ms(times.resumed) };
        self.took_over(&pending.won, qemu);
        self.run.driver.event(Event::Running);
    }

    fn took_over(&mut self, won: &Won, qemu: QemuTimes) {
        let takeover = self.run.takeover(won);
        let qmp = running::qmp_path(&self.config);
        let what_to_do = protect_again(&self.config, self.run.host.peer());
        tracing::info!(what_to_do, "the VM runs here, unprotected");
        emit(Told::Running(Box::new(events::Running {
            generation: won.generation,
            epoch: won.epoch,
            since_suspicion: takeover,
            qemu: Some(qemu),
            qmp: Some(qmp),
            standing: Some(self.standing()),
        })));
        (self.takeover, self.won) = (Some(takeover), Some(won.generation));
    }

    fn failed(&mut self, error: &anyhow::Error, again: bool) {
        let now = self.run.host.now();
        let Some(pending) = &mut self.pending else { return };
        pending.failures += 1;
        pending.why = exit::words(error);
        // What was a moment's trouble is over at once.
        let wait = match pending.failures {
            1 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 2).min(5)).min(LONGEST),
        };
        pending.again_at = again.then(|| now.after(wait));
        let remedy = remedy(&self.config.vm.to_string());
        tracing::error!(
            error = pending.why,
            again_in = spoken(wait),
            remedy,
            "the takeover failed; everything is kept"
        );
        let (why, again_in_ms) = (pending.why.clone(), again.then(|| events::ms(wait)));
        emit(Told::TakeoverFailed(TakeoverFailed { why, times: pending.failures, again_in_ms, remedy }));
    }

    /// A NIC whose TAP device is missing costs that NIC, and not the takeover. It stays without, what the VM sends there is lost as on
    /// a wire without a cable, and whoever has the network goes on trying.
    ///
    /// So it is, too, where all of them are missing. The register names this node: nobody else may run the VM, and a VM that
    /// waits is as mute as one that runs. But one that runs does its other work, is reached at its console, and has its network as soon
    /// as the device is there. Nothing of it is seen twice: what is not let out is dropped.
    fn mend_gate(&mut self) {
        if let Err(error) = self.gate.mend_ports(&self.config.nics) {
            let why = error.to_string();
            tracing::error!(why, "the VM is taken over without this NIC");
            self.mending.lost(self.run.host.now(), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::id::{Epoch, Generation};

    #[test]
    fn status_tells_for_how_long_it_is_being_tried() {
        let at = |s: u64| Time(s * 1_000_000_000);
        let mut pending = Pending {
            won: Won { generation: Generation(3), epoch: Epoch(7), silence: Duration::ZERO, at: at(1) },
            attempt: None,
            failures: 0,
            why: "no memory".into(),
            again_at: None,
            tried_at: at(1),
        };
        assert_eq!(pending.note("web", at(6)).unwrap(), "the takeover is being tried for 5 s");
        pending.attempt = Some(Task::spawn("nothing", || panic!("on purpose")).unwrap());
        (pending.failures, pending.tried_at) = (2, at(5));
        let note = pending.note("web", at(6)).unwrap();
        assert!(note.starts_with("the takeover failed 2 times, being tried again for 1 s: no memory"), "{note}");
    }
}
