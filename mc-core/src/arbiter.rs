//! The arbiter: one compare-and-swap register per VM. Whoever wins a swap was told so only after it was durable.
//!
//! ```text
//! per VM:             Cas: entitled, expect matches, new is expect + 1   [Persist]
//!        ┌─────────┐ ───────────────────────────────────────────────────> ┌────────────┐ ──┐ any request:
//!        │ at rest │                                                      │ Persisting │   │ waits behind
//!        └─────────┘ <─── Persisted: the register changes  [Reply Won] ── └────────────┘ <─┘
//!          │     ^   <─── PersistFailed: it does not    [Reply Failed] ──
//!          └─────┘        then whatever waits, in order
//!   Read [Reply Holds];  Cas: holds `new` already [Reply Won], else [Reply Lost] or [Reply Refused]
//! ```
//!
//! What is stable is the registers; what waits is volatile. A crash forgets what waits: nobody was told anything about it, and
//! who asked asks again. A swap that became durable without its reply is found by that retry: the register holds `new`
//! already, so it is won. That is why a [`Register`] names its owner's instance: two who ask for the same generation never
//! ask for the same value.
//!
//! Only durable values are ever told: a read behind a swap waits for it.
//!
//! # After a start
//!
//! What was stored may be less than what was: an empty disk, a damaged file, a backup that was put back. The arbiter cannot
//! tell; the nodes can. Every request carries the highest value that its node has ever seen. So after a start a VM is
//! [`Standing::Waiting`]: *top* is the highest of what is stored and what was told, and no swap is tried until every node that
//! top names has told what it has seen to this process (`boot`). None of them has seen more than top, and only they could have
//! gone on from it: so nobody ever acted on more. Then the register becomes top, durably, and swaps are tried again.
//! (docs/adr/0008 has the argument, what it costs, and the holes that remain.)
//!
//! [`Standing::Disputed`] is what only an operator settles, by [`Event::Assign`]: two values of the highest generation; nodes
//! that stand by less than top, all that it names; or, once settled, a node that has seen more than what is held, and was not
//! entitled to go on from there.

mod standing;

use crate::{
    id::{Generation, Name, Node, NodeId, Time},
    machine::Machine,
    register::{Mode, Owner, Register, Swap, generation_of},
    wire::arbiter::{Ask, Outcome, Refusal, Request, Standing},
};
use standing::Told;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How much one arbiter takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// VMs that have a register. A swap for one more is answered Failed.
    pub vms: usize,
    /// Requests that wait for a swap to become durable, over all VMs. One more is answered Failed.
    pub waiting: usize,
}

