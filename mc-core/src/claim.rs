//! A process that wants to run a VM which nobody of this process has run before: the start of a primary, and the successor of
//! one that died.
//!
//! ```text
//!           [Read]          the register is vacant, or this copy's          Cas won
//!  Reading ────────> judge ───────────────────────────────────────> Asking ─────────> Owner
//!     ^              │   │ another QEMU process of this node, alone   ^   │ Cas lost
//!     │              │   └──────────> [LookFor] ──── it is gone ──────┘   v
//!     │              v                    │ it lives                      judge
//!     │           Refused <───────────────┘
//!     └── the register changed, or was mended
//! ```
//!
//! A VM has one copy that runs. A second QEMU of its name on the owner's host would be another one, with nothing of what the first
//! has shown the world: while that one lives, stopped or not, nothing is asked for.
//!
//! It swaps whatever the register says, even (solo, self): a dead predecessor may have asked for "protected" as it died, and
//! that request may still be on its way. Once the generation has risen it can only lose (docs/adr/0004).
//!
//! Generation 1 is made only for a VM of which this node has never seen a register: an answer that is less than what was seen
//! does not come here ([`crate::seen`]).

use crate::{
    id::Time,
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register, Swap, generation_of},
};
use std::collections::VecDeque;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The arbiter was read, and says what it may say.
    RegisterRead(Option<Register>),
    /// The arbiter answered a swap.
    Cas(CasOutcome),
    /// What came of [`Action::LookFor`].
    Looked {
        /// There is such a process; whether it runs or is stopped.
        lives: bool,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask the arbiter what the register holds.
    ReadRegister,
    /// Whether the QEMU process that is this instance of the VM lives on this host; answered at once.
    LookFor {
        /// See [`Owner::instance`].
        instance: u64,
    },
    /// Ask the arbiter for the VM.
    Cas(Swap),
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
    /// This node's, by another QEMU process, which lives.
    Beside(Register),
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    owner: Owner,
    verdict: Verdict,
    /// What the swap that is not answered yet asks for.
    asking: Option<Swap>,
    /// What the register held when a process was looked for.
    looking: Option<Register>,
    actions: VecDeque<Action>,
}

impl Claim {
    /// Wants the VM for `owner`.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        let actions = VecDeque::from([Action::ReadRegister]);
        Self { owner, verdict: Verdict::Open, asking: None, looking: None, actions }
    }

    /// Whose the VM is, as far as is known.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether a swap is not answered yet: then the VM may become ours at any moment.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// A refusal is not for ever: the register may change.
    fn judge(&mut self, held: Option<Register>) {
        if self.is_asking() || matches!(self.verdict, Verdict::Ours(_)) {
            return;
        }
        self.verdict = match held {
            Some(held) if held.owner.node.id != self.owner.node.id => Verdict::Foreign(held),
            Some(held) if held.mode != Mode::Solo && !held.owner.names(&self.owner) => Verdict::OtherInstance(held),
            _ => Verdict::Open,
        };
        match held.filter(|held| !held.owner.names(&self.owner)) {
            _ if self.verdict != Verdict::Open => {}
            Some(held) => {
                self.looking = Some(held);
                self.actions.push_back(Action::LookFor { instance: held.owner.instance });
            }
            None => self.ask(held),
        }
    }

    fn ask(&mut self, held: Option<Register>) {
        let contested = held.is_some_and(|held| held.mode != Mode::Solo);
        let swap = Swap { contested, ..Swap::new(generation_of(held.as_ref()), self.owner, Mode::Solo) };
        self.asking = Some(swap);
        self.actions.push_back(Action::Cas(swap));
    }

    /// Only what was asked for can be won. Else it is asked for again: it may have been won all the same.
    fn won(&mut self, register: Register) {
        match self.asking {
            Some(swap) if swap.new == register => (self.asking, self.verdict) = (None, Verdict::Ours(register)),
            Some(swap) => self.actions.push_back(Action::Cas(swap)),
            None => {}
        }
    }

    fn looked(&mut self, lives: bool) {
        let Some(held) = self.looking.take() else { return };
        match lives {
            true => self.verdict = Verdict::Beside(held),
            false => self.ask(Some(held)),
        }
    }
}

impl Machine for Claim {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _now: Time, event: Event) {
        match event {
            Event::RegisterRead(held) => self.judge(held),
            Event::Cas(CasOutcome::Won(register)) => self.won(register),
            Event::Cas(CasOutcome::Lost(held)) => {
                self.asking = None;
                self.judge(held);
            }
            Event::Looked { lives } => self.looked(lives),
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
