//! The primary. Generation 1 is solo, generation 2 protected by "b", generation 3 solo again.

mod claims;

use crate::{at, owner, protected, solo, timeout};
use mc_core::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::{Action, Config, Event, OnCap, Primary, Role},
    register::{
        CasOutcome::{Lost, Won},
        Mode, Owner, Register, Swap,
    },
    wire::control::{GoodbyeReason, NackReason},
};
use std::time::Duration;

const G: Generation = Generation(2);
const SOLO: Action = Action::CloseLink(Some(GoodbyeReason::Unprotected));

fn ms(ms: u64) -> Time {
    Time(ms * 1_000_000)
}

fn ack(epoch: u64) -> Event {
    Event::Ack { generation: G, epoch: Epoch(epoch) }
}

fn nack() -> Event {
    Event::Nack { generation: G, reason: NackReason::TooLarge }
}

fn register_it() -> Action {
    Action::Cas(Swap { expect: Generation(1), new: protected(2, "b"), contested: false })
}

fn claim() -> Action {
    Action::Cas(Swap { expect: G, new: solo(3, "a"), contested: true })
}

/// While output is held.
fn captured(epoch: u64) -> Vec<Action> {
    vec![Action::Barrier(Epoch(epoch)), Action::Resume, Action::Commit { epoch: Epoch(epoch), held: true }]
}

/// While it flows.
const CAPTURED_OPEN: [Action; 2] = [Action::Resume, Action::Commit { epoch: Epoch(1), held: false }];

fn config(window: u64) -> Config {
    let (epoch, commit_deadline) = (Duration::from_millis(10), Duration::from_secs(2));
    Config { epoch, window, commit_deadline }
}

fn new(window: u64) -> Primary {
    Primary::new(config(window), solo(1, "a"))
}

fn do_all(primary: &mut Primary, events: &[Event]) -> Vec<Action> {
    events.iter().flat_map(|e| at(primary, Time(0), *e)).collect()
}

fn syncing() -> Primary {
    let mut primary = new(2);
    let actions = do_all(&mut primary, &[Event::Protect { standby: owner("b") }]);
    assert_eq!(actions, [Action::BeginSync { generation: G }]);
    primary
}

fn registering() -> Primary {
    let mut primary = syncing();
    assert_eq!(do_all(&mut primary, &[Event::Captured]), CAPTURED_OPEN);
    assert_eq!(do_all(&mut primary, &[ack(1)]), [], "beats are not proven");
    assert_eq!(do_all(&mut primary, &[Event::BeatsProven]), [register_it()]);
    primary
}

/// Output is held; epoch 1 does not cover it.
fn protected_pair() -> Primary {
    let mut primary = registering();
    let actions = do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]);
    assert_eq!(actions, [Action::Hold]);
    primary
}

/// Captures the next epoch at once.
fn capture(primary: &mut Primary, now: Time, epoch: u64) {
    assert_eq!(at(primary, now, Event::SourceReady), [Action::Pause { epoch: Epoch(epoch) }]);
    assert_eq!(at(primary, now, Event::Captured), captured(epoch));
}

#[test]
fn a_primary_goes_from_solo_to_protected() {
    let primary = protected_pair();
    assert_eq!((primary.role(), primary.generation()), (Role::Protected, G));
    assert_eq!(primary.epochs(), (Epoch(1), Epoch(1)));
    assert_eq!(*primary.register(), protected(2, "b"));
}

#[test]
#[should_panic(expected = "solo owner")]
fn a_primary_never_starts_from_a_register_that_names_a_standby() {
    let _ = Primary::new(config(1), protected(2, "b"));
}

#[test]
fn i1_an_epoch_is_released_by_its_ack_and_by_nothing_else() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    let other = |generation, epoch| Event::Ack { generation: Generation(generation), epoch: Epoch(epoch) };
    for late in [ack(0), ack(1), ack(3), other(1, 2), other(3, 2), other(2, u64::MAX)] {
        assert_eq!(at(&mut primary, ms(1), late), [], "{late:?}");
    }
    assert_eq!(at(&mut primary, ms(1), ack(2)), [Action::Release(Epoch(2))]);
    assert_eq!(at(&mut primary, ms(1), ack(2)), [], "twice");
}

