//! The arbiter: its rules one by one ([`rules`]), what it believes after a start ([`standing`]), and all of it against a map that
//! swaps at once, with a disk that fails and a crash at any moment ([`model`]).

mod model;
mod rules;
mod standing;

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits, Reply},
    id::{Generation, Name, Node, NodeId, Time},
    machine::Machine,
    register::{Mode, Owner, Register, Swap},
    wire::arbiter::{Ask, Asker, Outcome, Refusal, Request, Standing},
};
use std::collections::{BTreeMap, BTreeSet};

const BOOT: u64 = 1;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The node of that letter.
fn node(letter: &str) -> Node {
    Node { name: name(letter), id: NodeId([letter.as_bytes()[0]; 16]) }
}

fn solo(generation: u64, owner: &str) -> Register {
    let owner = Owner { node: node(owner), instance: 7 };
    Register { generation: Generation(generation), owner, mode: Mode::Solo }
}

fn protected(generation: u64, owner: &str, standby: &str) -> Register {
    let standby = Owner { node: node(standby), instance: 9 };
    Register { mode: Mode::Protected { standby }, ..solo(generation, owner) }
}

fn cas(new: Register) -> Ask {
    Ask::Cas(Swap { expect: Generation(new.generation.0 - 1), new, contested: false })
}

/// An arbiter, and what is said to it.
struct World {
    arbiter: Arbiter,
    boot: u64,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self { arbiter: Arbiter::new(Limits::default(), BOOT), boot: BOOT, next: 0 }
    }

    /// After a start, with these registers.
    fn recovered(registers: &[(&str, Register)]) -> Self {
        let registers: BTreeMap<_, _> = registers.iter().map(|(vm, register)| (name(vm), *register)).collect();
        let boot = BOOT + 1;
        Self { arbiter: Arbiter::recover(Limits::default(), boot, registers, BTreeSet::new()), boot, next: 100 }
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.arbiter.handle(Time(0), event);
        std::iter::from_fn(|| self.arbiter.poll_action()).collect()
    }

    /// `who` asks about `vm`, and has seen `seen`.
    fn ask_about(&mut self, vm: &str, who: &str, seen: Option<Register>, ask: Ask) -> Vec<Action> {
        let asker = Asker { node: node(who).id, seen, boot: self.boot };
        self.next += 1;
        let request = Request { id: self.next, vm: name(vm), asker, ask };
        self.event(Event::Request { from: self.next, request })
    }

    /// The same of the VM "vm".
    fn ask(&mut self, who: &str, seen: Option<Register>, ask: Ask) -> Vec<Action> {
        self.ask_about("vm", who, seen, ask)
    }

    fn read(&mut self, who: &str, seen: Option<Register>) -> Reply {
        let actions = self.ask(who, seen, Ask::Read);
        reply(&actions)
    }

    /// Asks for a swap that is tried, and persists it.
    fn win(&mut self, who: &str, new: Register) {
        let seen = self.arbiter.registers().get(&name("vm")).copied();
        assert_eq!(self.ask(who, seen, cas(new)), [persist(new)]);
        assert_eq!(reply(&self.persisted()).outcome, Outcome::Won);
    }

    fn persisted(&mut self) -> Vec<Action> {
        self.event(Event::Persisted { vm: name("vm") })
    }

    fn standing(&self) -> Standing {
        self.arbiter.standing(name("vm"))
    }
}

/// The only action, which has to be a reply.
fn reply(actions: &[Action]) -> Reply {
    match actions {
        [Action::Reply { reply, .. }] => *reply,
        other => panic!("{other:?}"),
    }
}

fn outcome(actions: &[Action]) -> Outcome {
    reply(actions).outcome
}

fn persist(register: Register) -> Action {
    Action::Persist { vm: name("vm"), register }
}

fn refused(actions: &[Action]) -> Refusal {
    match reply(actions).outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}
