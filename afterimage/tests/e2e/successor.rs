//! What follows a data path, or a supervisor, that died: nothing that can be had again is lost with it.

use crate::{
    proc::{Proc, is_alive, kill, signal, until},
    stalls::Frozen,
    world::{VM, World, free_addr},
};
use mc_core::testing::skip;
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, process::Command};

/// Kills the data path; the next one.
fn next_data_path(world: &World, protect: &mut Proc) -> u32 {
    let first = protect.data_path();
    kill(first);
    let next = until("another data path", || {
        protect.is_running().then_some(())?;
        protect.child_with("data-path").filter(|pid| *pid != first)
    });
    world.wait_role("a", "solo");
    next
}

#[test]
fn a_vm_that_runs_alone_has_its_network_back_though_the_witness_is_away() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect) = world.alone();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    next_data_path(&world, &mut protect);
    assert_eq!(protect.count("asking"), 0, "{}", protect.said());
    vm.serial.goes_on();
    // And it finds its standby as the dead one would have, when the witness is back.
    let _witness = world.witness_again();
    protect.wait_event("arbiter-reachable");
    assert_eq!(world.register().generation.0, 1);
}

/// It was protected, and is alone since: what the register holds then is what the next one begins with.
#[test]
fn what_the_register_says_since_is_what_the_next_one_knows() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    standby.proc.kill();
    protect.wait_events("solo", 2);
    let held = world.register();
    until("QEMU has left", || world.status("a")["stalled"].is_null().then_some(()));
    protect.wait_event("no-session");
    signal(witness.pid(), Signal::STOP);
    protect.wait_event("arbiter-unreachable");
    next_data_path(&world, &mut protect);
    assert_eq!(world.status("a")["generation"], held.generation.0);
    signal(witness.pid(), Signal::CONT);
    let mut next = world.standby_at("c", standby.addr);
    protect.wait_events("protected", 2);
    next.proc.wait_event("protected");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn what_an_operator_has_set_outlives_the_data_path() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (_vm, mut protect) = world.alone();
    let (code, stdout, stderr) = world.run("a", &format!("set --vm {VM} epoch=37ms"));
    assert_eq!(code, 0, "{stdout} {stderr}");
    next_data_path(&world, &mut protect);
    assert_eq!(world.status("a")["epoch_us"], 37_000);
}

#[test]
fn what_an_operator_has_set_for_beats_outlives_the_data_path() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let advertised = |line: &str| {
        let (code, stdout, stderr) = world.run("a", &format!("keepalive {line} --vm {VM} --json"));
        assert_eq!(code, 0, "{line}: {stdout} {stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        report["local"]["advertised"]["interval_us"].clone()
    };
    // This side's only: the other one would remember as well.
    assert_eq!(advertised("set --interval 70ms --multiplier 20 --this-side --force"), 70_000);
    // The standby cannot ask for the VM meanwhile.
    signal(standby.proc.pid(), Signal::STOP);
    next_data_path(&world, &mut protect);
    signal(standby.proc.pid(), Signal::CONT);
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    assert_eq!(advertised("show"), 70_000);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// As a package manager does: the new file is renamed over the old one.
#[test]
fn an_upgrade_of_the_program_costs_no_data_path() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let (program, new) = (world.path("afterimage"), world.path("afterimage.new"));
    fs::copy(env!("CARGO_BIN_EXE_afterimage"), &program).unwrap();
    let mut command = Command::new(&program);
    let to = free_addr().to_string();
    command
        .args(["protect", "--vm", VM, "--node", "a", "--to", &to, "--arbiter", &world.arbiter, "--qmp"])
        .arg(&vm.qmp);
    command.arg("--state-dir").arg(world.path("state-a")).arg("--run-dir").arg(world.run_dir("a"));
    let mut protect = Proc::spawn(world.dir.path(), "a", command);
    protect.wait_event("no-session");
    fs::copy(env!("CARGO_BIN_EXE_afterimage"), &new).unwrap();
    fs::rename(&new, &program).unwrap();
    next_data_path(&world, &mut protect);
    // Nor if there is no file any more.
    fs::remove_file(&program).unwrap();
    next_data_path(&world, &mut protect);
    vm.serial.goes_on();
}

