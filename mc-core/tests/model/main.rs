//! Exhaustive check of the very machines that run in production, against every order of events in small worlds: messages
//! are lost, doubled, late and out of order, either side suspects the other at any moment, the primary stalls, everybody
//! crashes, the arbiter's disk fails. Time stands still: nothing may depend on it.
//!
//! The arbiter may forget, and go back to anything that it ever held; processes of the primary follow one that died, with its
//! VM or a new one, knowing what their host had seen; a stranger plays whole sessions to a standby.
//!
//! An operator may say that the standby goes on, before that has read the register, when the VM runs nowhere any more.
//!
//! Not explored: operators' other words (`assign`, and swaps that an operator decides without the arbiter), and a node that loses
//! what it had seen together with the arbiter.

mod at_primary;
mod at_standby;
mod check;
mod environment;
mod old;
mod register;
mod walk;
mod world;

use check::{I2, I5, KEPT, LOADED, ONE, SURVIVOR, TAKEOVER, WINNER};
use environment::Happening;
use mc_core::testing::Sabotage;
use old::Beside;
use register::Neglect;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use world::{Bounds, Flaw};

/// A session of two epochs between two hosts: the full synchronisation, and one whose output is held.
const PAIR: Bounds = Bounds {
    standbys: 1,
    sessions: 1,
    epochs: 2,
    slabs: 1,
    window: 2,
    stalls: 1,
    primary_restarts: 0,
    standby_restarts: false,
    crashes: 1,
    rewinds: 0,
    strangers: 0,
    trouble: false,
    changes: 0,
    walks: false,
    protected: false,
    operator: false,
    beside: None,
    sabotage: None,
    neglect: None,
    flaw: None,
};

/// The same, when it has come that far; another epoch may follow.
const PROTECTED: Bounds = Bounds { epochs: 3, protected: true, ..PAIR };

/// The primary leaves one standby for another.
const TWO_STANDBYS: Bounds = Bounds { standbys: 2, sessions: 2, stalls: 0, ..PAIR };

/// Both hosts lose their memory and start again.
const POWER: Bounds =
    Bounds { epochs: 2, primary_restarts: 1, standby_restarts: true, stalls: 0, crashes: 0, ..PROTECTED };

/// The arbiter loses what it had, once.
const FORGETFUL: Bounds = Bounds { rewinds: 1, crashes: 0, stalls: 0, epochs: 2, ..PROTECTED };

fn exhaust(bounds: Bounds) {
    explore(bounds, usize::MAX);
}

/// The standby's host has an old process, whose VM the primary took over.
const OVERTAKEN: Bounds = Bounds { epochs: 2, stalls: 0, crashes: 0, beside: Some(Beside::Overtaken), ..PROTECTED };

/// A second QEMU is started on the primary's host.
const SECOND: Bounds = Bounds { beside: Some(Beside::Second), stalls: 0, crashes: 0, ..PAIR };

/// Every way of at most `depth` steps: for worlds whose every state takes more than the minutes that a check may take.
fn explore(bounds: Bounds, depth: usize) {
    let checker = bounds.checker().threads(2).target_max_depth(depth);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, deepest) = (checker.unique_state_count(), checker.max_depth());
    println!("{states} states, at most {deepest} steps deep: {bounds:?}");
    let always = |name: &&'static str| checker.model().property(name).expectation == Expectation::Always;
    if let Some(name) = checker.discoveries().into_keys().find(always) {
        checker.assert_no_discovery(name); // prints the way there
    }
    if deepest < depth {
        return checker.assert_properties();
    }
    let all = checker.model().properties();
    let missed = all.iter().filter(|p| checker.discovery(p.name).is_none() && p.expectation == Expectation::Sometimes);
    missed.for_each(|p| println!("  not reached in so few steps: {}", p.name));
}

#[test]
fn one_session_in_which_everything_goes_wrong() {
    exhaust(Bounds { trouble: true, stalls: 0, crashes: 0, ..PAIR });
}

#[test]
fn epochs_follow_one_another_while_the_primary_stalls() {
    exhaust(Bounds { crashes: 0, ..PROTECTED });
}

#[test]
fn a_vm_that_changes_while_it_is_protected() {
    explore(Bounds { changes: 2, stalls: 0, crashes: 0, ..PROTECTED }, 22);
}

