//! The arbiter: one compare-and-swap register per VM. Whoever wins a swap was told so only after it was durable.
//!
//! ```text
//! per VM:             Cas: expect matches, new is expect + 1   [Persist]
//!        ┌─────────┐ ───────────────────────────────────────────────────> ┌────────────┐ ──┐ any request:
//!        │ Settled │                                                      │ Persisting │   │ waits behind
//!        └─────────┘ <─── Persisted: the register changes  [Reply Won] ── └────────────┘ <─┘
//!          │     ^   <─── PersistFailed: it does not    [Reply Failed] ──
//!          └─────┘        then whatever waits, in order
//!   Read [Reply Holds];  Cas: holds `new` already [Reply Won], else [Reply Lost]
//! ```
//!
//! What is stable is the registers; what waits is volatile. A crash forgets what waits: nobody was told anything about it, and
//! who asked asks again. A swap that became durable without its reply is found by that retry: the register holds `new`
//! already, so it is won. That is why a [`Register`] names its owner's instance: two who ask for the same generation never
//! ask for the same value.
//!
//! Only durable values are ever told: a read behind a swap waits for it.

use crate::{
    id::{Name, Time},
    machine::Machine,
    register::{Register, generation_of},
    wire::arbiter::{Body, Message},
};
use std::collections::{BTreeMap, VecDeque};

/// How much one arbiter takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// VMs that have a register. A swap for one more is answered Failed.
    pub vms: usize,
    /// Requests that wait for a swap to become durable, over all VMs. One more is answered Failed.
    pub waiting: usize,
}

impl Default for Limits {
    /// 65,536 VMs, 65,536 waiting requests: some 30 MB at most.
    fn default() -> Self {
        Self { vms: 65_536, waiting: 65_536 }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A read or a swap came. Anything else is no request, and is ignored: see [`is_request`].
    Request {
        /// Whom to answer, in the caller's terms.
        from: u64,
        /// What was asked.
        message: Message,
    },
    /// What [`Action::Persist`] asked for will survive a crash.
    Persisted {
        /// Whose register.
        vm: Name,
    },
    /// It was not stored, and will not turn up after a crash either. (If that is not certain, stop: [`Arbiter::recover`]
    /// from what is stored.)
    PersistFailed {
        /// Whose register.
        vm: Name,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make this durable, then say [`Event::Persisted`]. One at a time per VM.
    Persist {
        /// Whose register.
        vm: Name,
        /// What it shall hold.
        register: Register,
    },
    /// Answer.
    Reply {
        /// Whom.
        to: u64,
        /// What: the request's id and VM, and the answer.
        message: Message,
    },
}

/// Whether a message is one that an arbiter answers.
#[must_use]
pub fn is_request(body: &Body) -> bool {
    matches!(body, Body::Read | Body::Cas { .. })
}

/// A swap on its way to the disk, and who waits behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Persisting {
    asked_by: u64,
    id: u64,
    new: Register,
    waiting: VecDeque<(u64, Message)>,
}

/// The machine. Without deadlines: it waits for nothing but its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Arbiter {
    limits: Limits,
    /// Durable.
    registers: BTreeMap<Name, Register>,
    busy: BTreeMap<Name, Persisting>,
    /// Sum of the lengths of `waiting`.
    waiting: usize,
    actions: VecDeque<Action>,
}

impl Arbiter {
    /// An arbiter that knows no VM yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::recover(limits, BTreeMap::new())
    }

    /// An arbiter after a restart, from everything that was stored.
    #[must_use]
    pub fn recover(limits: Limits, registers: BTreeMap<Name, Register>) -> Self {
        Self { limits, registers, ..Self::default() }
    }

    /// The durable registers.
    #[must_use]
    pub fn registers(&self) -> &BTreeMap<Name, Register> {
        &self.registers
    }

    /// Whether a swap waits for the disk.
    #[must_use]
    pub fn is_persisting(&self) -> bool {
        !self.busy.is_empty()
    }

    fn reply(&mut self, to: u64, id: u64, vm: Name, body: Body) {
        self.actions.push_back(Action::Reply { to, message: Message { id, vm, body } });
    }

    fn request(&mut self, from: u64, message: Message) {
        let Message { id, vm, body } = message;
        if let Some(busy) = self.busy.get_mut(&vm) {
            if self.waiting >= self.limits.waiting {
                return self.reply(from, id, vm, Body::Failed);
            }
            busy.waiting.push_back((from, message));
            self.waiting += 1;
            return;
        }
        let current = self.registers.get(&vm).copied();
        match body {
            Body::Read => self.reply(from, id, vm, Body::Holds(current)),
            Body::Cas { new, .. } if current == Some(new) => self.reply(from, id, vm, Body::Won(new)),
            Body::Cas { expect, new }
                if generation_of(current.as_ref()) != expect || expect.0.checked_add(1) != Some(new.generation.0) =>
            {
                self.reply(from, id, vm, Body::Lost(current));
            }
            Body::Cas { .. } if current.is_none() && self.vms() >= self.limits.vms => {
                self.reply(from, id, vm, Body::Failed);
            }
            Body::Cas { new, .. } => {
                self.busy.insert(vm, Persisting { asked_by: from, id, new, waiting: VecDeque::new() });
                self.actions.push_back(Action::Persist { vm, register: new });
            }
            Body::Holds(_) | Body::Won(_) | Body::Lost(_) | Body::Failed => {}
        }
    }

    /// VMs that have a register, or are about to.
    fn vms(&self) -> usize {
        self.registers.len() + self.busy.keys().filter(|vm| !self.registers.contains_key(vm)).count()
    }

    fn settle(&mut self, vm: Name, durable: bool) {
        let Some(done) = self.busy.remove(&vm) else {
            return;
        };
        if durable {
            self.registers.insert(vm, done.new);
            self.reply(done.asked_by, done.id, vm, Body::Won(done.new));
        } else {
            self.reply(done.asked_by, done.id, vm, Body::Failed);
        }
        // As if they came only now; the first that swaps makes the others wait again.
        self.waiting -= done.waiting.len();
        for (from, message) in done.waiting {
            self.request(from, message);
        }
    }
}

impl Machine for Arbiter {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _now: Time, event: Event) {
        match event {
            Event::Request { from, message } => self.request(from, message),
            Event::Persisted { vm } => self.settle(vm, true),
            Event::PersistFailed { vm } => self.settle(vm, false),
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn handle_timeout(&mut self, _now: Time) {}
}
