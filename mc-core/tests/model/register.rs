//! The arbiter and its clients: requests and replies may be lost, doubled, late and out of order; the arbiter may crash, forget,
//! and go back to anything that it ever held. What a client has seen survives its crashes.
//!
//! A set of messages that never shrinks says all of that at once: each may be delivered any number of times, at any time,
//! or never. Replies matter only while their question is open. (A request for an earlier process of the arbiter changes
//! nothing: it is delivered only while its question is open.)

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits, Reply},
    id::{Generation, Name, Node, NodeId, Time, WitnessId},
    machine::Machine,
    register::{CasOutcome, Mode, Owner, Register},
    seen::{Heard, Seen},
    wire::arbiter::{Ask, Asker, Outcome, Refusal, Request, Standing},
};
use std::collections::{BTreeMap, BTreeSet};

/// What a client hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// To a swap.
    Cas(CasOutcome),
    /// To a read.
    Held(Option<Register>),
    /// The arbiter holds less than this client has seen.
    Fault,
}

/// What is switched off around the arbiter, to see that the check notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Neglect {
    /// After a start swaps are tried at once.
    TryAtOnce,
    /// Anybody may swap.
    AnybodyMaySwap,
    /// A crash of a client takes along what it had seen.
    ForgetSeen,
    /// What is less than was seen is believed.
    BelieveAll,
}

/// Whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) node: NodeId,
    /// Durable.
    pub(crate) seen: Seen,
    /// The arbiter's process, by its newest answer.
    boot: u64,
    /// Everything ever asked; a request's id is its index.
    asked: Vec<Request>,
    /// Whether the newest question is open.
    waiting: bool,
    /// Answers to it that are on their way.
    replies: Vec<(u64, Reply)>,
}

/// The arbiter, its disk, and the network around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Registry {
    arbiter: Arbiter,
    boot: u64,
    /// What a restart finds.
    pub(crate) disk: Option<Register>,
    /// Everything that the disk ever held, in order.
    pub(crate) history: Vec<Register>,
    /// What is being written.
    writing: Option<Register>,
    /// How often it may still crash.
    crashes: u8,
    /// How often it may still lose what it had.
    rewinds: u8,
    neglect: Option<Neglect>,
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
    /// It starts again over what its disk held once; `None`: over nothing.
    Rewind(Option<usize>),
    /// A client looks what the register holds.
    Look(usize),
    /// A reply arrives: whose, and which.
    Reply(usize, usize),
}

/// The one VM.
pub(crate) fn vm() -> Name {
    Name::new("vm").unwrap()
}

const WITNESS: WitnessId = WitnessId([7; 16]);

/// One request may wait behind a write: a second tells the arbiter nothing new.
fn recover(boot: u64, register: Option<Register>) -> Arbiter {
    let registers: BTreeMap<_, _> = register.map(|r| (vm(), r)).into_iter().collect();
    Arbiter::recover(Limits { vms: 1, waiting: 1 }, boot, registers, BTreeSet::new())
}

fn order((boot, reply): &(u64, Reply)) -> (u64, u8, u64, bool) {
    let (generation, solo) = reply.held.map_or((0, false), |r| (r.generation.0, r.mode == Mode::Solo));
    let kind = match reply.outcome {
        Outcome::Holds => 0,
        Outcome::Won => 1,
        Outcome::Lost => 2,
        Outcome::Failed => 3,
        Outcome::Refused(_) => 4,
    };
    (*boot, kind, generation, solo)
}

/// Why a client would read the register.
#[derive(Clone, Copy)]
pub(crate) struct Looks {
    /// It is there.
    pub(crate) lives: bool,
    /// It wants to know whose the VM is.
    pub(crate) cares: bool,
    /// Reading once more what it has seen would tell it something: it holds a copy that the register names, and the arbiter said
    /// something else; or it has not the copy that the register names.
    pub(crate) again: bool,
}

