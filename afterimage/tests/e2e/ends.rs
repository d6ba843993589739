//! How a protected VM ends: on purpose, or not.

use crate::{
    proc::{is_alive, qmp, until},
    world::{VM, World},
};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_vm_that_is_shut_down_is_not_taken_over() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let _ = qmp(&vm.look).execute("quit", json!({}), Duration::from_secs(5));
    protect.expect_end(0, &[]);
    let ended = protect.wait_event("ended");
    assert_eq!(ended["why"], "the VM is gone", "{ended}");
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    assert_eq!(standby.serial.counts(), [0; 0]);
    world.wait_role("b", "idle");
}

#[test]
fn protection_that_is_ended_leaves_a_solo_vm_and_a_standby_that_waits() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let (code, stdout, stderr) = world.run("a", &format!("unprotect --vm {VM}"));
    let expected = "web runs here alone (g3), unprotected; no standby is looked for until `afterimage reprotect`\n";
    assert_eq!((code, stdout.as_str()), (0, expected), "{stderr}");
    world.wait_role("a", "solo");
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert!(protect.is_running(), "the VM's network passes through that process");
    assert_eq!(world.run("a", &format!("unprotect --vm {VM}")).0, 0, "ended already");
}

#[test]
fn a_qemu_that_dies_is_taken_over() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    vm.proc.kill();
    protect.expect_end(4, &["error: ", "QEMU died", "its standby"]);
    for other in ["the gate reported an error", "trying again", "role=\"fenced\""] {
        assert!(!protect.said().contains(other), "one disaster, not several: {}", protect.said());
    }
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    let status = world.wait_role("b", "running");
    let todo = status["why_not_protected"]["what_to_do"].as_str().unwrap();
    for word in ["afterimage protect --vm", "standby.qmp --to 127.0.0.1:", "--arbiter witness://"] {
        assert!(todo.contains(word), "{todo}");
    }
    let (_, text, _) = world.run("b", "status");
    assert!(!text.contains("suspect after  0") && !text.contains("silence        0"), "{text}");
}

#[test]
fn a_qemu_that_dies_unprotected_is_an_error() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    standby.proc.kill();
    protect.wait_events("solo", 2);
    vm.serial.goes_on();
    vm.proc.kill();
    protect.expect_end(1, &["error: ", "QEMU died"]);
}

#[test]
fn an_orphaned_data_path_sees_that_the_vm_is_shut_down() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let data_path = protect.data_path();
    protect.kill();
    vm.serial.goes_on();
    let _ = qmp(&vm.look).execute("quit", json!({}), Duration::from_secs(5));
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    until("the data path ends", || (!is_alive(data_path)).then_some(()));
}

#[test]
fn an_orphaned_data_path_sees_that_qemu_died() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let data_path = protect.data_path();
    protect.kill();
    vm.serial.goes_on();
    vm.proc.kill();
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    until("the data path ends", || (!is_alive(data_path)).then_some(()));
}
