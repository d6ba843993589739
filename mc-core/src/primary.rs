//! The primary: runs the VM, takes checkpoints, and lets output go when it may.
//!
//! ```text
//!             Protect                Ack(1), beats proven   Cas won: (G, protected by S)  [Hold]
//!   ┌──────┐ ────────> ┌─────────┐ ────────> ┌─────────────┐ ──────────────────────────> ┌───────────┐
//!   │ Solo │           │ Syncing │           │ Registering │                             │ Protected │
//!   └──────┘ <──────── └─────────┘           └─────────────┘                             └───────────┘
//!      ^      link down,                            │ link down,                               │ link down, suspicion,
//!      │      suspicion, NACK                       │ then Cas won                             │ NACK, no ACK in time, shutdown
//!      │                                            v                                          │
//!      │                                        ┌──────────┐ <─────────────────────────────────┘
//!      └────── Cas won: (G+1, solo) ─────────── │ Claiming │ ── another owner above G ──> Fenced
//!                                               └──────────┘
//!                                                    │ the VM died: Cas won is handed to the standby ──> HandingBack ──> Fenced
//! ```
//!
//! The register says (g, solo, self) in Solo and Syncing, one of (g, solo, self) and (G, protected) in Registering, and
//! (G, protected), or what a standby that took over made of it, in Protected and Claiming. G = g + 1.
//!
//! Output flows until protection is *won*: an arbiter that hangs, or a standby that takes its time, silences no VM that nobody
//! protects yet. From Hold on every commit is marked as *held*, and the standby is entitled to the VM only with a held epoch:
//! epochs before it lack what was let out meanwhile.
//!
//! Within Syncing, Registering and Protected the VM goes round: Running ─SourceReady→ Offered ─Pause→ Stopped ─Captured→
//! Running. Captured runs Barrier, Resume, Commit, in that order: the barrier is set while the VM is stopped.
//!
//! When its next pause is due is for [`pace`] to say: an epoch after the last, sooner when staging would not hold the checkpoint.
//! What a checkpoint that outgrows staging means for the VM is the operator's choice, [`OnCap`]: it is held while the
//! checkpoint is streamed, or protection is given up, through the arbiter like every other end of it.
//!
//! A primary that was stalled (frozen, starved) may have been declared dead meanwhile, with ACKs of old epochs still in its
//! socket. It releases nothing until it sees an ACK of an epoch that it captured *after* the stall: then the standby was
//! still standing by (docs/adr/0003).
//!
//! It gives its VM up for one reason only: the register names another owner at a generation above its own. Another QEMU process
//! of the same host is another owner. Anything else that it did not expect is a fault of the arbiter: it holds still, and asks again when the register has changed (docs/adr/0008).
//!
//! - **I1** `release` is the one place that lets ACKed output go; `Solo` the one that lets all of it go.
//! - **I4** `Solo` is only asked for in states where the register says (solo, self).
//! - **I5** the register is asked for "protected" only once epoch 1 was ACKed and beats were proven.

mod claiming;
mod config;
mod pace;
mod rehearsal;
mod report;