#[test]
fn a_data_path_without_supervisor_and_qemu_ends() {
    for reaped in [true, false] {
        let Some((world, _witness)) = World::with_witness() else { return };
        let (mut vm, mut protect) = world.alone();
        let data_path = protect.data_path();
        kill(vm.proc.pid());
        kill(protect.pid());
        if reaped {
            vm.proc.kill();
        }
        until("the data path ends", || (!is_alive(data_path)).then_some(()));
        protect.kill();
    }
}

/// QEMU's main thread does not answer; the data path, whose supervisor is dead, does.
#[test]
fn a_data_path_without_a_supervisor_does_not_wait_for_qemu() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect) = world.alone();
    let frozen = Frozen::main_thread(vm.proc.pid());
    kill(protect.pid());
    until("the data path has noticed", || (protect.count("supervisor-died") == 1).then_some(()));
    assert_eq!(world.status("a")["role"], "solo");
    frozen.thaw();
    vm.serial.goes_on();
    // It hears from QEMU itself, now as then.
    let mut look = crate::proc::qmp(&vm.look);
    look.execute("stop", serde_json::Value::Null, crate::proc::LONG).unwrap();
    until("the VM is said to be paused", || {
        world.status("a")["stalled"].as_str()?.contains("the VM is paused (QEMU says paused)").then_some(())
    });
}

#[test]
fn a_terminal_that_hangs_up_ends_both_sides_in_order() {
    if ignores_hangups() {
        return skip("this process ignores SIGHUP (nohup), and so do its children, as they should");
    }
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    signal(standby.proc.pid(), Signal::HUP);
    standby.proc.expect_end(0, &[]);
    assert!(world.vm_files().is_empty(), "something of the VM's RAM is left");
    protect.wait_events("solo", 2);
    assert_eq!(protect.count("suspect"), 0, "{}", protect.said());
    signal(protect.pid(), Signal::HUP);
    protect.expect_end(0, &[]);
    assert!(protect.wait_event("ended")["why"].as_str().unwrap().contains("the VM runs on"));
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// Whoever is started so stays so: a program under nohup is to outlive its terminal.
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    u64::from_str_radix(ignored.trim(), 16).is_ok_and(|mask| mask & 1 == 1)
}

/// The first data path of a `protect` relieves whoever was there, and then has no place: somebody else took it.
#[test]
fn a_data_path_that_has_relieved_another_and_cannot_begin_is_tried_again() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut first) = world.alone();
    let place = fs::File::open(world.run_dir("a").join(format!("{VM}.primary.lock"))).unwrap();
    let taken = std::thread::spawn(move || {
        rustix::fs::flock(&place, rustix::fs::FlockOperation::LockExclusive).unwrap();
        place
    });
    // Who waits for a lock is not sure to be the next who has it: with every handover there is another chance.
    let mut second = None;
    for number in 2..30 {
        let next = world.protect("a", &format!("a{number}"), &vm.qmp, free_addr(), "");
        first.expect_end(0, &[]);
        until("it has the place, or not", || (taken.is_finished() || next.count("no-session") > 0).then_some(()));
        if taken.is_finished() {
            second = Some(next);
            break;
        }
        first = next;
    }
    let (mut second, place) = (second.expect("the lock was never ours"), taken.join().unwrap());
    let died = second.wait_event("data-path-died");
    assert!(second.is_running(), "{died} {}", second.said());
    drop(place);
    world.wait_role("a", "solo");
    second.wait_event("no-session");
    vm.serial.goes_on();
}

/// As a service manager does it. Nobody could command the data path that is left.
#[test]
fn a_protect_whose_supervisor_died_is_followed_by_the_next_one() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, mut standby) = world.pair();
    kill(protect.pid());
    until("it is said", || world.status("a")["notes"].to_string().contains("the supervisor died").then_some(()));
    assert_eq!(world.status("a")["protected"], true);
    let mut next = world.protect("a", "a2", &vm.qmp, standby.addr, "");
    next.wait_event("protected");
    standby.proc.wait_events("protected", 2);
    let notes = world.status("a")["notes"].to_string();
    assert!(!notes.contains("the supervisor died"), "{notes}");
    assert_eq!(standby.proc.count("asking"), 0, "{}", standby.proc.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
