//! The primary: runs the VM, takes checkpoints, and lets output go when it may.
//!
//! ```text
//!             Protect                Ack(1)                 Cas won: (G, protected by S)
//!   ┌──────┐ ────────> ┌─────────┐ ────────> ┌─────────────┐ ──────────────────────────> ┌───────────┐
//!   │ Solo │           │ Syncing │           │ Registering │                             │ Protected │
//!   └──────┘ <──────── └─────────┘           └─────────────┘                             └───────────┘
//!      ^      link down,                            │ link down,                               │ link down, suspicion,
//!      │      suspicion, NACK                       │ then Cas won                             │ NACK, shutdown
//!      │                                            v                                          │
//!      │                                        ┌──────────┐ <─────────────────────────────────┘
//!      └────── Cas won: (G+1, solo) ─────────── │ Claiming │ ── Cas lost ──> Fenced
//!                                               └──────────┘
//! ```
//!
//! The register says (g, solo, self) in Solo and Syncing, one of (g, solo, self) and (G, protected) in Registering, and
//! (G, protected), or what a standby that took over made of it, in Protected and Claiming. G = g + 1.
//!
//! Within Syncing, Registering and Protected the VM goes round: Running ─SourceReady→ Offered ─Pause→ Stopped ─Captured→
//! Running. Captured runs Hold/Barrier, Resume, Commit, in that order: the barrier is set while the VM is stopped.
//!
//! When its next pause is due is for [`pace`] to say: an epoch after the last, sooner when staging would not hold the checkpoint.
//! What a checkpoint that outgrows staging means for the VM is the operator's choice, [`OnCap`]: it is held while the
//! checkpoint is streamed, or protection is given up, through the arbiter like every other end of it.
//!
//! A primary that was stalled (frozen, starved) may have been declared dead meanwhile, with ACKs of old epochs still in its
//! socket. It releases nothing until it sees an ACK of an epoch that it captured *after* the stall: then the standby was
//! still standing by (docs/adr/0003).
//!
//! - **I1** `release` is the one place that lets ACKed output go; `Solo` the one that lets all of it go.
//! - **I4** `Solo` is only asked for in states where the register says (solo, self).
//! - **I5** the register is asked for "protected" only by an ACK of epoch 1.

mod config;
mod pace;
mod report;

pub use config::{Config, OnCap, Sabotage};
pub use report::{Action, Event, Role};

