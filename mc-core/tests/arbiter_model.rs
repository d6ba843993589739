//! The arbiter against a map that swaps at once, with a disk that fails and a crash at any moment.

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{Mode, Owner, Register, generation_of},
    wire::arbiter::{Body, Message},
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
    /// `durable`: whether the write under way reached the disk, VM by VM.
    Crash {
        durable: [bool; 2],
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
        1 => any::<[bool; 2]>().prop_map(|durable| Step::Crash { durable }),
    ]
}

fn vm_name(vm: u8) -> Name {
    Name::new(if vm == 0 { "vm-a" } else { "vm-b" }).unwrap()
}

/// A disk, the clients' view, and the reference: a map in which a swap takes effect when its write is done.
#[derive(Default)]
struct World {
    arbiter: Arbiter,
    disk: BTreeMap<Name, Register>,
    writing: BTreeMap<Name, Register>,
    last: BTreeMap<u64, Message>,
    asked: BTreeMap<u64, Message>,
    unanswered: BTreeSet<u64>,
    next_token: u64,
    /// VM and generation -> the value that somebody was told it won with.
    won: BTreeMap<(Name, u64), Register>,
}

impl World {
    fn send(&mut self, client: u64, message: Message) {
        self.last.insert(client, message);
        let token = self.next_token;
        self.next_token += 1;
        self.unanswered.insert(token);
        self.asked.insert(token, message);
        self.event(Event::Request { from: token, message });
    }

    fn event(&mut self, event: Event) {
        self.arbiter.handle(Time(0), event);
        while let Some(action) = self.arbiter.poll_action() {
            match action {
                Action::Persist { vm, register } => {
                    assert!(self.writing.insert(vm, register).is_none(), "one write at a time per VM");
                    let held = generation_of(self.disk.get(&vm));
                    assert_eq!(register.generation, held.next(), "a swap steps by one from what is durable");
                }
                Action::Reply { to, message } => self.check_reply(to, &message),
            }
        }
    }

    fn check_reply(&mut self, to: u64, message: &Message) {
        assert!(self.unanswered.remove(&to), "each request is answered once");
        let asked = self.asked[&to];
        assert_eq!((message.id, message.vm), (asked.id, asked.vm));
        let held = self.disk.get(&message.vm).copied();
        match (asked.body, message.body) {
            (Body::Read, Body::Holds(told)) => assert_eq!(told, held, "only what is durable"),
            (Body::Cas { new, .. }, Body::Won(told)) => {
                assert_eq!(told, new);
                assert_eq!(held, Some(new), "told before it was durable");
                let before = self.won.insert((message.vm, told.generation.0), told);
                assert!(
                    before.is_none_or(|b| b == told),
                    "two values won {}: {before:?} and {told:?}",
                    told.generation
                );
            }
            (Body::Cas { expect, new }, Body::Lost(told)) => {
                assert_eq!(told, held);
                assert_ne!(held, Some(new), "it holds what was asked for");
                assert_ne!(generation_of(held.as_ref()), expect, "nobody was first");
            }
            (Body::Cas { .. }, Body::Failed) => {}
            (asked, told) => panic!("{asked:?} was answered with {told:?}"),
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Read { client, vm } => {
                let id = self.next_token;
                self.send(client, Message { id, vm: vm_name(vm), body: Body::Read });
            }
            Step::Cas { client, vm, behind } => {
                let vm = vm_name(vm);
                let expect = Generation(generation_of(self.disk.get(&vm)).0.saturating_sub(behind));
                let node = Name::new(&format!("node-{client}")).unwrap();
                // The instance differs from try to try: two swaps that are not resends never ask for the same value.
                let owner = Owner { node, instance: self.next_token };
                let new = Register { generation: expect.next(), owner, mode: Mode::Solo };
                self.send(client, Message { id: self.next_token, vm, body: Body::Cas { expect, new } });
            }
            Step::Resend { client } => {
                if let Some(message) = self.last.get(&client).copied() {
                    self.send(client, message);
                }
            }
            Step::DiskDone { vm } => self.disk_done(vm_name(vm)),
            Step::DiskFull { vm } => {
                let vm = vm_name(vm);
                if self.writing.remove(&vm).is_some() {
                    self.event(Event::PersistFailed { vm });
                }
            }
            Step::Crash { durable } => self.crash(durable),
        }
    }

    fn disk_done(&mut self, vm: Name) {
        if let Some(register) = self.writing.remove(&vm) {
            self.disk.insert(vm, register);
            self.event(Event::Persisted { vm });
        }
    }

    fn crash(&mut self, durable: [bool; 2]) {
        for (vm, register) in std::mem::take(&mut self.writing) {
            if durable[usize::from(vm == vm_name(1))] {
                self.disk.insert(vm, register);
            }
        }
        self.unanswered.clear();
        self.arbiter = Arbiter::recover(Limits::default(), self.disk.clone());
    }

    fn check(&self) {
        assert_eq!(*self.arbiter.registers(), self.disk);
        for ((vm, generation), value) in &self.won {
            let held = self.disk.get(vm).expect("a register that was won is never vacant again");
            assert!(held.generation.0 >= *generation, "a won generation is never taken back");
            assert!(held.generation.0 > *generation || held == value, "a won value was forgotten");
        }
    }
}

proptest! {
    #[test]
    fn a_won_that_was_told_is_never_forgotten_and_never_doubled(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
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
