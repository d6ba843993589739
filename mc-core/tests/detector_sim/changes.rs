//! Parameters that change on both sides of a running pair, over a wire that loses and reorders.
//!
//! What is asked of every run: nobody is suspected, both sides end up with the same parameters, and *at every moment* the
//! peer bears at least the silence that a side believes it does (`Detector::patience`: what a stalled primary judges itself
//! by).

use crate::{
    for_each_seed,
    world::{Dice, Fate, Hardships, World},
};
use mc_core::{
    detector::{Detector, Parameters},
    id::Time,
};
use std::time::Duration;

fn draw(dice: &mut Dice) -> Parameters {
    let interval = Duration::from_micros(dice.between(1_000, 60_000));
    // Of three and more beats in a row the wire loses at most two.
    let k = u8::try_from(dice.between(4, 9)).expect("small");
    Parameters::new(interval, interval, k).expect("within the limits")
}

/// Loses `loss` percent, two in a row at most, and lets what comes later overtake.
fn bad_wire(dice: &mut Dice, loss: u64) -> Hardships {
    Hardships {
        delay: dice.up_to(Duration::from_millis(15)),
        // More than the shortest interval: beats overtake each other.
        jitter: Duration::from_micros(900),
        loss,
        loss_run: 2,
        replay: 20,
        wake_latency: Duration::from_micros(20),
        nic_latency: Duration::ZERO,
    }
}

/// How long this side really bears the other's silence.
fn bears(host: &Detector) -> Option<Duration> {
    host.peer().map(|_| host.detection_time())
}

fn expect_honest(world: &World) {
    for index in [0, 1] {
        let (us, peer) = (&world.hosts[index].detector, &world.hosts[1 - index].detector);
        assert_eq!(world.hosts[index].suspected, None, "{:?} {us:?}", world.now);
        if let Some(borne) = bears(peer) {
            assert!(us.patience() <= borne, "{:?}: {:?} > {borne:?}", world.now, us.patience());
        }
    }
}

fn run(world: &mut World, until: Time) {
    while world.now < until {
        let next = world.now.after(Duration::from_micros(700)).min(until);
        world.run_until(next);
        expect_honest(world);
    }
}

fn settled(world: &World) -> [Parameters; 2] {
    for host in &world.hosts {
        assert!(!host.detector.polling(), "a poll never ended: {:?}", host.detector);
    }
    world.hosts.each_ref().map(|host| host.detector.parameters())
}

fn proposals(loss: u64) {
    for_each_seed(|seed, dice| {
        if seed % 4 != 0 && std::env::var_os("MC_SEED").is_none() {
            return;
        }
        let both = [draw(dice), draw(dice)];
        let hardships = bad_wire(dice, loss);
        let mut world = World::new(both, hardships, seed);
        let mut at = Time(1_500_000_000);
        let mut newest = both[0];
        for _ in 0..6 {
            at = at.after(dice.up_to(Duration::from_millis(200)));
            newest = draw(dice);
            world.plan(at, usize::from(dice.chance(50)), Fate::Propose(newest));
            // The next one finds this one settled, or the sides may rightly end with either.
            at = at.after(Duration::from_secs(3));
        }
        run(&mut world, at);
        assert_eq!(settled(&world), [newest; 2], "both sides have what the last operator said");
        let [a, b] = world.hosts.each_ref().map(|host| host.detector.transmit_interval());
        assert_eq!((a, b), (newest.desired_tx(), newest.desired_tx()));
    });
}

#[test]
fn one_wish_reaches_both_sides_with_one_percent_lost() {
    proposals(1);
}

#[test]
fn one_wish_reaches_both_sides_with_five_percent_lost() {
    proposals(5);
}

#[test]
fn one_wish_reaches_both_sides_with_twenty_percent_lost() {
    proposals(20);
}

/// Both operators at once, one-sided and for both, in any mixture: it settles, and if the last word was for both, on one.
#[test]
fn changes_that_cross_settle_and_never_accuse() {
    for_each_seed(|seed, dice| {
        let both = [draw(dice), draw(dice)];
        let loss = [0, 1, 5, 20][usize::try_from(seed % 4).expect("small")];
        let hardships = bad_wire(dice, loss);
        let mut world = World::new(both, hardships, seed);
        let mut at = Time(1_500_000_000);
        for _ in 0..20 {
            at = at.after(dice.up_to(Duration::from_millis(60)));
            let (host, wish) = (usize::from(dice.chance(50)), draw(dice));
            world.plan(at, host, if dice.chance(60) { Fate::Propose(wish) } else { Fate::Set(wish) });
        }
        let wishes = [draw(dice), draw(dice)];
        at = at.after(Duration::from_secs(4));
        world.plan(at, 0, Fate::Propose(wishes[0]));
        world.plan(at.after(dice.up_to(Duration::from_millis(1))), 1, Fate::Propose(wishes[1]));
        run(&mut world, at.after(Duration::from_secs(4)));
        let [a, b] = settled(&world);
        assert_eq!(a, b, "one wish stands");
        assert!(wishes.contains(&a), "and it is one of the two");
    });
}