#[test]
fn an_ack_covers_the_epochs_before_it() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    capture(&mut primary, ms(10), 3);
    assert_eq!(at(&mut primary, ms(11), ack(3)), [Action::Release(Epoch(3))]);
    assert_eq!(at(&mut primary, ms(11), ack(2)), [], "late");
}

#[test]
fn i5_nothing_is_registered_or_released_before_the_full_synchronisation_is_acked() {
    let mut primary = syncing();
    assert_eq!(do_all(&mut primary, &[ack(1)]), [], "nothing was captured");
    do_all(&mut primary, &[Event::Captured]);
    assert_eq!(do_all(&mut primary, &[Event::SourceReady, Event::BeatsProven]), [], "not before its ACK");
    assert_eq!(do_all(&mut primary, &[ack(1)]), [register_it()]);
    assert_eq!(do_all(&mut primary, &[ack(1), Event::SourceReady, Event::BeatsProven]), []);
    assert_eq!(primary.deadline(), None);
}

#[test]
fn epochs_are_paced_by_time() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    at(&mut primary, ms(1), ack(2));
    assert_eq!(at(&mut primary, ms(2), Event::SourceReady), [], "too early");
    assert_eq!(primary.deadline(), Some(ms(10)));
    assert_eq!(timeout(&mut primary, ms(9)), []);
    assert_eq!(timeout(&mut primary, ms(10)), [Action::Pause { epoch: Epoch(3) }]);
    assert_eq!(timeout(&mut primary, ms(10)), [], "spurious");
    assert_eq!(primary.deadline(), None);
}

#[test]
fn the_window_bounds_what_is_not_acked() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    capture(&mut primary, ms(10), 3);
    assert_eq!(at(&mut primary, ms(100), Event::SourceReady), [], "two are on their way");
    assert_eq!(primary.deadline(), Some(ms(2000)), "an ACK");
    let release = Action::Release(Epoch(2));
    assert_eq!(at(&mut primary, ms(101), ack(2)), [release, Action::Pause { epoch: Epoch(4) }]);
}

/// Captures the next epoch, which `bytes` are dirtied in per millisecond that the VM runs; says when the next is due.
fn capture_sized(primary: &mut Primary, now: Time, epoch: u64, bytes: u64, cap: u64) -> Time {
    assert_eq!(at(primary, now, Event::SourceReady), [Action::Pause { epoch: Epoch(epoch) }]);
    assert_eq!(at(primary, now, Event::Captured), captured(epoch));
    assert_eq!(at(primary, now, Event::Measured { bytes, cap }), []);
    at(primary, now, ack(epoch));
    at(primary, now, Event::SourceReady);
    primary.deadline().expect("it waits for its time only")
}

#[test]
fn checkpoints_come_sooner_when_the_next_would_outgrow_half_of_staging() {
    let mut primary = protected_pair();
    // 100 bytes in a millisecond: 1000 in an epoch of 10 ms. Staging holds 4000, and then 800.
    let due = capture_sized(&mut primary, ms(10), 2, 1000, 4000);
    assert_eq!((due, primary.pacing()), (ms(20), (Duration::from_millis(10), 0)), "a quarter of it: an epoch");
    timeout(&mut primary, ms(20));
    at(&mut primary, ms(20), Event::Captured);
    at(&mut primary, ms(20), Event::Measured { bytes: 1000, cap: 800 });
    at(&mut primary, ms(20), ack(3));
    at(&mut primary, ms(20), Event::SourceReady);
    assert_eq!(primary.deadline(), Some(ms(24)), "as long as dirties 400");
    assert_eq!(timeout(&mut primary, ms(23)), []);
    assert_eq!(timeout(&mut primary, ms(24)), [Action::Pause { epoch: Epoch(4) }]);
    assert_eq!(primary.pacing(), (Duration::from_millis(4), 1), "counted");

    // A guest that writes the same pages again and again: shorter runs help nothing, and end at an eighth.
    let mut now = ms(24);
    for epoch in 4..20 {
        at(&mut primary, now, Event::Captured);
        at(&mut primary, now, Event::Measured { bytes: 1000, cap: 800 });
        at(&mut primary, now, ack(epoch));
        at(&mut primary, now, Event::SourceReady);
        now = primary.deadline().expect("due");
        timeout(&mut primary, now);
    }
    assert_eq!(primary.pacing().0, Duration::from_micros(1250));
    // It calms down: runs double, up to the epoch.
    let mut runs = vec![];
    for epoch in 20..25 {
        at(&mut primary, now, Event::Captured);
        at(&mut primary, now, Event::Measured { bytes: 1, cap: 800 });
        at(&mut primary, now, ack(epoch));
        at(&mut primary, now, Event::SourceReady);
        runs.push(primary.pacing().0.as_micros());
        now = primary.deadline().expect("due");
        timeout(&mut primary, now);
    }
    assert_eq!(runs, [2500, 5000, 10_000, 10_000, 10_000]);
}

