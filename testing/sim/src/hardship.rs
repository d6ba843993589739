//! What befalls the world: hardships have names, and compose with `+`.

use crate::net::MS;
use std::fmt;

/// Something that happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Beats: lost, doubled, late; of a thousand.
    Air(u64, u64, u64),
    /// The longest way through the network, ms.
    Delay(u64),
    /// Nothing of this host arrives at the other one, or everything again.
    Cut(usize, bool),
    /// The first path fails: noticed by the primary's end, by the other's.
    Fails([bool; 2]),
    /// Every connection between the hosts breaks.
    Breaks,
    /// What is on its way from this host is damaged.
    Damages(usize),
    /// Slabs are lost by the link itself, from this host, from here on: one now.
    Leaks(usize),
    /// After so many events, and so many µs, the host of the newest one: 0: its process dies; 1: it loses its power; 2: it stands still.
    AtEvent(u64, u64, u8),
    /// The process on this host dies, and is started again after so many ms.
    Crash(usize, u64),
    /// This host loses its power for so many ms.
    Power(usize, u64),
    /// This host's loop, its beat thread, all of it: stands still for so many ms.
    StopLoop(usize, u64),
    /// See [`Blow::StopLoop`].
    StopBeats(usize, u64),
    /// See [`Blow::StopLoop`].
    StopHost(usize, u64),
    /// This host has no way to the witness, or has it again.
    Away(usize, bool),
    /// The witness's host is off, or on again.
    Down(bool),
    /// So many of a thousand questions, and answers, are lost.
    Deaf(u64),
    /// The witness takes so many ms.
    Slow(u64),
    /// Its process is followed by another one.
    Restart,
    /// A backup is made of its disk.
    BackUp,
    /// Its disk is empty, or what the backup was.
    Forget(bool),
    /// This host's clock: a step forward, ms; and its drift, ppm.
    Clock(usize, u64, i64),
    /// Pages that the guest touches in a step, at most.
    Appetite(usize),
    /// All is well from here on.
    Heal,
}

/// When, ns, and what.
pub type Schedule = Vec<(u64, Blow)>;

/// Hardships end at this moment at the latest.
pub(crate) const HEALED: u64 = 4_500 * MS;

type Draw = fn(&mut fastrand::Rng) -> Schedule;

