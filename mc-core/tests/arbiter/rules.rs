//! Swaps and reads, one rule at a time.

use super::{BOOT, World, cas, name, node, outcome, persist, protected, refused, reply, solo};
use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits},
    id::Generation,
    register::{Mode, Owner, Register, Swap},
    wire::arbiter::{Ask, Asker, Outcome, Refusal, Request, Standing},
};

#[test]
fn a_swap_is_answered_when_it_is_durable_and_not_before() {
    let mut w = World::new();
    assert_eq!(w.read("a", None).held, None);
    assert_eq!(w.ask("a", None, cas(solo(1, "a"))), [persist(solo(1, "a"))]);
    assert!(w.arbiter.registers().is_empty(), "not durable yet");
    let won = reply(&w.persisted());
    assert_eq!((won.outcome, won.held), (Outcome::Won, Some(solo(1, "a"))));
    assert_eq!(w.read("b", None).held, Some(solo(1, "a")));
}

#[test]
fn who_comes_second_loses_and_learns_who_won() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    w.win("a", protected(2, "a", "b"));
    w.win("b", solo(3, "b"));
    let late = reply(&w.ask("a", Some(protected(2, "a", "b")), cas(solo(3, "a"))));
    assert_eq!((late.outcome, late.held), (Outcome::Lost, Some(solo(3, "b"))));
    let future = w.ask("b", Some(solo(3, "b")), cas(solo(5, "b")));
    assert_eq!(outcome(&future), Outcome::Lost);
    assert_eq!(outcome(&w.ask_about("new", "b", None, cas(solo(2, "b")))), Outcome::Lost, "vacant is generation 0");
}

#[test]
fn a_retry_after_a_lost_reply_wins_and_writes_nothing() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    assert_eq!(outcome(&w.ask("a", None, cas(solo(1, "a")))), Outcome::Won);
    let mut restarted = World::recovered(&[("vm", solo(1, "a"))]);
    assert_eq!(outcome(&restarted.ask("a", None, cas(solo(1, "a")))), Outcome::Won);
}

#[test]
fn only_whom_the_register_names_may_change_it() {
    let mut w = World::new();
    let seen = |w: &World| w.arbiter.registers().get(&name("vm")).copied();
    let not = |w: &mut World, who: &str, new: Register| {
        let held = seen(w);
        assert_eq!(refused(&w.ask(who, held, cas(new))), Refusal::NotEntitled, "{who}: {held:?} to {new:?}");
        assert_eq!(seen(w), held);
    };
    not(&mut w, "a", solo(1, "b"));
    not(&mut w, "a", protected(1, "a", "b"));
    w.win("a", solo(1, "a"));
    not(&mut w, "b", solo(2, "b"));
    not(&mut w, "b", solo(2, "a"));
    not(&mut w, "a", protected(2, "b", "a"));
    w.win("a", protected(2, "a", "b"));
    not(&mut w, "c", solo(3, "c")); // a stranger, perhaps with a recorded session
    not(&mut w, "b", protected(3, "b", "c"));
    not(&mut w, "b", protected(3, "a", "b"));
    not(&mut w, "b", Register { owner: Owner { instance: 8, ..solo(3, "a").owner }, ..solo(3, "a") }); // another copy of a's
    w.win("b", solo(3, "b"));
    not(&mut w, "a", solo(4, "a"));
    w.win("b", solo(4, "a")); // handed back
    w.win("a", solo(5, "a"));
}

/// An old process of a host that the register names by a later one.
#[test]
fn of_a_protected_vm_no_other_copy_on_the_owners_host_goes_on() {
    let other = |register: Register| Register { owner: Owner { instance: 8, ..register.owner }, ..register };
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    let held = Some(solo(1, "a"));
    assert_eq!(refused(&w.ask("a", held, cas(other(protected(2, "a", "b"))))), Refusal::NotEntitled, "alone first");
    w.win("a", protected(2, "a", "b"));
    let held = Some(protected(2, "a", "b"));
    assert_eq!(refused(&w.ask("a", held, cas(other(solo(3, "a"))))), Refusal::NotEntitled, "b has the last commit");
    w.win("a", solo(3, "a"));
    w.win("a", other(solo(4, "a"))); // a QEMU that ran alone was started again
}

#[test]
fn a_standby_that_renounces_leaves_the_owner_alone_and_the_same_copy() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    w.win("a", protected(2, "a", "b"));
    w.win("b", solo(3, "a"));
    let asked_too = reply(&w.ask("a", Some(protected(2, "a", "b")), cas(solo(3, "a"))));
    assert_eq!((asked_too.outcome, asked_too.held), (Outcome::Won, Some(solo(3, "a"))), "the same, so it won");
    w.win("a", protected(4, "a", "b"));
    assert_eq!(outcome(&w.ask("b", Some(solo(3, "a")), cas(solo(3, "a")))), Outcome::Lost, "late, and once more");
}

#[test]
fn names_decide_nothing() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    let mut clone = solo(2, "a");
    clone.owner.node.id.0[0] ^= 1;
    let asker = Asker { node: clone.owner.node.id, seen: Some(solo(1, "a")), boot: BOOT };
    let request = Request { id: 1, vm: name("vm"), asker, ask: cas(clone) };
    assert_eq!(refused(&w.event(Event::Request { from: 1, request })), Refusal::NotEntitled);
}

