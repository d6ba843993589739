//! The arbiter against the rules of its module, one by one.

use mc_core::{
    arbiter::{Action, Arbiter, Event, Limits},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{Mode, Owner, Register},
    wire::arbiter::{Body, Message},
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn register(generation: u64, node: &str) -> Register {
    Register {
        generation: Generation(generation),
        owner: Owner { node: name(node), instance: 7 },
        mode: Mode::Protected { standby: name("other") },
    }
}

fn cas(expect: u64, node: &str) -> Body {
    Body::Cas { expect: Generation(expect), new: register(expect + 1, node) }
}

fn ask(arbiter: &mut Arbiter, from: u64, vm: &str, body: Body) -> Vec<Action> {
    let message = Message { id: from * 10, vm: name(vm), body };
    event(arbiter, Event::Request { from, message })
}

fn event(arbiter: &mut Arbiter, event: Event) -> Vec<Action> {
    arbiter.handle(Time(0), event);
    std::iter::from_fn(|| arbiter.poll_action()).collect()
}

fn persisted(arbiter: &mut Arbiter, vm: &str) -> Vec<Action> {
    event(arbiter, Event::Persisted { vm: name(vm) })
}

fn reply(to: u64, vm: &str, body: Body) -> Action {
    Action::Reply { to, message: Message { id: to * 10, vm: name(vm), body } }
}

fn persist(vm: &str, register: Register) -> Action {
    Action::Persist { vm: name(vm), register }
}

#[test]
fn a_swap_is_answered_when_it_is_durable_and_not_before() {
    let mut a = Arbiter::default();
    assert_eq!(ask(&mut a, 1, "vm", Body::Read), [reply(1, "vm", Body::Holds(None))]);
    assert_eq!(ask(&mut a, 2, "vm", cas(0, "a")), [persist("vm", register(1, "a"))]);
    assert!(a.registers().is_empty(), "not durable yet");
    assert_eq!(persisted(&mut a, "vm"), [reply(2, "vm", Body::Won(register(1, "a")))]);
    assert_eq!(ask(&mut a, 3, "vm", Body::Read), [reply(3, "vm", Body::Holds(Some(register(1, "a"))))]);
}

#[test]
fn who_comes_second_loses_and_learns_who_won() {
    let mut a = Arbiter::default();
    ask(&mut a, 1, "vm", cas(0, "a"));
    persisted(&mut a, "vm");
    let won = register(1, "a");
    assert_eq!(ask(&mut a, 2, "vm", cas(0, "b")), [reply(2, "vm", Body::Lost(Some(won)))]);
    assert_eq!(ask(&mut a, 3, "vm", cas(2, "b")), [reply(3, "vm", Body::Lost(Some(won)))], "the future");
    assert_eq!(ask(&mut a, 4, "new", cas(1, "b")), [reply(4, "new", Body::Lost(None))], "vacant is generation 0");
}

#[test]
fn a_retry_after_a_lost_reply_wins_and_writes_nothing() {
    let mut a = Arbiter::default();
    ask(&mut a, 1, "vm", cas(0, "a"));
    persisted(&mut a, "vm");
    assert_eq!(ask(&mut a, 2, "vm", cas(0, "a")), [reply(2, "vm", Body::Won(register(1, "a")))]);

    let mut restarted = Arbiter::recover(Limits::default(), a.registers().clone());
    assert_eq!(ask(&mut restarted, 3, "vm", cas(0, "a")), [reply(3, "vm", Body::Won(register(1, "a")))]);
}

#[test]
fn requests_wait_behind_a_swap_in_order_and_other_vms_do_not() {
    let mut a = Arbiter::default();
    ask(&mut a, 1, "vm", cas(0, "a"));
    assert_eq!(ask(&mut a, 2, "vm", Body::Read), []);
    assert_eq!(ask(&mut a, 3, "vm", cas(0, "b")), []);
    assert_eq!(ask(&mut a, 4, "vm", cas(1, "b")), []);
    assert_eq!(ask(&mut a, 5, "vm", Body::Read), []);
    assert_eq!(ask(&mut a, 6, "vm2", Body::Read), [reply(6, "vm2", Body::Holds(None))]);

    let first = register(1, "a");
    assert_eq!(
        persisted(&mut a, "vm"),
        [
            reply(1, "vm", Body::Won(first)),
            reply(2, "vm", Body::Holds(Some(first))),
            reply(3, "vm", Body::Lost(Some(first))),
            persist("vm", register(2, "b")),
        ]
    );
    let second = register(2, "b");
    let rest = [reply(4, "vm", Body::Won(second)), reply(5, "vm", Body::Holds(Some(second)))];
    assert_eq!(persisted(&mut a, "vm"), rest);
    assert!(!a.is_persisting());
}

#[test]
fn a_full_disk_changes_nothing_and_the_next_in_line_may_try() {
    let mut a = Arbiter::default();
    ask(&mut a, 1, "vm", cas(0, "a"));
    ask(&mut a, 2, "vm", cas(0, "b"));
    let failed = event(&mut a, Event::PersistFailed { vm: name("vm") });
    assert_eq!(failed, [reply(1, "vm", Body::Failed), persist("vm", register(1, "b"))]);
    assert_eq!(persisted(&mut a, "vm"), [reply(2, "vm", Body::Won(register(1, "b")))]);
}

#[test]
fn what_is_no_request_and_what_was_not_asked_for_changes_nothing() {
    let mut a = Arbiter::default();
    let before = a.clone();
    for body in [Body::Failed, Body::Holds(None), Body::Won(register(1, "a")), Body::Lost(None)] {
        assert_eq!(ask(&mut a, 1, "vm", body), []);
    }
    assert_eq!(persisted(&mut a, "vm"), []);
    assert_eq!(event(&mut a, Event::PersistFailed { vm: name("vm") }), []);
    assert_eq!(a, before);
    // The parser refuses such a swap; the machine does not depend on it.
    let skips = Body::Cas { expect: Generation(0), new: register(2, "a") };
    assert_eq!(ask(&mut a, 1, "vm", skips), [reply(1, "vm", Body::Lost(None))]);
    let wraps = Body::Cas { expect: Generation(u64::MAX), new: register(0, "a") };
    assert_eq!(ask(&mut a, 1, "vm", wraps), [reply(1, "vm", Body::Lost(None))]);
}

#[test]
fn limits_are_answered_with_failed() {
    let mut a = Arbiter::new(Limits { vms: 2, waiting: 1 });
    ask(&mut a, 1, "one", cas(0, "a"));
    persisted(&mut a, "one");
    ask(&mut a, 2, "two", cas(0, "a"));
    assert_eq!(ask(&mut a, 3, "three", cas(0, "a")), [reply(3, "three", Body::Failed)], "one, and two on its way");
    assert_eq!(ask(&mut a, 4, "three", Body::Read), [reply(4, "three", Body::Holds(None))], "reads make no register");
    assert_eq!(ask(&mut a, 5, "two", Body::Read), []);
    assert_eq!(ask(&mut a, 6, "two", Body::Read), [reply(6, "two", Body::Failed)], "the queue is full");
    assert_eq!(ask(&mut a, 7, "one", cas(1, "b")), [persist("one", register(2, "b"))], "known VMs go on");
    assert_eq!(persisted(&mut a, "two").len(), 2);
    assert_eq!(ask(&mut a, 8, "one", Body::Read), [], "the queue has room again");
}
