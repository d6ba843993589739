//! SIGTERM and ^C: an orderly end where there can be one, a refusal with the reason where not, and the second one is
//! obeyed.

use crate::{
    proc::{is_alive, signal, until},
    way::Way,
    world::{VM, World, kill_host},
};
use mc_core::register::Mode;
use rustix::process::Signal;
use std::path::PathBuf;

/// To whom the signal goes: the supervisor, the data path, or both at once, as systemd does it.
#[test]
fn a_primary_that_is_told_to_end_leaves_the_vm_running_and_nobody_fails_over() {
    for to in ["supervisor", "data-path", "both"] {
        let Some((world, _witness)) = World::with_witness() else { return };
        let (vm, mut protect, mut standby) = world.pair();
        let data_path = protect.data_path();
        let told = match to {
            "supervisor" => vec![protect.pid()],
            "data-path" => vec![data_path],
            _ => vec![protect.pid(), data_path],
        };
        told.into_iter().for_each(|pid| signal(pid, Signal::TERM));
        protect.expect_end(0, &[]);
        let ended = protect.wait_event("ended");
        assert!(ended["why"].as_str().is_some_and(|why| why.contains("the VM runs on")), "{to}: {ended}");
        until("the data path ends", || (!is_alive(data_path)).then_some(()));
        standby.proc.wait_events("waiting", 2);
        assert_eq!(standby.proc.count("running"), 0, "{to}: {}", standby.proc.said());
        assert_eq!(standby.proc.count("suspect"), 0, "{to}: {}", standby.proc.said());
        vm.serial.goes_on();
        vm.serial.assert_sound();
        let held = world.register();
        assert_eq!((held.generation.0, held.mode, held.owner.node.to_string().as_str()), (3, Mode::Solo, "a"), "{to}");
    }
}

#[test]
fn a_primary_whose_arbiter_is_away_refuses_the_first_signal_and_obeys_the_second() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, _standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    signal(protect.pid(), Signal::INT);
    let told = protect.wait_event("stop-refused");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("does not answer")), "{told}");
    let status = world.status("a");
    assert_eq!(status["role"], "protected", "{status}");
    assert!(status["notes"].to_string().contains("refused to end: "), "{status}");
    let epoch = status["last_ack_epoch"].as_u64();
    until("epochs are still committed", || (world.status("a")["last_ack_epoch"].as_u64() > epoch).then_some(()));
    vm.serial.goes_on();
    signal(protect.pid(), Signal::INT);
    protect.expect_end(
        3,
        &["error: ended by a second signal", "The VM's gate is closed", "takes over when the arbiter answers"],
    );
    assert!(is_alive(vm.proc.pid()), "its QEMU was left alone");
}

#[test]
fn a_primary_without_a_standby_just_ends() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect) = world.alone();
    signal(protect.pid(), Signal::TERM);
    protect.expect_end(0, &[]);
    vm.serial.goes_on();
}

#[test]
fn a_supervisor_that_waits_for_a_verdict_refuses_the_first_signal() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (_vm, mut protect, _standby) = world.pair();
    witness.kill();
    crate::proc::kill(protect.data_path());
    world.wait_role("a", "claiming");
    signal(protect.pid(), Signal::TERM);
    let told = protect.wait_event("stop-refused");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("who owns the VM")), "{told}");
    assert!(world.status("a")["notes"].to_string().contains("refused to end: "));
    signal(protect.pid(), Signal::TERM);
    protect.expect_end(3, &["ended by a second signal"]);
}