pub use config::{Config, OnCap, REHEARSAL};
pub use report::{Action, Event, Role};

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, Swap},
    sabotage::{Sabotage, Seeded},
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
    sabotage: Seeded,
    /// What the register holds, as far as we know; we are its owner.
    register: Register,
    role: Role,
    standby: Option<Owner>,
    /// Beats were heard both ways for long enough.
    proven: bool,
    /// The first epoch whose output is held; `None` while output flows.
    held_from: Option<Epoch>,
    /// From this epoch on the VM has another make than the one that was rehearsed. [`Epoch::NEVER`]: no rehearsal makes up for what is
    /// wrong with it.
    proving: Option<Epoch>,
    vm: Vm,
    staging_room: bool,
    captured: Epoch,
    acked: Epoch,
    /// Captured before a stall: ACKs up to this one release nothing.
    distrusted: Epoch,
    pace: Pace,
    on_cap: OnCap,
    /// Since when a captured epoch has waited for an ACK, and none has come.
    waiting_since: Option<Time>,
    /// While Registering: the session is gone, claim as soon as the arbiter has answered.
    broken: bool,
    /// While Claiming: the arbiter answered what cannot be; nothing is asked until the register is read as it should be.
    disputed: bool,
    /// Who owns the VM since.
    overtaken_by: Option<Owner>,
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
            sabotage: Seeded::default(),
            register,
            role: Role::Solo,
            standby: None,
            proven: false,
            held_from: None,
            proving: None,
            vm: Vm::Running,
            staging_room: true,
            captured: Epoch(0),
            acked: Epoch(0),
            distrusted: Epoch(0),
            waiting_since: None,
            broken: false,
            disputed: false,
            overtaken_by: None,
            ending: None,
            actions: VecDeque::with_capacity(8),
        }
    }

    /// The same with this seeded bug, if any.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn sabotaged(self, sabotage: Option<Sabotage>) -> Self {
        Self { sabotage: Seeded::new(sabotage), ..self }
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the death of this host would cost nothing now: the register names the standby, which has everything that the
    /// outside saw, and could load it.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.role == Role::Protected && self.held_from.is_some_and(|e| self.acked >= e) && self.proving.is_none()
    }

    /// Whether the VM has another make than the one that the standby has rehearsed.
    #[must_use]
    pub fn is_proving(&self) -> bool {
        self.proving.is_some_and(|epoch| epoch != Epoch::NEVER)
    }

    /// Whether the arbiter's answers make no sense, so that this side holds still.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn is_disputed(&self) -> bool {
        self.disputed
    }

    /// Who the register says has the VM instead, if that is why this copy was fenced.
    #[must_use]
    pub fn overtaken_by(&self) -> Option<&Owner> {
        self.overtaken_by.as_ref()
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

    /// Changes how long an epoch may wait for its ACK.
    pub fn set_commit_deadline(&mut self, deadline: Duration) {
        self.config.commit_deadline = deadline;
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

    fn protect(&mut self, standby: Owner) {
        self.role = Role::Syncing;
        self.standby = Some(standby);
        (self.captured, self.acked, self.distrusted) = (Epoch(0), Epoch(0), Epoch(0));
        (self.proven, self.held_from, self.proving, self.waiting_since) = (false, None, None, None);
        self.vm = Vm::Running;
        self.broken = false;
        self.actions.push_back(Action::BeginSync { generation: self.generation() });
        if self.sabotage.is(Sabotage::RegisterEarly) {
            self.register_protection();
        }
    }

    fn captured(&mut self, now: Time) {
        self.captured = self.captured.next();
        self.vm = Vm::Running;
        self.pace.resume(now);
        self.waiting_since.get_or_insert(now);
        let held = self.held_from.is_some() || self.sabotage.is(Sabotage::MarkUnheld);
        if held {
            self.actions.push_back(Action::Barrier(self.captured));
        }
        self.actions.push_back(Action::Resume);
        self.actions.push_back(Action::Commit { epoch: self.captured, held });
        if held && self.sabotage.is(Sabotage::ReleaseUnacked) {
            self.actions.push_back(Action::Release(self.captured));
        }
    }

    /// The checkpoint is for nobody, but the VM need not stand still while the arbiter is asked: its output is held.
    fn resume_while_claiming(&mut self) {
        self.vm = Vm::Running;
        self.actions.push_back(Action::Resume);
    }

    fn ack(&mut self, now: Time, generation: Generation, epoch: Epoch) {
        if generation != self.generation() || epoch <= self.acked || epoch > self.captured {
            return; // late, twice, or of another life
        }
        self.acked = epoch;
        self.waiting_since = (self.acked < self.captured).then_some(now);
        match self.role {
            Role::Syncing => self.register_protection(),
            Role::Protected => self.release(),
            _ => {} // released when the register was heard
        }
    }

    /// I1: only what was ACKed, only while we believe that the register names us and the ACK's sender.
    fn release(&mut self) {
        debug_assert_eq!(self.role, Role::Protected);
        if self.acked > self.distrusted && self.held_from.is_some_and(|e| self.acked >= e) {
            self.distrusted = Epoch(0);
            self.actions.push_back(Action::Release(self.acked));
        }
    }

    /// I5.
    fn register_protection(&mut self) {
        let ready = self.acked >= Epoch::FULL_SYNC && self.proven;
        let Some(standby) = self.standby.filter(|_| ready || self.sabotage.is(Sabotage::RegisterEarly)) else {
            return;
        };
        self.role = Role::Registering;
        let swap = Swap::new(self.register.generation, self.owner(), Mode::Protected { standby });
        self.actions.push_back(Action::Cas(swap));
    }

    /// The register names the standby. What the VM says from here on waits for ACKs.
    fn registered(&mut self, register: Register) {
        self.register = register;
        if self.broken {
            return self.claim();
        }
        self.role = Role::Protected;
        self.held_from = Some(self.captured.next());
        self.actions.push_back(Action::Hold);
        self.tell_unproven();
    }

    /// A VM that was shut down stays so, whatever else ends protection.
    fn unprotect(&mut self, reason: GoodbyeReason) {
        if self.ending == Some(GoodbyeReason::GuestGone) {
            return;
        }
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
            Role::Fenced | Role::Ended | Role::HandingBack => {}
            // It was shut down, and nobody shall run a copy of it: that takes the swap that is being asked for.
            _ if self.ending == Some(GoodbyeReason::GuestGone) => {}
            // What was asked may be won all the same: then it is the standby's.
            Role::Claiming if self.may_hand_back() && !self.disputed => {
                self.role = Role::HandingBack;
                self.actions.push_back(Action::Dead);
            }
            _ => self.fence(),
        }
    }

    /// When an ACK is overdue: the link, or the standby, does not do its work, whatever beats say.
    fn ack_due(&self) -> Option<Time> {
        let since = self.waiting_since.filter(|_| self.role == Role::Protected)?;
        // A standby that rehearses applies nothing, and its staging may fill: then the VM is held, and nobody is suspect for that.
        let rehearses = self.proving.is_some_and(|wanted| wanted != Epoch::NEVER);
        let rehearses = if rehearses { REHEARSAL } else { Duration::ZERO };
        Some(since.after(self.config.commit_deadline).after(rehearses))
    }

    fn is_late(&self, now: Time) -> bool {
        self.ack_due().is_some_and(|due| now >= due)
    }

    /// Whether only the time keeps the next checkpoint from being taken.
    fn wants_pause(&self) -> bool {
        self.role == Role::Protected
            && self.vm == Vm::Offered
            && self.staging_room
            && self.captured.0 - self.acked.0 < self.config.window
    }

    fn pace(&mut self, now: Time) {
        if self.is_late(now) {
            self.waiting_since = None;
            self.actions.push_back(Action::Late);
            self.give_up_standby(true);
        }
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
            Event::Ack { generation, epoch } => self.ack(now, generation, epoch),
            Event::Nack { generation, reason } if generation == self.generation() => self.nack(reason),
            Event::Nack { .. } => {}
            Event::LinkDown | Event::Suspect => self.give_up_standby(true),
            Event::Stalled => self.distrusted = self.captured,
            Event::BeatsProven => {
                self.proven = true;
                if self.role == Role::Syncing {
                    self.register_protection();
                }
            }
            Event::OutputsChanged => self.outputs_changed(),
            Event::Unfit => {
                self.unfit();
                self.tell_unproven();
            }
            Event::Rehearsed { generation, epoch } if generation == self.generation() => self.rehearsed(now, epoch),
            Event::Rehearsed { .. } => {}
            Event::Cas(CasOutcome::Won(register)) => self.won(register),
            Event::Cas(CasOutcome::Lost(held)) => self.held(held, true),
            Event::RegisterRead(held) => self.held(held, false),
            Event::Unprotect(reason) => self.unprotect(reason),
            Event::SourceLost => self.source_lost(),
        }
        self.pace(now);
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        let pause = self.wants_pause().then_some(self.pace.due());
        pause.into_iter().chain(self.ack_due()).min()
    }

    fn handle_timeout(&mut self, now: Time) {
        self.pace(now);
    }
}
