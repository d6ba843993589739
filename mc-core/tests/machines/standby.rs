//! The standby "b". Generation 2 is replicated to it.

use crate::{at, owner, protected, solo};
use mc_core::{
    id::{Epoch, Generation, Time},
    register::{
        CasOutcome::{Lost, Won},
        Mode, Owner, Register, Swap,
    },
    standby::{Action, Config, Event, Role, Standby},
    wire::control::{Body, NackReason},
};

const G: Generation = Generation(2);

fn slab(epoch: u64, index: u32) -> Event {
    Event::Slab { generation: G, epoch: Epoch(epoch), index }
}

fn commit(epoch: u64, slabs: u32) -> Event {
    Event::Commit { generation: G, epoch: Epoch(epoch), slabs, held: epoch > 1 }
}

const SESSION: Event = Event::Session { generation: G, instance: 1 };
const PASSED: Event = Event::Rehearsed { passed: true };

fn read(held: Register) -> Event {
    Event::RegisterRead(Some(held))
}

fn ack(epoch: u64) -> Action {
    Action::Send { generation: G, epoch: Epoch(epoch), body: Body::Ack { free_slabs: 0 } }
}

fn nack(epoch: u64, reason: NackReason) -> Action {
    Action::Send { generation: G, epoch: Epoch(epoch), body: Body::Nack(reason) }
}

fn swap() -> Action {
    Action::Cas(Swap { expect: G, new: solo(3, "b"), contested: true })
}

fn do_all(standby: &mut Standby, events: &[Event]) -> Vec<Action> {
    events.iter().flat_map(|e| at(standby, Time(0), *e)).collect()
}

fn idle() -> Standby {
    Standby::new(Config { owner: owner("b"), rehearse: true })
}

fn syncing() -> Standby {
    let mut standby = idle();
    assert_eq!(do_all(&mut standby, &[SESSION]), []);
    standby
}

/// Holds epoch 1.
fn protecting() -> Standby {
    let mut standby = syncing();
    let actions = do_all(&mut standby, &[slab(1, 0), slab(1, 1), commit(1, 2)]);
    let rehearse = Action::Rehearse(Epoch(1));
    assert_eq!(actions, [Action::ApplyNow, Action::ApplyNow, Action::Apply(Epoch(1)), rehearse], "no ACK yet");
    assert_eq!(do_all(&mut standby, &[PASSED]), [Action::EndRehearsal, ack(1)]);
    standby
}

/// Holds epoch 2, whose output was held.
fn entitled() -> Standby {
    let mut standby = protecting();
    do_all(&mut standby, &[slab(2, 0), commit(2, 1)]);
    assert!(standby.is_entitled());
    standby
}

/// The arbiter says what cannot be believed, and answers the swap all the same.
#[test]
fn a_swap_that_was_won_counts_although_a_fault_was_told_first() {
    let mut standby = claiming();
    do_all(&mut standby, &[Event::ArbiterFault]);
    assert_eq!(standby.role(), Role::Disputed);
    let taken = do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]);
    assert_eq!(taken, [Action::TakeOver { generation: Generation(3), epoch: Epoch(2) }]);
    let mut standby = claiming();
    do_all(&mut standby, &[Event::ArbiterFault, Event::Cas(Lost(None))]);
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [], "nothing is asked for any more");
}

#[test]
fn a_swap_that_was_won_in_an_earlier_generation_wins_nothing() {
    let mut standby = claiming();
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(2, "b")))]), []);
    assert_eq!(standby.role(), Role::Claiming);
}

/// Has asked what the register holds.
fn reading(mut standby: Standby) -> Standby {
    assert_eq!(do_all(&mut standby, &[Event::Suspect]), [Action::Revoke]);
    assert_eq!(do_all(&mut standby, &[Event::Revoked]), [Action::DiscardStaged, Action::ReadRegister]);
    standby
}

fn claiming() -> Standby {
    let mut standby = reading(entitled());
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()]);
    standby
}

