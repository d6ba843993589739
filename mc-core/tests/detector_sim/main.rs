//! Two detectors in a seeded world: a live peer is never suspected, a dead one always is.
//!
//! 1000 seeds for each scenario; `MC_SEED=n` runs that one. A failure prints its seed.

mod changes;
mod proof;
mod world;

use mc_core::{detector::Parameters, id::Time};
use std::{ops::RangeInclusive, time::Duration};
use world::{Dice, Fate, Hardships, World};

/// Prints the seed if the scenario panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with MC_SEED={}", self.0);
        }
    }
}

fn for_each_seed(scenario: impl Fn(u64, &mut Dice)) {
    let only: Option<u64> = std::env::var("MC_SEED").ok().map(|text| text.parse().expect("MC_SEED is a number"));
    for seed in only.map_or(0..=999, |seed| seed..=seed) {
        let guard = Seed(seed);
        scenario(guard.0, &mut Dice(seed));
    }
}

fn parameters(dice: &mut Dice, interval_us: RangeInclusive<u64>, k: RangeInclusive<u8>) -> Parameters {
    let mut interval = || Duration::from_micros(dice.between(*interval_us.start(), *interval_us.end()));
    let (tx, rx) = (interval(), interval());
    let k = dice.between((*k.start()).into(), (*k.end()).into());
    Parameters::new(tx, rx, u8::try_from(k).expect("from a u8")).expect("within the limits")
}

/// How often `from` sends to `to` once both have heard each other, and how long `to` bears its silence.
fn agreed(from: &Parameters, to: &Parameters) -> (Duration, Duration) {
    let interval = from.desired_tx().max(to.required_rx());
    (interval, interval * from.detect_multiplier().into())
}

/// A pair with random parameters and a wire that is as bad as the detector promises to bear.
struct Pair {
    world: World,
    intervals: [Duration; 2],
    detection: [Duration; 2],
    /// How long either may sleep without the other noticing.
    slack: Duration,
    start: Time,
}

fn pair(seed: u64, dice: &mut Dice) -> Pair {
    let both = [parameters(dice, 1_000..=50_000, 2..=8), parameters(dice, 1_000..=50_000, 2..=8)];
    let (a_sends, a_borne) = agreed(&both[0], &both[1]);
    let (b_sends, b_borne) = agreed(&both[1], &both[0]);
    let shortest = a_sends.min(b_sends);
    let k = both[0].detect_multiplier().min(both[1].detect_multiplier());
    let loss_run = u32::try_from(dice.between(0, u64::from(k) - 1)).expect("small");
    let hardships = Hardships {
        delay: dice.up_to(Duration::from_millis(20)),
        jitter: shortest / 50,
        loss: dice.between(0, 60),
        loss_run,
        replay: dice.between(0, 30),
        wake_latency: shortest / 100,
        nic_latency: Duration::ZERO,
    };
    let slack = |interval: Duration, borne: Duration| {
        borne - (interval * 9 / 10 + hardships.wake_latency) * (loss_run + 1) - hardships.jitter
    };
    Pair {
        world: World::new(both, hardships, seed),
        intervals: [a_sends, b_sends],
        // Host 0 bears the silence of host 1, and the other way round.
        detection: [b_borne, a_borne],
        slack: slack(a_sends, a_borne).min(slack(b_sends, b_borne)) * 9 / 10,
        start: Time(1_000_000_000),
    }
}

impl Pair {
    fn longest(&self) -> Duration {
        self.detection[0].max(self.detection[1])
    }

    fn expect_no_suspicion(&self) {
        for host in &self.world.hosts {
            assert_eq!(host.suspected, None, "{:?} {:?}", self.world.now, host.detector);
        }
    }

    /// Stalls of either host, one at a time, each no longer than the other bears.
    fn plan_stalls(&mut self, dice: &mut Dice, host: Option<usize>, longest: Duration, until: Time) {
        let mut at = self.start.after(dice.up_to(self.longest()));
        while at < until {
            let stall = dice.up_to(longest);
            let host = host.unwrap_or_else(|| usize::from(dice.chance(50)));
            self.world.plan(at, host, Fate::Stall(stall));
            at = at.after(stall + self.longest() * 2 + dice.up_to(self.longest()));
        }
    }
}

#[test]
fn live_peers_never_suspect_each_other() {
    for_each_seed(|seed, dice| {
        let mut pair = pair(seed, dice);
        let end = pair.start.after(pair.longest() * 20);
        pair.plan_stalls(dice, None, pair.slack, end);
        pair.world.run_until(end);
        pair.expect_no_suspicion();
        assert!(pair.world.hosts.iter().all(|host| host.detector.stats().received > 20));
    });
}

/// Its network card slept with it, and hands over late what had arrived: draining alone would not do.
#[test]
fn a_host_that_slept_accuses_nobody() {
    for_each_seed(|seed, dice| {
        let both = [parameters(dice, 1_000..=50_000, 3..=8), parameters(dice, 1_000..=50_000, 3..=8)];
        let ((sends, _), (hears, borne)) = (agreed(&both[0], &both[1]), agreed(&both[1], &both[0]));
        let shortest = sends.min(hears);
        let hardships = Hardships { jitter: shortest / 50, nic_latency: hears / 2, ..Hardships::default() };
        let mut world = World::new(both, hardships, seed);
        let mut at = Time(1_000_000_000).after(borne);
        for _ in 0..10 {
            let stall = dice.up_to(borne * 20);
            world.plan(at, 0, Fate::Stall(stall));
            at = at.after(stall + borne * 2 + dice.up_to(borne));
        }
        world.run_until(at);
        assert_eq!(world.hosts[0].suspected, None, "{:?}", world.hosts[0].detector);
    });
}

