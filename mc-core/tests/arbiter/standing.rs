//! After a start: what the arbiter holds may be less than what was, and only the nodes know.

use super::{World, cas, name, node, outcome, persist, protected, refused, solo};
use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits},
    id::NodeId,
    register::Register,
    wire::arbiter::{Ask, Asker, Outcome, Refusal, Request, Standing},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the pair a, b had last.
fn pair() -> Register {
    protected(5, "a", "b")
}

fn held(w: &World) -> Option<Register> {
    w.arbiter.registers().get(&name("vm")).copied()
}

#[test]
fn a_restart_that_lost_nothing_waits_until_both_have_told() {
    let mut w = World::recovered(&[("vm", pair())]);
    assert_eq!(w.standing(), Standing::Waiting);
    assert_eq!(w.read("a", Some(pair())).standing, Standing::Waiting);
    assert_eq!(w.arbiter.awaited(name("vm")), [node("b").id]);
    assert_eq!(refused(&w.ask("a", Some(pair()), cas(solo(6, "a")))), Refusal::Waiting);
    assert_eq!(w.read("b", Some(pair())).standing, Standing::Settled);
    w.win("b", solo(6, "b"));
}

#[test]
fn an_empty_arbiter_takes_both_nodes_word() {
    let mut w = World::recovered(&[]);
    assert_eq!(w.read("a", Some(pair())).standing, Standing::Waiting);
    assert_eq!(refused(&w.ask("a", Some(pair()), cas(solo(6, "a")))), Refusal::Waiting);
    // The standby's word is enough: what it reads is told when it is durable.
    assert_eq!(w.ask("b", Some(pair()), Ask::Read), [persist(pair())]);
    let told = w.persisted();
    assert_eq!((outcome(&told), held(&w), w.standing()), (Outcome::Holds, Some(pair()), Standing::Settled));
    w.win("b", solo(6, "b"));
}

#[test]
fn a_backup_that_was_put_back_is_mended_and_the_old_primary_wins_nothing() {
    // b took over and runs on alone; the backup is older than that.
    let mut w = World::recovered(&[("vm", pair())]);
    let now = solo(6, "b");
    assert_eq!(refused(&w.ask("a", Some(pair()), cas(solo(6, "a")))), Refusal::Waiting, "the thawed primary");
    assert_eq!(w.ask("b", Some(now), Ask::Read), [persist(now)]);
    w.persisted();
    assert_eq!((held(&w), w.standing()), (Some(now), Standing::Settled));
    assert_eq!(outcome(&w.ask("a", Some(pair()), cas(solo(6, "a")))), Outcome::Lost);
}

#[test]
fn with_one_node_silent_nothing_is_tried_and_the_silent_one_is_named() {
    let mut w = World::recovered(&[]);
    w.read("b", Some(pair()));
    assert_eq!(refused(&w.ask("b", Some(pair()), cas(solo(6, "b")))), Refusal::Waiting);
    assert_eq!(w.arbiter.awaited(name("vm")), [node("a").id]);
    assert_eq!(w.arbiter.nodes(name("vm")), BTreeSet::from([node("a"), node("b")]));
    w.event(Event::Assign { vm: name("vm"), to: node("b") });
    w.persisted();
    assert_eq!(w.standing(), Standing::Settled);
    w.win("b", solo(7, "b"));
}

#[test]
fn a_node_that_has_seen_less_has_told_as_well() {
    // a won (5, protected by b) a moment before the arbiter forgot: b never read it, and is alive.
    let mut w = World::recovered(&[("vm", solo(4, "a"))]);
    w.read("a", Some(pair()));
    assert_eq!(w.ask("b", Some(solo(4, "a")), Ask::Read), [persist(pair())]);
    w.persisted();
    assert_eq!(w.standing(), Standing::Settled);

    // b's swap was durable, a read it, the answer to b was lost, and then everything: b asks again, and wins.
    let mut w = World::recovered(&[("vm", pair())]);
    w.read("a", Some(solo(6, "b")));
    assert_eq!(w.ask("b", Some(pair()), cas(solo(6, "b"))), [persist(solo(6, "b"))]);
    assert_eq!(outcome(&w.persisted()), Outcome::Won);
}

#[test]
fn what_was_told_to_another_process_does_not_count() {
    let mut w = World::recovered(&[("vm", pair())]);
    let asker = |letter| Asker { node: node(letter).id, seen: Some(pair()), boot: 77 };
    for (from, letter) in ["a", "b"].into_iter().enumerate() {
        let from = from as u64;
        let request = Request { id: from, vm: name("vm"), asker: asker(letter), ask: Ask::Read };
        assert_eq!(outcome(&w.event(Event::Request { from, request })), Outcome::Holds);
    }
    assert_eq!((w.standing(), w.arbiter.awaited(name("vm")).len()), (Standing::Waiting, 2));
    let request = Request { id: 9, vm: name("vm"), asker: asker("b"), ask: cas(solo(6, "b")) };
    assert_eq!(refused(&w.event(Event::Request { from: 9, request })), Refusal::StaleBoot);
    let never = Request { asker: Asker { boot: 0, ..asker("b") }, ..request };
    assert_eq!(refused(&w.event(Event::Request { from: 9, request: never })), Refusal::StaleBoot);
}

