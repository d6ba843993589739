//! The standby: stages, checks, commits and ACKs checkpoints; takes over when the arbiter agrees.
//!
//! ```text
//!          Session            commit of epoch 1            suspicion, link down             Revoked
//!  ┌──────┐ ────> ┌─────────┐ ──────────> ┌────────────┐ ───────────> ┌──────────┐ ───────────────> ┌──────────┐
//!  │ Idle │       │ Syncing │             │ Protecting │   [Revoke]   │ Revoking │   [Read], [Cas]  │ Claiming │
//!  └──────┘ <──── └─────────┘             └────────────┘              └──────────┘                  └──────────┘
//!     ^   suspicion,                             │ goodbye                       Cas lost, never named │   │ Cas won
//!     │   link down                              │                                                     │   v
//!     └──────────────────────────────────────────┴────────────── [Discard] ────────────────────────────┘ TakingOver
//!                                                                                                          │ Running
//!                                                                                                          v
//!                                                                                                        Active
//! ```
//!
//! - **I2** `commit` is the one place that ACKs: the epoch is last + 1 of this generation, and every slab of it is staged.
//! - **I3** leaving Protecting stops the ACKs; `Revoke` ends the primary's access and drains what had arrived; only
//!   `Revoked` leads to the swap.
//! - Slabs of the full synchronisation go into the image as they come: there is nothing older to protect. Later ones are
//!   staged, and applied when their epoch is committed: the image is always that of one whole epoch.
//!
//! The swap is asked for only once the register is known to name this standby in this generation: the primary said so, or a
//! read did. A generation that was synchronised but never registered is used again, maybe with another standby; a swap on
//! its number alone would win a VM whose output this image lacks. One that was registered has held one value only. An
//! *older* register is read again for a while: the primary's registration may be on its way (it died right after asking).

mod staged;

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::Sabotage,
    register::{CasOutcome, Mode, Owner, Register, generation_of},
    wire::control::{Body, NackReason},
};
use staged::Staged;
use std::{collections::VecDeque, time::Duration};

/// What does not change while a standby lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node, and the instance of the QEMU that waits: the owner after a takeover.
    pub owner: Owner,
    /// How long to wait before an older register is read again.
    pub retry: Duration,
    /// How often.
    pub retries: u8,
    /// Removes one invariant, to see that its test notices. `None` but in tests.
    pub sabotage: Option<Sabotage>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A primary's session is up, and its profile matches.
    Session {
        /// The generation that will be replicated.
        generation: Generation,
    },
    /// A slab arrived, and its records fit the image.
    Slab {
        /// From its header.
        generation: Generation,
        /// From its header.
        epoch: Epoch,
        /// From its header.
        index: u32,
    },
    /// A slab arrived whose records do not fit the image.
    BadSlab,
    /// The commit record of an epoch arrived.
    Commit {
        /// Of this generation.
        generation: Generation,
        /// This one.
        epoch: Epoch,
        /// It has so many slabs.
        slabs: u32,
    },
    /// The epoch in staging is incomplete, nothing is free for its next slab, and it cannot be spilled.
    StagingFull,
    /// Spilling or applying failed.
    StorageFailed,
    /// The connection broke.
    LinkDown,
    /// The primary missed K beats, or an operator wants a takeover.
    Suspect,
    /// The primary ended protection, and said so.
    Goodbye,
    /// The primary's access is ended, and everything that had arrived was handled.
    Revoked,
    /// The primary says that the register names this standby.
    Registered {
        /// In this generation.
        generation: Generation,
    },
    /// The arbiter answered a read.
    RegisterRead(Option<Register>),
    /// The arbiter answered a swap.
    Cas(CasOutcome),
    /// The VM runs here.
    Running,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Keep the slab just reported until its epoch is committed.
    Stage,
    /// Put the slab just reported into the image, and free it.
    ApplyNow,
    /// Free the slab just reported: it belongs to no epoch that we want.
    Drop,
    /// Tell the primary (an ACK, or a NACK).
    Send {
        /// The generation spoken of.
        generation: Generation,
        /// The epoch spoken of.
        epoch: Epoch,
        /// [`Body::Ack`] (the driver fills in its free slabs) or [`Body::Nack`].
        body: Body,
    },
    /// The epoch is committed: put its staged slabs into the image, and its device state beside it.
    Apply(Epoch),
    /// Free the staged slabs of an epoch that will never be complete.
    DiscardStaged,
    /// End the primary's access to our memory, handle what had arrived, then say [`Event::Revoked`] (I3).
    Revoke,
    /// Ask the arbiter what the register holds.
    ReadRegister,
    /// Ask the arbiter for the VM.
    Cas {
        /// If it still has this generation …
        expect: Generation,
        /// … hold this.
        new: Register,
    },
    /// The VM is ours: run it from this epoch.
    TakeOver {
        /// The generation that the register now has.
        generation: Generation,
        /// The committed epoch that the image holds.
        epoch: Epoch,
    },
    /// The image is void: forget it, close the session, wait for another.
    Discard,
}

