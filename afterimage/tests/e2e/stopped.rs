//! A supervisor that a signal stopped: it is not dead, and does nothing.

use crate::{
    away::output_flows,
    proc::{Proc, kill, signal, until},
    world::{Standby, VM, World},
};
use rustix::process::Signal;
use serde_json::Value;

/// Neither side calls the VM protected, and epochs go on.
fn is_noticed(world: &World, protect: &Proc, standby: &Standby) {
    signal(protect.pid(), Signal::STOP);
    let (code, status) = until("status tells", || {
        let (code, stdout, _) = world.run("a", &format!("status --vm {VM} --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?;
        status["stalled"].is_string().then_some((code, status))
    });
    assert_eq!((code, &status["protected"]), (3, &false.into()), "{status}");
    let why = status["stalled"].as_str().unwrap();
    for words in [format!("the supervisor (process {})", protect.pid()), format!("kill -CONT {}", protect.pid())] {
        assert!(why.contains(&words), "{words:?} is not in {why:?}");
    }
    until("the standby says so, too", || (world.status("b")["protected"] == false).then_some(()));
    output_flows(world);
    assert_eq!((protect.count("suspect"), standby.proc.count("suspect")), (0, 0), "{}", protect.said());
}

#[test]
fn nobody_calls_a_vm_protected_whose_outputs_nobody_looks_at() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    is_noticed(&world, &protect, &standby);
    signal(protect.pid(), Signal::CONT);
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    assert!(world.status("a")["stalled"].is_null(), "{}", protect.said());
    assert_eq!(protect.count("asking"), 1, "{}", protect.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn a_data_path_whose_stopped_supervisor_is_ended_goes_on_without_it() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, mut standby) = world.pair();
    is_noticed(&world, &protect, &standby);
    kill(protect.pid());
    until("it is protected again", || (protect.count("protected") == 2).then_some(()));
    standby.proc.wait_events("protected", 2);
    assert!(world.status("a")["stalled"].is_null(), "{}", protect.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn a_qemu_that_dies_while_its_supervisor_is_stopped_is_taken_over() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    signal(protect.pid(), Signal::STOP);
    vm.proc.kill();
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    signal(protect.pid(), Signal::CONT);
    protect.expect_end(4, &["the VM's QEMU died; its standby has the last commit, and takes over"]);
}