#[test]
fn the_full_synchronisation_is_applied_as_it_comes_and_later_epochs_are_staged() {
    let mut standby = protecting();
    assert_eq!((standby.role(), standby.committed()), (Role::Protecting, (G, Epoch(1))));
    assert!(!standby.is_full_sync());
    assert_eq!(do_all(&mut standby, &[slab(2, 0), slab(2, 1)]), [Action::Stage, Action::Stage]);
    assert_eq!(do_all(&mut standby, &[commit(2, 2)]), [ack(2), Action::Apply(Epoch(2))]);
}

#[test]
fn slabs_of_an_epoch_may_come_in_any_order_but_only_once() {
    let mut standby = protecting();
    let expected = [Action::Stage, Action::Stage, Action::Drop, Action::Stage];
    assert_eq!(do_all(&mut standby, &[slab(2, 2), slab(2, 0), slab(2, 2), slab(2, 1)]), expected);
    assert_eq!(do_all(&mut standby, &[commit(2, 3)]), [ack(2), Action::Apply(Epoch(2))]);
}

#[test]
fn slabs_that_nobody_wants_are_freed() {
    let stranger = Event::Slab { generation: Generation(1), epoch: Epoch(2), index: 0 };
    let mut standby = protecting();
    for event in [slab(1, 5), slab(3, 0), slab(0, 0), stranger, slab(2, u32::MAX), slab(2, 1 << 27)] {
        assert_eq!(do_all(&mut standby, &[event]), [Action::Drop], "{event:?}");
    }
    assert_eq!(do_all(&mut idle(), &[slab(1, 0)]), [Action::Drop]);
    assert_eq!(do_all(&mut claiming(), &[slab(2, 0)]), [Action::Drop]);
}

#[test]
fn i2_an_incomplete_epoch_is_never_acked() {
    let refused = [nack(2, NackReason::OutOfOrder), Action::DiscardStaged];
    for (slabs, promised) in [(&[0][..], 2), (&[0, 2], 2), (&[0, 2], 3), (&[1], 1), (&[], 1), (&[0, 1], 1)] {
        let mut standby = protecting();
        slabs.iter().for_each(|index| drop(do_all(&mut standby, &[slab(2, *index)])));
        assert_eq!(do_all(&mut standby, &[commit(2, promised)]), refused, "{slabs:?} of {promised}");
        assert_eq!(standby.committed(), (G, Epoch(1)));
    }
}

#[test]
fn i2_an_epoch_out_of_order_is_never_acked() {
    let mut standby = protecting();
    assert_eq!(do_all(&mut standby, &[commit(3, 0)]), [nack(2, NackReason::OutOfOrder), Action::DiscardStaged]);
    assert_eq!(do_all(&mut standby, &[commit(1, 2)]), [], "late");
    let stranger = Event::Commit { generation: Generation(3), epoch: Epoch(2), slabs: 0, held: true };
    assert_eq!(do_all(&mut standby, &[stranger]), [], "of another life");
    assert_eq!(do_all(&mut idle(), &[commit(1, 0)]), []);
}

#[test]
fn what_cannot_be_committed_is_refused_with_the_reason() {
    for (event, reason) in [
        (Event::BadSlab, NackReason::Malformed),
        (Event::StagingFull, NackReason::TooLarge),
        (Event::StorageFailed, NackReason::Storage),
    ] {
        let mut standby = protecting();
        do_all(&mut standby, &[slab(2, 0)]);
        let actions = do_all(&mut standby, &[event]);
        assert_eq!(actions[actions.len() - 2..], [nack(2, reason), Action::DiscardStaged]);
        assert_eq!(standby.role(), Role::Protecting, "what is committed stays ours to claim");
        let rest = do_all(&mut standby, &[slab(2, 1), commit(2, 2)]);
        assert!(!rest.contains(&ack(2)), "the epoch has a hole now");
    }
}