/// The role, for status and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Waits for a primary.
    Idle,
    /// Receives the full synchronisation.
    Syncing,
    /// Holds the newest committed epoch.
    Protecting,
    /// Stopped ACKing; ends the primary's access.
    Revoking,
    /// Asks the arbiter.
    Claiming,
    /// Won; the VM is being started.
    TakingOver,
    /// The VM runs here.
    Active,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standby {
    config: Config,
    role: Role,
    generation: Generation,
    committed: Epoch,
    staged: Staged,
    /// The register is known to name this standby in this generation, or a later value has replaced that.
    registered: bool,
    retries_left: u8,
    retry_at: Option<Time>,
    actions: VecDeque<Action>,
}

impl Standby {
    /// A standby without a primary.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            role: Role::Idle,
            generation: Generation(0),
            committed: Epoch(0),
            staged: Staged::new(),
            registered: false,
            retries_left: 0,
            retry_at: None,
            actions: VecDeque::with_capacity(8),
        }
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The generation replicated, and the newest committed epoch.
    #[must_use]
    pub fn committed(&self) -> (Generation, Epoch) {
        (self.generation, self.committed)
    }

    /// Whether the epoch being received is the full synchronisation, which is applied as it comes.
    #[must_use]
    pub fn is_full_sync(&self) -> bool {
        self.committed == Epoch(0)
    }

    /// The QEMU that waits here was started anew.
    pub fn set_owner(&mut self, owner: Owner) {
        self.config.owner = owner;
    }

    fn receives(&self) -> bool {
        match self.role {
            Role::Syncing | Role::Protecting | Role::Revoking => true,
            Role::Claiming | Role::TakingOver => self.config.sabotage == Some(Sabotage::AckWhileClaiming),
            Role::Idle | Role::Active => false,
        }
    }

    fn session(&mut self, generation: Generation) {
        self.role = Role::Syncing;
        self.generation = generation;
        self.committed = Epoch(0);
        self.staged.clear();
        self.registered = self.config.sabotage == Some(Sabotage::SwapUnnamed);
        self.retries_left = self.config.retries;
    }

    fn slab(&mut self, generation: Generation, epoch: Epoch, index: u32) {
        let wanted = self.receives() && generation == self.generation && epoch == self.committed.next();
        let action = match wanted && self.staged.insert(index) {
            true if self.is_full_sync() => Action::ApplyNow,
            true => Action::Stage,
            false => Action::Drop,
        };
        self.actions.push_back(action);
    }

    /// I2, and the only ACK there is.
    fn commit(&mut self, generation: Generation, epoch: Epoch, slabs: u32) {
        if !self.receives() || generation != self.generation || epoch <= self.committed {
            return;
        }
        let complete = self.staged.is_complete(slabs) || self.config.sabotage == Some(Sabotage::AckIncomplete);
        if epoch != self.committed.next() || !complete {
            return self.refuse(NackReason::OutOfOrder);
        }
        self.committed = epoch;
        self.staged.clear();
        if self.role != Role::Revoking {
            let body = Body::Ack { free_slabs: 0 };
            self.actions.push_back(Action::Send { generation, epoch, body });
        }
        if self.role == Role::Syncing {
            self.role = Role::Protecting;
        }
        self.actions.push_back(Action::Apply(epoch));
    }

    /// This session cannot go on. What is committed stays ours to claim: the primary will give us up through the arbiter.
    fn refuse(&mut self, reason: NackReason) {
        let (generation, epoch) = (self.generation, self.committed.next());
        match self.role {
            Role::Syncing | Role::Protecting => {
                self.actions.push_back(Action::Send { generation, epoch, body: Body::Nack(reason) });
                self.drop_staged();
            }
            Role::Revoking => self.drop_staged(),
            _ => {}
        }
    }

    fn drop_staged(&mut self) {
        self.staged.clear();
        self.actions.push_back(Action::DiscardStaged);
    }

    /// I3, first half: no ACK after this.
    fn suspect(&mut self) {
        match self.role {
            Role::Syncing => self.discard(),
            Role::Protecting if self.config.sabotage == Some(Sabotage::AckWhileClaiming) => {
                self.role = Role::Claiming;
                self.ask();
            }
            Role::Protecting => {
                self.role = Role::Revoking;
                self.actions.push_back(Action::Revoke);
            }
            _ => {}
        }
    }

    /// I3, second half: the primary cannot reach us, and what it had sent is handled.
    fn revoked(&mut self) {
        if self.role == Role::Revoking {
            self.drop_staged();
            self.role = Role::Claiming;
            self.ask();
        }
    }

    fn ask(&mut self) {
        if !self.registered {
            return self.actions.push_back(Action::ReadRegister);
        }
        let generation = self.generation.next();
        let new = Register { generation, owner: self.config.owner, mode: Mode::Solo };
        self.actions.push_back(Action::Cas { expect: self.generation, new });
    }

    fn register_read(&mut self, now: Time, held: Option<&Register>) {
        if self.role != Role::Claiming || self.registered || self.retry_at.is_some() {
            return;
        }
        let protected = Mode::Protected { standby: self.config.owner.node };
        if held.is_some_and(|r| r.generation == self.generation && r.mode == protected) {
            self.registered = true;
            self.ask();
        } else if generation_of(held) < self.generation && self.retries_left > 0 {
            self.retries_left -= 1;
            self.retry_at = Some(now.after(self.config.retry));
        } else {
            self.discard();
        }
    }

    fn cas(&mut self, outcome: CasOutcome) {
        match outcome {
            _ if self.role != Role::Claiming || !self.registered => {}
            CasOutcome::Won(register) => {
                self.role = Role::TakingOver;
                self.actions.push_back(Action::TakeOver { generation: register.generation, epoch: self.committed });
            }
            CasOutcome::Lost(_) => self.discard(),
        }
    }

    fn discard(&mut self) {
        self.role = Role::Idle;
        self.retry_at = None;
        self.drop_staged();
        self.actions.push_back(Action::Discard);
    }
}

