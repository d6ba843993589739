//! Both hosts and the arbiter lose power at once, and start again: what was in memory is gone.

use crate::{
    guest::Vm,
    proc::{Proc, kill_marked, signal, until},
    world::{Standby, VM, World, kill_host},
};
use mc_core::register::Mode;
use rustix::process::Signal;
use std::fs;

/// Both hosts die. Processes die one after the other, so they are stopped first: nobody is to win anything in between.
fn hosts_die(world: &World, (vm, protect): (&mut Vm, &mut Proc), standby: &mut Standby) {
    for pid in [standby.proc.pid(), protect.data_path(), protect.pid()] {
        signal(pid, Signal::STOP);
    }
    kill_host(vm, protect);
    standby.proc.kill();
    for file in world.vm_files() {
        fs::remove_file(file).unwrap();
    }
}

fn waits_for_its_standby(world: &World, protect: &mut Proc) {
    protect.wait_event("waiting-for-standby");
    let status = world.wait_role("a", "waiting-for-arbiter");
    let notes = status["notes"].to_string();
    for words in ["was protected as another QEMU process", "Start the standby on node b", "gate stays closed"] {
        assert!(notes.contains(words), "{words:?} is not in {status}");
    }
    assert_eq!(world.run("a", &format!("status --vm {VM}")).0, 3);
}

#[test]
fn after_a_power_cut_the_vm_is_protected_again_without_a_word() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let before = world.register();
    witness.kill();
    hosts_die(&world, (&mut vm, &mut protect), &mut standby);
    kill_marked(world.dir.path());

    let _witness = world.witness_again();
    let vm = world.vm("vm", &[]);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    waits_for_its_standby(&world, &mut protect);
    assert_eq!((world.register(), protect.count("attached")), (before, 0), "{}", protect.said());

    let mut standby = world.standby_at("b", standby.addr);
    let told = standby.proc.wait_event("renouncing");
    assert_eq!(told["expect"], before.generation.0, "{told}");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    // Renounced, claimed by the new QEMU, protected.
    assert_eq!(world.register().generation.0, before.generation.0 + 3);
    assert_ne!(world.register().owner, before.owner);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// The standby comes first, and the owner is not there yet.
#[test]
fn a_standby_that_lost_its_copy_alone_sets_the_primary_free() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let before = world.register();
    hosts_die(&world, (&mut vm, &mut protect), &mut standby);
    let mut standby = world.standby_at("b", standby.addr);
    until("the register names a alone", || (world.register().mode == Mode::Solo).then_some(()));
    assert_eq!(world.register().owner, before.owner, "the same copy, alone");
    standby.proc.wait_event("cas");
    let vm = world.vm("vm", &[]);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    assert_eq!(protect.count("waiting-for-standby"), 0, "{}", protect.said());
    vm.serial.goes_on();
}

/// A standby that has the copy takes over, and the VM that was booted anew stays closed.
#[test]
fn a_vm_that_is_booted_anew_waits_while_its_standby_takes_over() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    witness.kill();
    standby.proc.wait_event("arbiter-unreachable");
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("suspect");
    let vm = world.vm("vm", &[]);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    let _witness = world.witness_again();
    protect.expect_end(4, &["web belongs to node b since", "must not reach the network"]);
    standby.proc.wait_event("running");
    assert_eq!(standby.proc.count("renouncing"), 0, "{}", standby.proc.said());
    assert_eq!(protect.count("attached"), 0, "{}", protect.said());
    standby.serial.goes_on();
}

/// His word cannot make good for a copy that the standby may have; nor is it kept, and counted for what is asked for later.
#[test]
fn an_operators_solo_is_not_kept_while_the_vm_waits_for_its_standby() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let before = world.register();
    witness.kill();
    hosts_die(&world, (&mut vm, &mut protect), &mut standby);
    let vm = world.vm("vm", &[]);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    world.wait_role("a", "waiting-for-arbiter");
    let solo = format!("solo --vm {VM} --yes-the-other-side-is-stopped");
    // Once it may have counted, since nobody could say what the register holds: what this node has seen says the same.
    until("it is refused", || {
        let (code, _, stderr) = world.run("a", &solo);
        (code != 0 && stderr.contains("Start the standby on node b")).then_some(())
    });
    let _witness = world.witness_again();
    protect.wait_event("waiting-for-standby");
    assert_eq!((world.register(), protect.count("asking")), (before, 0), "{}", protect.said());
    let mut standby = world.standby_at("b", standby.addr);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    vm.serial.goes_on();
}

/// The files tell of a copy that is not on record as kept: it was kept when the record could not be written.
#[test]
fn a_copy_that_was_kept_is_not_renounced_whatever_the_record_says() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let before = world.register();
    signal(witness.pid(), Signal::STOP);
    standby.proc.wait_event("arbiter-unreachable");
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.wait_event("stop-refused");
    for pid in [protect.data_path(), protect.pid()] {
        signal(pid, Signal::STOP);
    }
    kill_host(&mut vm, &mut protect);
    signal(standby.proc.pid(), Signal::TERM);
    standby.proc.expect_end(3, &["Kept the image of"]);
    let path = world.path("state-b").join(format!("{VM}.copy"));
    let mut record: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["kept"] = serde_json::Value::Null;
    fs::write(&path, record.to_string()).unwrap();
    signal(witness.pid(), Signal::CONT);
    let mut again = world.standby_at("b", standby.addr);
    let told = again.proc.wait_event("copy-missed");
    assert!(told["why"].as_str().unwrap().contains("it was kept in"), "{told}");
    assert_eq!((again.proc.count("renouncing"), world.register()), (0, before), "{}", again.proc.said());
}