#[test]
fn a_dead_peer_is_found_within_k_plus_one_intervals() {
    for_each_seed(|seed, dice| {
        let mut pair = pair(seed, dice);
        let end = pair.start.after(pair.longest() * 10 + dice.up_to(pair.longest()));
        pair.world.run_until(end);
        pair.expect_no_suspicion();
        let victim = usize::from(dice.chance(50));
        pair.world.hosts[victim].alive = false;
        // Host v sends every intervals[v]; what is on the wire still arrives.
        pair.world.run_until(end.after(pair.longest() * 3 + Duration::from_secs(1)));
        let (found, why) = pair.world.hosts[1 - victim].suspected.expect("dead for three detection times");
        let allowed = pair.detection[1 - victim] + pair.intervals[victim] + Duration::from_millis(20);
        assert!(found.since(end) <= allowed, "{:?} > {allowed:?}: {why:?}", found.since(end));
        assert_eq!(why.detection_time, pair.detection[1 - victim]);
        assert!(why.silent_for >= why.detection_time);
    });
}

/// The survivor is late all the time: finding takes longer by no more than what it slept.
#[test]
fn a_busy_host_still_finds_a_dead_peer() {
    for_each_seed(|seed, dice| {
        let mut pair = pair(seed, dice);
        let death = pair.start.after(pair.longest() * 5);
        pair.world.plan(death, 1, Fate::Die);
        let detection = pair.detection[0];
        let mut stalls = vec![];
        let mut at = death;
        while at < death.after(detection * 6) {
            let stall = dice.up_to(detection);
            pair.world.plan(at, 0, Fate::Stall(stall));
            stalls.push((at, stall));
            at = at.after(stall + dice.up_to(detection / 4));
        }
        pair.world.run_until(at.after(detection * 3 + Duration::from_secs(1)));
        let (found, why) = pair.world.hosts[0].suspected.expect("dead for long");
        let slept: Duration = stalls.iter().take_while(|(at, _)| *at <= found).map(|(_, stall)| *stall).sum();
        let allowed = detection + slept + pair.intervals[1] + Duration::from_millis(20);
        assert!(found.since(death) <= allowed, "{:?} > {allowed:?}: {why:?}", found.since(death));
    });
}

#[test]
fn a_cut_wire_is_seen_from_both_ends() {
    for_each_seed(|seed, dice| {
        let both = [parameters(dice, 1_000..=50_000, 1..=8), parameters(dice, 1_000..=50_000, 1..=8)];
        let mut world = World::new(both, Hardships { delay: Duration::from_micros(50), ..Hardships::default() }, seed);
        world.run_until(Time(2_000_000_000));
        world.cut();
        world.run_until(Time(4_000_000_000));
        assert!(world.hosts.iter().all(|host| host.suspected.is_some()));
    });
}

#[test]
fn live_changes_of_parameters_never_accuse() {
    for_each_seed(|seed, dice| {
        let draw = |dice: &mut Dice| parameters(dice, 1_000..=100_000, 3..=8);
        let both = [draw(dice), draw(dice)];
        let hardships = Hardships {
            delay: dice.up_to(Duration::from_millis(30)),
            jitter: Duration::from_micros(100),
            loss: dice.between(0, 50),
            loss_run: 1,
            replay: 20,
            wake_latency: Duration::from_micros(20),
            nic_latency: Duration::ZERO,
        };
        let mut world = World::new(both, hardships, seed);
        let mut at = Time(1_000_000_000);
        let mut newest = both;
        for _ in 0..30 {
            at = at.after(dice.up_to(Duration::from_millis(400)));
            let host = usize::from(dice.chance(50));
            newest[host] = draw(dice);
            world.plan(at, host, Fate::Set(newest[host]));
        }
        world.run_until(at.after(Duration::from_secs(5)));
        for (index, host) in world.hosts.iter().enumerate() {
            assert_eq!(host.suspected, None, "{:?}", host.detector);
            assert!(!host.detector.polling(), "a poll never ended");
            let (sends, _) = agreed(&newest[index], &newest[1 - index]);
            let (_, borne) = agreed(&newest[1 - index], &newest[index]);
            assert_eq!((host.detector.transmit_interval(), host.detector.detection_time()), (sends, borne));
        }
    });
}

#[test]
fn a_seed_is_a_run() {
    for_each_seed(|seed, _| {
        let run = || {
            let mut dice = Dice(seed);
            let mut pair = pair(seed, &mut dice);
            let end = pair.start.after(pair.longest() * 3);
            pair.plan_stalls(&mut dice, None, pair.longest(), end);
            pair.world.run_until(end);
            pair.world.hosts.map(|host| (host.detector, host.suspected))
        };
        assert_eq!(run(), run());
    });
}
