//! The arbiter and its clients: requests and replies may be lost, doubled, late and out of order, and the arbiter may crash.
//!
//! A set of messages that never shrinks says all of that at once: each may be delivered any number of times, at any time,
//! or never. A request stays for ever (its client sends it again until it is answered, and the network may keep a copy
//! longer than that); replies matter only while their question is open.

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register},
    wire::arbiter::{Body, Message},
};
use std::collections::BTreeMap;

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// To a swap.
    Cas(CasOutcome),
    /// To a read.
    Held(Option<Register>),
}

/// Whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    /// Everything ever asked; a message's id is its index.
    asked: Vec<Body>,
    /// Whether the newest question is open.
    waiting: bool,
    /// Answers to it that are on their way.
    replies: Vec<Body>,
}

/// The arbiter, its disk, and the network around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Registry {
    arbiter: Arbiter,
    /// What a restart finds.
    pub(crate) disk: Register,
    /// What is being written.
    writing: Option<Register>,
    /// The primary, then the standbys.
    pub(crate) clients: Vec<Client>,
}

/// What can happen around the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A request arrives: whose, and which.
    Request(usize, usize),
    /// A write reached the disk.
    Written,
    /// A write failed.
    WriteFailed,
    /// The arbiter crashes and starts again; whether a write under way got to the disk.
    Restart { written: bool },
    /// A reply arrives: whose, and which.
    Reply(usize, usize),
}

/// The one VM.
pub(crate) fn vm() -> Name {
    Name::new("vm").unwrap()
}

/// One request may wait behind a write: a second tells the arbiter nothing new.
fn recover(register: Register) -> Arbiter {
    Arbiter::recover(Limits { vms: 1, waiting: 1 }, BTreeMap::from([(vm(), register)]))
}

fn order(body: &Body) -> (u8, u64, bool) {
    let of = |r: &Register| (r.generation.0, r.mode == Mode::Solo);
    let none = (0, false);
    let (kind, (generation, solo)) = match body {
        Body::Holds(r) => (0, r.as_ref().map_or(none, of)),
        Body::Won(r) => (1, of(r)),
        Body::Lost(r) => (2, r.as_ref().map_or(none, of)),
        _ => (3, none),
    };
    (kind, generation, solo)
}

impl Client {
    /// Whether answers are on their way.
    pub(crate) fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }
}

impl Registry {
    /// An arbiter that holds `register`, and silent clients.
    pub(crate) fn new(register: Register, clients: usize) -> Self {
        Self { arbiter: recover(register), disk: register, writing: None, clients: vec![Client::default(); clients] }
    }

    /// A client asks; it no longer cares for the answer to what it had asked before.
    pub(crate) fn ask(&mut self, client: usize, body: Body) {
        let client = &mut self.clients[client];
        client.asked.push(body);
        client.waiting = true;
        client.replies.clear();
    }

    /// A client is gone. What it had asked is still on its way.
    pub(crate) fn forget(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.waiting = false;
        client.replies.clear();
    }

    /// What may happen next. `restarts`: whether the arbiter may crash.
    pub(crate) fn steps(&self, restarts: bool, steps: &mut Vec<Step>) {
        for (i, client) in self.clients.iter().enumerate() {
            steps.extend((0..client.asked.len()).map(|n| Step::Request(i, n)));
            steps.extend((0..client.replies.len()).map(|n| Step::Reply(i, n)));
        }
        if self.writing.is_some() {
            steps.extend([Step::Written, Step::WriteFailed]);
        }
        if restarts {
            steps.extend([false, true].map(|written| Step::Restart { written }));
        }
    }

    /// Whether a write is under way.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The next step towards answering whoever asks; `None` when nobody does.
    pub(crate) fn fair(&self) -> Option<Step> {
        let reply =
            |(i, c): (usize, &Client)| c.replies.iter().position(|r| *r != Body::Failed).map(|n| Step::Reply(i, n));
        let ask = |(i, c): (usize, &Client)| c.waiting.then(|| Step::Request(i, c.asked.len() - 1));
        let clients = || self.clients.iter().enumerate();
        let written = self.writing.map(|_| Step::Written);
        written.or_else(|| clients().find_map(reply)).or_else(|| clients().find_map(ask))
    }

    /// Does it; says which client heard what.
    pub(crate) fn step(&mut self, step: Step) -> Option<(usize, Answer)> {
        match step {
            Step::Request(client, n) => {
                let message = Message { id: n as u64, vm: vm(), body: self.clients[client].asked[n] };
                self.tell(Event::Request { from: client as u64, message });
            }
            Step::Written => {
                self.disk = self.writing.take().expect("enabled");
                self.tell(Event::Persisted { vm: vm() });
            }
            Step::WriteFailed => {
                self.writing = None;
                self.tell(Event::PersistFailed { vm: vm() });
            }
            Step::Restart { written } => {
                let writing = self.writing.take();
                self.disk = writing.filter(|_| written).unwrap_or(self.disk);
                self.arbiter = recover(self.disk);
            }
            Step::Reply(client, n) => return self.reply(client, n),
        }
        None
    }

    fn reply(&mut self, client: usize, n: usize) -> Option<(usize, Answer)> {
        let side = &mut self.clients[client];
        let answer = match side.replies[n] {
            Body::Holds(r) => Answer::Held(r),
            Body::Won(r) => Answer::Cas(CasOutcome::Won(r)),
            Body::Lost(r) => Answer::Cas(CasOutcome::Lost(r)),
            _ => return None, // "failed": it goes on asking
        };
        side.waiting = false;
        side.replies.clear();
        Some((client, answer))
    }

    fn tell(&mut self, event: Event) {
        self.arbiter.handle(Time(0), event);
        while let Some(action) = self.arbiter.poll_action() {
            match action {
                Action::Persist { register, .. } => self.writing = Some(register),
                Action::Reply { to, message } => self.send(to, message),
            }
        }
    }

    fn send(&mut self, to: u64, message: Message) {
        let client = &mut self.clients[usize::try_from(to).unwrap()];
        let current = message.id + 1 == client.asked.len() as u64;
        if !client.waiting || !current || client.replies.contains(&message.body) {
            return;
        }
        client.replies.push(message.body);
        client.replies.sort_by_key(order);
    }
}

/// The register of a VM that runs alone on `owner`.
pub(crate) fn solo(generation: u64, owner: Owner) -> Register {
    Register { generation: Generation(generation), owner, mode: Mode::Solo }
}