/// Their names, what they are, and how they are drawn.
const ALL: &[(&str, &str, Draw)] = &[
    ("calm", "nothing happens", |_| vec![]),
    ("lost-beats", "up to four of ten beats are lost", |rng| vec![(early(rng), Blow::Air(rng.u64(50..400), 0, 0))]),
    ("doubled-beats", "up to half of all beats come twice", |rng| {
        vec![(early(rng), Blow::Air(0, rng.u64(50..500), 0))]
    }),
    ("late-beats", "beats overtake each other", |rng| vec![(early(rng), Blow::Air(0, 0, rng.u64(50..500)))]),
    ("slow-network", "everything takes up to 60 ms", |rng| vec![(early(rng), Blow::Delay(rng.u64(5..60)))]),
    ("one-way-cut", "nothing arrives that one host sends", |rng| {
        let host = rng.usize(0..2);
        passing(rng, Blow::Cut(host, true), Blow::Cut(host, false))
    }),
    ("cut", "the hosts do not hear each other", |rng| {
        let (from, to) = while_(rng);
        vec![
            (from, Blow::Cut(0, true)),
            (from, Blow::Cut(1, true)),
            (to, Blow::Cut(0, false)),
            (to, Blow::Cut(1, false)),
        ]
    }),
    ("failing-path", "RDMA fails, and not every end notices", |rng| {
        let noticed = [[true, false], [false, true], [true, true]][rng.usize(0..3)];
        vec![(at(rng), Blow::Fails(noticed))]
    }),
    ("broken-links", "every connection between the hosts breaks", |rng| vec![(at(rng), Blow::Breaks)]),
    ("damage", "bytes on a link are flipped", |rng| vec![(at(rng), Blow::Damages(rng.usize(0..2)))]),
    ("leaking-link", "a link loses slabs, and does not know", |rng| {
        let host = rng.usize(0..2);
        (0..40).map(|_| (at(rng), Blow::Leaks(host))).collect()
    }),
    ("turning-point", "a process dies, or stands still, right when something has happened to it", |rng| {
        vec![(0, Blow::AtEvent(rng.u64(1..24), rng.u64(0..4_000), rng.u8(0..3)))]
    }),
    ("primary-crash", "the first host's process dies and is started again", |rng| {
        vec![(at(rng), Blow::Crash(0, rng.u64(50..2000)))]
    }),
    ("standby-crash", "the second host's process dies and is started again", |rng| {
        vec![(at(rng), Blow::Crash(1, rng.u64(50..2000)))]
    }),
    ("power-cut", "a host is off for a while", |rng| vec![(at(rng), Blow::Power(rng.usize(0..2), rng.u64(300..2500)))]),
    ("stopped-loop", "a loop stands still for up to ten timeouts", |rng| {
        vec![(at(rng), Blow::StopLoop(rng.usize(0..2), rng.u64(50..2500)))]
    }),
    ("stopped-beats", "a beat thread stands still for up to ten timeouts", |rng| {
        vec![(at(rng), Blow::StopBeats(rng.usize(0..2), rng.u64(50..2500)))]
    }),
    ("stopped-host", "a host stands still for up to ten timeouts, its clock does not", |rng| {
        vec![(at(rng), Blow::StopHost(rng.usize(0..2), rng.u64(50..2500)))]
    }),
    ("slow-arbiter", "the witness takes up to 450 ms", |rng| vec![(early(rng), Blow::Slow(rng.u64(20..450)))]),
    ("deaf-arbiter", "questions and answers of the witness are lost", |rng| {
        vec![(early(rng), Blow::Deaf(rng.u64(50..500)))]
    }),
    ("arbiter-away", "a host does not reach the witness", |rng| {
        let host = rng.usize(0..2);
        passing(rng, Blow::Away(host, true), Blow::Away(host, false))
    }),
    ("arbiter-down", "nobody reaches the witness", |rng| passing(rng, Blow::Down(true), Blow::Down(false))),
    ("arbiter-restart", "the witness's process is followed by another one", |rng| vec![(at(rng), Blow::Restart)]),
    ("forgetting-arbiter", "the witness's disk is empty after a restart", |rng| vec![(at(rng), Blow::Forget(true))]),
    ("restored-arbiter", "the witness's disk is what it was before", |rng| {
        vec![(early(rng), Blow::BackUp), (at(rng), Blow::Forget(false))]
    }),
    ("skewed-clocks", "clocks drift apart, and one steps forward", |rng| {
        let step = if rng.bool() { rng.u64(0..3000) } else { 0 };
        vec![(early(rng), Blow::Clock(rng.usize(0..2), step, rng.i64(-500..500)))]
    }),
    ("big-checkpoints", "the guest touches all that it has", |rng| vec![(early(rng), Blow::Appetite(12))]),
];

fn early(rng: &mut fastrand::Rng) -> u64 {
    rng.u64(0..3_000 * MS)
}

fn at(rng: &mut fastrand::Rng) -> u64 {
    if rng.u8(0..3) == 0 { rng.u64(20 * MS..500 * MS) } else { rng.u64(200 * MS..4_000 * MS) }
}

fn while_(rng: &mut fastrand::Rng) -> (u64, u64) {
    let from = at(rng);
    (from, from + rng.u64(10 * MS..2_000 * MS))
}

fn passing(rng: &mut fastrand::Rng, begin: Blow, end: Blow) -> Schedule {
    let (from, to) = while_(rng);
    vec![(from, begin), (to, end)]
}

/// Which hardships a run has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardships(Vec<usize>);

/// No hardship has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no hardship \"{}\"; `sim --list` has them all, and + between two names composes them",
            self.0
        )
    }
}

impl std::error::Error for Unknown {}

impl std::str::FromStr for Hardships {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let find = |name: &str| ALL.iter().position(|(known, ..)| *known == name);
        let found = text.split('+').map(|name| find(name).ok_or_else(|| Unknown(name.to_owned())));
        found.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Hardships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|index| ALL[*index].0).collect();
        f.write_str(&names.join("+"))
    }
}

impl Hardships {
    /// One to three of them.
    #[must_use]
    pub fn drawn(rng: &mut fastrand::Rng) -> Self {
        Self((0..rng.usize(1..=3)).map(|_| rng.usize(0..ALL.len())).collect())
    }

    /// What happens, in order.
    #[must_use]
    pub fn schedule(&self, rng: &mut fastrand::Rng) -> Schedule {
        let mut schedule: Schedule = self.0.iter().flat_map(|index| (ALL[*index].2)(rng)).collect();
        schedule.sort_by_key(|(at, _)| *at);
        schedule
    }
}

/// All names, and what they are.
pub fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|(name, what, _)| (*name, *what))
}