impl Registry {
    /// An arbiter that holds `register`, and silent clients; the first of them has seen it.
    pub(crate) fn new(
        register: Register,
        nodes: &[NodeId],
        (crashes, rewinds): (u8, u8),
        neglect: Option<Neglect>,
    ) -> Self {
        let client = |(i, node): (usize, &NodeId)| Client {
            node: *node,
            seen: Seen { witness: Some(WITNESS), register: (i == 0).then_some(register) },
            boot: 1,
            asked: Vec::new(),
            waiting: false,
            replies: Vec::new(),
        };
        let clients = nodes.iter().enumerate().map(client).collect();
        let mut registry = Self {
            arbiter: recover(1, Some(register)),
            boot: 1,
            disk: Some(register),
            history: vec![register],
            writing: None,
            crashes,
            rewinds,
            neglect,
            clients,
        };
        registry.settle_by_neglect();
        // It has been running for long: the owner told it what it has seen.
        registry.hear_out(0);
        registry
    }

    /// Another process asks, of a node that has seen this; what the register held before is added to its history.
    pub(crate) fn join(&mut self, node: NodeId, seen: Register, before: &[Register]) {
        let seen = Seen { witness: Some(WITNESS), register: Some(seen) };
        self.clients.push(Client { node, seen, boot: 1, asked: Vec::new(), waiting: false, replies: Vec::new() });
        self.history.splice(0..0, before.iter().copied());
    }

    /// The first client's node has a second process now: the old one becomes the last client.
    pub(crate) fn split(&mut self) {
        let (node, seen) = (self.clients[0].node, self.clients[0].seen);
        self.join(node, seen.register.expect("an owner has seen"), &[]);
        let last = self.clients.len() - 1;
        self.clients.swap(0, last);
    }

    /// Whether nothing of this client's is on its way through the arbiter.
    pub(crate) fn is_quiet(&self, client: usize) -> bool {
        !self.clients[client].waiting && self.writing.is_none()
    }

    fn hear_out(&mut self, client: usize) {
        let Client { node, seen, boot, .. } = self.clients[client].clone();
        let asker = Asker { node, seen: seen.register, boot };
        let request = Request { id: u64::MAX, vm: vm(), asker, ask: Ask::Read };
        self.tell(Event::Request { from: u64::MAX, request });
    }

    /// [`Neglect::TryAtOnce`]: as if everybody had told what is stored.
    fn settle_by_neglect(&mut self) {
        let Some(held) = self.disk.filter(|_| self.neglect == Some(Neglect::TryAtOnce)) else { return };
        for node in held.nodes().collect::<Vec<_>>() {
            let asker = Asker { node, seen: Some(held), boot: self.boot };
            let request = Request { id: u64::MAX, vm: vm(), asker, ask: Ask::Read };
            self.tell(Event::Request { from: u64::MAX, request });
        }
    }

    /// A client asks; it no longer cares for the answer to what it had asked before.
    pub(crate) fn ask(&mut self, client: usize, mut ask: Ask) {
        if let Ask::Cas(swap) = &mut ask {
            swap.contested = false; // that is not on the wire
        }
        let anybody = self.neglect == Some(Neglect::AnybodyMaySwap);
        let owner = self.disk.map(|r| r.owner.node.id);
        let side = &mut self.clients[client];
        let node = owner.filter(|_| anybody && ask != Ask::Read).unwrap_or(side.node);
        let asker = Asker { node, seen: side.seen.register, boot: side.boot };
        side.asked.push(Request { id: side.asked.len() as u64, vm: vm(), asker, ask });
        side.waiting = true;
        side.replies.clear();
    }

    /// A client is gone. What it had asked is still on its way, and what it had seen is on its disk.
    pub(crate) fn forget(&mut self, client: usize) {
        let neglect = self.neglect;
        let client = &mut self.clients[client];
        client.waiting = false;
        client.replies.clear();
        client.boot = 0;
        if neglect == Some(Neglect::ForgetSeen) {
            client.seen.register = None;
        }
    }

