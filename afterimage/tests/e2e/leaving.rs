//! QEMU has to leave its checkpoints when the VM runs alone. Nobody else would let the VM go on.

use crate::{
    proc::{kill, until},
    stalls::Frozen,
    world::{VM, World},
};

#[test]
fn a_qemu_that_does_not_answer_when_it_has_to_leave_is_told_until_it_has() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    // Its main thread answers QMP; the VM stops with its next checkpoint, and nobody lets it go on.
    let frozen = Frozen::main_thread(vm.proc.pid());
    standby.proc.kill();
    let told = protect.wait_event("not-left");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("does not answer")), "{told}");
    let (code, stdout, stderr) = world.run("a", &format!("status --vm {VM}"));
    assert!(code == 3 && stdout.contains("STALLED: QEMU has not left checkpoint mode"), "{code}: {stdout} {stderr}");
    assert!(stdout.contains(": solo, NOT PROTECTED"), "{stdout}");
    frozen.thaw();
    protect.wait_event("left");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    until("nothing is stalled", || world.status("a")["stalled"].is_null().then_some(()));
}

/// The next data path goes on with what the dead one had begun.
#[test]
fn a_data_path_that_dies_before_qemu_has_left_changes_nothing() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let frozen = Frozen::main_thread(vm.proc.pid());
    standby.proc.kill();
    protect.wait_event("not-left");
    kill(protect.data_path());
    protect.wait_events("not-left", 2);
    assert!(protect.is_running(), "{}", protect.said());
    frozen.thaw();
    protect.wait_event("left");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