#[test]
fn requests_wait_behind_a_swap_in_order_and_other_vms_do_not() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    let held = Some(solo(1, "a"));
    let (second, third) = (protected(2, "a", "b"), solo(3, "b"));
    assert_eq!(w.ask("a", held, cas(second)), [persist(second)]);
    assert_eq!(w.ask("b", held, Ask::Read), []);
    assert_eq!(w.ask("b", held, cas(solo(2, "b"))), []);
    assert_eq!(w.ask("b", Some(second), cas(third)), []);
    assert_eq!(w.ask("a", held, Ask::Read), []);
    assert_eq!(outcome(&w.ask_about("vm2", "a", None, Ask::Read)), Outcome::Holds);

    let outcomes = |actions: &[Action]| -> Vec<_> {
        let of = |action: &Action| match action {
            Action::Reply { reply, .. } => Some((reply.outcome, reply.held)),
            _ => None,
        };
        actions.iter().map(of).collect()
    };
    let first = [(Outcome::Won, Some(second)), (Outcome::Holds, Some(second)), (Outcome::Lost, Some(second))];
    let told = w.persisted();
    assert_eq!(outcomes(&told), [Some(first[0]), Some(first[1]), Some(first[2]), None]);
    assert_eq!(told.last(), Some(&persist(third)));
    let rest = [Some((Outcome::Won, Some(third))), Some((Outcome::Holds, Some(third)))];
    assert_eq!(outcomes(&w.persisted()), rest);
    assert!(!w.arbiter.is_persisting());
}

#[test]
fn a_full_disk_changes_nothing_and_the_next_in_line_may_try() {
    let mut w = World::new();
    w.ask("a", None, cas(solo(1, "a")));
    w.ask("b", None, cas(solo(1, "b")));
    let failed = w.event(Event::PersistFailed { vm: name("vm") });
    assert_eq!(outcome(&failed[..1]), Outcome::Failed);
    assert_eq!(failed[1..], [persist(solo(1, "b"))]);
    assert_eq!(outcome(&w.persisted()), Outcome::Won);
}

#[test]
fn what_was_not_asked_for_changes_nothing() {
    let mut w = World::new();
    let before = w.arbiter.clone();
    assert_eq!(w.persisted(), []);
    assert_eq!(w.event(Event::PersistFailed { vm: name("vm") }), []);
    assert_eq!(w.arbiter, before);
    // The parser refuses such swaps; the machine does not depend on it.
    let skips = Ask::Cas(Swap { expect: Generation(0), new: solo(2, "a"), contested: false });
    assert_eq!(outcome(&w.ask("a", None, skips)), Outcome::Lost);
    let wraps = Ask::Cas(Swap { expect: Generation(u64::MAX), new: solo(0, "a"), contested: false });
    assert_eq!(outcome(&w.ask("a", None, wraps)), Outcome::Lost);
}

#[test]
fn limits_are_answered_with_failed() {
    let mut w = World { arbiter: Arbiter::new(Limits { vms: 2, waiting: 1 }, BOOT), boot: BOOT, next: 0 };
    let stored = |w: &mut World, vm| w.event(Event::Persisted { vm: name(vm) });
    let new = |node| cas(solo(1, node));
    w.ask_about("one", "a", None, new("a"));
    stored(&mut w, "one");
    w.ask_about("two", "a", None, new("a"));
    assert_eq!(outcome(&w.ask_about("three", "a", None, new("a"))), Outcome::Failed, "one, and two on its way");
    assert_eq!(outcome(&w.ask_about("three", "a", None, Ask::Read)), Outcome::Holds, "reads make no register");
    assert_eq!(w.ask_about("two", "a", None, Ask::Read), []);
    assert_eq!(outcome(&w.ask_about("two", "a", None, Ask::Read)), Outcome::Failed, "the queue is full");
    let goes_on = w.ask_about("one", "a", Some(solo(1, "a")), cas(protected(2, "a", "b")));
    assert_eq!(goes_on, [Action::Persist { vm: name("one"), register: protected(2, "a", "b") }], "known VMs go on");
    assert_eq!(stored(&mut w, "two").len(), 2);
    assert_eq!(w.ask_about("one", "a", None, Ask::Read), [], "the queue has room again");
}

#[test]
fn an_operator_assigns_above_all_and_any_process_of_that_node_is_meant() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    w.win("a", protected(2, "a", "b"));
    let assign = || Event::Assign { vm: name("vm"), to: node("c") };
    let Action::Persist { register, .. } = w.event(assign())[0] else { panic!("not written") };
    assert_eq!((register.generation, register.owner.node, register.mode), (Generation(3), node("c"), Mode::Solo));
    assert!(register.owner.names(&solo(3, "c").owner) && !register.owner.names(&solo(3, "a").owner));
    assert_eq!(w.event(assign()), [], "one at a time");
    assert_eq!(w.persisted(), []);
    assert_eq!(w.standing(), Standing::Settled);
    assert_eq!(outcome(&w.ask("b", Some(protected(2, "a", "b")), cas(solo(3, "b")))), Outcome::Lost);
    w.win("c", solo(4, "c"));
}

#[test]
fn an_operator_cannot_count_beyond_what_a_register_may_have() {
    let mut w = World::recovered(&[("vm", Register { generation: Generation::MAX, ..solo(1, "a") })]);
    assert_eq!(w.event(Event::Assign { vm: name("vm"), to: node("c") }), []);
}

#[test]
fn a_vm_that_an_operator_forgets_is_vacant_when_that_is_durable() {
    let mut w = World::new();
    w.win("a", solo(1, "a"));
    assert_eq!(w.event(Event::Forget { vm: name("vm") }), [Action::Remove { vm: name("vm") }]);
    assert_eq!(w.ask("c", None, Ask::Read), [], "it waits");
    assert_eq!(reply(&w.persisted()).held, None);
    w.win("c", solo(1, "c"));
    w.event(Event::Forget { vm: name("vm") });
    w.event(Event::PersistFailed { vm: name("vm") });
    assert_eq!(w.read("c", None).held, Some(solo(1, "c")), "or it stays");
}