#[test]
fn a_standby_that_is_told_to_end_gives_its_copy_up_in_order() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    assert_eq!(world.vm_files().len(), 1);
    let qemu = standby.proc.child_with("qemu").expect("a waiting QEMU");
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(0, &[]);
    protect.wait_events("solo", 2);
    assert_eq!(protect.count("suspect"), 0, "it was told, and did not have to find out: {}", protect.said());
    assert_eq!(standby.proc.count("running") + standby.proc.count("asking"), 0, "{}", standby.proc.said());
    assert!(world.vm_files().is_empty(), "something of the VM's RAM is left: {:?}", world.vm_files());
    until("its QEMU is gone", || (!is_alive(qemu)).then_some(()));
    assert_eq!(world.register().mode, Mode::Solo);
    vm.serial.goes_on();
    vm.serial.assert_sound();
    // An idle one has nothing to give up.
    let mut next = world.standby_at("b", standby.addr);
    protect.wait_events("protected", 2);
    world.run("a", &format!("unprotect --vm {VM}"));
    next.proc.wait_events("waiting", 2);
    signal(next.proc.pid(), Signal::INT);
    next.proc.expect_end(0, &[]);
    vm.serial.goes_on();
}

#[test]
fn a_standby_whose_arbiter_is_away_refuses_and_then_keeps_its_image() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    witness.kill();
    standby.proc.wait_event("arbiter-unreachable");
    signal(standby.proc.pid(), Signal::TERM);
    let told = standby.proc.wait_event("stop-refused");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("does not answer")), "{told}");
    assert_eq!(world.status("b")["protected"], true);
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(3, &["error: ended by a second signal", "Kept the image of", "afterimage-web-"]);
    let kept = standby.proc.wait_event("image-kept");
    let ram = PathBuf::from(kept["ram"].as_str().unwrap());
    for path in [ram.clone(), ram.with_extension("state"), ram.with_extension("json")] {
        assert!(std::fs::metadata(&path).is_ok_and(|file| file.len() > 0), "{kept}: {}", path.display());
    }
    assert!(protect.is_running());
}

#[test]
fn a_standby_that_asks_for_the_vm_refuses_the_first_signal() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    signal(witness.pid(), Signal::STOP);
    kill_host(&mut vm, &mut protect);
    world.wait_role("b", "claiming");
    signal(standby.proc.pid(), Signal::TERM);
    let told = standby.proc.wait_event("stop-refused");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("asks the arbiter for the VM")), "{told}");
    signal(witness.pid(), Signal::CONT);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    // The VM runs here now, and outlives an orderly end.
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(0, &[]);
    standby.serial.goes_on();
}

/// The first signal is refused: the way to the witness is away. Then it is the primary's that is away.
#[test]
fn a_standby_that_was_told_twice_asks_for_nothing_as_it_leaves() {
    let Some((mut world, _witness)) = World::with_witness() else { return };
    let (ours, theirs) = (Way::to_witness(&world.arbiter), Way::to_witness(&world.arbiter));
    let vm = world.vm("vm", &[]);
    world.arbiter = theirs.arbiter();
    let mut standby = world.standby("b");
    world.arbiter = ours.arbiter();
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    theirs.cut();
    standby.proc.wait_event("arbiter-unreachable");
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.wait_event("stop-refused");
    theirs.mend();
    standby.proc.wait_event("arbiter-reachable");
    ours.cut();
    protect.wait_event("arbiter-unreachable");
    let held = world.register();
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(3, &["error: ended by a second signal", "does not go on alone", "Kept the image of"]);
    assert_eq!(standby.proc.count("asking"), 0, "{}", standby.proc.said());
    assert_eq!(world.register(), held);
    // The VM is there, and goes on.
    ours.mend();
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// Its QEMU died while the arbiter was asked, and nobody has answered yet.
#[test]
fn a_primary_that_hands_its_vm_back_refuses_the_first_signal() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, standby) = world.pair();
    signal(witness.pid(), Signal::STOP);
    signal(standby.proc.pid(), Signal::STOP);
    world.wait_role("a", "claiming");
    vm.proc.kill();
    world.wait_role("a", "handing-back");
    signal(protect.data_path(), Signal::TERM);
    let told = protect.wait_event("stop-refused");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("to give the VM to its standby")), "{told}");
    signal(protect.data_path(), Signal::TERM);
    protect.wait_event("stop-obeyed");
}
