//! The standby "b". Generation 2 is replicated to it.

use crate::{at, owner, protected, solo, timeout};
use mc_core::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    register::CasOutcome::{Lost, Won},
    standby::{Action, Config, Event, Role, Standby},
    wire::control::{Body, NackReason},
};
use std::time::Duration;

const G: Generation = Generation(2);

fn slab(epoch: u64, index: u32) -> Event {
    Event::Slab { generation: G, epoch: Epoch(epoch), index }
}

fn commit(epoch: u64, slabs: u32) -> Event {
    Event::Commit { generation: G, epoch: Epoch(epoch), slabs }
}

fn ack(epoch: u64) -> Action {
    Action::Send { generation: G, epoch: Epoch(epoch), body: Body::Ack { free_slabs: 0 } }
}

fn nack(epoch: u64, reason: NackReason) -> Action {
    Action::Send { generation: G, epoch: Epoch(epoch), body: Body::Nack(reason) }
}

fn swap() -> Action {
    Action::Cas { expect: G, new: solo(3, "b") }
}

fn do_all(standby: &mut Standby, events: &[Event]) -> Vec<Action> {
    events.iter().flat_map(|e| at(standby, Time(0), *e)).collect()
}

fn idle(retries: u8) -> Standby {
    Standby::new(Config { owner: owner("b"), retry: Duration::from_millis(5), retries, sabotage: None })
}

fn syncing() -> Standby {
    let mut standby = idle(1);
    assert_eq!(do_all(&mut standby, &[Event::Session { generation: G }]), []);
    standby
}

/// Holds epoch 1.
fn protecting() -> Standby {
    let mut standby = syncing();
    let actions = do_all(&mut standby, &[slab(1, 0), slab(1, 1), commit(1, 2)]);
    assert_eq!(actions, [Action::ApplyNow, Action::ApplyNow, ack(1), Action::Apply(Epoch(1))]);
    standby
}

fn registered() -> Standby {
    let mut standby = protecting();
    assert_eq!(do_all(&mut standby, &[Event::Registered { generation: G }]), []);
    standby
}

fn claiming() -> Standby {
    let mut standby = registered();
    assert_eq!(do_all(&mut standby, &[Event::Suspect]), [Action::Revoke]);
    assert_eq!(do_all(&mut standby, &[Event::Revoked]), [Action::DiscardStaged, swap()]);
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
    assert_eq!(do_all(&mut idle(1), &[slab(1, 0)]), [Action::Drop]);
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
    let stranger = Event::Commit { generation: Generation(3), epoch: Epoch(2), slabs: 0 };
    assert_eq!(do_all(&mut standby, &[stranger]), [], "of another life");
    assert_eq!(do_all(&mut idle(1), &[commit(1, 0)]), []);
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
    let mut standby = registered();
    assert_eq!(do_all(&mut standby, &[slab(2, 0), Event::Suspect]), [Action::Stage, Action::Revoke]);
    assert_eq!(do_all(&mut standby, &[Event::LinkDown, Event::Suspect]), [], "once is enough");
    assert_eq!(do_all(&mut standby, &[slab(2, 1), commit(2, 2)]), [Action::Stage, Action::Apply(Epoch(2))], "drained");
    assert_eq!(do_all(&mut standby, &[slab(3, 0), commit(3, 9)]), [Action::Stage, Action::DiscardStaged]);
    assert_eq!(do_all(&mut standby, &[Event::Revoked]), [Action::DiscardStaged, swap()]);
    assert_eq!(do_all(&mut standby, &[slab(3, 0), commit(3, 0), Event::BadSlab]), [Action::Drop, Action::Drop]);
    let take_over = Action::TakeOver { generation: Generation(3), epoch: Epoch(2) };
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [take_over]);
    assert_eq!(do_all(&mut standby, &[Event::Running]), []);
    assert_eq!(standby.role(), Role::Active);
}

#[test]
fn a_standby_without_a_full_synchronisation_never_asks() {
    let mut standby = syncing();
    do_all(&mut standby, &[slab(1, 0)]);
    assert_eq!(do_all(&mut standby, &[Event::Suspect]), [Action::DiscardStaged, Action::Discard]);
    assert_eq!(standby.role(), Role::Idle);
    assert_eq!(do_all(&mut standby, &[Event::Suspect, Event::LinkDown, Event::Revoked, Event::Goodbye]), []);
}

#[test]
fn a_goodbye_ends_the_session_until_the_swap_is_asked_for() {
    for mut standby in [syncing(), protecting(), registered()] {
        assert_eq!(do_all(&mut standby, &[Event::Goodbye]), [Action::DiscardStaged, Action::Discard]);
        assert_eq!(standby.role(), Role::Idle);
    }
    let mut standby = registered();
    let actions = do_all(&mut standby, &[Event::Suspect, Event::Goodbye, Event::Revoked]);
    assert_eq!(actions, [Action::Revoke, Action::DiscardStaged, Action::Discard]);
    assert_eq!(do_all(&mut claiming(), &[Event::Goodbye]), [], "the arbiter decides");
}