    /// What may happen next. `looks`: which clients live, and whether they care for what the register holds.
    pub(crate) fn steps(&self, looks: impl Fn(usize) -> Looks, steps: &mut Vec<Step>) {
        for (i, client) in self.clients.iter().enumerate() {
            let newest = client.asked.len().checked_sub(1).filter(|_| client.waiting);
            let matters = |n: &usize| client.asked[*n].asker.boot == self.boot || Some(*n) == newest;
            steps.extend((0..client.asked.len()).filter(matters).map(|n| Step::Request(i, n)));
            steps.extend((0..client.replies.len()).map(|n| Step::Reply(i, n)));
            if self.would_look(client, looks(i)) {
                steps.push(Step::Look(i));
            }
        }
        if self.writing.is_some() {
            steps.extend([Step::Written, Step::WriteFailed]);
        }
        if self.crashes > 0 {
            steps.extend([false, true].map(|written| Step::Restart { written }));
        }
        if self.rewinds > 0 {
            steps.push(Step::Rewind(None));
            steps.extend((0..self.history.len() - 1).map(|n| Step::Rewind(Some(n))));
        }
    }

    /// Whether a look would tell anybody anything new.
    fn would_look(&self, client: &Client, looks: Looks) -> bool {
        let awaited = self.arbiter.awaited(vm()).contains(&client.node);
        let tells = awaited || client.seen.register.is_some() && client.boot != self.boot;
        let news = looks.cares && client.seen.register != self.disk;
        let mends = looks.again && self.arbiter.standing(vm()) == Standing::Settled;
        looks.lives && !client.waiting && (tells || news || mends)
    }

    /// Whether `now` came of `before` because a standby renounced: the owner had not asked for it.
    pub(crate) fn renounces(&self, before: &Register, now: &Register) -> bool {
        let alone = Register { generation: before.generation.next(), mode: Mode::Solo, ..*before };
        let asked = |r: &Request| matches!(r.ask, Ask::Cas(swap) if swap.new == alone);
        let mut owners = self.clients.iter().filter(|client| client.node == before.owner.node.id);
        before.mode != Mode::Solo && *now == alone && !owners.any(|owner| owner.asked.iter().any(asked))
    }

    /// The newest register that was ever stored.
    pub(crate) fn newest(&self) -> Option<&Register> {
        self.history.iter().max_by_key(|r| r.generation)
    }

    /// Whether it went back once, and holds all that it ever held again.
    pub(crate) fn was_mended(&self) -> bool {
        self.boot > 1
            && self.rewinds == 0
            && self.crashes == 0
            && self.disk.as_ref() == self.newest()
            && self.history.len() > 1
    }

    /// Whether the arbiter has started, and client 0 has not told it yet what it has seen. If that one dies now, an operator
    /// has to decide: what the rule costs.
    pub(crate) fn waits_for_the_primary(&self) -> bool {
        self.arbiter.awaited(vm()).contains(&self.clients[0].node)
    }

    /// Whether a write is under way.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The next step towards answering whoever asks; `None` when nobody does.
    pub(crate) fn fair(&self, looks: impl Fn(usize) -> Looks) -> Option<Step> {
        let helps = |r: &(u64, Reply)| {
            !matches!(r.1.outcome, Outcome::Failed | Outcome::Refused(Refusal::Waiting | Refusal::Disputed))
        };
        let clients = || self.clients.iter().enumerate();
        let reply = |(i, c): (usize, &Client)| c.replies.iter().position(helps).map(|n| Step::Reply(i, n));
        let stuck = || {
            let unwritten = self.arbiter.awaited(vm()).is_empty(); // what was told
            let standing = self.arbiter.standing(vm());
            standing == Standing::Disputed || standing == Standing::Waiting && !unwritten
        };
        let ask = |(i, c): (usize, &Client)| {
            let refused = c.replies.iter().any(|r| matches!(r.1.outcome, Outcome::Refused(_)));
            let stuck = refused && c.boot == self.boot && stuck();
            (c.waiting && !stuck).then(|| Step::Request(i, c.asked.len() - 1))
        };
        let told = |c: &Client| c.boot == self.boot && !self.arbiter.awaited(vm()).contains(&c.node);
        let in_vain = |c: &Client| told(c) && stuck();
        let look = |(i, c): (usize, &Client)| (!in_vain(c) && self.would_look(c, looks(i))).then_some(Step::Look(i));
        let written = self.writing.map(|_| Step::Written);
        written
            .or_else(|| clients().find_map(reply))
            .or_else(|| clients().find_map(ask))
            .or_else(|| clients().find_map(look))
    }

