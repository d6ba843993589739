//! `--arbiter manual`: nobody promotes itself.

use crate::{
    proc::{kill, until},
    world::{VM, World, kill_host},
};

const YES: &str = "--yes-the-other-side-is-stopped";

#[test]
fn a_standby_waits_for_takeover() {
    let Some(world) = World::new() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    assert_eq!(world.run("b", &format!("takeover --vm {VM}")).0, 2);
    kill_host(&mut vm, &mut protect);
    let status = world.wait_role("b", "claiming");
    assert!(status["arbiter"]["last_error"].as_str().unwrap().contains("operator"), "{status}");
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());

    let (code, _, stderr) = world.run("b", &format!("takeover --vm {VM}"));
    assert_eq!((code, stderr.contains(YES)), (2, true), "{stderr}");
    assert_eq!(world.status("b")["role"], "claiming");
    let (code, stdout, stderr) = world.run("b", &format!("takeover --vm {VM} {YES}"));
    assert_eq!((code, stdout.as_str()), (0, "web runs here now (g3)\n"), "{stderr}");
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    assert_eq!(world.run("b", &format!("takeover --vm {VM} {YES}")).0, 1, "there is nothing left to take over");
}

#[test]
fn a_primary_waits_for_solo() {
    let Some(world) = World::new() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    standby.proc.kill();
    let status = world.wait_role("a", "claiming");
    assert!(status["arbiter"]["last_error"].as_str().unwrap().contains("operator"), "{status}");
    let (code, _, stderr) = world.run("a", &format!("solo --vm {VM}"));
    assert_eq!((code, stderr.contains(YES)), (2, true), "{stderr}");
    assert_eq!(world.status("a")["role"], "claiming");
    let (code, stdout, stderr) = world.run("a", &format!("solo --vm {VM} {YES}"));
    assert!(code == 0 && stdout.starts_with("web runs here alone (g"), "{code} {stdout} {stderr}");
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert!(protect.is_running());
}

#[test]
fn a_supervisor_waits_for_solo_when_its_data_path_died() {
    let Some(world) = World::new() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let first = protect.data_path();
    kill(first);
    world.wait_role("b", "claiming");
    world.wait_role("a", "claiming");
    standby.proc.kill();
    let (code, stdout, stderr) = world.run("a", &format!("solo --vm {VM} {YES}"));
    assert!(code == 0 && stdout.starts_with("web runs here alone (g"), "{code} {stdout} {stderr}");
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    until("a new data path", || protect.child_with("data-path").filter(|pid| *pid != first));
    assert!(protect.is_running());
}
