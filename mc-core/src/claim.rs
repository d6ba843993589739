//! A process that wants to run a VM which nobody of this process has run before: the start of a primary, and the successor of
//! one that died.
//!
//! ```text
//!           [Read]          the register is vacant, or this node's          Cas won
//!  Reading ────────> judge ───────────────────────────────────────> Asking ─────────> Owner
//!     ^                │ another node's, or of another QEMU process       │ Cas lost
//!     │                v                                                  v
//!     │             Refused                                             judge
//!     └── the register changed, or was mended
//! ```
//!
//! It swaps whatever the register says, even (solo, self): a dead predecessor may have asked for "protected" as it died, and
//! that request may still be on its way. Once the generation has risen it can only lose (docs/adr/0004).
//!
//! Generation 1 is made only for a VM of which this node has never seen a register: an answer that is less than what was seen
//! does not come here ([`crate::seen`]).

use crate::{
    id::Time,
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, generation_of},
};
use std::collections::VecDeque;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The arbiter was read, and says what it may say.
    RegisterRead(Option<Register>),
    /// The arbiter answered a swap.
    Cas(CasOutcome),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask the arbiter what the register holds.
    ReadRegister,
    /// Ask the arbiter for the VM.
    Cas {
        /// If it still has this generation (0: none) …
        expect: crate::id::Generation,
        /// … hold this.
        new: Register,
        /// Whether another node may want it too.
        contested: bool,
    },
}

/// Whose the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not known yet.
    Open,
    /// Ours: the register says (solo, self) since our swap.
    Ours(Register),
    /// Another node's.
    Foreign(Register),
    /// This node's, by another QEMU process, which is gone: the standby that is named has its last commit.
    OtherInstance(Register),
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    owner: Owner,
    verdict: Verdict,
    asking: bool,
    actions: VecDeque<Action>,
}

impl Claim {
    /// Wants the VM for `owner`.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        Self { owner, verdict: Verdict::Open, asking: false, actions: VecDeque::from([Action::ReadRegister]) }
    }

    /// Whose the VM is, as far as is known.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether a swap is not answered yet: then the VM may become ours at any moment.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.asking
    }

    /// A refusal is not for ever: the register may change.
    fn judge(&mut self, held: Option<Register>) {
        if self.asking || matches!(self.verdict, Verdict::Ours(_)) {
            return;
        }
        self.verdict = match held {
            Some(held) if held.owner.node.id != self.owner.node.id => Verdict::Foreign(held),
            Some(held) if held.mode != Mode::Solo && !held.owner.names(&self.owner) => Verdict::OtherInstance(held),
            _ => Verdict::Open,
        };
        if self.verdict == Verdict::Open {
            let expect = generation_of(held.as_ref());
            let new = Register { generation: expect.next(), owner: self.owner, mode: Mode::Solo };
            let contested = held.is_some_and(|held| held.mode != Mode::Solo);
            self.asking = true;
            self.actions.push_back(Action::Cas { expect, new, contested });
        }
    }
}

impl Machine for Claim {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _now: Time, event: Event) {
        match event {
            Event::RegisterRead(held) => self.judge(held),
            Event::Cas(CasOutcome::Won(register)) => {
                self.asking = false;
                self.verdict = Verdict::Ours(register);
            }
            Event::Cas(CasOutcome::Lost(held)) => {
                self.asking = false;
                self.judge(held);
            }
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
