//! Two that cannot be a pair: both sides say so, and the register is left alone.

use crate::{
    guest::Vm,
    proc::Proc,
    world::{VM, World},
};
use std::net::SocketAddr;

/// `protect` on a node of that name and that state directory.
fn protect(world: &World, (node, state): (&str, &str), vm: &Vm, to: SocketAddr) -> Proc {
    let mut command = World::program();
    command.args(["protect", "--once", "--vm", VM, "--node", node, "--to", &to.to_string(), "--qmp"]).arg(&vm.qmp);
    command.args(["--arbiter", &world.arbiter, "--state-dir"]).arg(world.path(state));
    command.arg("--run-dir").arg(world.run_dir("run-of-protect"));
    Proc::spawn(world.dir.path(), "protect", command)
}

fn is_refused(world: &World, primary: (&str, &str), standby: &str, words: &str) {
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby(standby);
    let mut protect = protect(world, primary, &vm, standby.addr);
    protect.expect_end(1, &[words]);
    assert_eq!(protect.count("protected"), 0, "{}", protect.said());
    let refused = standby.proc.wait_event("refused");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains(words)), "{refused}");
    vm.serial.goes_on();
}

#[test]
fn two_nodes_of_one_name() {
    let Some((world, _witness)) = World::with_witness() else { return };
    is_refused(&world, ("b", "state-elsewhere"), "b", "both nodes are named b");
}

#[test]
fn one_node_with_itself() {
    let Some((world, _witness)) = World::with_witness() else { return };
    is_refused(&world, ("a", "state-b"), "b", "both sides have the same node identity");
}

#[test]
fn two_nodes_with_two_witnesses() {
    let Some((mut world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let first = world.path("witness");
    std::fs::rename(&first, world.path("the-first-witness")).unwrap(); // it goes on in there
    let _second = world.witness();
    let mut protect = protect(&world, ("a", "state-a"), &vm, standby.addr);
    protect.expect_end(1, &["use different arbiters"]);
    let refused = standby.proc.wait_event("refused");
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("different arbiters")), "{refused}");
    vm.serial.goes_on();
}