#[test]
fn epochs_of_two_slabs() {
    exhaust(Bounds { slabs: 2, crashes: 0, ..PAIR });
}

#[test]
fn protection_given_up_and_begun_again() {
    exhaust(Bounds { sessions: 2, stalls: 0, crashes: 0, epochs: 2, ..PROTECTED });
}

#[test]
fn a_standby_comes_again_and_has_forgotten_its_copy() {
    exhaust(Bounds { standby_restarts: true, stalls: 0, crashes: 0, ..PAIR });
}

#[test]
fn one_standby_left_for_another() {
    explore(Bounds { crashes: 0, window: 1, protected: true, ..TWO_STANDBYS }, 25);
}

#[test]
fn from_every_state_exactly_one_side_survives() {
    exhaust(Bounds { walks: true, stalls: 0, ..PAIR });
}

#[test]
fn the_arbiter_forgets_or_goes_back() {
    explore(Bounds { walks: true, ..FORGETFUL }, 22);
}

#[test]
fn the_arbiter_goes_back_and_processes_come_again() {
    explore(Bounds { primary_restarts: 1, ..FORGETFUL }, 18);
}

#[test]
fn processes_of_the_primary_follow_one_another() {
    explore(Bounds { primary_restarts: 2, stalls: 0, crashes: 0, ..PAIR }, 28);
}

#[test]
fn both_hosts_lose_their_memory_and_come_again() {
    explore(Bounds { walks: true, ..POWER }, 26);
}

#[test]
fn strangers_play_sessions() {
    explore(Bounds { strangers: 1, standby_restarts: true, stalls: 0, crashes: 0, ..PAIR }, 28);
}

#[test]
fn an_old_process_goes_on_beside_a_standby_of_its_host() {
    exhaust(OVERTAKEN);
}

#[test]
fn an_operator_does_not_wait_for_what_the_register_says() {
    exhaust(Bounds { operator: true, stalls: 0, ..PAIR });
    exhaust(Bounds { operator: true, sessions: 2, stalls: 0, crashes: 0, ..PROTECTED });
}

