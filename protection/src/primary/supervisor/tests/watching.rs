//! A data path works, or ends on purpose.

use super::*;

#[test]
fn an_end_that_is_said_is_one_once_qemu_has_left() {
    let mut play = Play::new();
    play.say(ToSupervisor::StartSource);
    assert_eq!(play.say(ToSupervisor::LeaveSource), ["leave"]);
    play.tell(Event::Left(Some("busy".to_owned())));
    let done = ToSupervisor::Ending { code: 0, why: "handed over".to_owned() };
    assert_eq!(play.say(done), ["emit", "await end"]);
    assert!(play.tell(Event::DataPathEnded("exit 0".to_owned())).is_empty());
    assert_eq!(play.after(200), ["leave"]);
    assert_eq!(play.tell(Event::Left(None)), ["exit 0"]);
}

#[test]
fn a_signal_while_qemu_has_not_left_ends_it_with_a_word() {
    let mut play = Play::new();
    play.say(ToSupervisor::LeaveSource);
    play.tell(Event::Left(Some("busy".to_owned())));
    play.say(ToSupervisor::Ending { code: 0, why: String::new() });
    play.tell(Event::DataPathEnded(String::new()));
    let exit = play.tell(Event::Signals(1));
    assert!(exit[0].contains("the VM may stand still"), "{exit:?}");
}

#[test]
fn a_fence_that_failed_is_said_with_the_end() {
    let mut play = Play::new();
    assert_eq!(play.say(ToSupervisor::Fence), ["fence"]);
    play.tell(Event::Fenced(Some("EPERM".to_owned())));
    play.say(ToSupervisor::Ending { code: 4, why: "fenced".to_owned() });
    let exit = play.tell(Event::DataPathEnded("exit 4".to_owned()));
    assert!(exit[0].starts_with("exit 4: fenced; but its QEMU could not be stopped (EPERM)"), "{exit:?}");
}

#[test]
fn signals_are_the_data_paths_and_one_that_does_not_obey_is_killed() {
    let mut play = Play::new();
    assert_eq!(play.tell(Event::Signals(1)), ["say stop"]);
    play.say(ToSupervisor::Stopping);
    assert_eq!(play.tell(Event::Signals(1)), ["say stop"]);
    assert_eq!(play.after(2900), ["say here", "ask health"]);
    let exit = play.after(100);
    assert_eq!((exit[0].as_str(), code(&exit)), ("kill", Some("3")));
}

#[test]
fn a_signal_without_a_data_path_is_told_to_the_next_and_the_second_is_obeyed() {
    let mut play = Play::new();
    play.tell(Event::Spawned(Err("no memory".to_owned())));
    play.qemu(Condition::Answers);
    play.qemu(Condition::Answers);
    play.tell(Event::Spawned(Err("no memory".to_owned())));
    play.qemu(Condition::Answers);
    play.qemu(Condition::Answers);
    assert!(play.tell(Event::Signals(1)).is_empty());
    assert_eq!(play.after(60_000), ["spawn 7"]);
    assert_eq!(play.tell(Event::Spawned(Ok(()))), ["say stop"]);

    let mut play = Play::new();
    play.dies_protected();
    assert_eq!(play.tell(Event::Signals(1)), ["log", "emit", "note"]);
    let exit = play.tell(Event::Signals(1));
    assert_eq!((exit[0].as_str(), code(&exit)), ("end claim", Some("3")));
}

#[test]
fn a_successor_that_does_not_come_leaves_qemu_to_this_one() {
    let mut play = Play::new();
    assert_eq!(play.say(ToSupervisor::MakeWay), ["disconnect"]);
    assert_eq!(play.after(5000), ["connect", "say here"]);
    let failed = |ended, relieved| Event::Connected(Err(NotConnected { ended, relieved }));
    assert!(play.tell(failed(false, false)).is_empty());
    assert_eq!(play.after(1000), ["connect", "say here"]);
    assert_eq!(play.tell(Event::Connected(Ok(()))), ["log", "say resume"]);

    // Of a data path that dies meanwhile: the successor has the VM, or nobody has.
    let mut play = Play::new();
    play.say(ToSupervisor::MakeWay);
    assert_eq!(play.dies(), ["emit", "connect"]);
    assert!(play.tell(failed(false, false)).is_empty());
    assert_eq!(play.after(1000), ["connect"]);
    assert_eq!(play.tell(failed(false, true)), ["exit 0"]);
}

#[test]
fn the_vms_end_and_its_health_are_told() {
    let mut play = Play::new();
    assert_eq!(play.after(1000), ["say here", "ask health"]);
    assert!(play.tell(Event::VmIs(Health::Runs)).is_empty());
    assert_eq!(play.tell(Event::VmIs(Health::Halted("io-error".to_owned()))), ["say"]);
    play.say(ToSupervisor::LeaveSource);
    play.tell(Event::Left(Some("busy".to_owned())));
    assert_eq!(play.tell(Event::QemuGone { orderly: true }), ["say gone true"]);
    assert!(!play.machine.watches_qemu());
    assert_eq!(play.after(1000), ["say here"], "nothing is left to leave");
    assert!(play.say(ToSupervisor::LeaveSource).is_empty());
}

#[test]
fn a_channel_that_breaks_ends_the_process_behind_it() {
    let mut play = Play::new();
    assert_eq!(play.tell(Event::Broken("no JSON".to_owned())), ["kill"]);
    assert_eq!(play.tell(Event::DataPathEnded("signal 9".to_owned())), ["emit", "log", "ask qemu"]);
}

#[test]
fn what_the_data_path_was_told_the_next_one_begins_with() {
    let mut play = Play::new();
    let config = Settings { epoch: Duration::from_millis(50), ..brief().config };
    play.say(ToSupervisor::Changed(Box::new(config)));
    play.say(ToSupervisor::Wanted { protect: false });
    let next = play.machine.brief();
    assert_eq!((next.config.epoch.as_millis(), next.protect, next.relieve), (50, false, false));
}
