//! A standby that could not run the VM says so, and the primary does not rely on it.

use crate::{
    proc::{is_alive, kill, signal, until},
    takeover::fragile,
    world::{VM, World},
};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;

#[test]
fn a_standby_whose_qemu_does_not_start_any_more_is_given_up() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (options, broken) = fragile(&world);
    let (vm, mut protect, mut standby) = world.pair_with(&options);
    // Until the arbiter answers the standby's copy may be the last one, and is kept.
    signal(witness.pid(), Signal::STOP);
    fs::write(&broken, "").unwrap();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    kill(waiting);
    until("it is gone", || (!is_alive(waiting)).then_some(()));
    let told = standby.proc.wait_event("waiting-qemu-fails");
    assert!(told["why"].as_str().unwrap().contains("no space left on the device of the day"), "{told}");
    let (code, status) = world.status_code("b");
    assert_eq!((code, &status["protected"]), (3, &false.into()), "{status}");
    assert!(status["stalled"].as_str().is_some_and(|why| why.contains("does not start")), "{status}");
    let told = protect.wait_event("refused");
    let why = told["why"].as_str().unwrap();
    assert!(why.contains("the standby cannot run the VM") && why.contains("of the day"), "{told}");
    assert_eq!(world.vm_files().len(), 1, "its copy");

    signal(witness.pid(), Signal::CONT);
    let solo = world.wait_role("a", "solo");
    assert!(solo["why_not_protected"]["why"].as_str().unwrap().contains("of the day"), "{solo}");
    assert_eq!(standby.proc.count("waiting-qemu-died"), 1, "said once: {}", standby.proc.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();

    fs::remove_file(&broken).unwrap();
    world.run("a", &format!("reprotect --vm {VM}"));
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
}

/// It may be handed back: it goes when another one has begun, not when another one is tried.
#[test]
fn a_lost_copy_stays_until_a_new_qemu_waits() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (options, broken) = fragile(&world);
    let (vm, mut protect, mut standby) = world.pair_with(&options);
    let copy = world.vm_files();
    // Stopped for long enough, it finds that the primary has gone on alone.
    signal(standby.proc.pid(), Signal::STOP);
    protect.wait_events("solo", 2);
    fs::write(&broken, "").unwrap();
    signal(standby.proc.pid(), Signal::CONT);
    let lost = standby.proc.wait_events("waiting", 2);
    assert_eq!(lost["keeps_lost_copy"], true, "{lost}");
    // It may have been busy with its loss before.
    let tried = |event: &Value| event["event"] == "refused" && event["why"].as_str().unwrap().contains("of the day");
    until("a session is tried", || standby.proc.events().iter().any(tried).then_some(()));
    assert_eq!(world.vm_files(), copy, "the lost copy: {}", standby.proc.said());
    fs::remove_file(&broken).unwrap();
    world.run("a", &format!("reprotect --vm {VM}"));
    protect.wait_events("protected", 2);
    assert_ne!(world.vm_files(), copy, "its room was needed");
    vm.serial.goes_on();
}