#[test]
fn a_second_vm_is_started_beside_the_first() {
    explore(SECOND, 24);
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

fn breaks(bounds: Bounds, expected: &str) {
    breaks_one_of(bounds, &[expected]);
}

/// Of ways that are equally short, any may be found first.
fn breaks_one_of(bounds: Bounds, expected: &[&str]) {
    let (property, path) = counterexample(Bounds { stalls: 0, crashes: 0, ..bounds });
    let Bounds { sabotage, neglect, flaw, .. } = bounds;
    println!("{sabotage:?} {neglect:?} {flaw:?} breaks {property:?} in {} steps:", path.len());
    path.iter().for_each(|step| println!("  {step:?}"));
    assert!(expected.contains(&property), "{property:?} broken by {sabotage:?} {neglect:?} {flaw:?}");
}

fn without(sabotage: Sabotage, expected: &str, bounds: Bounds) {
    breaks(Bounds { sabotage: Some(sabotage), ..bounds }, expected);
}

#[test]
fn without_i1_the_check_fails() {
    without(Sabotage::ReleaseUnacked, SURVIVOR, PROTECTED);
}

#[test]
fn without_i2_the_check_fails() {
    without(Sabotage::AckIncomplete, I2, PAIR);
}

#[test]
fn without_i3_the_check_fails() {
    without(Sabotage::AckWhileClaiming, SURVIVOR, PROTECTED);
}

#[test]
fn without_i4_the_check_fails() {
    without(Sabotage::ReleaseBeforeSolo, SURVIVOR, PROTECTED);
}

#[test]
fn without_i5_the_check_fails() {
    without(Sabotage::RegisterEarly, I5, PAIR);
}

/// Until protection is won output flows, and the epochs captured until then lack it.
#[test]
fn epochs_that_are_marked_as_held_and_are_not_lose_output() {
    without(Sabotage::MarkUnheld, SURVIVOR, PAIR);
    without(Sabotage::ClaimUnheld, SURVIVOR, PAIR);
}

/// Found by this check: a generation that was synchronised and never registered is used again, with another standby; the
/// first one, which only knew the number, then won the VM. (The arbiter refuses that by itself now.)
#[test]
fn a_standby_that_swaps_without_being_named_splits_the_brain() {
    let bounds = Bounds { crashes: 0, neglect: Some(Neglect::AnybodyMaySwap), ..TWO_STANDBYS };
    without(Sabotage::SwapUnnamed, SURVIVOR, bounds);
}

#[test]
fn a_node_that_takes_less_for_a_loss_gives_up_the_last_copy() {
    without(Sabotage::BelieveLess, KEPT, FORGETFUL);
}

#[test]
fn a_node_that_believes_an_arbiter_that_went_back_splits_the_brain() {
    let bounds = Bounds { neglect: Some(Neglect::BelieveAll), primary_restarts: 1, ..FORGETFUL };
    breaks(bounds, SURVIVOR);
}

#[test]
fn an_arbiter_that_does_not_wait_for_the_nodes_splits_the_brain() {
    let bounds = Bounds { neglect: Some(Neglect::TryAtOnce), primary_restarts: 1, ..FORGETFUL };
    breaks_one_of(bounds, &[WINNER, SURVIVOR]);
}

#[test]
fn what_was_seen_must_survive_a_crash() {
    let bounds = Bounds { neglect: Some(Neglect::ForgetSeen), primary_restarts: 1, ..FORGETFUL };
    breaks(bounds, SURVIVOR);
}

#[test]
fn a_vm_that_was_visible_is_not_handed_back() {
    let bounds = Bounds { trouble: true, crashes: 0, ..PAIR };
    without(Sabotage::HandBackOpen, SURVIVOR, bounds);
}

#[test]
fn two_hosts_of_one_identity_split_the_brain() {
    breaks(Bounds { flaw: Some(Flaw::OneIdentity), primary_restarts: 1, crashes: 0, ..PAIR }, SURVIVOR);
}

#[test]
fn a_rehearsal_of_the_vm_as_it_was_proves_nothing() {
    without(Sabotage::ProvenByAny, LOADED, Bounds { changes: 2, ..PROTECTED });
}

#[test]
fn an_operators_word_for_a_copy_that_lacks_output_loses_it() {
    without(Sabotage::DecideUnheld, SURVIVOR, Bounds { operator: true, ..PAIR });
}

/// Seen: a host that was frozen stood by again, won, and its old process took the VM from it.
#[test]
fn who_compares_hosts_and_not_copies_splits_the_brain() {
    without(Sabotage::CompareHosts, ONE, OVERTAKEN);
}

/// Seen: two QEMUs of one name on one host were claimed for in turn, for ever.
#[test]
fn who_starts_beside_a_copy_that_lives_splits_the_brain() {
    breaks(Bounds { flaw: Some(Flaw::LooksAtNothing), ..SECOND }, ONE);
}

#[test]
fn a_session_that_is_replayed_wins_nothing_unless_standbys_draw_alike() {
    let bounds = Bounds { strangers: 1, standby_restarts: true, crashes: 0, ..PAIR };
    breaks_one_of(Bounds { flaw: Some(Flaw::SameDraw), ..bounds }, &[TAKEOVER, SURVIVOR]);
}

#[test]
fn a_standby_that_renounces_a_copy_which_it_has_gives_up_the_last_one() {
    without(Sabotage::RenounceHeld, KEPT, POWER);
}

#[test]
fn a_standby_that_renounces_what_it_has_not_read_gives_up_anothers_copy() {
    let bounds = Bounds { standby_restarts: true, neglect: Some(Neglect::AnybodyMaySwap), ..TWO_STANDBYS };
    without(Sabotage::RenounceUnread, KEPT, bounds);
}

#[test]
fn a_second_process_of_a_standby_that_lives_gives_up_its_copy() {
    let flaw = Some(Flaw::TwoProcesses);
    breaks(Bounds { flaw, standbys: 2, standby_restarts: true, ..PROTECTED }, KEPT);
}

/// A supervisor may start the next data path without a word of the arbiter only where the dead one had asked for nothing.
#[test]
fn a_data_path_that_follows_a_protected_one_without_asking_splits_the_brain() {
    breaks(
        Bounds { flaw: Some(Flaw::NextWithoutAsking), primary_restarts: 1, crashes: 0, stalls: 0, ..PAIR },
        SURVIVOR,
    );
}