#[test]
fn i3_nothing_is_acked_after_a_suspicion_and_nothing_asked_before_the_access_is_ended() {
    let mut standby = protecting();
    assert_eq!(do_all(&mut standby, &[slab(2, 0), Event::Suspect]), [Action::Stage, Action::Revoke]);
    assert_eq!(do_all(&mut standby, &[Event::LinkDown, Event::Suspect, Event::Goodbye]), [], "once is enough");
    assert_eq!(do_all(&mut standby, &[slab(2, 1), commit(2, 2)]), [Action::Stage, Action::Apply(Epoch(2))], "drained");
    assert_eq!(do_all(&mut standby, &[slab(3, 0), commit(3, 9)]), [Action::Stage, Action::DiscardStaged]);
    assert_eq!(do_all(&mut standby, &[Event::Revoked]), [Action::DiscardStaged, Action::ReadRegister]);
    assert_eq!(do_all(&mut standby, &[slab(3, 0), commit(3, 0), Event::BadSlab]), [Action::Drop, Action::Drop]);
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()]);
    let take_over = Action::TakeOver { generation: Generation(3), epoch: Epoch(2) };
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [take_over]);
    assert_eq!(do_all(&mut standby, &[Event::Running]), []);
    assert_eq!(standby.role(), Role::Active);
}

#[test]
fn an_image_that_was_not_rehearsed_is_never_acked() {
    let mut standby = syncing();
    do_all(&mut standby, &[slab(1, 0), commit(1, 1)]);
    assert_eq!(standby.role(), Role::Rehearsing);
    let failed = [nack(1, NackReason::Rehearsal), Action::DiscardStaged, Action::Discard];
    assert_eq!(do_all(&mut standby, &[Event::Rehearsed { passed: false }]), failed);
    assert_eq!(do_all(&mut standby, &[PASSED]), [], "too late");
    let mut standby = Standby::new(Config { owner: owner("b"), rehearse: false });
    let actions = do_all(&mut standby, &[SESSION, slab(1, 0), commit(1, 1)]);
    assert_eq!(actions, [Action::ApplyNow, ack(1), Action::Apply(Epoch(1))], "the operator wants none");
    let told = Action::Send { generation: G, epoch: Epoch(2), body: Body::Rehearsed };
    let ask = Event::RehearsalAsked { generation: G, epoch: Epoch(2) };
    assert_eq!(do_all(&mut standby, &[ask]), [told], "and the primary need not wait for one");
}

#[test]
fn a_rehearsal_beside_the_epochs_stops_none_of_them() {
    let mut standby = entitled();
    let ask = |epoch| Event::RehearsalAsked { generation: G, epoch: Epoch(epoch) };
    assert_eq!(do_all(&mut standby, &[ask(4)]), []);
    assert!(standby.is_unproven());
    let epoch = |e| [ack(e), Action::Apply(Epoch(e))];
    assert_eq!(do_all(&mut standby, &[slab(3, 0), commit(3, 1)])[1..], epoch(3), "not that one");
    let actions = do_all(&mut standby, &[slab(4, 0), commit(4, 1)]);
    assert_eq!(actions[1..3], epoch(4));
    assert_eq!(actions[3..], [Action::Rehearse(Epoch(4))]);
    assert_eq!(do_all(&mut standby, &[slab(5, 0), commit(5, 1)])[1..], epoch(5), "meanwhile");
    let told = Action::Send { generation: G, epoch: Epoch(4), body: Body::Rehearsed };
    assert_eq!(do_all(&mut standby, &[PASSED]), [Action::EndRehearsal, told]);
    assert!(!standby.is_unproven());

    do_all(&mut standby, &[ask(6), slab(6, 0), commit(6, 1)]);
    do_all(&mut standby, &[slab(7, 0)]);
    let refused = [Action::EndRehearsal, nack(7, NackReason::Rehearsal)];
    assert_eq!(do_all(&mut standby, &[Event::Rehearsed { passed: false }]), refused);
    assert!(standby.is_unproven(), "until the VM changes again");
    assert_eq!(do_all(&mut standby, &[commit(7, 1)]), epoch(7), "the primary's output waits for it");
    assert_eq!(do_all(&mut standby, &[ask(8), slab(8, 0), commit(8, 1)])[3..], [Action::Rehearse(Epoch(8))]);
    do_all(&mut standby, &[PASSED]);
    assert!(!standby.is_unproven());

    let mut standby = entitled();
    do_all(&mut standby, &[ask(3), slab(3, 0), commit(3, 1)]);
    assert_eq!(do_all(&mut standby, &[Event::Suspect]), [Action::EndRehearsal, Action::Revoke], "the VM comes first");
    assert_eq!(do_all(&mut standby, &[PASSED]), []);
}

