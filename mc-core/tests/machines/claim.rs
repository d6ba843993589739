//! Who starts, or follows one that died.

use crate::{at, owner, protected, solo};
use mc_core::{
    claim::{Action, Claim, Event, Verdict},
    id::{Generation, Time},
    machine::Machine,
    register::{
        CasOutcome::{Lost, Won},
        Owner, Register, Swap,
    },
};

fn claim() -> Claim {
    let mut claim = Claim::new(owner("a"));
    assert_eq!(claim.poll_action(), Some(Action::ReadRegister));
    claim
}

fn swap(generation: u64, contested: bool) -> Action {
    Action::Cas(Swap { expect: Generation(generation - 1), new: solo(generation, "a"), contested })
}

#[test]
fn it_swaps_whatever_the_register_says_of_this_node() {
    let assigned = Register { owner: Owner { instance: Owner::ANY, ..owner("a") }, ..solo(6, "a") };
    let reads = [(None, 1, false), (Some(solo(4, "a")), 5, false), (Some(protected(4, "b")), 5, true)];
    for (held, generation, contested) in reads.into_iter().chain([(Some(assigned), 7, false)]) {
        let mut claim = claim();
        assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(held)), [swap(generation, contested)]);
        assert!(claim.is_asking());
        assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(held)), [], "once");
        assert_eq!(at(&mut claim, Time(0), Event::Cas(Won(solo(generation, "a")))), []);
        assert_eq!(claim.verdict(), Verdict::Ours(solo(generation, "a")));
    }
}

#[test]
fn what_is_another_nodes_or_another_process_is_refused_until_the_register_changes() {
    let restarted = Register { owner: Owner { instance: 2, ..owner("a") }, ..protected(4, "b") };
    let cases = [(solo(4, "b"), Verdict::Foreign(solo(4, "b"))), (restarted, Verdict::OtherInstance(restarted))];
    for (held, verdict) in cases {
        let mut claim = claim();
        assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(Some(held))), []);
        assert_eq!(claim.verdict(), verdict);
        assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(Some(solo(5, "a")))), [swap(6, false)]);
    }
}

#[test]
fn another_process_of_this_host_that_ran_the_vm_alone_is_followed_when_it_is_gone() {
    let alone = Register { owner: Owner { instance: 2, ..owner("a") }, ..solo(4, "a") };
    let look = Action::LookFor { instance: 2 };
    let mut claim = claim();
    for _ in 0..2 {
        assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(Some(alone))), [look]);
        assert_eq!(at(&mut claim, Time(0), Event::Looked { lives: true }), []);
        assert_eq!(claim.verdict(), Verdict::Beside(alone));
    }
    assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(Some(alone))), [look]);
    assert_eq!(at(&mut claim, Time(0), Event::Looked { lives: false }), [swap(5, false)], "nobody had a copy");
    let lost = Event::Cas(Lost(Some(Register { generation: Generation(5), ..alone })));
    assert_eq!(at(&mut claim, Time(0), lost), [look], "whoever was faster may live");
}

#[test]
fn who_loses_looks_whose_it_is() {
    let mut claim = claim();
    at(&mut claim, Time(0), Event::RegisterRead(Some(solo(4, "a"))));
    assert_eq!(at(&mut claim, Time(0), Event::Cas(Lost(Some(protected(5, "b"))))), [swap(6, true)], "our own, late");
    assert_eq!(at(&mut claim, Time(0), Event::Cas(Lost(Some(solo(6, "b"))))), []);
    assert_eq!(claim.verdict(), Verdict::Foreign(solo(6, "b")));
}

#[test]
fn only_what_was_asked_for_is_won() {
    let mut claim = claim();
    assert_eq!(at(&mut claim, Time(0), Event::Cas(Won(solo(99, "b")))), [], "nothing was asked for");
    assert_eq!(claim.verdict(), Verdict::Open);
    assert_eq!(at(&mut claim, Time(0), Event::RegisterRead(None)), [swap(1, false)]);
    for other in [solo(1, "b"), solo(2, "a"), protected(1, "b")] {
        assert_eq!(at(&mut claim, Time(0), Event::Cas(Won(other))), [swap(1, false)], "{other:?}");
        assert_eq!(claim.verdict(), Verdict::Open);
    }
    assert_eq!(at(&mut claim, Time(0), Event::Cas(Won(solo(1, "a")))), []);
    assert_eq!(claim.verdict(), Verdict::Ours(solo(1, "a")));
}