#[test]
fn two_values_of_one_generation_are_for_an_operator() {
    let mut w = World::recovered(&[("vm", solo(6, "b"))]);
    assert_eq!(w.read("a", Some(solo(6, "a"))).standing, Standing::Disputed);
    assert_eq!(w.read("b", Some(solo(6, "b"))).standing, Standing::Disputed);
    assert_eq!(refused(&w.ask("b", Some(solo(6, "b")), cas(solo(7, "b")))), Refusal::Disputed);
    w.event(Event::Assign { vm: name("vm"), to: node("b") });
    w.persisted();
    assert_eq!(w.standing(), Standing::Settled);
    w.win("b", solo(8, "b"));
}

#[test]
fn a_node_that_went_on_by_its_operators_word_is_followed() {
    // The arbiter was away, the operator typed `takeover` on b: it holds what it would have won.
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    w.win("a", protected(2, "a", "b"));
    w.read("a", Some(protected(2, "a", "b")));
    assert_eq!(w.ask("b", Some(solo(3, "b")), Ask::Read), [persist(solo(3, "b"))]);
    w.persisted();
    assert_eq!((held(&w), w.standing()), (Some(solo(3, "b")), Standing::Settled));

    // The same with a restart in between, and a dead.
    let mut w = World::recovered(&[("vm", pair())]);
    w.read("b", Some(pair()));
    assert_eq!(w.ask("b", Some(solo(6, "b")), Ask::Read), [persist(solo(6, "b"))]);
    w.persisted();
    assert_eq!(w.standing(), Standing::Settled);
}

#[test]
fn a_stranger_moves_nothing() {
    // Settled: c has seen more of a VM of that name, somewhere. It was not entitled to go on from here.
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    assert_eq!(w.read("c", Some(solo(9, "c"))).standing, Standing::Disputed);
    assert_eq!((held(&w), outcome(&w.ask("c", Some(solo(9, "c")), Ask::Read))), (Some(solo(1, "a")), Outcome::Holds));

    // After a start: a and b stand by what they have, so nobody went on from there, and c's is another VM.
    let mut w = World::recovered(&[("vm", pair())]);
    assert_eq!(w.read("c", Some(solo(9, "c"))).standing, Standing::Waiting, "a and b have a say");
    assert_eq!(w.arbiter.awaited(name("vm")).len(), 2);
    w.read("a", Some(pair()));
    assert_eq!(w.read("b", Some(pair())).standing, Standing::Disputed);
    assert_eq!(held(&w), Some(pair()));

    // But if one of them has gone on, c may be where the VM went.
    let mut w = World::recovered(&[("vm", pair())]);
    w.read("c", Some(solo(9, "c")));
    w.read("a", Some(pair()));
    assert_eq!(w.ask("b", Some(protected(7, "b", "c")), Ask::Read), [persist(solo(9, "c"))]);
}

#[test]
fn a_new_vm_under_the_name_of_a_forgotten_one_stops_neither() {
    // d never saw the VM, and makes one; then the pair tells what it has seen.
    let mut w = World::recovered(&[]);
    assert_eq!(w.ask("d", None, cas(solo(1, "d"))), [persist(solo(1, "d"))]);
    w.persisted();
    w.read("a", Some(pair()));
    assert_eq!(w.read("b", Some(pair())).standing, Standing::Disputed);
    assert_eq!(held(&w), Some(solo(1, "d")));
    let mut w = World::recovered(&[("vm", solo(1, "d"))]);
    w.read("a", Some(pair()));
    assert_eq!(w.read("b", Some(pair())).standing, Standing::Waiting, "d has a say");
    assert_eq!(w.read("d", Some(solo(1, "d"))).standing, Standing::Disputed);
}

#[test]
fn a_register_that_cannot_be_read_is_not_vacant() {
    let lost = BTreeSet::from([name("vm")]);
    let arbiter = Arbiter::recover(Limits::default(), 2, BTreeMap::new(), lost);
    let mut w = World { arbiter, boot: 2, next: 0 };
    assert_eq!((w.standing(), w.arbiter.vms().count()), (Standing::Waiting, 1));
    assert_eq!(refused(&w.ask("d", None, cas(solo(1, "d")))), Refusal::Waiting);
    w.read("a", Some(pair()));
    assert_eq!(w.ask("b", Some(pair()), Ask::Read), [persist(pair())]);
    w.persisted();
    assert_eq!(w.standing(), Standing::Settled);
}

#[test]
fn while_a_mend_cannot_be_stored_nobody_waits_for_ever() {
    let mut w = World::recovered(&[]);
    w.read("a", Some(pair()));
    assert_eq!(w.ask("b", Some(pair()), Ask::Read), [persist(pair())]);
    assert_eq!(w.ask("a", Some(pair()), Ask::Read), []);
    let failed = w.event(Event::PersistFailed { vm: name("vm") });
    assert_eq!(failed.len(), 2);
    assert!(failed.iter().all(|a| matches!(a, Action::Reply { reply, .. } if reply.outcome == Outcome::Failed)));
    assert_eq!(w.ask("a", Some(pair()), Ask::Read), [persist(pair())], "tried again by whoever asks next");
}

#[test]
fn made_up_identities_are_bounded_and_push_nobody_out() {
    let mut w = World::recovered(&[("vm", pair())]);
    w.read("a", Some(pair()));
    for i in 0..200u8 {
        let asker =
            Asker { node: NodeId([i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]), seen: None, boot: w.boot };
        let request = Request { id: 1, vm: name("vm"), asker, ask: Ask::Read };
        w.event(Event::Request { from: 1, request });
    }
    assert_eq!(w.read("b", Some(pair())).standing, Standing::Settled);
}
