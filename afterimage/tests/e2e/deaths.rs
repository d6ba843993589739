//! Parts of `protect` die: there is one survivor, and the register agrees.

use crate::{
    proc::{Proc, kill, signal, until},
    world::{Standby, VM, World, kill_host},
};
use mc_core::register::Mode;
use rustix::process::Signal;

#[test]
fn a_supervisors_death_costs_nothing() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    protect.kill();
    vm.serial.goes_on();
    let acked = || world.status("a")["last_ack_epoch"].as_u64().unwrap();
    let then = acked();
    until("epochs are still committed", || (acked() > then + 5).then_some(()));
    assert_eq!(world.status("a")["role"], "protected");

    // And it can do what only the supervisor did before.
    standby.proc.kill();
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert_eq!(world.register().mode, Mode::Solo);
    assert_eq!(world.register().owner.node.to_string(), "a");
}

#[test]
fn a_data_paths_death_leaves_one_survivor() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    kill(protect.data_path());
    let owner = until("somebody won", || {
        let held = world.register();
        (held.mode == Mode::Solo && held.generation.0 == 3).then_some(held.owner)
    });
    if owner.node.to_string() == "a" {
        the_primary_went_on(&mut protect);
        vm.serial.goes_on();
        vm.serial.assert_sound();
        standby.proc.wait_events("waiting", 2);
        assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
        // And then it stands by again, without a word from anybody.
        standby.proc.wait_events("protected", 2);
    } else {
        the_standby_took_over(&mut protect, &mut standby);
        vm.serial.assert_continued_by(&standby.serial);
    }
}

fn the_primary_went_on(protect: &mut Proc) {
    protect.wait_events("solo", 2);
    assert!(protect.is_running(), "{}", protect.said());
    assert_ne!(protect.data_path(), 0);
}

fn the_standby_took_over(protect: &mut Proc, standby: &mut Standby) {
    protect.expect_end(4, &["error: ", "another node owns the VM now"]);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
}

#[test]
fn a_data_paths_death_without_a_standby_ends_in_a_new_one() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let first = protect.data_path();
    // The standby is stopped, not dead: it cannot ask, and the supervisor must.
    signal(standby.proc.pid(), Signal::STOP);
    kill(first);
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert_ne!(protect.data_path(), first);
    assert_eq!(world.register().generation.0, 3);
    // It wakes up, suspects, asks, and loses.
    signal(standby.proc.pid(), Signal::CONT);
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    assert!(protect.is_running());
}

#[test]
fn a_frozen_primary_wakes_up_fenced() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let host = [protect.pid(), protect.data_path(), vm.proc.pid()];
    host.iter().for_each(|pid| signal(*pid, Signal::STOP));
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    host.iter().for_each(|pid| signal(*pid, Signal::CONT));
    protect.expect_end(4, &["error: ", "another node owns the VM now"]);
    until("its copy is stopped", || (!vm.proc.is_running()).then_some(()));
    standby.serial.goes_on();
    assert_eq!(world.register().owner.node.to_string(), "b");
}

#[test]
fn all_of_protect_dies_and_the_old_copy_cannot_come_back() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let data_path = protect.data_path();
    protect.kill();
    kill(data_path);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    // The old QEMU is still there. Whether it runs or stands still, nobody sees it; and nobody protects it.
    let mut again = world.protect("a", "a2", &vm.qmp, standby.addr, "");
    again.expect_end(4, &["error: ", "web belongs to node b", "what to do"]);
}

#[test]
fn all_of_protect_and_the_standby_die_and_protect_starts_anew() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let data_path = protect.data_path();
    for pid in [standby.proc.pid(), protect.pid(), data_path] {
        kill(pid);
    }
    standby.proc.kill();
    protect.kill();
    let next = world.standby("c");
    let mut again = world.protect("a", "a2", &vm.qmp, next.addr, "");
    again.wait_event("protected");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn a_waiting_qemu_that_dies_is_started_again() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let waiting = standby.proc.child_with("qemu").expect("a waiting QEMU");
    kill(waiting);
    until("another one waits", || standby.proc.child_with("qemu").filter(|pid| *pid != waiting));
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    until("it is ready", || standby.proc.stderr().contains("starting it again").then_some(()));
    assert_eq!(world.wait_role("b", "protecting")["protected"], true);
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn a_witness_that_dies_stops_failover_and_nothing_else() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    witness.kill();
    for process in [&mut protect, &mut standby.proc] {
        process.wait_event("arbiter-unreachable");
    }
    let status = world.status("a");
    assert_eq!((&status["protected"], &status["arbiter"]["reachable"]), (&true.into(), &false.into()), "{status}");
    let epoch = status["last_ack_epoch"].as_u64();
    until("epochs are still committed", || (world.status("a")["last_ack_epoch"].as_u64() > epoch).then_some(()));
    vm.serial.goes_on();

    kill_host(&mut vm, &mut protect);
    world.wait_role("b", "claiming");
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    // Started anew, the witness waits for what the dead host has seen. An operator knows that it is dead.
    let _witness = world.witness_again();
    until("the standby says so", || {
        let why = world.status("b")["arbiter"]["failover_impossible"].as_str()?.to_owned();
        why.contains("waits for what the VM's nodes have seen").then_some(())
    });
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    let mut assign = World::program();
    assign.args(["witness", "assign", VM, "b", "--yes-the-others-are-stopped", "--state"]).arg(world.path("witness"));
    let said = assign.output().unwrap();
    assert!(said.status.success(), "{said:?}");
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}