use crate::{
    id::{Epoch, Generation, Name, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register},
    wire::control::GoodbyeReason,
};
use pace::Pace;
use std::{collections::VecDeque, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Vm {
    Running,
    Offered,
    Stopped,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Primary {
    config: Config,
    /// What the register holds, as far as we know; we are its owner.
    register: Register,
    role: Role,
    standby: Option<Name>,
    vm: Vm,
    staging_room: bool,
    captured: Epoch,
    acked: Epoch,
    /// Captured before a stall: ACKs up to this one release nothing.
    distrusted: Epoch,
    pace: Pace,
    on_cap: OnCap,
    /// While Registering: the session is gone, claim as soon as the arbiter has answered.
    broken: bool,
    /// Why protection is being ended on purpose.
    ending: Option<GoodbyeReason>,
    actions: VecDeque<Action>,
}

impl Primary {
    /// A primary whose VM runs alone. `register` was read from the arbiter, and says (solo, self).
    #[must_use]
    pub fn new(config: Config, register: Register) -> Self {
        assert!(config.window > 0, "a window of 0 would never checkpoint");
        assert_eq!(register.mode, Mode::Solo, "a primary starts as the register's solo owner");
        Self {
            pace: Pace::new(config.epoch),
            on_cap: OnCap::Throttle,
            config,
            register,
            role: Role::Solo,
            standby: None,
            vm: Vm::Running,
            staging_room: true,
            captured: Epoch(0),
            acked: Epoch(0),
            distrusted: Epoch(0),
            broken: false,
            ending: None,
            actions: VecDeque::with_capacity(8),
        }
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// What the register holds, as far as this machine knows.
    #[must_use]
    pub fn register(&self) -> &Register {
        &self.register
    }

    /// The generation that slabs, records and beats carry.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match self.role {
            Role::Syncing | Role::Registering => self.register.generation.next(),
            _ => self.register.generation,
        }
    }

    /// The newest captured epoch, and the newest ACKed one.
    #[must_use]
    pub fn epochs(&self) -> (Epoch, Epoch) {
        (self.captured, self.acked)
    }

    /// Changes the epoch length from the next pause on.
    pub fn set_epoch(&mut self, epoch: Duration) {
        self.pace.set_epoch(epoch);
    }

    /// From one pause to the next, at most.
    #[must_use]
    pub fn epoch(&self) -> Duration {
        self.pace.epoch()
    }

    /// Changes what a checkpoint that outgrows staging means.
    pub fn set_on_cap(&mut self, on_cap: OnCap) {
        self.on_cap = on_cap;
    }

    /// What a checkpoint that outgrows staging means.
    #[must_use]
    pub fn on_cap(&self) -> OnCap {
        self.on_cap
    }

    /// How long the VM runs between two checkpoints now, at most; and how many came before their epoch was over, because
    /// staging would not have held them.
    #[must_use]
    pub fn pacing(&self) -> (Duration, u64) {
        (self.pace.run(), self.pace.sooner())
    }

    fn owner(&self) -> Owner {
        self.register.owner
    }

    fn replicates(&self) -> bool {
        matches!(self.role, Role::Syncing | Role::Registering | Role::Protected)
    }

    fn protect(&mut self, standby: Name) {
        self.role = Role::Syncing;
        self.standby = Some(standby);
        (self.captured, self.acked, self.distrusted) = (Epoch(0), Epoch(0), Epoch(0));
        self.vm = Vm::Running;
        self.broken = false;
        self.actions.push_back(Action::BeginSync { generation: self.generation() });
        if self.config.sabotage == Some(Sabotage::RegisterEarly) {
            self.register_protection();
        }
    }

    fn captured(&mut self, now: Time) {
        self.captured = self.captured.next();
        self.vm = Vm::Running;
        self.pace.resume(now);
        if self.captured == Epoch::FULL_SYNC {
            self.actions.push_back(Action::Hold);
        }
        self.actions.push_back(Action::Barrier(self.captured));
        self.actions.push_back(Action::Resume);
        self.actions.push_back(Action::Commit { epoch: self.captured });
        if self.config.sabotage == Some(Sabotage::ReleaseUnacked) {
            self.actions.push_back(Action::Release(self.captured));
        }
    }

    /// The checkpoint is for nobody, but the VM need not stand still while the arbiter is asked: its output is held.
    fn resume_while_claiming(&mut self) {
        self.vm = Vm::Running;
        self.actions.push_back(Action::Resume);
    }

    fn ack(&mut self, generation: Generation, epoch: Epoch) {
        if generation != self.generation() || epoch <= self.acked || epoch > self.captured {
            return; // late, twice, or of another life
        }
        self.acked = epoch;
        match self.role {
            Role::Syncing => self.register_protection(),
            Role::Protected => self.release(),
            _ => {} // released when the register was heard
        }
    }

    /// I1: only what was ACKed, only while we believe that the register names us and the ACK's sender.
    fn release(&mut self) {
        debug_assert_eq!(self.role, Role::Protected);
        if self.acked > self.distrusted {
            self.distrusted = Epoch(0);
            self.actions.push_back(Action::Release(self.acked));
        }
    }

    /// I5.
    fn register_protection(&mut self) {
        let Some(standby) = self.standby else { return };
        let new = Register {
            generation: self.register.generation.next(),
            owner: self.owner(),
            mode: Mode::Protected { standby },
        };
        self.role = Role::Registering;
        self.actions.push_back(Action::Cas { expect: self.register.generation, new, contested: false });
    }

    /// The standby is lost, or to be left: go on alone if the arbiter agrees. A standby that is merely left keeps its
    /// session until then: were it closed now, it would rightly ask for the VM itself.
    fn give_up_standby(&mut self, lost: bool) {
        if lost && self.replicates() {
            self.actions.push_back(Action::CloseLink(None));
        }
        match self.role {
            Role::Syncing => self.solo(),
            Role::Registering => self.broken = true,
            Role::Protected => self.claim(),
            _ => {}
        }
    }

    fn claim(&mut self) {
        let new = Register { generation: self.register.generation.next(), owner: self.owner(), mode: Mode::Solo };
        self.role = Role::Claiming;
        if self.config.sabotage == Some(Sabotage::ReleaseBeforeSolo) {
            self.actions.push_back(Action::Release(self.captured));
        }
        self.actions.push_back(Action::Cas { expect: self.register.generation, new, contested: true });
    }

    /// I4: the register says (solo, self).
    fn solo(&mut self) {
        self.role = Role::Solo;
        self.standby = None;
        self.vm = Vm::Running;
        self.actions.push_back(Action::CloseLink(Some(self.ending.unwrap_or(GoodbyeReason::Unprotected))));
        self.actions.push_back(Action::Solo);
        if self.ending.take() == Some(GoodbyeReason::GuestGone) {
            self.end();
        }
    }

    fn fence(&mut self) {
        self.role = Role::Fenced;
        self.actions.clear();
        self.actions.push_back(Action::Fence);
        self.actions.push_back(Action::CloseLink(None));
    }

    fn cas(&mut self, outcome: CasOutcome) {
        match (self.role, outcome) {
            (Role::Registering, CasOutcome::Won(register)) => {
                self.register = register;
                self.role = Role::Protected;
                if self.broken {
                    self.claim();
                } else {
                    self.actions.push_back(Action::TellRegistered);
                    self.release();
                }
            }
            (Role::Claiming, CasOutcome::Won(register)) => {
                self.register = register;
                self.solo();
            }
            (Role::Registering | Role::Claiming, CasOutcome::Lost(_)) => self.fence(),
            _ => {}
        }
    }

    fn unprotect(&mut self, reason: GoodbyeReason) {
        self.ending = Some(reason);
        match self.role {
            Role::Solo if reason == GoodbyeReason::GuestGone => self.end(),
            Role::Solo => self.ending = None,
            _ => self.give_up_standby(false),
        }
    }

    /// While the arbiter is asked the checkpoint is streamed all the same: nothing shortens the hold as much, and should the
    /// arbiter not answer, the VM is not held for it.
    fn full(&mut self) {
        if self.on_cap == OnCap::Unprotect && self.role == Role::Protected && self.vm == Vm::Stopped {
            self.actions.push_back(Action::GaveUp);
            self.unprotect(GoodbyeReason::Unprotected);
        }
    }

    fn end(&mut self) {
        self.role = Role::Ended;
        self.actions.push_back(Action::End);
    }

    /// The VM is gone; whoever holds its last commit may have it. Dropping our output is always safe.
    fn source_lost(&mut self) {
        match self.role {
            Role::Solo | Role::Syncing => {
                self.actions.push_back(Action::CloseLink(Some(GoodbyeReason::GuestGone)));
                self.end();
            }
            Role::Fenced | Role::Ended => {}
            _ => self.fence(),
        }
    }

    /// Whether only the time keeps the next checkpoint from being taken.
    fn wants_pause(&self) -> bool {
        self.role == Role::Protected
            && self.vm == Vm::Offered
            && self.staging_room
            && self.captured.0 - self.acked.0 < self.config.window
    }

    fn pace(&mut self, now: Time) {
        if self.wants_pause() && now >= self.pace.due() {
            self.vm = Vm::Stopped;
            self.pace.pause(now);
            self.actions.push_back(Action::Pause { epoch: self.captured.next() });
        }
    }
}

impl Machine for Primary {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Protect { standby } if self.role == Role::Solo => self.protect(standby),
            Event::Protect { .. } => {}
            Event::SourceReady if self.replicates() && self.vm == Vm::Running => self.vm = Vm::Offered,
            Event::SourceReady => {}
            Event::Captured if self.replicates() && self.vm != Vm::Offered => self.captured(now),
            Event::Captured if self.role == Role::Claiming => self.resume_while_claiming(),
            Event::Captured => {}
            Event::Measured { bytes, cap } => self.pace.measured(bytes, cap),
            Event::Full => self.full(),
            Event::Staging { room } => self.staging_room = room,
            Event::Ack { generation, epoch } => self.ack(generation, epoch),
            Event::Nack { generation, .. } if generation == self.generation() => self.give_up_standby(false),
            Event::Nack { .. } => {}
            Event::LinkDown | Event::Suspect => self.give_up_standby(true),
            Event::Stalled => self.distrusted = self.captured,
            Event::Cas(outcome) => self.cas(outcome),
            Event::Unprotect(reason) => self.unprotect(reason),
            Event::SourceLost => self.source_lost(),
        }
        self.pace(now);
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        self.wants_pause().then_some(self.pace.due())
    }

    fn handle_timeout(&mut self, now: Time) {
        self.pace(now);
    }
}