#[test]
fn who_was_not_told_reads_the_register_first() {
    let mut standby = protecting();
    let wrong = [Event::Registered { generation: Generation(1) }, Event::Registered { generation: Generation(3) }];
    assert_eq!(do_all(&mut standby, &wrong), [], "of another life");
    let asked = do_all(&mut standby, &[Event::Suspect, Event::Revoked]);
    assert_eq!(asked, [Action::Revoke, Action::DiscardStaged, Action::ReadRegister]);
    assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [], "it has not asked for that");
    assert_eq!(do_all(&mut standby, &[Event::RegisterRead(Some(protected(2, "b")))]), [swap()]);
    assert_eq!(do_all(&mut standby, &[Event::RegisterRead(Some(protected(2, "b")))]), [], "once is enough");
}

#[test]
fn a_register_that_names_another_means_that_the_image_is_void() {
    for held in [Some(protected(2, "c")), Some(solo(2, "x")), Some(solo(3, "a")), Some(protected(4, "b"))] {
        let mut standby = protecting();
        do_all(&mut standby, &[Event::Suspect, Event::Revoked]);
        let actions = do_all(&mut standby, &[Event::RegisterRead(held)]);
        assert_eq!(actions, [Action::DiscardStaged, Action::Discard], "{held:?}");
    }
}

#[test]
fn a_registration_that_is_on_its_way_is_waited_for_a_while() {
    for older in [None, Some(solo(1, "a"))] {
        let mut standby = protecting();
        do_all(&mut standby, &[Event::Suspect, Event::Revoked]);
        assert_eq!(at(&mut standby, Time(1_000_000), Event::RegisterRead(older)), []);
        assert_eq!(standby.deadline(), Some(Time(6_000_000)));
        assert_eq!(do_all(&mut standby, &[Event::RegisterRead(Some(protected(2, "b")))]), [], "nothing is asked now");
        assert_eq!(timeout(&mut standby, Time(5_999_999)), []);
        assert_eq!(timeout(&mut standby, Time(6_000_000)), [Action::ReadRegister]);
        assert_eq!((standby.deadline(), timeout(&mut standby, Time(7_000_000))), (None, vec![]));
        let mut patient = standby.clone();
        assert_eq!(do_all(&mut patient, &[Event::RegisterRead(Some(protected(2, "b")))]), [swap()]);
        let actions = do_all(&mut standby, &[Event::RegisterRead(older)]);
        assert_eq!(actions, [Action::DiscardStaged, Action::Discard], "one retry, no more");
        assert_eq!((standby.role(), standby.deadline()), (Role::Idle, None));
    }
}

#[test]
fn who_loses_the_swap_forgets_the_image() {
    for held in [None, Some(solo(3, "a")), Some(solo(1, "a"))] {
        let mut standby = claiming();
        let actions = do_all(&mut standby, &[Event::Cas(Lost(held))]);
        assert_eq!(actions, [Action::DiscardStaged, Action::Discard]);
        assert_eq!(do_all(&mut standby, &[Event::Cas(Won(solo(3, "b")))]), [], "too late");
        assert_eq!(do_all(&mut standby, &[Event::Session { generation: Generation(4) }]), []);
        assert_eq!((standby.role(), standby.committed()), (Role::Syncing, (Generation(4), Epoch(0))));
    }
}

#[test]
fn a_new_session_owes_nothing_to_the_last() {
    let mut standby = registered();
    do_all(&mut standby, &[slab(2, 0), Event::Goodbye, Event::Session { generation: G }]);
    assert_eq!(do_all(&mut standby, &[commit(1, 1)]), [nack(1, NackReason::OutOfOrder), Action::DiscardStaged]);
    do_all(&mut standby, &[slab(1, 0), commit(1, 1)]);
    let asked = do_all(&mut standby, &[Event::Suspect, Event::Revoked]);
    assert_eq!(asked.last(), Some(&Action::ReadRegister), "it was another session that was registered");
}

#[test]
fn one_session_at_a_time() {
    for mut standby in [syncing(), protecting(), claiming()] {
        let before = standby.clone();
        assert_eq!(do_all(&mut standby, &[Event::Session { generation: Generation(9) }, Event::Running]), []);
        assert_eq!(standby, before);
    }
}

#[test]
fn the_owner_after_a_takeover_is_the_qemu_that_waits_now() {
    let mut standby = registered();
    standby.set_owner(mc_core::register::Owner { instance: 8, ..owner("b") });
    let actions = do_all(&mut standby, &[Event::Suspect, Event::Revoked]);
    assert!(matches!(actions[2], Action::Cas { new, .. } if new.owner.instance == 8), "{actions:?}");
}