/// The arbiter may be away, and the primary then goes on.
#[test]
fn who_could_not_run_the_vm_says_so_and_goes_on() {
    let ask = |epoch| Event::RehearsalAsked { generation: G, epoch };
    let mut standby = entitled();
    do_all(&mut standby, &[ask(Epoch(3)), slab(3, 0), commit(3, 1), slab(4, 0)]);
    let told = [Action::EndRehearsal, nack(4, NackReason::Rehearsal)];
    assert_eq!(do_all(&mut standby, &[Event::Unable]), told);
    assert_eq!(do_all(&mut standby, &[PASSED, commit(4, 1)]), [ack(4), Action::Apply(Epoch(4))]);
    assert!(standby.is_unproven());
    assert_eq!(do_all(&mut syncing(), &[Event::Unable])[0], nack(1, NackReason::Rehearsal));

    for rehearse in [true, false] {
        let mut standby = Standby::new(Config { owner: owner("b"), rehearse });
        do_all(&mut standby, &[SESSION, slab(1, 0), commit(1, 1), PASSED]);
        assert_eq!(do_all(&mut standby, &[ask(Epoch::NEVER)]), []);
        assert!(standby.is_unproven(), "the primary says that it is for nothing");
        do_all(&mut standby, &[ask(Epoch(2)), slab(2, 0), commit(2, 1), PASSED]);
        assert!(!standby.is_unproven());
    }
}

#[test]
fn a_standby_without_a_full_synchronisation_never_asks() {
    for event in [Event::Suspect, Event::LinkDown, Event::Goodbye] {
        let mut standby = syncing();
        do_all(&mut standby, &[slab(1, 0)]);
        assert_eq!(do_all(&mut standby, &[event]), [Action::DiscardStaged, Action::Discard]);
        assert_eq!(standby.role(), Role::Idle);
        assert_eq!(do_all(&mut standby, &[Event::Suspect, Event::LinkDown, Event::Revoked, Event::Goodbye]), []);
    }
}

#[test]
fn it_asks_when_it_has_a_held_epoch_and_has_read_that_the_register_names_it() {
    let mut standby = reading(entitled());
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]).len(), 1, "an operator's answer counts");
    let mut standby = reading(entitled());
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()]);
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [], "once is enough");
}

#[test]
fn a_copy_that_the_register_never_named_is_nobodys_last() {
    for held in [None, Some(solo(1, "a")), Some(solo(2, "a")), Some(protected(2, "c")), Some(replaced())] {
        let mut standby = reading(protecting());
        let actions = do_all(&mut standby, &[Event::RegisterRead(held)]);
        assert_eq!(actions, [Action::DiscardStaged, Action::Discard], "{held:?}");
        assert_eq!(standby.role(), Role::Idle);
    }
}

/// Another session's copy on the same host.
fn replaced() -> Register {
    let standby = Owner { instance: 9, ..owner("b") };
    Register { mode: Mode::Protected { standby }, ..protected(2, "b") }
}

#[test]
fn a_copy_that_lacks_what_was_said_is_an_operators_to_run() {
    let mut standby = reading(protecting());
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), []);
    assert_eq!(standby.role(), Role::Disputed);
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), []);
    assert_eq!(do_all(&mut standby, &[Event::OperatorTakesOver]), [swap()]);
    let take_over = Action::TakeOver { generation: Generation(3), epoch: Epoch(1) };
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [take_over]);
}

/// The witness died with the primary: what the register holds is never read.
#[test]
fn an_operators_word_does_for_a_read_that_is_not_answered() {
    let mut standby = reading(entitled());
    assert_eq!(do_all(&mut standby, &[Event::OperatorTakesOver]), [swap()]);
    assert_eq!(do_all(&mut standby, &[Event::OperatorTakesOver]), [], "once");
    let take_over = Action::TakeOver { generation: Generation(3), epoch: Epoch(2) };
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [take_over]);
    // A copy that lacks what was said is not run by the way.
    let mut standby = reading(protecting());
    assert_eq!(do_all(&mut standby, &[Event::OperatorTakesOver]), []);
    assert_eq!(standby.role(), Role::Disputed);
    assert_eq!(do_all(&mut standby, &[Event::OperatorTakesOver]), [swap()]);
}

