//! The arbiter against a map that swaps at once, with a disk that fails and a crash at any moment. The clients are one node's
//! processes, which tell the arbiter what they have seen; a crash may take the disk back to what it was.

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits, Reply},
    id::{Generation, Name, Node, NodeId, Time},
    machine::Machine,
    register::{Mode, Owner, Register, Swap, generation_of},
    wire::arbiter::{Ask, Asker, Outcome, Refusal, Request, Standing},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const CLIENTS: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Read {
        client: u64,
        vm: u8,
    },
    /// `behind`: how far the client's idea of the generation lags.
    Cas {
        client: u64,
        vm: u8,
        behind: u64,
    },
    /// Sends the client's last request once more, as after a lost reply.
    Resend {
        client: u64,
    },
    DiskDone {
        vm: u8,
    },
    DiskFull {
        vm: u8,
    },
    /// `durable`: whether the write under way reached the disk, VM by VM. `forgets`: the disk is another one now.
    Crash {
        durable: [bool; 2],
        forgets: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (client, vm) = (0..CLIENTS, 0..2u8);
    prop_oneof![
        2 => (client.clone(), vm.clone()).prop_map(|(client, vm)| Step::Read { client, vm }),
        5 => (client.clone(), vm.clone(), 0..2u64).prop_map(|(client, vm, behind)| Step::Cas { client, vm, behind }),
        3 => client.prop_map(|client| Step::Resend { client }),
        5 => vm.clone().prop_map(|vm| Step::DiskDone { vm }),
        1 => vm.prop_map(|vm| Step::DiskFull { vm }),
        1 => any::<([bool; 2], bool)>().prop_map(|(durable, forgets)| Step::Crash { durable, forgets }),
    ]
}

fn vm_name(vm: u8) -> Name {
    Name::new(if vm == 0 { "vm-a" } else { "vm-b" }).unwrap()
}

const NODE: NodeId = NodeId([7; 16]);

/// A disk, the clients' view, and the reference: a map in which a swap takes effect when its write is done.
struct World {
    arbiter: Arbiter,
    boot: u64,
    disk: BTreeMap<Name, Register>,
    writing: BTreeMap<Name, Register>,
    last: BTreeMap<u64, (Name, Ask)>,
    asked: BTreeMap<u64, Request>,
    unanswered: BTreeSet<u64>,
    next_token: u64,
    /// What the node has seen, durably: the highest of everything that it was told.
    seen: BTreeMap<Name, Register>,
    /// VM and generation -> the value that somebody was told it won with.
    won: BTreeMap<(Name, u64), Register>,
}

impl World {
    fn new() -> Self {
        Self {
            arbiter: Arbiter::new(Limits::default(), 1),
            boot: 1,
            disk: BTreeMap::new(),
            writing: BTreeMap::new(),
            last: BTreeMap::new(),
            asked: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            next_token: 0,
            seen: BTreeMap::new(),
            won: BTreeMap::new(),
        }
    }

    fn send(&mut self, client: u64, vm: Name, ask: Ask) {
        self.last.insert(client, (vm, ask));
        let token = self.next_token;
        self.next_token += 1;
        self.unanswered.insert(token);
        let asker = Asker { node: NODE, seen: self.seen.get(&vm).copied(), boot: self.boot };
        let request = Request { id: token, vm, asker, ask };
        self.asked.insert(token, request);
        self.event(Event::Request { from: token, request });
    }

    fn event(&mut self, event: Event) {
        self.arbiter.handle(Time(0), event);
        while let Some(action) = self.arbiter.poll_action() {
            match action {
                Action::Persist { vm, register } => {
                    assert!(self.writing.insert(vm, register).is_none(), "one write at a time per VM");
                    let held = generation_of(self.disk.get(&vm));
                    let mended = self.seen.get(&vm) == Some(&register);
                    assert!(register.generation == held.next() || mended, "a step, or what the node told");
                }
                Action::Reply { to, request, reply } => self.check_reply(to, request, reply),
                Action::Remove { .. } => panic!("nobody asked for it"),
            }
        }
    }

