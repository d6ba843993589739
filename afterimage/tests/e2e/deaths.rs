//! Parts of `protect` die: there is one survivor, and the register agrees.

use crate::{
    proc::{Proc, kill, until},
    world::{Standby, VM, World},
};
use afterimage::arbiter::file;
use mc_core::{
    id::Name,
    register::{Mode, Register},
};

/// What the witness has on its disk.
fn register(world: &World) -> Register {
    let path = world.path("witness").join(format!("{VM}.reg"));
    file::load(&path, Name::new(VM).unwrap()).unwrap().expect("a register")
}

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
    assert_eq!(register(&world).mode, Mode::Solo);
    assert_eq!(register(&world).owner.node.to_string(), "a");
}

#[test]
fn a_data_paths_death_leaves_one_survivor() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    kill(protect.data_path());
    let owner = until("somebody won", || {
        let held = register(&world);
        (held.mode == Mode::Solo && held.generation.0 == 3).then_some(held.owner)
    });
    if owner.node.to_string() == "a" {
        the_primary_went_on(&world, &mut protect);
        vm.serial.goes_on();
        vm.serial.assert_sound();
        until("the standby gives up", || (world.status("b")["role"] == "idle").then_some(()));
        assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    } else {
        the_standby_took_over(&mut protect, &mut standby);
        vm.serial.assert_continued_by(&standby.serial);
    }
}

fn the_primary_went_on(world: &World, protect: &mut Proc) {
    world.wait_role("a", "solo");
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
    crate::proc::signal(standby.proc.pid(), rustix::process::Signal::STOP);
    kill(first);
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert_ne!(protect.data_path(), first);
    assert_eq!(register(&world).generation.0, 3);
    // It wakes up, suspects, asks, and loses.
    crate::proc::signal(standby.proc.pid(), rustix::process::Signal::CONT);
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    assert!(protect.is_running());
}