/// It cannot run the VM, and an operator gives it to another node.
#[test]
fn a_takeover_that_is_not_over_ends_when_the_register_names_another_copy() {
    let won = || {
        let mut standby = claiming();
        do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]);
        standby
    };
    let of = |instance, node: &str| Register { owner: Owner { instance, ..owner(node) }, ..solo(4, node) };
    for other in [of(Owner::ANY, "a"), of(1, "a"), of(99, "b")] {
        let mut standby = won();
        assert_eq!(do_all(&mut standby, &[read(solo(3, "b")), Event::RegisterRead(None)]), [], "what it has won");
        assert_eq!(do_all(&mut standby, &[read(other)]), [Action::Abandon], "{other:?}");
        assert_eq!(do_all(&mut standby, &[Event::Running]), []);
        assert_eq!(standby.role(), Role::Lost);
    }
    let mut standby = won();
    assert_eq!(do_all(&mut standby, &[read(of(Owner::ANY, "b"))]), [], "an operator says it once more");
    assert_eq!(standby.role(), Role::TakingOver);
}

#[test]
fn an_arbiter_that_makes_no_sense_costs_no_copy() {
    for held in [None, Some(solo(1, "a")), Some(solo(2, "a")), Some(protected(2, "c")), Some(replaced())] {
        let mut standby = reading(entitled());
        assert_eq!(do_all(&mut standby, &[Event::RegisterRead(held)]), [], "{held:?}");
        assert_eq!(standby.role(), Role::Disputed);
        assert_eq!(do_all(&mut standby, &[SESSION, Event::MakeRoom]), [], "it is kept");
        assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()], "mended");
        let mut standby = claiming();
        assert_eq!(do_all(&mut standby, &[Event::Cas(Lost(held))]), [], "{held:?}");
        assert_eq!(standby.role(), Role::Disputed);
    }
    let mut standby = claiming();
    assert_eq!(do_all(&mut standby, &[Event::ArbiterFault]), []);
    assert_eq!(standby.role(), Role::Disputed);
}

#[test]
fn who_loses_keeps_the_image_until_its_room_is_needed() {
    for lost in [Event::Cas(Lost(Some(solo(3, "a")))), read(solo(3, "a"))] {
        let mut standby = claiming();
        assert_eq!(do_all(&mut standby, &[lost]), []);
        assert_eq!(standby.role(), Role::Lost);
        assert_eq!(do_all(&mut standby, &[SESSION, slab(3, 0)]), [Action::Drop]);
        assert_eq!(do_all(&mut standby, &[Event::MakeRoom]), [Action::DiscardStaged, Action::Discard]);
        assert_eq!(do_all(&mut standby, &[Event::Session { generation: Generation(4), instance: 2 }]), []);
        assert_eq!((standby.role(), standby.committed()), (Role::Syncing, (Generation(4), Epoch(0))));
    }
}

#[test]
fn a_vm_that_is_handed_back_is_taken_over() {
    let handed = |generation| Register { owner: Owner { instance: Owner::ANY, ..owner("b") }, ..solo(generation, "b") };
    let mut standby = claiming();
    do_all(&mut standby, &[Event::Cas(Lost(Some(solo(3, "a")))), read(solo(3, "a"))]);
    let cas = Action::Cas(Swap { expect: Generation(4), new: solo(5, "b"), contested: true });
    assert_eq!(do_all(&mut standby, &[read(handed(4))]), [cas]);
    let take_over = Action::TakeOver { generation: Generation(5), epoch: Epoch(2) };
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(5, "b")))]), [take_over]);
    let mut standby = reading(entitled());
    assert_eq!(do_all(&mut standby, &[read(handed(4))]), [cas], "also when that is the first it hears");
    let mut standby = reading(entitled());
    let other = Register { owner: Owner { instance: 99, ..owner("b") }, ..solo(4, "b") };
    assert_eq!(do_all(&mut standby, &[read(other)]), [], "an earlier process of this host won that");
    assert_eq!(standby.role(), Role::Lost);
}

