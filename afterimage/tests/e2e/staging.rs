//! Checkpoints that are larger than staging. The guest rewrites 8 MiB with every tick.

use crate::{
    guest::{Serial, Vm},
    proc::{self, Proc, until},
    world::{Standby, StandbyOptions, World, kill_host, words},
};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt};

const PAGES: u32 = 2048;
const SMALL: &str = "--staging 2MiB --slab 256KiB";

fn start(world: &World, standby_flags: &str) -> (Vm, Proc, Standby) {
    let serial = Serial(world.path("vm.serial"));
    let line = world.machine.qemu(world.dir.path(), &serial, Some(PAGES));
    let vm = world.start_vm("vm", &line, serial);
    let qemu = Some(world.standby_qemu("b", Some(PAGES)));
    let options = StandbyOptions { qemu, flags: words(standby_flags), ..StandbyOptions::default() };
    let standby = world.standby_with("b", &options);
    let protect = world.protect("a", "a", &vm.qmp, standby.addr, SMALL);
    (vm, protect, standby)
}

fn count(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {status}"))
}

fn assert_under_cap(status: &Value, cap: u64) {
    assert_eq!(status["staging_cap_bytes"], cap, "{status}");
    assert!(status["staging_live_bytes"].as_u64().unwrap() <= cap, "{status}");
}

#[test]
fn it_streams_through_the_primarys_with_the_vm_held() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = start(&world, "");
    protect.wait_event("protected");
    until("checkpoints were streamed", || {
        let status = world.status("a");
        assert_under_cap(&status, 2 << 20);
        (count(&status, "streamed_while_held") > 20).then_some(())
    });
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn without_a_spill_file_it_ends_protection() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = start(&world, "--staging 2MiB");
    protect.wait_event("refused");
    protect.wait_events("solo", 2);
    assert_eq!(protect.count("protected"), 0, "the standby never had all that was said: {}", protect.said());
    let status = world.wait_role("a", "solo");
    let notes = status["why_not_protected"]["why"].to_string();
    assert!(notes.contains("did not fit into the standby's staging") && notes.contains("--spill"), "{status}");
    assert!(protect.stderr().contains("did not fit into the standby's staging"), "{}", protect.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    assert!(protect.is_running());
}

#[test]
fn with_a_spill_file_it_goes_through_that() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let spill = world.path("spill");
    let (mut vm, mut protect, mut standby) = start(&world, &format!("--staging 2MiB --spill {}", spill.display()));
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    until("slabs were spilled", || {
        let status = world.status("b");
        assert_under_cap(&status, 2 << 20);
        (count(&status, "spilled_slabs") > 100).then_some(())
    });
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    assert!(!spill.exists(), "it has no name, and ends with its process");
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn a_standby_refuses_slabs_that_its_staging_does_not_hold() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let options = StandbyOptions { flags: words("--staging 1MiB"), ..StandbyOptions::default() };
    let standby = world.standby_with("b", &options);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "--once --slab 1MiB");
    protect.expect_end(1, &["refused: ", "slabs of 1048576 bytes", "--staging"]);
    vm.serial.goes_on();
}

/// A rehearsal beside protection takes longer than an ACK may, and nothing is applied meanwhile: the primary waits.
#[test]
fn a_slow_rehearsal_holds_the_vm_and_does_not_end_protection() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (slow, script) = (world.path("slow"), world.path("qemu-slow"));
    let text = format!(
        "#!/bin/sh\nif [ -e {} ]; then case \" $* \" in *' -S '*) sleep 4;; esac; fi\nexec \"$@\"\n",
        slow.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let serial = Serial(world.path("vm.serial"));
    let line = world.machine.qemu(world.dir.path(), &serial, Some(PAGES));
    let mut vm = world.start_vm("vm", &line, serial);
    let mut qemu = vec![script.display().to_string()];
    qemu.extend(world.standby_qemu("b", Some(PAGES)));
    let options = StandbyOptions { qemu: Some(qemu), flags: words("--staging 24MiB"), ..StandbyOptions::default() };
    let mut standby = world.standby_with("b", &options);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, SMALL);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let solo = protect.count("solo");
    fs::write(&slow, "").unwrap();
    let change = serde_json::json!({ "qom-type": "rng-builtin", "id": "r0" });
    proc::qmp(&vm.look).execute("object-add", change, proc::LONG).unwrap();
    until("staging is full, and status says so", || {
        world.status("b")["notes"].to_string().contains("staging is full during a rehearsal").then_some(())
    });
    standby.proc.wait_events("rehearsed", 2);
    protect.wait_events("protected", 2);
    assert_eq!(protect.count("solo"), solo, "{}", protect.said());
    vm.serial.goes_on();
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}