#[test]
fn a_checkpoint_that_takes_long_to_capture_is_followed_by_a_run_all_the_same() {
    let mut primary = protected_pair();
    assert_eq!(at(&mut primary, ms(10), Event::SourceReady), [Action::Pause { epoch: Epoch(2) }]);
    at(&mut primary, ms(15), Event::Captured);
    at(&mut primary, ms(15), Event::Measured { bytes: 1000, cap: 800 });
    at(&mut primary, ms(15), ack(2));
    at(&mut primary, ms(15), Event::SourceReady);
    assert_eq!(primary.deadline(), Some(ms(19)), "4 ms from when it ran on");
}

#[test]
fn a_checkpoint_that_outgrows_staging_ends_protection_only_if_the_operator_wants_that() {
    for on_cap in [OnCap::Throttle, OnCap::Grow { bytes: 1 }] {
        let mut primary = protected_pair();
        primary.set_on_cap(on_cap);
        assert_eq!(do_all(&mut primary, &[Event::SourceReady]), [Action::Pause { epoch: Epoch(2) }]);
        assert_eq!(do_all(&mut primary, &[Event::Full]), [], "{on_cap:?}: it is streamed");
    }
    let mut primary = protected_pair();
    primary.set_on_cap(OnCap::Unprotect);
    assert_eq!(do_all(&mut primary, &[Event::Full]), [], "the VM runs");
    assert_eq!(do_all(&mut primary, &[Event::SourceReady]), [Action::Pause { epoch: Epoch(2) }]);
    assert_eq!(do_all(&mut primary, &[Event::Full, Event::Full]), [Action::GaveUp, claim()], "through the arbiter");
    assert_eq!(do_all(&mut primary, &[ack(2)]), [], "and nothing is released before it has agreed");
    assert_eq!(do_all(&mut primary, &[Event::Captured]), [Action::Resume], "nor the VM held for it");
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]), [SOLO, Action::Solo]);
    let mut primary = syncing();
    primary.set_on_cap(OnCap::Unprotect);
    assert_eq!(do_all(&mut primary, &[Event::Full]), [], "the first copy is larger than staging, of course");
}

#[test]
fn i7_no_checkpoint_is_taken_without_room() {
    let mut primary = protected_pair();
    assert_eq!(at(&mut primary, ms(20), Event::Staging { room: false }), []);
    assert_eq!(at(&mut primary, ms(20), Event::SourceReady), []);
    assert_eq!(at(&mut primary, ms(30), Event::Staging { room: true }), [Action::Pause { epoch: Epoch(2) }]);
}

#[test]
fn a_lost_standby_before_registration_leaves_the_vm_solo_without_the_arbiter() {
    for event in [Event::LinkDown, Event::Suspect] {
        let mut primary = syncing();
        let actions = do_all(&mut primary, &[Event::Captured, event]);
        assert_eq!(actions[2..], [Action::CloseLink(None), SOLO, Action::Solo]);
        assert_eq!((primary.role(), primary.generation()), (Role::Solo, Generation(1)));
    }
    let mut primary = syncing();
    let actions = do_all(&mut primary, &[Event::Captured, nack()]);
    assert_eq!(actions[2..], [SOLO, Action::Solo], "it is told");
}

