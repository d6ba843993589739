//! Asking the arbiter: what wins, what loses, and what is handed back.

use super::*;

/// Claiming; the standby has a held epoch.
fn claiming() -> Primary {
    let mut primary = protected_pair();
    capture(&mut primary, ms(0), 2);
    at(&mut primary, ms(1), ack(2));
    do_all(&mut primary, &[Event::LinkDown]);
    primary
}

#[test]
fn a_vm_that_dies_while_the_arbiter_is_asked_is_handed_back_if_that_wins() {
    let mut primary = claiming();
    assert_eq!(do_all(&mut primary, &[Event::SourceLost]), [Action::Dead]);
    let new = Register { generation: Generation(4), owner: owner("b"), mode: Mode::Solo };
    let cas = Action::Cas(Swap { expect: Generation(3), new, contested: false });
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]), [cas], "and nothing is shown");
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(new))]), [Action::Fence, Action::CloseLink(None)]);
    let mut primary = claiming();
    do_all(&mut primary, &[Event::SourceLost]);
    let lost = Event::Cas(Lost(Some(solo(3, "b"))));
    assert_eq!(do_all(&mut primary, &[lost]), [Action::Fence, Action::CloseLink(None)], "the standby has it already");
}

/// By a request of an earlier process for this QEMU that was late, or by an operator.
#[test]
fn a_register_that_names_this_host_alone_ends_protection() {
    let mut primary = protected_pair();
    let new = Register { generation: Generation(4), ..solo(3, "a") };
    let cas = Action::Cas(Swap { expect: Generation(3), new, contested: true });
    assert_eq!(do_all(&mut primary, &[Event::RegisterRead(Some(solo(3, "a")))]), [cas]);
    assert!(!primary.is_protected(), "the standby could not win the VM");
}

#[test]
fn another_qemu_of_this_host_is_another_copy() {
    let mut primary = protected_pair();
    let booted = Register { owner: Owner { instance: 2, ..owner("a") }, ..solo(4, "a") };
    let actions = do_all(&mut primary, &[Event::RegisterRead(Some(booted))]);
    assert_eq!(actions, [Action::Fence, Action::CloseLink(None)]);
}

#[test]
fn a_vm_that_was_shut_down_is_handed_to_nobody() {
    let mut primary = claiming();
    let told = [Event::Unprotect(GoodbyeReason::GuestGone), Event::SourceLost];
    assert_eq!(do_all(&mut primary, &told), [], "the swap that is asked for says that nobody has it");
    assert_eq!(primary.role(), Role::Claiming);
    do_all(&mut primary, &[Event::Cas(Won(solo(3, "a")))]);
    assert_eq!(primary.role(), Role::Ended);
    let mut primary = registering();
    do_all(&mut primary, &told);
    let asked = do_all(&mut primary, &[Event::Cas(Won(protected(2, "b")))]);
    assert!(matches!(asked[..], [Action::Cas(_)]), "{asked:?}");
}

#[test]
fn a_vm_whose_output_flowed_while_the_arbiter_was_asked_is_not_handed_back() {
    let mut primary = registering();
    do_all(&mut primary, &[Event::LinkDown, Event::Cas(Won(protected(2, "b")))]);
    assert_eq!(primary.role(), Role::Claiming);
    assert_eq!(do_all(&mut primary, &[Event::SourceLost]), [Action::Fence, Action::CloseLink(None)]);
    let mut primary = protected_pair();
    do_all(&mut primary, &[Event::LinkDown]);
    let fenced = [Action::Fence, Action::CloseLink(None)];
    assert_eq!(do_all(&mut primary, &[Event::SourceLost]), fenced, "the standby lacks what was said before");
}

#[test]
fn only_another_owner_above_takes_the_vm_away() {
    let faults = [None, Some(solo(1, "a")), Some(solo(1, "x")), Some(solo(2, "x")), Some(protected(2, "c"))];
    for held in faults {
        let mut primary = claiming();
        assert_eq!(do_all(&mut primary, &[Event::Cas(Lost(held))]), [], "{held:?}");
        assert_eq!((primary.role(), primary.is_disputed()), (Role::Claiming, true));
        assert_eq!(do_all(&mut primary, &[Event::RegisterRead(Some(solo(2, "x")))]), [], "nor is that one's word");
        assert_eq!(do_all(&mut primary, &[Event::RegisterRead(Some(protected(2, "b")))]), [claim()], "mended");
        assert_eq!(do_all(&mut primary, &[Event::RegisterRead(Some(protected(2, "b")))]), [], "once");
    }
    for mut primary in [protected_pair(), claiming(), registering(), new(1)] {
        let read = Event::RegisterRead(Some(solo(3, "b")));
        assert_eq!(do_all(&mut primary, &[read]), [Action::Fence, Action::CloseLink(None)]);
    }
    let mut primary = registering();
    assert_eq!(do_all(&mut primary, &[Event::Cas(Lost(None))]), [Action::CloseLink(None)], "output flows on");
    assert_eq!((primary.role(), primary.is_disputed()), (Role::Claiming, true));
}

/// A host that was frozen stood by again, and won; then its old process goes on. Or a second QEMU was protected beside the first.
#[test]
fn another_copy_on_this_host_is_another_owner() {
    let other = Register { owner: Owner { instance: 2, ..owner("a") }, ..solo(5, "a") };
    let protected = Register { mode: Mode::Protected { standby: owner("b") }, ..other };
    for held in [other, protected] {
        for mut primary in [protected_pair(), claiming(), registering(), new(1)] {
            let actions = do_all(&mut primary, &[Event::RegisterRead(Some(held))]);
            assert_eq!(actions, [Action::Fence, Action::CloseLink(None)], "{held:?}");
            assert_eq!(primary.overtaken_by(), Some(&other.owner));
        }
        for mut primary in [claiming(), registering()] {
            assert_eq!(do_all(&mut primary, &[Event::Cas(Lost(Some(held)))]), [Action::Fence, Action::CloseLink(None)]);
        }
    }
}

#[test]
fn a_register_that_is_ours_from_before_is_gone_on_from() {
    let claim = |expect, generation| {
        Action::Cas(Swap { expect: Generation(expect), new: solo(generation, "a"), contested: true })
    };
    let mut primary = claiming();
    assert_eq!(do_all(&mut primary, &[Event::Cas(Lost(Some(solo(5, "a"))))]), [claim(5, 6)]);
    let assigned = Register { owner: Owner { instance: Owner::ANY, ..owner("a") }, ..solo(7, "a") };
    let mut primary = claiming();
    do_all(&mut primary, &[Event::Cas(Lost(None))]);
    assert_eq!(do_all(&mut primary, &[Event::RegisterRead(Some(assigned))]), [claim(7, 8)]);
    assert_eq!(do_all(&mut primary, &[Event::Cas(Won(solo(8, "a")))]), [SOLO, Action::Solo]);
}
