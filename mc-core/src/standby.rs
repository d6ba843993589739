//! The standby: stages, checks, commits and ACKs checkpoints; takes over when the arbiter agrees.
//!
//! ```text
//!          Session            commit of epoch 1            suspicion, link down             Revoked
//!  ┌──────┐ ────> ┌─────────┐ ──────────> ┌────────────┐ ───────────> ┌──────────┐ ───────────────> ┌──────────┐
//!  │ Idle │       │ Syncing │             │ Protecting │   [Revoke]   │ Revoking │      [Cas]       │ Claiming │
//!  └──────┘ <──── └─────────┘             └────────────┘              └──────────┘                  └──────────┘
//!     ^   suspicion,                             │ goodbye                                    Cas lost │   │ Cas won
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
//! A swap that lost to a register *older* than this generation is tried again for a while: the primary's registration of
//! this standby may still be on its way (it died right after asking).

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::Sabotage,
    register::{CasOutcome, Mode, Owner, Register, generation_of},
    wire::control::{Body, NackReason},
};
use std::{collections::VecDeque, time::Duration};

/// What does not change while a standby lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node, and the instance of the QEMU that waits: the owner after a takeover.
    pub owner: Owner,
    /// How long to wait before a swap is tried again that lost to an older register.
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
    /// The arbiter answered.
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

/// The slabs of the epoch after the committed one. A set, since a transport may use several connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Staged {
    seen: Vec<u64>,
    count: u32,
    /// One more than the highest index.
    end: u32,
}

impl Staged {
    /// Slabs of one epoch at most: 1 TiB of the smallest.
    const LIMIT: u32 = 1 << 27;

    /// Notes a slab; false if it was there already, or is beyond every bound.
    fn insert(&mut self, index: u32) -> bool {
        let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
        if index >= Self::LIMIT {
            return false;
        }
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        self.count += u32::from(fresh);
        self.end = self.end.max(index + 1);
        fresh
    }

    /// Whether exactly the slabs 0..slabs are there.
    fn is_complete(&self, slabs: u32) -> bool {
        self.count == slabs && self.end == slabs
    }

    fn clear(&mut self) {
        self.seen.clear();
        (self.count, self.end) = (0, 0);
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standby {
    config: Config,
    role: Role,
    generation: Generation,
    committed: Epoch,
    staged: Staged,
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
            staged: Staged { seen: Vec::with_capacity(64), count: 0, end: 0 },
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
        matches!(self.role, Role::Syncing | Role::Protecting | Role::Revoking)
    }

    fn session(&mut self, generation: Generation) {
        self.role = Role::Syncing;
        self.generation = generation;
        self.committed = Epoch(0);
        self.staged.clear();
        self.retries_left = self.config.retries;
        self.retry_at = None;
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
        if epoch != self.committed.next() || !self.staged.is_complete(slabs) {
            return self.refuse(NackReason::OutOfOrder);
        }
        self.committed = epoch;
        self.staged.clear();
        let acks = self.role != Role::Revoking || self.config.sabotage == Some(Sabotage::AckWhileClaiming);
        if acks {
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
            Role::Protecting => {
                self.role = Role::Revoking;
                self.actions.push_back(Action::Revoke);
                if self.config.sabotage == Some(Sabotage::AckWhileClaiming) {
                    self.ask();
                }
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
        let generation = self.generation.next();
        let new = Register { generation, owner: self.config.owner, mode: Mode::Solo };
        self.actions.push_back(Action::Cas { expect: self.generation, new });
    }

    fn cas(&mut self, now: Time, outcome: CasOutcome) {
        let sabotaged = self.role == Role::Revoking && self.config.sabotage == Some(Sabotage::AckWhileClaiming);
        if self.role != Role::Claiming && !sabotaged {
            return;
        }
        match outcome {
            CasOutcome::Won(register) => {
                self.role = Role::TakingOver;
                self.actions.push_back(Action::TakeOver { generation: register.generation, epoch: self.committed });
            }
            CasOutcome::Lost(held) if generation_of(held.as_ref()) < self.generation && self.retries_left > 0 => {
                self.retries_left -= 1;
                self.retry_at = Some(now.after(self.config.retry));
            }
            CasOutcome::Lost(_) => self.discard(),
        }
    }

    fn discard(&mut self) {
        self.role = Role::Idle;
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
            Event::Cas(outcome) => self.cas(now, outcome),
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
