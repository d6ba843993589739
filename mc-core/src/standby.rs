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
//!
//! A standby that waits, and reads that the register names a copy of its own which it knows to be no more, renounces: it swaps
//! to (solo, the owner as registered). Nobody else could ever take that VM over (docs/adr/0012).

mod claiming;
mod rehearsal;
mod report;
mod staged;

pub use report::{Action, Event, Role};

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    register::{Mode, Owner, Register},
    sabotage::{Sabotage, Seeded},
    wire::control::{Body, NackReason},
};
use rehearsal::Rehearsal;
use staged::Staged;
use std::collections::VecDeque;

/// What does not change while a standby lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This node, and the instance of the QEMU that waits: the owner after a takeover.
    pub owner: Owner,
    /// Whether a throw-away copy of the VM has to load epoch 1 before it is ACKed.
    pub rehearse: bool,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standby {
    config: Config,
    sabotage: Seeded,
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
    /// The newest copy that this node had, and has no more.
    gone: Option<u64>,
    actions: VecDeque<Action>,
}

impl Standby {
    /// A standby that waits for a primary.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            sabotage: Seeded::default(),
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
            gone: None,
            actions: VecDeque::with_capacity(8),
        }
    }

    /// A standby that waits for a primary, and knows that the copy of this instance, which an earlier process of this node had, is
    /// no more.
    #[must_use]
    pub fn without_copy(config: Config, gone: u64) -> Self {
        Self { gone: Some(gone), ..Self::new(config) }
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

    /// Whether the register names a copy that this node had, and has no more: then nobody has it.
    #[must_use]
    pub fn is_named_in_vain(&self, held: &Register) -> bool {
        let gone = self.gone.map(|instance| Owner { instance, ..self.config.owner });
        let unread = self.sabotage.is(Sabotage::RenounceUnread);
        let named = gone.is_some_and(|copy| held.names_standby(&copy) || unread && held.mode != Mode::Solo);
        self.role == Role::Idle && named
    }

    /// What the register holds since this copy has won it; `None` before.
    #[must_use]
    pub fn won(&self) -> Option<Register> {
        let won = matches!(self.role, Role::TakingOver | Role::Active);
        won.then_some(Register { generation: self.from, owner: self.config.owner, mode: Mode::Solo })
    }

    /// The QEMU that waits here was started anew.
    pub fn set_owner(&mut self, owner: Owner) {
        self.config.owner = owner;
    }

    fn receives(&self) -> bool {
        match self.role {
            Role::Syncing | Role::Rehearsing | Role::Protecting | Role::Revoking => true,
            Role::Claiming | Role::TakingOver => self.sabotage.is(Sabotage::AckWhileClaiming),
            Role::Idle | Role::Lost | Role::Disputed | Role::Active => false,
        }
    }

    fn session(&mut self, generation: Generation, instance: u64) {
        self.role = Role::Syncing;
        (self.generation, self.from, self.instance) = (generation, generation, instance);
        self.committed = Epoch(0);
        self.staged.clear();
        (self.entitled, self.left, self.rehearsal, self.asking) = (false, false, None, false);
        self.gone = None;
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
        let complete = self.staged.is_complete(slabs) || self.sabotage.is(Sabotage::AckIncomplete);
        if epoch != self.committed.next() || !complete || self.role == Role::Rehearsing {
            return self.refuse(NackReason::OutOfOrder);
        }
        self.committed = epoch;
        self.staged.clear();
        self.entitled |= held || self.sabotage.is(Sabotage::ClaimUnheld);
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
            Role::Protecting if self.sabotage.is(Sabotage::AckWhileClaiming) => {
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

    fn discard(&mut self) {
        self.role = Role::Idle;
        (self.gone, self.asking) = (Some(self.instance), false);
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
            Event::Unable => self.unfit(),
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