#[test]
fn a_goodbye_is_believed_when_the_register_says_the_same() {
    let mut standby = entitled();
    assert_eq!(do_all(&mut standby, &[Event::Goodbye]), [Action::Revoke], "it may be a stranger's");
    assert_eq!(do_all(&mut standby, &[Event::Revoked]), [Action::DiscardStaged, Action::ReadRegister]);
    let confirmed = do_all(&mut standby.clone(), &[read(solo(3, "a"))]);
    assert_eq!(confirmed, [Action::DiscardStaged, Action::Discard]);
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()], "it was a lie, or the arbiter went back");
    assert_eq!(do_all(&mut claiming(), &[Event::Goodbye]), [], "the arbiter decides");
}

#[test]
fn a_new_session_owes_nothing_to_the_last() {
    let mut standby = reading(entitled());
    do_all(&mut standby, &[read(solo(3, "a")), Event::MakeRoom, SESSION]);
    assert!(!standby.is_entitled());
    assert_eq!(do_all(&mut standby, &[commit(1, 1)]), [nack(1, NackReason::OutOfOrder), Action::DiscardStaged]);
    let mut standby = entitled();
    do_all(&mut standby, &[Event::Goodbye, Event::Revoked, read(solo(3, "a"))]);
    let next = Event::Session { generation: Generation(4), instance: 2 };
    assert_eq!(do_all(&mut standby, &[next]), []);
    assert_eq!((standby.role(), standby.committed()), (Role::Syncing, (Generation(4), Epoch(0))));
}

/// After a power cut: the register names a copy that was in memory.
#[test]
fn a_copy_that_is_no_more_is_renounced_if_the_register_names_it() {
    let config = Config { owner: owner("b"), rehearse: true };
    let mut standby = Standby::without_copy(config, 1);
    let others =
        Register { mode: Mode::Protected { standby: Owner { instance: 2, ..owner("b") } }, ..protected(5, "b") };
    for held in [solo(5, "a"), solo(5, "b"), protected(5, "c"), others] {
        assert_eq!(do_all(&mut standby, &[read(held), Event::RegisterRead(None)]), [], "{held:?}");
    }
    let renounce = Action::Renounce(Swap { expect: Generation(5), new: solo(6, "a"), contested: false });
    let named = read(protected(5, "b"));
    assert_eq!(do_all(&mut standby, &[named, named]), [renounce], "once");
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(6, "a"))), named]), [], "and once for all");
    assert_eq!(standby.role(), Role::Idle);

    let mut waits = Standby::without_copy(config, 1);
    do_all(&mut waits, &[SESSION, slab(1, 0), commit(1, 1), PASSED]);
    assert_eq!(do_all(&mut waits, &[read(protected(2, "b"))]), [], "it has another one by now");
}

/// Given up before it was named, and named by a swap that was late.
#[test]
fn a_copy_that_was_given_up_is_renounced_when_it_is_named_all_the_same() {
    let mut standby = reading(protecting());
    do_all(&mut standby, &[read(solo(1, "a"))]);
    assert_eq!(standby.role(), Role::Idle);
    let renounce = Action::Renounce(Swap { expect: G, new: solo(3, "a"), contested: false });
    assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [renounce]);
}

#[test]
fn one_session_at_a_time() {
    for mut standby in [syncing(), protecting(), claiming()] {
        let before = standby.clone();
        assert_eq!(
            do_all(&mut standby, &[Event::Session { generation: Generation(9), instance: 9 }, Event::Running]),
            []
        );
        assert_eq!(standby, before);
    }
}

#[test]
fn the_owner_after_a_takeover_is_the_qemu_that_waits_now() {
    let mut standby = reading(entitled());
    standby.set_owner(Owner { instance: 8, ..owner("b") });
    let actions = do_all(&mut standby, &[read(protected(2, "b"))]);
    assert!(matches!(actions[0], Action::Cas(swap) if swap.new.owner.instance == 8), "{actions:?}");
}

#[test]
fn a_swap_won_with_another_register_than_was_asked_for_takes_nothing_over() {
    for other in [solo(3, "a"), solo(4, "b"), protected(3, "b")] {
        let mut standby = claiming();
        assert_eq!(do_all(&mut standby, &[Event::Cas(Won(other))]), [], "{other:?}");
        assert_eq!((standby.role(), standby.won()), (Role::Disputed, None));
        assert_eq!(do_all(&mut standby, &[read(protected(2, "b"))]), [swap()], "asked again");
        assert_ne!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), []);
        assert_eq!(standby.won(), Some(solo(3, "b")));
    }
}
