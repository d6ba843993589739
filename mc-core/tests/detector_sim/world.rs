//! Two detectors, a lossy wire between them, and hosts that wake late, sleep and die, on a virtual clock.
//!
//! The world knows no rule of the detector's: what must hold is for the scenarios to say.

use mc_core::{
    detector::{Action, Config, Detector, Event, Parameters, Suspicion},
    id::{Incarnation, Time, nanos},
    machine::Machine,
    wire::beat::{Beat, BeatKey, LEN},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

pub(crate) const KEY: BeatKey = BeatKey([7; 32]);

/// splitmix64: a seed's stream of numbers, the same on every machine.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    pub(crate) fn up_to(&mut self, d: Duration) -> Duration {
        Duration::from_nanos(self.between(0, nanos(d)))
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }
}

/// Every hardship has a name and is off by default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hardships {
    /// Of every datagram.
    pub delay: Duration,
    /// On top of it, drawn for each.
    pub jitter: Duration,
    /// Percent of datagrams lost, but never more than `loss_run` in a row in one direction.
    pub loss: u64,
    pub loss_run: u32,
    /// Percent of datagrams that come twice, the second up to 300 ms later.
    pub replay: u64,
    /// Every wake-up is late by up to this much.
    pub wake_latency: Duration,
    /// What arrives at a sleeping host is handed over up to this long after it wakes.
    pub nic_latency: Duration,
}

/// What a script makes happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// The host stands still for so long; what arrives is kept.
    Stall(Duration),
    /// The host is gone.
    Die,
    /// The operator changes parameters.
    Set(Parameters),
    /// The operator changes them on both sides.
    Propose(Parameters),
}

pub(crate) struct Host {
    pub detector: Detector,
    pub alive: bool,
    pub suspected: Option<(Time, Suspicion)>,
    /// When it said that beats go both ways.
    pub proven: Option<Time>,
    asleep_until: Time,
    /// The next wake-up that was drawn, and the deadline that it is for.
    alarm: Option<(Time, Time)>,
    inbox: Vec<[u8; LEN]>,
    lost_in_a_row: u32,
}

pub(crate) struct World {
    pub now: Time,
    pub hosts: [Host; 2],
    hardships: Hardships,
    dice: Dice,
    /// (arrival, number) → (to, datagram)
    wire: BinaryHeap<Reverse<(Time, u64)>>,
    datagrams: BTreeMap<u64, (usize, [u8; LEN])>,
    sent: u64,
    script: Vec<(Time, usize, Fate)>,
    /// Whom no datagram reaches.
    deaf: Option<usize>,
}

impl World {
    pub(crate) fn new(parameters: [Parameters; 2], hardships: Hardships, seed: u64) -> Self {
        let now = Time(1_000_000_000);
        let host = |member: u8| {
            let parameters = parameters[usize::from(member)];
            let config = Config { incarnation: Incarnation(seed), member, parameters, startup: None };
            Host {
                detector: Detector::new(config, now),
                alive: true,
                suspected: None,
                proven: None,
                asleep_until: now,
                alarm: None,
                inbox: vec![],
                lost_in_a_row: 0,
            }
        };
        Self {
            now,
            hosts: [host(0), host(1)],
            hardships,
            dice: Dice(seed ^ 0xbea7),
            wire: BinaryHeap::new(),
            datagrams: BTreeMap::new(),
            sent: 0,
            script: vec![],
            deaf: None,
        }
    }

    /// Plans a fate. Times rise.
    pub(crate) fn plan(&mut self, at: Time, host: usize, fate: Fate) {
        assert!(self.script.last().is_none_or(|&(before, ..)| before <= at));
        self.script.push((at, host, fate));
    }

    /// Nothing that is sent from now on arrives at `host`.
    pub(crate) fn deafen(&mut self, host: usize) {
        self.deaf = Some(host);
    }

    /// Nothing arrives any more.
    pub(crate) fn cut(&mut self) {
        self.hardships.loss = 100;
        self.hardships.loss_run = u32::MAX;
        self.wire.clear();
        self.datagrams.clear();
    }

    pub(crate) fn run_until(&mut self, end: Time) {
        loop {
            let alarms = [self.alarm(0), self.alarm(1)];
            let arrival = self.wire.peek().map(|Reverse((at, _))| *at);
            let scripted = self.script.first().map(|&(at, ..)| at);
            let next = alarms.into_iter().chain([arrival, scripted]).flatten().min();
            let Some(next) = next.filter(|&at| at <= end) else { break };
            self.now = self.now.max(next);
            if scripted == Some(next) {
                let (_, host, fate) = self.script.remove(0);
                self.strike(host, fate);
            } else if arrival == Some(next) {
                self.arrive();
            } else {
                self.wake(usize::from(alarms[0] != Some(next)));
            }
        }
        self.now = end;
    }

