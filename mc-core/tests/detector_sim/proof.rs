//! When a detector says that it works.

use crate::{Pair, for_each_seed, pair, parameters, world::World};
use mc_core::id::Time;
use std::time::Duration;

/// Twenty detection times and a second: on a wire that is as bad as the detector promises to bear.
fn settled(pair: &Pair) -> Time {
    pair.start.after(pair.longest() * 20 + Duration::from_secs(1))
}

#[test]
fn a_wire_that_works_is_proven_and_stays_so_while_it_works() {
    for_each_seed(|seed, dice| {
        let mut pair = pair(seed, dice);
        let end = settled(&pair);
        pair.world.run_until(end);
        let longest = pair.longest();
        for host in &pair.world.hosts {
            let proven = host.proven.unwrap_or_else(|| panic!("never: {:?}", host.detector));
            assert!(proven.since(pair.start) >= longest, "proven {:?} after the start", proven.since(pair.start));
            assert!(host.detector.proof(end).proven, "{:?}", host.detector.proof(end));
        }
        pair.world.cut();
        let later = end.after(longest * 3);
        pair.world.run_until(later);
        assert!(pair.world.hosts.iter().all(|host| !host.detector.proof(later).proven));
    });
}

/// One way is not enough: nobody says that it works, and each side knows which way does not.
#[test]
fn a_wire_that_works_one_way_is_never_proven() {
    for_each_seed(|seed, dice| {
        let mut pair = pair(seed, dice);
        let deaf = usize::from(dice.chance(50));
        pair.world.deafen(deaf);
        let end = settled(&pair);
        pair.world.run_until(end);
        let [there, here] = [1 - deaf, deaf].map(|host| pair.world.hosts[host].detector.proof(end));
        assert!(pair.world.hosts.iter().all(|host| host.proven.is_none()));
        assert_eq!((here.heard, here.echoed, here.proven), (0, 0, false));
        assert!(there.heard > 0 && there.echoed == 0, "{there:?}");
    });
}

/// Beats that pass one at a time, with silences in between that no detector bears, prove nothing.
#[test]
fn beats_with_gaps_prove_nothing() {
    for_each_seed(|seed, dice| {
        let both = [parameters(dice, 1_000..=50_000, 2..=8), parameters(dice, 1_000..=50_000, 2..=8)];
        let mut world = World::new(both, crate::Hardships::default(), seed);
        let start = world.now;
        // Long enough for some beats, not for K of them over a detection time.
        world.run_until(start.after(both[0].desired_tx().min(both[1].desired_tx())));
        world.cut();
        world.run_until(start.after(Duration::from_secs(5)));
        assert!(world.hosts.iter().all(|host| host.proven.is_none()), "{:?}", world.hosts[0].detector);
    });
}
