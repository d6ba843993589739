//! The witness is gone, and something else died: what goes on by itself, and what an operator's word does.

use crate::{
    proc::{kill, signal, until},
    world::{VM, World, free_addr, kill_host},
};
use mc_core::register::Mode;
use rustix::process::Signal;

const YES: &str = "--yes-the-other-side-is-stopped";

/// Until the witness has been away for long enough.
fn goes_solo(world: &World) {
    until("its word is heard", || {
        let (code, stdout, stderr) = world.run("a", &format!("solo --vm {VM} {YES}"));
        assert!(code == 0 || stderr.contains("who owns the VM"), "{code} {stdout} {stderr}");
        (code == 0).then_some(())
    });
    world.wait_role("a", "solo");
}

#[test]
fn the_witness_dies_and_then_the_primary() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    witness.kill();
    standby.proc.wait_event("arbiter-unreachable");
    kill_host(&mut vm, &mut protect);
    world.wait_role("b", "claiming");
    assert_eq!(standby.proc.count("asking"), 0, "it waits for a read: {}", standby.proc.said());
    let (code, stdout, stderr) = world.run("b", &format!("takeover --vm {VM} {YES}"));
    assert!(code == 0 && stdout.starts_with("web runs here now (g"), "{code} {stdout} {stderr}");
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn the_witness_dies_and_then_the_data_path() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    kill(protect.data_path());
    world.wait_role("a", "claiming");
    standby.proc.kill();
    goes_solo(&world);
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert!(protect.is_running(), "{}", protect.said());
    // The witness learns it.
    let _witness = world.witness_again();
    until("the register says so", || (world.register().mode == Mode::Solo).then_some(()));
}

/// After a power cut, say: the VM's host comes back, and the witness does not.
#[test]
fn the_witness_is_away_when_protect_starts() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut first) = world.alone();
    signal(first.pid(), Signal::TERM);
    first.expect_end(0, &[]);
    witness.kill();
    let mut protect = world.protect("a", "again", &vm.qmp, free_addr(), "");
    world.wait_role("a", "waiting-for-arbiter");
    goes_solo(&world);
    vm.serial.goes_on();
    assert!(protect.is_running(), "{}", protect.said());
}

/// Its network comes back at once, whatever the witness does.
#[test]
fn a_data_path_that_had_asked_for_nothing_is_followed_at_once() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let dies = |protect: &crate::proc::Proc| {
        let dead = protect.data_path();
        kill(dead);
        until("a new data path", || protect.child_with("data-path").filter(|pid| *pid != dead));
        world.wait_role("a", "solo");
        vm.serial.goes_on();
    };
    // It was protected once, and says that it is alone.
    assert_eq!(world.run("a", &format!("unprotect --vm {VM}")).0, 0);
    world.wait_role("a", "solo");
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    let asked = protect.count("asking");
    dies(&protect);
    // This one never began.
    dies(&protect);
    assert_eq!(protect.count("asking"), asked, "{}", protect.said());
    let _witness = world.witness_again();
    assert_eq!(world.run("a", &format!("reprotect --vm {VM}")).0, 0);
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