#[test]
fn a_lost_standby_is_given_up_through_the_arbiter() {
    for event in [Event::LinkDown, Event::Suspect] {
        let mut primary = protected_pair();
        capture(&mut primary, ms(0), 2);
        assert_eq!(do_all(&mut primary, &[event]), [Action::CloseLink(None), claim()]);
        assert_eq!(primary.role(), Role::Claiming);
        assert_eq!(do_all(&mut primary, &[ack(2), Event::LinkDown, Event::Suspect, nack()]), [], "I4: not yet");
        assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]), [SOLO, Action::Solo]);
        assert_eq!((primary.role(), primary.generation()), (Role::Solo, Generation(3)));
    }
}

#[test]
fn a_nack_ends_protection_with_the_link_up_until_the_arbiter_has_agreed() {
    let mut primary = protected_pair();
    let old = Event::Nack { generation: Generation(1), reason: NackReason::TooLarge };
    assert_eq!(do_all(&mut primary, &[old]), [], "of another life");
    assert_eq!(do_all(&mut primary, &[nack(), nack()]), [claim()]);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]), [SOLO, Action::Solo]);
}

#[test]
fn a_vm_that_is_stopped_when_the_standby_is_lost_runs_on_with_its_output_held() {
    let mut primary = protected_pair();
    assert_eq!(do_all(&mut primary, &[Event::SourceReady]), [Action::Pause { epoch: Epoch(2) }]);
    do_all(&mut primary, &[Event::LinkDown]);
    assert_eq!(do_all(&mut primary, &[Event::Captured]), [Action::Resume]);
    assert_eq!(do_all(&mut primary, &[Event::SourceReady]), [], "and is not stopped again");
    assert_eq!(primary.deadline(), None);
}

#[test]
fn who_loses_the_claim_is_fenced_for_good() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    do_all(&mut primary, &[Event::LinkDown]);
    let lost = Event::Cas(Lost(Some(solo(3, "b"))));
    assert_eq!(do_all(&mut primary, &[lost]), [Action::Fence, Action::CloseLink(None)]);
    let everything = [
        ack(2),
        Event::Captured,
        Event::SourceReady,
        Event::Staging { room: true },
        Event::Cas(Won(solo(3, "a"))),
        Event::LinkDown,
        Event::Stalled,
        Event::SourceLost,
        Event::Unprotect(GoodbyeReason::Unprotected),
        Event::Protect { standby: owner("b") },
        nack(),
    ];
    assert_eq!(do_all(&mut primary, &everything), []);
    assert_eq!((primary.role(), primary.deadline()), (Role::Fenced, None));
}

#[test]
fn a_registration_that_is_lost_fences() {
    let mut primary = registering();
    let lost = Event::Cas(Lost(Some(solo(2, "x"))));
    assert_eq!(do_all(&mut primary, &[lost]), [Action::Fence, Action::CloseLink(None)]);
}

#[test]
fn a_standby_lost_while_registering_is_given_up_once_the_arbiter_has_answered() {
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[Event::LinkDown]), [Action::CloseLink(None)]);
    assert_eq!(primary.role(), Role::Registering);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]), [claim()], "and nothing is released");
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[nack()]), []);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]), [claim()]);
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    for mut primary in [new(1), syncing(), protected_pair()] {
        let before = primary.clone();
        assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a"))), Event::Cas(Lost(None))]), []);
        assert_eq!(primary, before);
    }
    let mut primary = protected_pair();
    let before = primary.clone();
    assert_eq!(do_all(&mut primary, &[Event::Protect { standby: owner("c") }]), []);
    assert_eq!(primary, before);
}

#[test]
fn a_stalled_primary_releases_nothing_until_an_epoch_captured_since_is_acked() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    assert_eq!(at(&mut primary, ms(5), Event::Stalled), []);
    assert_eq!(at(&mut primary, ms(5), ack(2)), [], "it may have lain in the socket while a standby took over");
    capture(&mut primary, ms(10), 3);
    assert_eq!(at(&mut primary, ms(11), ack(3)), [Action::Release(Epoch(3))]);
    capture(&mut primary, ms(20), 4);
    assert_eq!(at(&mut primary, ms(21), ack(4)), [Action::Release(Epoch(4))], "trusted again");
}