    fn check_reply(&mut self, to: u64, request: Request, reply: Reply) {
        assert!(self.unanswered.remove(&to), "each request is answered once");
        assert_eq!(request, self.asked[&to]);
        let (vm, held) = (request.vm, self.disk.get(&request.vm).copied());
        assert_eq!(reply.held, held, "only what is durable");
        match (request.ask, reply.outcome) {
            (Ask::Cas(Swap { new, .. }), Outcome::Won) => {
                assert_eq!(held, Some(new), "told before it was durable");
                let before = self.won.insert((vm, new.generation.0), new);
                assert!(before.is_none_or(|b| b == new), "two values won {}: {before:?} and {new:?}", new.generation);
            }
            (Ask::Cas(Swap { expect, new, .. }), Outcome::Lost) => {
                assert_ne!(held, Some(new), "it holds what was asked for");
                assert_ne!(generation_of(held.as_ref()), expect, "nobody was first");
            }
            // Asked before the node had seen what it has to tell.
            (Ask::Cas(_), Outcome::Refused(Refusal::Waiting)) => assert_eq!(reply.standing, Standing::Waiting),
            (Ask::Read, Outcome::Holds) | (_, Outcome::Failed) => {}
            (asked, told) => panic!("{asked:?} was answered with {told:?}"),
        }
        let seen = self.seen.get(&vm).copied();
        if generation_of(held.as_ref()) >= generation_of(seen.as_ref()) {
            self.seen.extend(held.map(|held| (vm, held)));
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Read { client, vm } => self.send(client, vm_name(vm), Ask::Read),
            Step::Cas { client, vm, behind } => {
                let vm = vm_name(vm);
                let known = self.disk.get(&vm).max_by_generation(self.seen.get(&vm));
                let expect = Generation(known.0.saturating_sub(behind));
                let node = Node { name: Name::new("node").unwrap(), id: NODE };
                // The instance differs from try to try: two swaps that are not resends never ask for the same value.
                let owner = Owner { node, instance: self.next_token + 1 };
                let new = Register { generation: expect.next(), owner, mode: Mode::Solo };
                self.send(client, vm, Ask::Cas(Swap { expect, new, contested: false }));
            }
            Step::Resend { client } => {
                if let Some((vm, ask)) = self.last.get(&client).copied() {
                    self.send(client, vm, ask);
                }
            }
            Step::DiskDone { vm } => self.disk_done(vm_name(vm)),
            Step::DiskFull { vm } => {
                let vm = vm_name(vm);
                if self.writing.remove(&vm).is_some() {
                    self.event(Event::PersistFailed { vm });
                }
            }
            Step::Crash { durable, forgets } => self.crash(durable, forgets),
        }
    }

    fn disk_done(&mut self, vm: Name) {
        if let Some(register) = self.writing.remove(&vm) {
            self.disk.insert(vm, register);
            self.event(Event::Persisted { vm });
        }
    }

    fn crash(&mut self, durable: [bool; 2], forgets: bool) {
        for (vm, register) in std::mem::take(&mut self.writing) {
            if durable[usize::from(vm == vm_name(1))] {
                self.disk.insert(vm, register);
            }
        }
        if forgets {
            self.disk.clear();
        }
        self.unanswered.clear();
        self.boot += 1;
        self.arbiter = Arbiter::recover(Limits::default(), self.boot, self.disk.clone(), BTreeSet::new());
    }

    fn check(&self) {
        assert_eq!(*self.arbiter.registers(), self.disk);
        for ((vm, generation), value) in &self.won {
            let known = self.disk.get(vm).max_by_generation(self.seen.get(vm));
            assert!(known.0 >= *generation, "a won generation is never taken back");
            let held = self.disk.get(vm).filter(|held| held.generation.0 == *generation);
            assert!(held.is_none_or(|held| held == value), "a won value was replaced");
        }
    }
}

trait MaxByGeneration {
    fn max_by_generation(self, other: Option<&Register>) -> Generation;
}

impl MaxByGeneration for Option<&Register> {
    fn max_by_generation(self, other: Option<&Register>) -> Generation {
        generation_of(self).max(generation_of(other))
    }
}

proptest! {
    #[test]
    fn a_won_that_was_told_is_never_replaced_and_never_doubled(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            world.check();
        }
        // The disk recovers: everything that is still open is answered.
        while let Some(vm) = world.writing.keys().next().copied() {
            world.disk_done(vm);
            world.check();
        }
        prop_assert!(world.unanswered.is_empty(), "never answered: {:?}", world.unanswered);
        prop_assert!(!world.arbiter.is_persisting());
    }
}
