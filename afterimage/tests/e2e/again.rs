//! Protected again: after the standby's death, and after a takeover.

use crate::{
    proc::{is_alive, kill, until},
    world::{StandbyOptions, World, kill_host},
};

#[test]
fn protect_again_relieves_the_process_that_went_solo() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut first, mut lost) = world.pair();
    let lost_generation = world.status("a")["generation"].clone();
    lost.proc.kill();
    first.wait_events("solo", 2);
    vm.serial.goes_on();

    let mut standby = world.standby("c");
    let mut second = world.protect("a", "a2", &vm.qmp, standby.addr, "");
    first.expect_end(0, &[]);
    second.wait_event("protected");
    standby.proc.wait_event("protected");
    let status = world.status("a");
    assert_eq!(status["role"], "protected", "{status}");
    assert!(status["generation"].as_u64() > lost_generation.as_u64(), "{status}");
    vm.serial.goes_on();

    kill_host(&mut vm, &mut second);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn a_vm_that_was_taken_over_is_protected_where_it_runs_now() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut b) = world.pair();
    kill_host(&mut vm, &mut protect);
    let taken = b.proc.wait_event("running");
    b.serial.goes_on();

    let qemu = b.proc.child_with("qemu").expect("the standby's QEMU");
    let mut c = world.standby("c");
    let mut protect = world.protect("b", "b2", &world.run_dir("b").join("web/standby.qmp"), c.addr, "");
    b.proc.expect_end(0, &[]);
    protect.wait_event("protected");
    c.proc.wait_event("protected");
    b.serial.goes_on();
    let status = world.status("b");
    assert_eq!((&status["side"], &status["role"]), (&"primary".into(), &"protected".into()), "{status}");
    assert!(status["generation"].as_u64() > taken["generation"].as_u64(), "{status}");

    // It has no parent any more: it was the standby's.
    let data_path = protect.data_path();
    for pid in [protect.pid(), data_path, qemu] {
        kill(pid);
    }
    c.proc.wait_event("running");
    c.serial.goes_on();
    b.serial.assert_continued_by(&c.serial);
    vm.serial.assert_continued_by(&b.serial);
}

#[test]
fn a_protect_that_is_busy_is_not_relieved() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut first, standby) = world.pair();
    let mut second = world.protect("a", "a2", &vm.qmp, standby.addr, "");
    second.expect_end(1, &["another afterimage process on this node runs web", "protected", "afterimage unprotect"]);
    assert_eq!(world.status("a")["role"], "protected");
    assert!(first.is_running());
    vm.serial.goes_on();
}

#[test]
fn a_standby_leaves_a_vm_alone_that_was_taken_over_on_its_host() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut b) = world.pair();
    kill_host(&mut vm, &mut protect);
    b.proc.wait_event("running");
    let qemu = b.proc.child_with("qemu").expect("the standby's QEMU");
    b.proc.kill();
    b.serial.goes_on();

    // The standby would start a QEMU in its place for a primary; there is to be none.
    let stranger = world.vm("stranger", &[]);
    let next = world.standby_with("b", &StandbyOptions { begins: "reattached", ..StandbyOptions::default() });
    assert_eq!(world.status("b")["role"], "running");
    let mut protect =
        world.protect("b", "p", &stranger.qmp, next.addr, &format!("--once --run-dir {}", world.path("p").display()));
    protect
        .expect_end(4, &["web is another QEMU process of this host", "a second copy must not run visibly beside it"]);
    assert!(is_alive(qemu));
    b.serial.goes_on();
}

#[test]
fn a_qemu_that_waits_ends_with_its_standby() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut lost) = world.pair();
    let orphan = lost.proc.child_with("qemu").expect("the standby's QEMU");
    lost.proc.kill();
    protect.wait_events("solo", 2);
    // It held the other end of the stream that the VM would have come by.
    until("the orphan is gone", || (!is_alive(orphan)).then_some(()));
    let standby = world.standby("b");
    let mut again = world.protect("a", "a2", &vm.qmp, standby.addr, "");
    again.wait_event("protected");
    vm.serial.goes_on();
}