#[test]
fn a_primary_stalled_while_registering_waits_for_the_next_epoch() {
    let mut primary = registering();
    do_all(&mut primary, &[Event::Stalled]);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]), [Action::Hold]);
    capture(&mut primary, ms(0), 2);
    assert_eq!(at(&mut primary, ms(1), ack(2)), [Action::Release(Epoch(2))]);
}

#[test]
fn protection_ends_on_request() {
    let unprotect = Event::Unprotect(GoodbyeReason::Unprotected);
    assert_eq!(do_all(&mut new(1), &[unprotect]), [], "there is none");
    assert_eq!(do_all(&mut syncing(), &[unprotect]), [SOLO, Action::Solo]);
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[unprotect]), []);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]), [claim()]);
    let mut primary = protected_pair();
    assert_eq!(do_all(&mut primary, &[unprotect]), [claim()], "the standby keeps its link meanwhile");
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]), [SOLO, Action::Solo]);
    let again = do_all(&mut primary, &[Event::Protect { standby: owner("b") }]);
    assert_eq!(again, [Action::BeginSync { generation: Generation(4) }]);
    assert_eq!(primary.epochs(), (Epoch(0), Epoch(0)));
}

#[test]
fn a_guest_that_shuts_down_ends_the_process_after_the_arbiter_agreed() {
    let gone = Event::Unprotect(GoodbyeReason::GuestGone);
    assert_eq!(do_all(&mut new(1), &[gone]), [Action::End]);
    let mut primary = protected_pair();
    assert_eq!(do_all(&mut primary, &[gone]), [claim()]);
    let broken = Event::Unprotect(GoodbyeReason::Unprotected);
    assert_eq!(do_all(&mut primary, &[broken]), [], "the stream of a VM that is gone breaks, too");
    let farewell = Action::CloseLink(Some(GoodbyeReason::GuestGone));
    let actions = do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]);
    assert_eq!(actions, [farewell, Action::Solo, Action::End]);
    assert_eq!(primary.role(), Role::Ended);
    assert_eq!(do_all(&mut primary, &[Event::Protect { standby: owner("b") }, gone, Event::SourceLost]), []);
}

#[test]
fn a_vm_that_dies_is_left_to_the_standby_if_there_is_one() {
    let farewell = Action::CloseLink(Some(GoodbyeReason::GuestGone));
    for mut primary in [new(1), syncing()] {
        assert_eq!(do_all(&mut primary, &[Event::SourceLost]), [farewell, Action::End]);
    }
    for mut primary in [registering(), protected_pair()] {
        assert_eq!(do_all(&mut primary, &[Event::SourceLost]), [Action::Fence, Action::CloseLink(None)]);
    }
}

#[test]
fn an_ack_that_does_not_come_is_a_standby_that_is_lost() {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    capture(&mut primary, ms(10), 3);
    assert_eq!(at(&mut primary, ms(1000), ack(2)), [Action::Release(Epoch(2))], "that is progress");
    assert_eq!(timeout(&mut primary, ms(2999)), []);
    assert_eq!(timeout(&mut primary, ms(3000)), [Action::Late, Action::CloseLink(None), claim()]);
    assert_eq!(timeout(&mut primary, ms(9000)), []);
}

/// Its staging may be full meanwhile: the primary waits, and protection does not end.
#[test]
fn an_ack_is_not_late_while_the_standby_rehearses() {
    let mut primary = protected_pair();
    do_all(&mut primary, &[Event::OutputsChanged]);
    capture(&mut primary, ms(0), 2);
    assert_eq!(timeout(&mut primary, ms(16_000)), []);
    let rehearsed = Event::Rehearsed { generation: G, epoch: Epoch(2) };
    assert_eq!(at(&mut primary, ms(16_500), rehearsed), []);
    assert_eq!(timeout(&mut primary, ms(18_400)), [], "now there is room again");
    assert_eq!(timeout(&mut primary, ms(18_500)), [Action::Late, Action::CloseLink(None), claim()]);
    // It does not take for ever.
    let mut primary = protected_pair();
    do_all(&mut primary, &[Event::OutputsChanged]);
    capture(&mut primary, ms(0), 2);
    assert_eq!(timeout(&mut primary, ms(17_000)), [Action::Late, Action::CloseLink(None), claim()]);
}

