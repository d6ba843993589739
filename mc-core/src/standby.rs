//! The standby: stages, checks, commits and ACKs checkpoints; takes over when the arbiter agrees.
//!
//! ```text
//!          Session            commit of epoch 1              Rehearsed             suspicion, link down, goodbye
//!  ┌──────┐ ────> ┌─────────┐ ──────────> ┌────────────┐ ────────────> ┌────────────┐ ───────────────> ┌──────────┐
//!  │ Idle │       │ Syncing │ [Rehearse]  │ Rehearsing │     [ACK]     │ Protecting │     [Revoke]     │ Revoking │
//!  └──────┘ <──── └─────────┘             └────────────┘               └────────────┘                  └──────────┘
//!     ^   suspicion, link down, goodbye, failure │                                                          │ Revoked  [Read]
//!     │<─────────────────────────────────────────┘                                                          v
//!     │                                              the register is read                              ┌──────────┐
//!     │<── it never named this node, and no held epoch was committed ──────────────────────────────── │ Claiming │
//!     │<── [Discard] ── MakeRoom, or a goodbye that the register confirms ── Lost <── another owner ── │          │
//!                                              the VM is handed back to us │       at a higher generation └──────────┘
//!                                                                          v                            [Cas] │  │ none of these
//!                                                 Active <── Running ── TakingOver <───────────────────── won ─┘  v
//!                                                                          ^── an operator's word, or mended ── Disputed
//! ```
//!
//! - **I2** `commit` and `rehearsed` are the two places that ACK: the epoch is last + 1 of this generation, and every slab of it
//!   is staged; epoch 1 was loaded by a throw-away copy of the VM besides.
//! - **I3** leaving Protecting stops the ACKs; `Revoke` ends the primary's access and drains what had arrived; only
//!   `Revoked` leads to the swap.
//! - Slabs of the full synchronisation go into the image as they come: there is nothing older to protect. Later ones are
//!   staged, and applied when their epoch is committed: the image is always that of one whole epoch.
//!
//! The swap is asked for only when two things are known: a *held* epoch of this generation was committed (what came before
//! lacks what the VM said meanwhile), and the register, read by this node itself, names it in this generation. Nobody's word
//! counts for either; but an operator's for the second, when the arbiter says nothing.
//!
//! A copy that the register has named is given up for one reason only: the register names another owner at a higher
//! generation. Even then it is kept until its room is needed: the winner may find that its VM is dead, and hand it back. What
//! makes no sense (less than was seen before, or the same generation with other content) is a fault of the arbiter: the copy
//! is kept, and an operator decides (docs/adr/0008).

mod staged;

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::Sabotage,
    register::{CasOutcome, Mode, Owner, Register},
    wire::control::{Body, NackReason},
};
use staged::Staged;
use std::collections::VecDeque;

/// What does not change while a standby lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node, and the instance of the QEMU that waits: the owner after a takeover.
    pub owner: Owner,
    /// Whether a throw-away copy of the VM has to load epoch 1 before it is ACKed.
    pub rehearse: bool,
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
        /// What this standby drew for the session, and told the primary: the register has to name it.
        instance: u64,
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
        /// Output was held when it was captured.
        held: bool,
    },
    /// The primary asks for a rehearsal of this epoch, or a later one.
    RehearsalAsked {
        /// Of this generation.
        generation: Generation,
        /// The first that will do.
        epoch: Epoch,
    },
    /// A throw-away copy of the VM has loaded the image that [`Action::Rehearse`] was about; or could not.
    Rehearsed {
        /// It could.
        passed: bool,
    },
    /// The epoch in staging is incomplete, nothing is free for its next slab, and it cannot be spilled.
    StagingFull,
    /// Spilling or applying failed.
    StorageFailed,
    /// The VM could not be run here: the QEMU that waits for it died, and does not start again.
    Unable,
    /// The connection broke.
    LinkDown,
    /// The primary missed K beats, or an operator wants a takeover.
    Suspect,
    /// The primary ended protection, and said so.
    Goodbye,
    /// The primary's access is ended, and everything that had arrived was handled.
    Revoked,
    /// The arbiter was read, and says what it may say ([`crate::seen`]).
    RegisterRead(Option<Register>),
    /// The arbiter was read, and cannot be believed.
    ArbiterFault,
    /// An operator has made sure that the VM runs nowhere else, and wants it here. While the register is being read: the arbiter
    /// cannot be waited for.
    OperatorTakesOver,
    /// The room of a copy that was lost is needed.
    MakeRoom,
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
    /// Have a throw-away copy of the VM load the image as it is at this epoch; apply nothing until [`Event::Rehearsed`].
    Rehearse(Epoch),
    /// That is not needed any more: apply what was committed meanwhile.
    EndRehearsal,
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
    /// Another copy owns the VM since: end the takeover, and whatever it has started.
    Abandon,
}

