//! A standby that could not run the VM says so, and the primary does not rely on it.

use crate::{
    proc::{is_alive, kill, signal, until},
    takeover::fragile,
    world::{StandbyOptions, VM, World, kill_host},
};
use mc_core::testing::skip;
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

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
    until("it waits for nobody, and tells of it all the same", || {
        let status = world.status("b");
        let says = status["stalled"].as_str().is_some_and(|why| why.contains("of the day"));
        (status["role"] == "idle" && says).then_some(())
    });
    assert!(solo["why_not_protected"]["why"].as_str().unwrap().contains("of the day"), "{solo}");
    assert_eq!(standby.proc.count("waiting-qemu-died"), 1, "said once: {}", standby.proc.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();

    fs::remove_file(&broken).unwrap();
    world.run("a", &format!("reprotect --vm {VM}"));
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    assert!(world.status("b")["stalled"].is_null(), "{}", standby.proc.said());
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
    assert_eq!(standby.proc.count("waiting-qemu-died"), 0, "it was put to rest: {}", standby.proc.said());
    vm.serial.goes_on();
}

/// It is there, and would not take the VM: it is not waited for, but replaced.
#[test]
fn a_waiting_qemu_that_a_signal_stopped_is_told_of_and_replaced() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    signal(waiting, Signal::STOP);
    let told = until("status tells", || {
        let (code, stdout, _) = world.run("b", &format!("status --vm {VM} --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?;
        status["stalled"].as_str().is_some_and(|why| why.contains("was stopped by a signal")).then_some((code, status))
    });
    assert_eq!((told.0, &told.1["protected"]), (3, &false.into()), "{}", told.1);
    let died = standby.proc.wait_event("waiting-qemu-died");
    assert!(
        died["why"].as_str().is_some_and(|why| why.contains("does not answer: it was stopped by a signal")),
        "{died}"
    );
    until("another one waits", || standby.proc.child_with("qemu-system").filter(|pid| *pid != waiting));
    until("it would take the VM", || (world.status("b")["protected"] == true).then_some(()));
    assert!(!is_alive(waiting), "it must not come back");
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

/// Stopped in the same moment as the primary dies: nobody waits until somebody lets it go on.
#[test]
fn a_takeover_does_not_wait_for_a_qemu_that_does_not_answer() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    signal(waiting, Signal::STOP);
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    let why = |event: &Value| {
        event["why"].as_str().unwrap_or_default().contains("does not answer: it was stopped by a signal")
    };
    let told =
        standby.proc.events().into_iter().filter(|event| event["event"] != "waiting-qemu-silent").any(|e| why(&e));
    assert!(told, "{}", standby.proc.said());
    assert!(!is_alive(waiting));
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

/// One that does not come to listen at all: it is not waited for as one is that starts slowly.
#[test]
fn a_qemu_that_a_signal_stops_as_it_starts_is_said_to_be() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (stops, script) = (world.path("stops"), world.path("qemu-stops"));
    let text = format!("#!/bin/sh\nif [ -e {} ]; then kill -STOP $$; fi\nexec \"$@\"\n", stops.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let mut line = vec![script.display().to_string()];
    line.extend(world.standby_qemu("b", None));
    let options = StandbyOptions { qemu: Some(line), ..StandbyOptions::default() };
    let (vm, mut protect, mut standby) = world.pair_with(&options);
    fs::write(&stops, "").unwrap();
    kill(standby.proc.child_with("qemu-system").expect("a waiting QEMU"));
    let told = standby.proc.wait_event("waiting-qemu-fails");
    assert!(
        told["why"].as_str().is_some_and(|why| why.contains("does not answer: it was stopped by a signal")),
        "{told}"
    );
    protect.wait_events("solo", 2);
    vm.serial.goes_on();
}

/// A process that a cgroup freezer holds does not even die. When it is thawed, it has died before it does anything.
#[test]
fn a_frozen_qemu_is_left_behind() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let Some(freezer) = Freezer::new() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    freezer.freeze(waiting);
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    assert!(is_alive(waiting), "the kernel has not let it die");
    vm.serial.assert_continued_by(&standby.serial);
    drop(freezer);
    until("it dies", || (!is_alive(waiting)).then_some(()));
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

/// Stopped, it is the stopped member of a process group; what the kernel does with those whose parent dies must not reach it.
#[test]
fn a_vm_that_stands_still_outlives_who_took_it_over() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    let qemu = standby.proc.child_with("qemu-system").expect("the VM's QEMU");
    signal(qemu, Signal::STOP);
    until("status tells", || {
        let (code, stdout, _) = world.run("b", &format!("status --vm {VM} --role standby --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?;
        (code == 3 && status["stalled"].as_str()?.contains("was stopped by a signal")).then_some(())
    });
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(0, &[]);
    assert!(is_alive(qemu));
    signal(qemu, Signal::CONT);
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    kill(qemu);
}

/// Somebody tidies up. The waiting QEMU has it mapped, and another one can still be handed it.
#[test]
fn a_ram_file_that_lost_its_name_is_taken_over_all_the_same() {
    for replaced in [false, true] {
        let Some((world, _witness)) = World::with_witness() else { return };
        let (mut vm, mut protect, mut standby) = world.pair();
        for path in world.vm_files() {
            fs::remove_file(&path).unwrap();
            if replaced {
                fs::write(&path, "not a VM").unwrap();
            }
        }
        // One that has to be started anew, too.
        let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
        kill(waiting);
        standby.proc.wait_event("waiting-qemu-died");
        until("another one waits", || standby.proc.child_with("qemu-system").filter(|pid| *pid != waiting));
        until("it would take the VM", || (world.status("b")["protected"] == true).then_some(()));
        kill_host(&mut vm, &mut protect);
        standby.proc.wait_event("running");
        assert_eq!(standby.proc.count("takeover-failed"), 0, "{}", standby.proc.said());
        standby.serial.goes_on();
        vm.serial.assert_continued_by(&standby.serial);
    }
}

/// Nobody could end its QEMU, or know it again.
#[test]
fn a_wrapper_that_does_not_become_qemu_is_refused() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let script = world.path("wrapper");
    fs::write(&script, "#!/bin/sh\n\"$@\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let mut line = vec![script.display().to_string()];
    line.extend(world.standby_qemu("b", None));
    let vm = world.vm("vm", &[]);
    let standby = world.standby_with("b", &StandbyOptions { qemu: Some(line), ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    let refused = protect.wait_event("no-session");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("a wrapper has to `exec` it")), "{refused}");
    assert_eq!(standby.proc.count("protected"), 0);
    vm.serial.goes_on();
}

/// A group of the freezer of cgroup v1, with which a frozen process does not die; with v2 it does.
struct Freezer(PathBuf);

impl Freezer {
    /// `None`, with the reason printed, where there is none.
    fn new() -> Option<Self> {
        let group = PathBuf::from(format!("/sys/fs/cgroup/freezer/afterimage-test-{}", std::process::id()));
        let made = fs::create_dir(&group).map_err(|error| skip(format!("{}: {error}", group.display())));
        made.ok().map(|()| Self(group))
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        self.set("FROZEN");
    }

    fn set(&self, state: &str) {
        let file = self.0.join("freezer.state");
        fs::write(&file, state).unwrap();
        until(state, || (fs::read_to_string(&file).unwrap().trim() == state).then_some(()));
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("THAWED");
        until("the group is empty", || fs::remove_dir(&self.0).ok());
    }
}
