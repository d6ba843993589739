//! The data path died: whose the VM is, and what becomes of it.

use super::*;

/// What comes of a death after which the arbiter is asked.
const CLAIM: [&str; 4] = ["emit", "log", "begin claim", "read"];

#[test]
fn one_that_asked_for_nothing_is_followed_at_once() {
    let mut play = Play::new();
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Silent), ["ask qemu"], "it may run, and miss its network");
    assert_eq!(play.qemu(Condition::Silent), ["spawn 7"]);
    assert_eq!(play.machine.brief().deaths, 1);
    play.tell(Event::Spawned(Ok(())));
    // The next ones wait, but not once one has lived.
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    play.qemu(Condition::Answers);
    assert!(play.qemu(Condition::Answers).is_empty());
    assert_eq!(play.after(60_000), ["spawn 7"]);
    play.tell(Event::Spawned(Ok(())));
    play.after(61_000);
    play.dies();
    assert_eq!(play.machine.brief().deaths, 1);
}

#[test]
fn one_that_is_alone_again_is_followed_at_once_with_the_register_it_told() {
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    play.say(ToSupervisor::Protected { generation: Generation(8) });
    play.say(ToSupervisor::Alone { register: solo(9) });
    assert_eq!(play.say(ToSupervisor::LeaveSource), ["leave"]);
    assert_eq!(play.tell(Event::Left(Some("busy".to_owned()))), ["log", "say not left"]);
    assert_eq!(play.dies(), ["emit", "log", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Answers), ["leave", "ask qemu"], "it had begun");
    play.tell(Event::Left(Some("busy".to_owned())));
    assert_eq!(play.qemu(Condition::Answers), ["spawn 9"]);
    assert_eq!(play.tell(Event::Spawned(Ok(()))), ["say not left"]);
}

#[test]
fn one_that_may_have_asked_is_followed_only_when_the_swap_is_won() {
    let mut play = Play::new();
    assert_eq!(play.dies_protected(), CLAIM);
    assert_eq!(play.read(protected(8)), ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
    assert_eq!(play.cas(CasOutcome::Won(solo(9))), ["emit", "ask qemu"]);
    assert_eq!(play.qemu(Condition::Answers), ["end claim", "leave", "ask qemu"]);
    assert!(play.tell(Event::Left(None)).is_empty());
    assert_eq!(play.qemu(Condition::Answers), ["spawn 9"]);
}

#[test]
fn a_register_that_says_solo_already_is_swapped_all_the_same() {
    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.read(solo(7)), ["emit", "ask qemu"]);
    play.asks("swap 7 web-a");
    // The dead one's request came first.
    let lost = play.cas(CasOutcome::Lost(Some(protected(8))));
    assert_eq!(lost, ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
}

#[test]
fn what_another_node_owns_is_fenced() {
    let mut play = Play::new();
    play.dies_protected();
    let taken = register(9, there(), Mode::Solo);
    assert_eq!(play.read(taken), ["emit", "end claim", "emit fenced", "fence"]);
    let exit = play.tell(Event::Fenced(None));
    assert_eq!(code(&exit), Some("4"));
    assert!(exit[0].ends_with("this copy was stopped"), "{exit:?}");

    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    assert_eq!(play.cas(CasOutcome::Lost(Some(taken))), ["emit", "end claim", "emit fenced", "fence"]);
    let exit = play.tell(Event::Fenced(Some("EPERM".to_owned())));
    assert!(exit[0].contains("could not be stopped (EPERM)"), "{exit:?}");
}

#[test]
fn a_vm_that_is_gone_is_left_to_its_standby() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    let exit = play.qemu(Condition::Gone);
    assert_eq!((code(&exit), exit[0].as_str()), (Some("4"), "end claim"));
    assert!(exit[1].contains("web-b has the VM's last commit"), "{exit:?}");
}

#[test]
fn a_vm_that_dies_while_it_is_won_is_handed_back() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    play.cas(CasOutcome::Won(solo(9)));
    assert_eq!(play.qemu(Condition::Gone), ["log", "emit", "emit", "swap 9 web-b"]);
    let exit = play.cas(CasOutcome::Won(register(10, there(), Mode::Solo)));
    assert_eq!(code(&exit), Some("4"));

    // Not one whose standby may lack what the VM has sent; nor when the arbiter does not answer.
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    play.dies();
    play.read(protected(8));
    play.asks("swap 8 web-a");
    play.cas(CasOutcome::Won(solo(9)));
    let exit = play.qemu(Condition::Gone);
    assert!(exit.last().unwrap().contains("Nobody runs it"), "{exit:?}");
}

#[test]
fn a_qemu_that_says_nothing_is_left_to_its_standby_in_the_end() {
    let mut play = Play::new();
    play.dies_protected();
    play.read(protected(8));
    assert_eq!(play.qemu(Condition::Silent), ["log", "emit", "note"]);
    for _ in 0..19 {
        assert_eq!(play.after(500), ["ask qemu"]);
        assert!(play.qemu(Condition::Silent).is_empty());
    }
    play.after(500);
    let exit = play.qemu(Condition::Silent);
    assert!(exit[1].starts_with("exit 4: the data path died, and QEMU does not answer"), "{exit:?}");
}

#[test]
fn a_vm_that_was_shut_down_takes_a_swap_and_ends() {
    let mut play = Play::new();
    play.dies_protected();
    play.tell(Event::QemuGone { orderly: true });
    assert!(!play.machine.watches_qemu());
    play.read(protected(8));
    assert_eq!(play.qemu(Condition::ShutDown), ["emit", "swap 8 web-a"]);
    play.cas(CasOutcome::Won(solo(9)));
    assert_eq!(play.qemu(Condition::ShutDown), ["end claim", "exit 0"]);
}

#[test]
fn what_goes_wrong_while_it_is_claimed_is_tried_again() {
    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.tell(Event::Arbiter(Arbiter::Read(None))), ["emit", "end claim", "log"]);
    assert_eq!(play.after(1000), ["log", "begin claim", "read"]);
    assert_eq!(play.tell(Event::NoClaim("busy".to_owned())), ["log"]);
    assert_eq!(play.after(1000), ["log", "begin claim", "read"]);
    assert!(play.tell(Event::NoClaim("busy".to_owned())).is_empty(), "said once");
}

#[test]
fn an_operators_word_counts_with_the_newest_register_that_was_seen() {
    let mut play = Play::new();
    play.dies_protected();
    let heard = play.tell(Event::Arbiter(Arbiter::Operator { seen: Some(protected(8)) }));
    assert_eq!(heard, ["emit", "ask qemu"]);
    play.asks("swap 8 web-a");
}