#[test]
fn a_vm_of_another_make_is_not_protected_until_it_is_rehearsed() {
    let mut primary = protected_pair();
    assert!(!primary.is_protected(), "no held epoch was ACKed");
    capture(&mut primary, ms(0), 2);
    at(&mut primary, ms(1), ack(2));
    assert!(primary.is_protected());
    assert_eq!(do_all(&mut primary, &[Event::OutputsChanged]), [Action::AskRehearsal { epoch: Epoch(3) }]);
    assert!(!primary.is_protected());
    capture(&mut primary, ms(10), 3);
    at(&mut primary, ms(11), ack(3));
    let rehearsed = |epoch| Event::Rehearsed { generation: G, epoch: Epoch(epoch) };
    do_all(&mut primary, &[rehearsed(2)]);
    assert!(!primary.is_protected(), "that was the VM as it was before");
    do_all(&mut primary, &[rehearsed(3)]);
    assert!(primary.is_protected());
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[Event::OutputsChanged]), []);
    let actions = do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]);
    assert_eq!(actions, [Action::Hold, Action::AskRehearsal { epoch: Epoch(2) }]);
}

/// Its end takes the arbiter, which may be away: output must not wait for that.
#[test]
fn a_vm_that_is_unfit_is_not_protected_and_its_output_flows() {
    let refused = Event::Nack { generation: G, reason: NackReason::Rehearsal };
    let rehearsed = |epoch| Event::Rehearsed { generation: G, epoch: Epoch(epoch) };
    for (event, told) in [(refused, None), (Event::Unfit, Some(Action::AskRehearsal { epoch: Epoch::NEVER }))] {
        let mut primary = protected_pair();
        capture(&mut primary, ms(0), 2);
        at(&mut primary, ms(1), ack(2));
        assert!(primary.is_protected());
        assert_eq!(do_all(&mut primary, &[event]), told.into_iter().collect::<Vec<_>>());
        assert!(!primary.is_protected() && !primary.is_proving() && primary.role() == Role::Protected);
        capture(&mut primary, ms(10), 3);
        assert_eq!(at(&mut primary, ms(11), ack(3)), [Action::Release(Epoch(3))]);
        do_all(&mut primary, &[rehearsed(3), rehearsed(u64::MAX)]);
        assert!(!primary.is_protected(), "no rehearsal makes up for it");
        assert_eq!(do_all(&mut primary, &[Event::OutputsChanged]), [Action::AskRehearsal { epoch: Epoch(4) }]);
        do_all(&mut primary, &[rehearsed(4)]);
        assert!(primary.is_protected(), "what was wrong has gone");
        do_all(&mut primary, &[event]);
        assert_eq!(do_all(&mut primary, &[Event::Unprotect(GoodbyeReason::Unprotected)]), [claim()]);
    }
    assert_eq!(do_all(&mut syncing(), &[refused]), [SOLO, Action::Solo], "nothing is held yet");
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[Event::Unfit]), []);
    let actions = do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]);
    assert_eq!(actions, [Action::Hold, Action::AskRehearsal { epoch: Epoch::NEVER }]);
}

#[test]
fn i4_a_swap_won_with_another_register_than_was_asked_for_opens_nothing() {
    let mut primary = protected_pair();
    assert_eq!(do_all(&mut primary, &[Event::Suspect]), [Action::CloseLink(None), claim()]);
    for other in [solo(3, "b"), solo(4, "a"), protected(3, "b")] {
        assert_eq!(do_all(&mut primary, &[Event::Cas(Won(other))]), [], "{other:?}");
        assert_eq!(primary.role(), Role::Claiming);
    }
    let again = do_all(&mut primary, &[Event::RegisterRead(Some(protected(2, "b")))]);
    assert_eq!(again, [claim()], "asked again");
    let won = do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]);
    assert_eq!(won, [SOLO, Action::Solo]);

    let mut primary = registering();
    let actions = do_all(&mut primary, &[Event::Cas(Won(protected(2, "c")))]);
    assert_eq!((actions, primary.role()), (vec![Action::CloseLink(None)], Role::Claiming));
}
