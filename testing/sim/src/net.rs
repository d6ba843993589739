//! What lies between hosts: beats that are lost, late, doubled; ways that are cut; the witness.

use mc_core::{
    arbiter::{self, Action, Arbiter, Limits},
    id::{Name, Time, WitnessId},
    machine::Machine,
    register::Register,
    transport::Keepalive,
    wire::{
        arbiter::{ANSWER_LEN, Answer, Request},
        beat,
    },
};
use node::arbiter::{Dial, Exchange};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Milliseconds, in ns.
pub(crate) const MS: u64 = 1_000_000;

/// A datagram on its way: when it arrives, and its bytes.
type Datagram = (u64, [u8; beat::LEN]);

/// The network, as it is now.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: u64,
    pub(crate) rng: fastrand::Rng,
    /// By sender: nothing of it arrives.
    pub(crate) cut: [bool; 2],
    /// Of a thousand beats.
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
    /// The longest way, ns.
    pub(crate) delay: u64,
    inboxes: Vec<Vec<Datagram>>,
    /// Who has to be woken, and when.
    pub(crate) wakes: Vec<(u64, usize)>,
    pub(crate) witness: Witness,
}

pub(crate) type SharedNet = Arc<Mutex<Net>>;

pub(crate) fn lock(net: &Mutex<Net>) -> MutexGuard<'_, Net> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            cut: [false; 2],
            loss: 0,
            doubled: 0,
            late: 0,
            delay: MS,
            inboxes: Vec::new(),
            wakes: Vec::new(),
            witness: Witness::new(),
        }
    }

    /// So long something takes.
    pub(crate) fn way(&mut self) -> u64 {
        self.rng.u64(20_000..=self.delay.max(20_001))
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.rng.u64(0..1000) < per_mille
    }

    fn carry(&mut self, from: usize, inbox: usize, bytes: &[u8; beat::LEN]) {
        if self.cut[from] || self.chance(self.loss) {
            return;
        }
        let times = 1 + usize::from(self.chance(self.doubled));
        for _ in 0..times {
            let late = if self.chance(self.late) { self.rng.u64(0..200 * MS) } else { 0 };
            let at = self.now + self.way() + late;
            self.inboxes[inbox].push((at, *bytes));
            self.wakes.push((at, 1 - from));
        }
    }
}

/// Both ends of a session's beats: the primary's host's, and the other one's.
pub(crate) fn beats(net: &SharedNet, caller: usize) -> [Beats; 2] {
    let mut locked = lock(net);
    let first = locked.inboxes.len();
    locked.inboxes.extend([Vec::new(), Vec::new()]);
    let end = |host, own, other| Beats { net: Arc::clone(net), host, own, other };
    [end(caller, first, first + 1), end(1 - caller, first + 1, first)]
}

/// One end.
#[derive(Debug)]
pub(crate) struct Beats {
    net: SharedNet,
    host: usize,
    own: usize,
    other: usize,
}

impl Keepalive for Beats {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        lock(&self.net).carry(self.host, self.other, beat);
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        let mut net = lock(&self.net);
        let now = net.now;
        let inbox = &mut net.inboxes[self.own];
        let arrived = (0..inbox.len()).filter(|i| inbox[*i].0 <= now).min_by_key(|i| inbox[*i].0);
        Ok(arrived.map(|index| {
            buffer[..beat::LEN].copy_from_slice(&inbox.remove(index).1);
            beat::LEN
        }))
    }

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// The arbiter's machine, its disk, and how it is reached.
#[derive(Debug)]
pub(crate) struct Witness {
    machine: Arbiter,
    disk: BTreeMap<Name, Register>,
    /// What was stored before.
    backup: BTreeMap<Name, Register>,
    boot: u64,
    pub(crate) down: bool,
    /// By node: no way to it.
    pub(crate) away: [bool; 2],
    /// Of a thousand answers.
    pub(crate) deaf: u64,
    pub(crate) slow: u64,
    /// By node: its newest question had no answer.
    pub(crate) unanswered: [bool; 2],
    pub(crate) history: Vec<Option<Register>>,
    asked: u64,
}

impl Witness {
    fn new() -> Self {
        Self {
            machine: Arbiter::new(Limits::default(), 1),
            disk: BTreeMap::new(),
            backup: BTreeMap::new(),
            boot: 1,
            down: false,
            away: [false; 2],
            deaf: 0,
            slow: 0,
            unanswered: [false; 2],
            history: vec![None],
            asked: 0,
        }
    }

    /// A new process, over what is stored.
    pub(crate) fn restart(&mut self) {
        self.boot += 1;
        self.machine = Arbiter::recover(Limits::default(), self.boot, self.disk.clone(), BTreeSet::new());
        self.down = false;
    }

    pub(crate) fn back_up(&mut self) {
        self.backup = self.disk.clone();
    }

    pub(crate) fn forget(&mut self, all: bool) {
        self.disk = if all { BTreeMap::new() } else { self.backup.clone() };
        self.restart();
    }

    /// What is stored of the one VM.
    pub(crate) fn holds(&self) -> Option<Register> {
        self.disk.values().next().copied()
    }

    fn answer(&mut self, request: &Request) -> Option<Answer> {
        self.asked += 1;
        self.machine.handle(Time(0), arbiter::Event::Request { from: self.asked, request: *request });
        let mut answer = None;
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Persist { vm, register } => {
                    self.disk.insert(vm, register);
                    self.history.push(Some(register));
                    self.machine.handle(Time(0), arbiter::Event::Persisted { vm });
                }
                Action::Remove { vm } => {
                    self.disk.remove(&vm);
                    self.machine.handle(Time(0), arbiter::Event::Persisted { vm });
                }
                Action::Reply { request, reply, .. } => {
                    answer = Some(Answer {
                        id: request.id,
                        vm: request.vm,
                        witness: WitnessId([7; 16]),
                        boot: self.boot,
                        probe_age_ms: Some(1),
                        standing: reply.standing,
                        outcome: reply.outcome,
                        held: reply.held,
                    });
                }
            }
        }
        answer
    }
}

/// A host's way to the witness.
#[derive(Debug)]
pub(crate) struct ToWitness {
    pub(crate) net: SharedNet,
    pub(crate) host: usize,
}

impl fmt::Display for ToWitness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("witness://w:7700")
    }
}

impl Dial for ToWitness {
    fn dial(&self) -> Result<(Box<dyn Exchange>, SocketAddr), String> {
        let mut net = lock(&self.net);
        let witness = &mut net.witness;
        if witness.down || witness.away[self.host] {
            witness.unanswered[self.host] = true;
            return Err("w:7700: no answer in 500ms".to_owned());
        }
        let line = Line { net: Arc::clone(&self.net), host: self.host, boot: witness.boot };
        Ok((Box::new(line), SocketAddr::from(([10, 0, 0, 3], 7700))))
    }
}

/// A connection: to one process of the witness.
#[derive(Debug)]
struct Line {
    net: SharedNet,
    host: usize,
    boot: u64,
}

impl Exchange for Line {
    fn round_trip(&mut self, request: &Request) -> io::Result<[u8; ANSWER_LEN]> {
        let mut net = lock(&self.net);
        if net.witness.boot != self.boot {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let (host, deaf) = (self.host, net.witness.deaf);
        let (lost, unheard) = (net.chance(deaf), net.chance(deaf));
        let witness = &mut net.witness;
        let gone = witness.down || witness.away[host] || lost;
        let answer = if gone { None } else { witness.answer(request) };
        match answer.filter(|_| !unheard) {
            Some(answer) => Ok(answer.encode()),
            None => {
                witness.unanswered[host] = true;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}