    /// Does it; says which client heard what.
    pub(crate) fn step(&mut self, step: Step) -> Option<(usize, Answer)> {
        match step {
            Step::Request(client, n) => {
                let request = self.clients[client].asked[n];
                self.tell(Event::Request { from: client as u64, request });
            }
            Step::Written => {
                let written = self.writing.take().expect("enabled");
                self.store(written);
                self.tell(Event::Persisted { vm: vm() });
            }
            Step::WriteFailed => {
                self.writing = None;
                self.tell(Event::PersistFailed { vm: vm() });
            }
            Step::Restart { written } => {
                self.crashes -= 1;
                if let Some(register) = self.writing.take().filter(|_| written) {
                    self.store(register);
                }
                self.start(self.disk);
            }
            Step::Rewind(to) => {
                self.rewinds -= 1;
                self.writing = None;
                self.start(to.map(|n| self.history[n]));
            }
            Step::Look(client) => self.ask(client, Ask::Read),
            Step::Reply(client, n) => return self.reply(client, n),
        }
        None
    }

    /// It starts again over what its disk holds.
    pub(crate) fn power_fails(&mut self) {
        self.writing = None;
        self.start(self.disk);
    }

    fn store(&mut self, register: Register) {
        self.disk = Some(register);
        if !self.history.contains(&register) {
            self.history.push(register);
        }
    }

    fn start(&mut self, disk: Option<Register>) {
        self.boot += 1;
        self.disk = disk;
        self.arbiter = recover(self.boot, disk);
        self.settle_by_neglect();
    }

    fn reply(&mut self, client: usize, n: usize) -> Option<(usize, Answer)> {
        let believes = self.neglect == Some(Neglect::BelieveAll);
        let side = &mut self.clients[client];
        let (boot, reply) = side.replies.remove(n);
        side.boot = side.boot.max(boot);
        let asked = side.asked.last().expect("it waits").ask;
        let before = side.seen.register;
        match side.seen.hear(WITNESS, reply.held) {
            Heard::Fault(_) if believes => side.seen.register = reply.held,
            Heard::Fault(_) => {
                side.waiting = false;
                if asked != Ask::Read {
                    self.ask(client, asked); // a swap goes on being asked for, and what was seen is told
                }
                return Some((client, Answer::Fault));
            }
            Heard::Same | Heard::News => {}
        }
        let learnt = side.seen.register != before;
        let answer = match reply.outcome {
            Outcome::Holds => Answer::Held(reply.held),
            Outcome::Won => Answer::Cas(CasOutcome::Won(reply.held.expect("won"))),
            Outcome::Lost | Outcome::Refused(Refusal::NotEntitled) => Answer::Cas(CasOutcome::Lost(reply.held)),
            Outcome::Failed | Outcome::Refused(_) => {
                // It goes on asking, with what it knows now.
                if learnt || reply.outcome == Outcome::Refused(Refusal::StaleBoot) {
                    self.ask(client, asked);
                }
                return None;
            }
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
                Action::Reply { to, request, reply } => self.send(to, request, reply),
                Action::Remove { .. } => unreachable!("no operator forgets a VM here"),
            }
        }
    }

    fn send(&mut self, to: u64, request: Request, reply: Reply) {
        let Some(client) = usize::try_from(to).ok().and_then(|to| self.clients.get_mut(to)) else { return };
        let current = request.id + 1 == client.asked.len() as u64;
        let reply = (self.boot, reply);
        if !client.waiting || !current || client.replies.contains(&reply) {
            return;
        }
        client.replies.push(reply);
        client.replies.sort_by_key(order);
    }
}

/// The register of a VM that runs alone on `owner`.
pub(crate) fn solo(generation: u64, owner: Owner) -> Register {
    Register { generation: Generation(generation), owner, mode: Mode::Solo }
}

/// A node of this world: its name, and an identity made of a number.
pub(crate) fn node(name: &str, id: u8) -> Node {
    Node { name: Name::new(name).unwrap(), id: NodeId([id; 16]) }
}