    fn strike(&mut self, index: usize, fate: Fate) {
        let host = &mut self.hosts[index];
        match fate {
            Fate::Stall(d) => host.asleep_until = self.now.after(d),
            Fate::Die => host.alive = false,
            Fate::Propose(parameters) => {
                host.detector.handle(self.now, Event::Propose(parameters));
                self.act(index);
            }
            Fate::Set(parameters) => {
                host.detector.handle(self.now, Event::SetParameters(parameters));
                self.act(index);
            }
        }
    }

    /// When this host's thread runs next: at its deadline, late by the latency drawn for it, and not while it sleeps.
    fn alarm(&mut self, index: usize) -> Option<Time> {
        let host = &mut self.hosts[index];
        if !host.alive {
            return None;
        }
        let deadline = host.detector.deadline()?;
        let at = match host.alarm {
            Some((at, for_deadline)) if for_deadline == deadline => at,
            _ => deadline.after(self.dice.up_to(self.hardships.wake_latency)),
        };
        host.alarm = Some((at, deadline));
        let with_mail = if host.inbox.is_empty() { at } else { at.min(host.asleep_until) };
        Some(with_mail.max(host.asleep_until).max(self.now))
    }

    /// As the beat thread does it: first the timers, then the mail.
    fn wake(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        if host.detector.deadline().is_some_and(|deadline| deadline <= self.now) {
            host.detector.handle_timeout(self.now);
            self.act(index);
        }
        self.read(index);
    }

    fn read(&mut self, index: usize) {
        for datagram in std::mem::take(&mut self.hosts[index].inbox) {
            let beat = Beat::decode(&datagram, &KEY).expect("nobody forges here");
            self.hosts[index].detector.handle(self.now, Event::BeatReceived(beat));
            self.act(index);
        }
    }

    fn act(&mut self, index: usize) {
        while let Some(action) = self.hosts[index].detector.poll_action() {
            match action {
                Action::SendBeat(beat) => self.send(index, &beat),
                Action::Drain => {
                    self.read(index);
                    self.hosts[index].detector.handle(self.now, Event::Drained);
                }
                Action::Suspect(why) => {
                    assert!(self.hosts[index].suspected.is_none(), "said twice");
                    self.hosts[index].suspected = Some((self.now, why));
                }
                Action::Proven => {
                    assert!(self.hosts[index].proven.is_none(), "said twice");
                    self.hosts[index].proven = Some(self.now);
                }
                Action::Heard { .. } | Action::Up | Action::SelfLate(_) => {}
            }
        }
    }

    fn send(&mut self, from: usize, beat: &Beat) {
        let Hardships { delay, jitter, loss, loss_run, replay, .. } = self.hardships;
        if self.deaf == Some(1 - from) {
            return;
        }
        let run = &mut self.hosts[from].lost_in_a_row;
        if *run < loss_run && self.dice.chance(loss) {
            *run += 1;
            return;
        }
        *run = 0;
        let datagram = beat.encode(&KEY);
        let arrival = self.now.after(delay + self.dice.up_to(jitter));
        self.post(arrival, 1 - from, datagram);
        if self.dice.chance(replay) {
            let again = arrival.after(self.dice.up_to(Duration::from_millis(300)));
            self.post(again, 1 - from, datagram);
        }
    }

    fn post(&mut self, arrival: Time, to: usize, datagram: [u8; LEN]) {
        self.sent += 1;
        self.datagrams.insert(self.sent, (to, datagram));
        self.wire.push(Reverse((arrival, self.sent)));
    }

    fn arrive(&mut self) {
        let Some(Reverse((_, number))) = self.wire.pop() else { return };
        let (to, datagram) = self.datagrams.remove(&number).expect("posted with this number");
        let host = &mut self.hosts[to];
        if host.alive && self.now < host.asleep_until && self.hardships.nic_latency > Duration::ZERO {
            let handed_over = host.asleep_until.after(self.dice.up_to(self.hardships.nic_latency));
            self.post(handed_over, to, datagram);
        } else if host.alive {
            host.inbox.push(datagram);
            if self.now >= host.asleep_until {
                self.wake(to);
            }
        }
    }
}