/// The role, for status and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Waits for a primary.
    Idle,
    /// Receives the full synchronisation.
    Syncing,
    /// Has it; a throw-away copy of the VM is loading it.
    Rehearsing,
    /// Holds the newest committed epoch.
    Protecting,
    /// Stopped ACKing; ends the primary's access.
    Revoking,
    /// Asks the arbiter.
    Claiming,
    /// Another node owns the VM. The copy is kept while there is room.
    Lost,
    /// The arbiter, or the primary's end, left it open whose the VM is. The copy is kept; an operator decides.
    Disputed,
    /// Won; the VM is being started.
    TakingOver,
    /// The VM runs here.
    Active,
}

/// A rehearsal beside the epochs that go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rehearsal {
    /// The primary wants one of this epoch, or a later one.
    Asked(Epoch),
    /// Of this epoch.
    UnderWay(Epoch),
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standby {
    config: Config,
    role: Role,
    generation: Generation,
    /// Of this session's copy; see [`Owner::instance`].
    instance: u64,
    committed: Epoch,
    staged: Staged,
    /// A held epoch was committed: nobody has seen what this copy lacks.
    entitled: bool,
    /// The primary said goodbye.
    left: bool,
    rehearsal: Option<Rehearsal>,
    /// The generation that the VM is asked for from: this session's, or the one in which it was handed to us.
    from: Generation,
    /// A swap is not answered yet.
    asking: bool,
    actions: VecDeque<Action>,
}

impl Standby {
    /// A standby that waits for a primary.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            role: Role::Idle,
            generation: Generation(0),
            instance: 0,
            committed: Epoch(0),
            staged: Staged::new(),
            entitled: false,
            left: false,
            rehearsal: None,
            from: Generation(0),
            asking: false,
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

    /// Whether this copy has everything that the outside has seen of the VM.
    #[must_use]
    pub fn is_entitled(&self) -> bool {
        self.entitled
    }

    /// Whether the primary has ended the session, and said so.
    #[must_use]
    pub fn was_left(&self) -> bool {
        self.left
    }