impl Default for Limits {
    /// 65,536 VMs, 65,536 waiting requests: some 60 MB at most.
    fn default() -> Self {
        Self { vms: 65_536, waiting: 65_536 }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
pub enum Event {
    /// A request came.
    Request {
        /// Whom to answer, in the caller's terms.
        from: u64,
        /// What was asked.
        request: Request,
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
    /// An operator says who owns the VM, whatever anybody has seen. Ignored while the VM's register is being written.
    Assign {
        /// Which VM.
        vm: Name,
        /// To this node.
        to: Node,
    },
    /// An operator says that the VM is no more. Ignored likewise.
    Forget {
        /// Which VM.
        vm: Name,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
pub enum Action {
    /// Make this durable, then say [`Event::Persisted`]. One at a time per VM.
    Persist {
        /// Whose register.
        vm: Name,
        /// What it shall hold.
        register: Register,
    },
    /// Remove this register, durably, then say [`Event::Persisted`].
    Remove {
        /// Whose.
        vm: Name,
    },
    /// Answer.
    Reply {
        /// Whom.
        to: u64,
        /// The request that is answered.
        request: Request,
        /// With what.
        reply: Reply,
    },
}

/// What is said to a request; who carries it adds who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// What came of it.
    pub outcome: Outcome,
    /// Whether swaps are tried at all.
    pub standing: Standing,
    /// What the register holds.
    pub held: Option<Register>,
}

/// Where a value that is being stored comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "moved once per request; a box would be allocated for each")]
enum Origin {
    /// A swap, and whom to answer.
    Swap(u64, Request),
    /// The nodes that it names have told it.
    Told,
    /// An operator.
    Operator,
    /// An operator, who wants it gone.
    Forgotten,
}

/// A value on its way to the disk, and who waits behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Persisting {
    origin: Origin,
    new: Option<Register>,
    waiting: VecDeque<(u64, Request)>,
}

/// The machine. Without deadlines: it waits for nothing but its disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Arbiter {
    limits: Limits,
    /// This process; requests that do not know it are not told of what they expect to change.
    boot: u64,
    /// Durable.
    registers: BTreeMap<Name, Register>,
    told: BTreeMap<Name, Told>,
    busy: BTreeMap<Name, Persisting>,
    /// Sum of the lengths of `waiting`.
    waiting: usize,
    actions: VecDeque<Action>,
}

impl Arbiter {
    /// An arbiter that knows no VM yet. `boot` is not 0.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn new(limits: Limits, boot: u64) -> Self {
        Self::recover(limits, boot, BTreeMap::new(), BTreeSet::new())
    }

    /// An arbiter after a start, from everything that was stored. `boot`: random, not 0, another one at every start. `lost`:
    /// VMs whose stored register cannot be read.
    #[must_use]
    pub fn recover(limits: Limits, boot: u64, registers: BTreeMap<Name, Register>, lost: BTreeSet<Name>) -> Self {
        assert_ne!(boot, 0, "0 is what a node says that knows no witness yet");
        Self {
            limits,
            boot,
            registers,
            told: lost.into_iter().map(|vm| (vm, Told::lost())).collect(),
            busy: BTreeMap::new(),
            waiting: 0,
            actions: VecDeque::new(),
        }
    }

    /// The durable registers.
    #[must_use]
    pub fn registers(&self) -> &BTreeMap<Name, Register> {
        &self.registers
    }

    /// Whether a swap of this VM's register would be tried.
    #[must_use]
    pub fn standing(&self, vm: Name) -> Standing {
        let nobody = Told::default();
        self.told.get(&vm).unwrap_or(&nobody).standing(self.registers.get(&vm))
    }

    /// The nodes that have to tell what they have seen before a swap is tried; empty if none is waited for.
    #[must_use]
    pub fn awaited(&self, vm: Name) -> Vec<NodeId> {
        let nobody = Told::default();
        self.told.get(&vm).unwrap_or(&nobody).awaited(self.registers.get(&vm))
    }

    /// The VMs that there is something to say about: those with a register, and those that somebody has told of.
    pub fn vms(&self) -> impl Iterator<Item = Name> {
        let told = self.told.keys().filter(|vm| !self.registers.contains_key(vm));
        self.registers.keys().chain(told).copied()
    }

    /// The nodes that are known with their names, from what is held or was told of this VM.
    #[must_use]
    pub fn nodes(&self, vm: Name) -> BTreeSet<Node> {
        let nobody = Told::default();
        let values = self.told.get(&vm).unwrap_or(&nobody).values(self.registers.get(&vm));
        let named = |r: &Register| match r.mode {
            Mode::Solo => [r.owner.node; 2],
            Mode::Protected { standby } => [r.owner.node, standby.node],
        };
        values.flat_map(named).collect()
    }

    /// Whether there is anything to say about this VM: see [`Arbiter::vms`].
    #[must_use]
    pub fn knows(&self, vm: Name) -> bool {
        self.registers.contains_key(&vm) || self.told.contains_key(&vm)
    }

    /// Whether this VM's register is being written: then an operator's word is ignored.
    #[must_use]
    pub fn is_busy(&self, vm: Name) -> bool {
        self.busy.contains_key(&vm)
    }

    /// Whether a swap waits for the disk.
    #[must_use]
    pub fn is_persisting(&self) -> bool {
        !self.busy.is_empty()
    }

    fn reply(&mut self, to: u64, request: Request, outcome: Outcome) {
        let held = self.registers.get(&request.vm).copied();
        let reply = Reply { outcome, standing: self.standing(request.vm), held };
        self.actions.push_back(Action::Reply { to, request, reply });
    }

    fn request(&mut self, from: u64, request: Request) {
        let vm = request.vm;
        if let Some(busy) = self.busy.get_mut(&vm) {
            if self.waiting >= self.limits.waiting {
                return self.reply(from, request, Outcome::Failed);
            }
            busy.waiting.push_back((from, request));
            self.waiting += 1;
            return;
        }
        self.hear(&request);
        if let Some(top) = self.told.get_mut(&vm).and_then(|told| told.settle(self.registers.get(&vm))) {
            self.persist(vm, top, Origin::Told);
            return self.request(from, request); // behind it
        }
        match request.ask {
            Ask::Read => self.reply(from, request, Outcome::Holds),
            Ask::Cas(swap) => self.swap(from, request, swap),
        }
    }

    /// Takes a node's word for what it has seen, if it was meant for this process.
    fn hear(&mut self, request: &Request) {
        let known = self.knows(request.vm);
        let tells = request.asker.seen.is_some() || request.ask != Ask::Read;
        if request.asker.boot == self.boot && (known || tells && self.vms().count() < self.limits.vms) {
            let held = self.registers.get(&request.vm);
            self.told.entry(request.vm).or_default().hear(request.asker, held);
        }
    }

    fn swap(&mut self, from: u64, request: Request, Swap { expect, new, .. }: Swap) {
        let (vm, asker) = (request.vm, request.asker);
        let current = self.registers.get(&vm).copied();
        let entitled = match &current {
            Some(current) => current.may_become(asker.node, &new),
            None => new.owner.node.id == asker.node && new.mode == Mode::Solo,
        };
        let outcome = match self.standing(vm) {
            _ if asker.boot != self.boot => Outcome::Refused(Refusal::StaleBoot),
            Standing::Waiting => Outcome::Refused(Refusal::Waiting),
            Standing::Disputed => Outcome::Refused(Refusal::Disputed),
            Standing::Settled if current == Some(new) => Outcome::Won,
            Standing::Settled if generation_of(current.as_ref()) != expect || expect.next() != new.generation => {
                Outcome::Lost
            }
            Standing::Settled if !entitled => Outcome::Refused(Refusal::NotEntitled),
            Standing::Settled if !self.told.contains_key(&vm) => Outcome::Failed, // one VM too many: it was not heard
            Standing::Settled => return self.persist(vm, new, Origin::Swap(from, request)),
        };
        self.reply(from, request, outcome);
    }

    fn persist(&mut self, vm: Name, register: Register, origin: Origin) {
        self.busy.insert(vm, Persisting { origin, new: Some(register), waiting: VecDeque::new() });
        self.actions.push_back(Action::Persist { vm, register });
    }

    /// An operator's word: above everything that was ever seen, so that it counts with everybody.
    fn assign(&mut self, vm: Name, to: Node) {
        let generation = self.told.entry(vm).or_default().highest(self.registers.get(&vm)).next();
        if self.busy.contains_key(&vm) || generation > Generation::MAX {
            return;
        }
        let owner = Owner { node: to, instance: Owner::ANY };
        self.persist(vm, Register { generation, owner, mode: Mode::Solo }, Origin::Operator);
    }

    fn forget(&mut self, vm: Name) {
        if self.busy.contains_key(&vm) {
            return;
        }
        self.busy.insert(vm, Persisting { origin: Origin::Forgotten, new: None, waiting: VecDeque::new() });
        self.actions.push_back(Action::Remove { vm });
    }

    fn stored(&mut self, vm: Name, durable: bool) {
        let Some(done) = self.busy.remove(&vm) else {
            return;
        };
        if durable {
            self.became(vm, &done);
        }
        if let Origin::Swap(from, request) = done.origin {
            self.reply(from, request, if durable { Outcome::Won } else { Outcome::Failed });
        }
        // As if they came only now; the first that swaps makes the others wait again.
        self.waiting -= done.waiting.len();
        for (from, request) in done.waiting {
            if durable || done.origin != Origin::Told {
                self.request(from, request);
            } else {
                self.reply(from, request, Outcome::Failed); // or the same would be tried again at once, for ever
            }
        }
    }

    fn became(&mut self, vm: Name, done: &Persisting) {
        let Some(new) = done.new else {
            self.registers.remove(&vm);
            self.told.remove(&vm);
            return;
        };
        self.registers.insert(vm, new);
        let told = self.told.entry(vm).or_default();
        match done.origin {
            Origin::Swap(_, request) => told.swapped(request.asker.node, new),
            Origin::Told => told.mended(),
            Origin::Operator | Origin::Forgotten => told.decided(),
        }
    }
}

impl Machine for Arbiter {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, _now: Time, event: Event) {
        match event {
            Event::Request { from, request } => self.request(from, request),
            Event::Persisted { vm } => self.stored(vm, true),
            Event::PersistFailed { vm } => self.stored(vm, false),
            Event::Assign { vm, to } => self.assign(vm, to),
            Event::Forget { vm } => self.forget(vm),
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
