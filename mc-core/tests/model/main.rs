//! Exhaustive check of the very machines that run in production, against every order of events in small worlds: messages
//! are lost, doubled, late and out of order, either side suspects the other at any moment, the primary stalls, everybody
//! crashes, the arbiter's disk fails. Time stands still: nothing may depend on it.
//!
//! Not explored: that a primary comes back (it starts as a new owner), and that the arbiter forgets.

mod check;
mod environment;
mod register;
mod walk;
mod world;

use check::{I2, I5, SURVIVOR};
use environment::Happening;
use mc_core::primary::Sabotage;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use world::Bounds;

/// A session of two epochs between two hosts.
const PAIR: Bounds = Bounds {
    standbys: 1,
    sessions: 1,
    epochs: 2,
    slabs: 1,
    window: 2,
    retries: 1,
    stalls: 1,
    standby_restarts: false,
    arbiter_crashes: true,
    trouble: false,
    walks: false,
    sabotage: None,
};

/// The primary leaves one standby for another.
const TWO_STANDBYS: Bounds = Bounds { standbys: 2, sessions: 2, epochs: 1, stalls: 0, retries: 0, ..PAIR };

fn exhaust(bounds: Bounds) {
    let checker = bounds.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{states} states, at most {depth} steps deep: {bounds:?}");
    let always = |name: &&'static str| checker.model().property(name).expectation == Expectation::Always;
    if let Some(name) = checker.discoveries().into_keys().find(always) {
        checker.assert_no_discovery(name); // prints the way there
    }
    checker.assert_properties();
}

#[test]
fn one_session_in_which_everything_goes_wrong() {
    exhaust(Bounds { epochs: 3, slabs: 2, trouble: true, ..PAIR });
}

#[test]
fn protection_given_up_and_begun_again() {
    exhaust(Bounds { sessions: 2, stalls: 0, retries: 0, standby_restarts: true, ..PAIR });
}

#[test]
fn one_standby_left_for_another() {
    exhaust(TWO_STANDBYS);
}

#[test]
fn from_every_state_exactly_one_side_survives() {
    exhaust(Bounds { walks: true, ..PAIR });
}

/// A shortest way to break something without this invariant.
fn counterexample(bounds: Bounds) -> (&'static str, Vec<Happening>) {
    for depth in 1..40 {
        let checker =
            bounds.checker().target_max_depth(depth).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let failed = |name: &&'static str| checker.model().property(name).expectation == Expectation::Always;
        if let Some(name) = checker.discoveries().into_keys().find(failed) {
            return (name, checker.discovery(name).expect("just found").into_actions());
        }
    }
    panic!("the model does not notice {:?}", bounds.sabotage);
}

fn breaks(sabotage: Sabotage, expected: &str, bounds: Bounds) {
    let (property, path) = counterexample(Bounds { sabotage: Some(sabotage), stalls: 0, ..bounds });
    println!("{sabotage:?} breaks {property:?} in {} steps:", path.len());
    path.iter().for_each(|step| println!("  {step:?}"));
    assert_eq!(property, expected, "broken by {sabotage:?}");
}

#[test]
fn without_i1_the_check_fails() {
    breaks(Sabotage::ReleaseUnacked, SURVIVOR, PAIR);
}

#[test]
fn without_i2_the_check_fails() {
    breaks(Sabotage::AckIncomplete, I2, PAIR);
}

#[test]
fn without_i3_the_check_fails() {
    breaks(Sabotage::AckWhileClaiming, SURVIVOR, PAIR);
}

#[test]
fn without_i4_the_check_fails() {
    breaks(Sabotage::ReleaseBeforeSolo, SURVIVOR, PAIR);
}

#[test]
fn without_i5_the_check_fails() {
    breaks(Sabotage::RegisterEarly, I5, PAIR);
}

/// Found by this check: a generation that was synchronised and never registered is used again, with another standby; the
/// first one, which only knew the number, then won the VM.
#[test]
fn a_standby_that_swaps_without_being_named_splits_the_brain() {
    breaks(Sabotage::SwapUnnamed, SURVIVOR, Bounds { arbiter_crashes: false, ..TWO_STANDBYS });
}