    /// Whether a rehearsal is asked for, or under way: until it has passed nobody knows whether this copy could run.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.role == Role::Rehearsing || self.rehearsal.is_some()
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
            Role::Syncing | Role::Rehearsing | Role::Protecting | Role::Revoking => true,
            Role::Claiming | Role::TakingOver => self.config.sabotage == Some(Sabotage::AckWhileClaiming),
            Role::Idle | Role::Lost | Role::Disputed | Role::Active => false,
        }
    }

    fn session(&mut self, generation: Generation, instance: u64) {
        self.role = Role::Syncing;
        (self.generation, self.from, self.instance) = (generation, generation, instance);
        self.committed = Epoch(0);
        self.staged.clear();
        (self.entitled, self.left, self.rehearsal, self.asking) = (false, false, None, false);
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

    /// I2.
    fn commit(&mut self, generation: Generation, epoch: Epoch, slabs: u32, held: bool) {
        if !self.receives() || generation != self.generation || epoch <= self.committed {
            return;
        }
        let complete = self.staged.is_complete(slabs) || self.config.sabotage == Some(Sabotage::AckIncomplete);
        if epoch != self.committed.next() || !complete || self.role == Role::Rehearsing {
            return self.refuse(NackReason::OutOfOrder);
        }
        self.committed = epoch;
        self.staged.clear();
        self.entitled |= held || self.config.sabotage == Some(Sabotage::ClaimUnheld);
        match self.role {
            Role::Syncing if self.config.rehearse => {
                self.role = Role::Rehearsing;
                self.actions.push_back(Action::Apply(epoch));
                return self.actions.push_back(Action::Rehearse(epoch));
            }
            Role::Syncing => self.role = Role::Protecting,
            _ => {}
        }
        if self.role != Role::Revoking {
            self.ack();
        }
        self.actions.push_back(Action::Apply(epoch));
        if self.role == Role::Protecting
            && let Some(Rehearsal::Asked(from)) = self.rehearsal
            && epoch >= from
        {
            self.rehearsal = Some(Rehearsal::UnderWay(epoch));
            self.actions.push_back(Action::Rehearse(epoch));
        }
    }

    fn ack(&mut self) {
        let (generation, epoch, body) = (self.generation, self.committed, Body::Ack { free_slabs: 0 });
        self.actions.push_back(Action::Send { generation, epoch, body });
    }

    /// One that is under way is of an older make.
    fn rehearsal_asked(&mut self, epoch: Epoch) {
        if self.role != Role::Protecting || !self.config.rehearse {
            return;
        }
        if matches!(self.rehearsal, Some(Rehearsal::UnderWay(_))) {
            self.actions.push_back(Action::EndRehearsal);
        }
        self.rehearsal = Some(Rehearsal::Asked(epoch));
    }

    fn rehearsed(&mut self, passed: bool) {
        match (self.role, self.rehearsal) {
            (Role::Rehearsing, _) if passed => {
                self.role = Role::Protecting;
                self.actions.push_back(Action::EndRehearsal);
                self.ack();
            }
            (Role::Rehearsing, _) => {
                let (generation, epoch, body) = (self.generation, self.committed, Body::Nack(NackReason::Rehearsal));
                self.actions.push_back(Action::Send { generation, epoch, body });
                self.discard();
            }
            (Role::Protecting, Some(Rehearsal::UnderWay(epoch))) => {
                self.actions.push_back(Action::EndRehearsal);
                if passed {
                    self.rehearsal = None;
                    let (generation, body) = (self.generation, Body::Rehearsed);
                    self.actions.push_back(Action::Send { generation, epoch, body });
                } else {
                    self.rehearsal = Some(Rehearsal::Asked(Epoch(u64::MAX))); // never proven in this session
                    self.refuse(NackReason::Rehearsal);
                }
            }
            _ => {}
        }
    }

    /// This session cannot go on. What is committed stays ours to claim: the primary will give us up through the arbiter.
    fn refuse(&mut self, reason: NackReason) {
        let (generation, epoch) = (self.generation, self.committed.next());
        match self.role {
            Role::Syncing | Role::Rehearsing | Role::Protecting => {
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
            Role::Syncing | Role::Rehearsing => self.discard(),
            Role::Protecting if self.config.sabotage == Some(Sabotage::AckWhileClaiming) => {
                self.role = Role::Claiming;
                self.claim();
            }
            Role::Protecting => {
                if matches!(self.rehearsal, Some(Rehearsal::UnderWay(_))) {
                    self.actions.push_back(Action::EndRehearsal);
                }
                self.role = Role::Revoking;
                self.actions.push_back(Action::Revoke);
            }
            _ => {}
        }
    }

    fn goodbye(&mut self) {
        self.left = true;
        self.suspect();
    }

    /// I3, second half: the primary cannot reach us, and what it had sent is handled.
    fn revoked(&mut self) {
        if self.role == Role::Revoking {
            self.drop_staged();
            self.role = Role::Claiming;
            self.claim();
        }
    }

    fn claim(&mut self) {
        if self.config.sabotage == Some(Sabotage::SwapUnnamed) {
            return self.ask();
        }
        self.actions.push_back(Action::ReadRegister);
    }

    fn ask(&mut self) {
        let generation = self.from.next();
        let new = Register { generation, owner: self.config.owner, mode: Mode::Solo };
        self.asking = true;
        self.actions.push_back(Action::Cas { expect: self.from, new });
    }

    /// Whose is the VM, by what the register holds?
    fn register_read(&mut self, held: Option<&Register>) {
        if !matches!(self.role, Role::Claiming | Role::Lost | Role::Disputed | Role::TakingOver) {
            return;
        }
        let above = held.filter(|r| r.generation > self.from);
        let copy = Owner { instance: self.instance, ..self.config.owner };
        let named = held.is_some_and(|r| r.generation == self.generation && r.names_standby(&copy));
        let ours = |r: &Register| r.mode == Mode::Solo && (r.owner.names(&copy) || r.owner.names(&self.config.owner));
        match above {
            // An operator says once more what was won already.
            Some(r) if ours(r) && self.role == Role::TakingOver => self.from = r.generation,
            Some(r) if ours(r) => self.ask_from(r.generation), // handed to us
            Some(_) if self.role == Role::TakingOver => self.abandon(),
            Some(_) => self.lose(),
            None if self.role == Role::TakingOver => {}
            None if self.asking => {} // its answer says more
            None if named && self.entitled => self.ask_from(self.generation),
            None if named || self.entitled => self.dispute(),
            None => self.discard(),
        }
    }

    fn ask_from(&mut self, from: Generation) {
        self.role = Role::Claiming;
        self.from = from;
        self.ask();
    }

    fn lose(&mut self) {
        if self.left {
            return self.discard();
        }
        self.role = Role::Lost;
    }

    /// The VM does not run here yet, and an operator has given it to another node meanwhile.
    fn abandon(&mut self) {
        self.role = Role::Lost;
        self.actions.push_back(Action::Abandon);
    }

    fn dispute(&mut self) {
        if self.config.sabotage == Some(Sabotage::BelieveLess) {
            return self.discard();
        }
        self.role = Role::Disputed;
    }

    fn operator_takes_over(&mut self) {
        match self.role {
            Role::Protecting => self.suspect(),
            Role::Disputed => self.ask_from(self.from),
            // The arbiter does not even say what the register holds.
            Role::Claiming if self.asking => {}
            Role::Claiming if self.entitled || self.config.sabotage == Some(Sabotage::DecideUnheld) => {
                self.ask_from(self.from);
            }
            Role::Claiming => self.dispute(), // it lacks what the VM has said: that takes another word
            _ => {}
        }
    }

    fn cas(&mut self, outcome: CasOutcome) {
        let asked = std::mem::take(&mut self.asking);
        match outcome {
            // A fault of the arbiter may be told of before the answer to what was asked.
            _ if self.role != Role::Claiming && !(asked && self.role == Role::Disputed) => {}
            // Of an earlier session, and late: what it won was lost since.
            CasOutcome::Won(register) if register.generation <= self.generation => {}
            CasOutcome::Won(register) => {
                (self.role, self.from) = (Role::TakingOver, register.generation);
                self.actions.push_back(Action::TakeOver { generation: register.generation, epoch: self.committed });
            }
            CasOutcome::Lost(held) if held.is_some_and(|r| r.generation > self.from) => {
                self.register_read(held.as_ref());
            }
            CasOutcome::Lost(_) => self.dispute(),
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

    fn handle(&mut self, _now: Time, event: Event) {
        match event {
            Event::Session { generation, instance } if self.role == Role::Idle => self.session(generation, instance),
            Event::Session { .. } => {}
            Event::Slab { generation, epoch, index } => self.slab(generation, epoch, index),
            Event::BadSlab => {
                self.actions.push_back(Action::Drop);
                self.refuse(NackReason::Malformed);
            }
            Event::Commit { generation, epoch, slabs, held } => self.commit(generation, epoch, slabs, held),
            Event::RehearsalAsked { generation, epoch } if generation == self.generation => self.rehearsal_asked(epoch),
            Event::RehearsalAsked { .. } => {}
            Event::Rehearsed { passed } => self.rehearsed(passed),
            Event::StagingFull => self.refuse(NackReason::TooLarge),
            Event::StorageFailed => self.refuse(NackReason::Storage),
            Event::Unable => self.refuse(NackReason::Rehearsal),
            Event::LinkDown | Event::Suspect => self.suspect(),
            Event::Goodbye if self.receives() => self.goodbye(),
            Event::Goodbye => {}
            Event::Revoked => self.revoked(),
            Event::RegisterRead(held) => self.register_read(held.as_ref()),
            Event::ArbiterFault if self.role == Role::Claiming => self.dispute(),
            Event::ArbiterFault => {}
            Event::OperatorTakesOver => self.operator_takes_over(),
            Event::MakeRoom if self.role == Role::Lost => self.discard(),
            Event::MakeRoom => {}
            Event::Cas(outcome) => self.cas(outcome),
            Event::Running if self.role == Role::TakingOver => self.role = Role::Active,
            Event::Running => {}
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Never: whoever runs it reads the register each second, and says so.
    fn deadline(&self) -> Option<Time> {
        None
    }

    fn handle_timeout(&mut self, _now: Time) {}
}