impl Machine for Standby {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Session { generation } if self.role == Role::Idle => self.session(generation),
            Event::Session { .. } => {}
            Event::Slab { generation, epoch, index } => self.slab(generation, epoch, index),
            Event::BadSlab => {
                self.actions.push_back(Action::Drop);
                self.refuse(NackReason::Malformed);
            }
            Event::Commit { generation, epoch, slabs } => self.commit(generation, epoch, slabs),
            Event::StagingFull => self.refuse(NackReason::TooLarge),
            Event::StorageFailed => self.refuse(NackReason::Storage),
            Event::LinkDown | Event::Suspect => self.suspect(),
            Event::Goodbye if self.receives() => self.discard(),
            Event::Goodbye => {}
            Event::Revoked => self.revoked(),
            Event::Registered { generation } => self.registered |= self.receives() && generation == self.generation,
            Event::RegisterRead(held) => self.register_read(now, held.as_ref()),
            Event::Cas(outcome) => self.cas(outcome),
            Event::Running if self.role == Role::TakingOver => self.role = Role::Active,
            Event::Running => {}
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        self.retry_at
    }

    fn handle_timeout(&mut self, now: Time) {
        if self.retry_at.is_some_and(|at| now >= at) && self.role == Role::Claiming {
            self.retry_at = None;
            self.ask();
        }
    }
}
