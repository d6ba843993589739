//! A VM that cannot be protected as it is, while the arbiter, through which protection ends, is away.

use crate::{
    away::output_flows,
    guest::Vm,
    net::{self, Network, delete_tap},
    outputs::{leak, qmp},
    proc::{Proc, until},
    world::{Standby, VM, World},
};
use serde_json::{Value, json};

/// A protected pair whose witness is dead, and known to be.
fn pair_without_witness() -> Option<(World, Vm, Proc, Standby)> {
    let (world, mut witness) = World::with_witness()?;
    let (vm, mut protect, standby) = world.pair();
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    Some((world, vm, protect, standby))
}

/// Neither side says "protected", both say 3, and the VM's output leaves all the same.
fn is_unfit(world: &World, protect: &Proc, why: &str) {
    let status = until("it is said why", || {
        let (code, stdout, _) = world.run("a", &format!("status --vm {VM} --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?;
        let told = status["why_not_protected"]["why"].as_str()?.contains(why);
        (told && code == 3).then_some(status)
    });
    assert_eq!(status["protected"], false, "{status}");
    let told = status["why_not_protected"]["why"].as_str().unwrap();
    assert!(told.contains("as soon as the arbiter witness://"), "{status}");
    let (_, text, _) = world.run("a", &format!("status --vm {VM}"));
    assert!(text.contains("NOT PROTECTED") && text.contains(why), "{text}");
    until("the standby does not either", || (world.status("b")["protected"] == false).then_some(()));
    assert_eq!(world.run("b", &format!("status --vm {VM}")).0, 3);
    output_flows(world);
    assert_eq!(protect.count("asking"), 1, "nothing is asked for: {}", protect.said());
}

/// Without a word of the arbiter.
fn is_protected_again(world: &World, protect: &mut Proc, standby: &mut Standby) {
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    assert_eq!((protect.count("asking"), protect.count("gave-up")), (1, 0), "{}", protect.said());
    let status = world.status("a");
    assert_eq!((&status["protected"], &status["why_not_protected"]), (&true.into(), &Value::Null), "{status}");
}

#[test]
fn a_leak_holds_no_output_while_the_arbiter_is_away() {
    let Some((world, vm, mut protect, mut standby)) = pair_without_witness() else { return };
    leak(&world, &vm);
    is_unfit(&world, &protect, "chardev leak");
    vm.serial.goes_on();
    let _witness = world.witness_again();
    let gave_up = protect.wait_event("gave-up");
    assert!(gave_up["why"].as_str().unwrap().contains("chardev leak"), "{gave_up}");
    let solo = world.wait_role("a", "solo");
    assert!(solo["why_not_protected"]["why"].as_str().unwrap().contains("chardev leak"), "{solo}");
    standby.proc.wait_events("waiting", 2);
    qmp(&vm, "chardev-remove", json!({ "id": "leak" }));
    protect.wait_events("protected", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn a_leak_that_has_gone_when_the_arbiter_is_back_ends_nothing() {
    let Some((world, vm, mut protect, mut standby)) = pair_without_witness() else { return };
    leak(&world, &vm);
    is_unfit(&world, &protect, "chardev leak");
    qmp(&vm, "chardev-remove", json!({ "id": "leak" }));
    is_protected_again(&world, &mut protect, &mut standby);
    let _witness = world.witness_again();
    protect.wait_event("arbiter-reachable");
    output_flows(&world);
    is_protected_again(&world, &mut protect, &mut standby);
    vm.serial.assert_sound();
}

#[test]
fn a_rehearsal_that_fails_holds_no_output_while_the_arbiter_is_away() {
    let Some((world, vm, mut protect, mut standby)) = pair_without_witness() else { return };
    qmp(&vm, "netdev_add", json!({ "type": "user", "id": "n7" }));
    standby.proc.wait_event("rehearsal-failed");
    is_unfit(&world, &protect, "slirp");
    assert_eq!(protect.count("refused"), 1, "{}", protect.said());
    qmp(&vm, "netdev_del", json!({ "id": "n7" }));
    is_protected_again(&world, &mut protect, &mut standby);
    // Once more, and it stays.
    qmp(&vm, "netdev_add", json!({ "type": "user", "id": "n7" }));
    standby.proc.wait_events("rehearsal-failed", 2);
    is_unfit(&world, &protect, "slirp");
    let _witness = world.witness_again();
    let solo = world.wait_role("a", "solo");
    assert!(solo["why_not_protected"]["why"].as_str().unwrap().contains("slirp"), "{solo}");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// A rehearsal has a QEMU and TAP devices of its own: that it passes says nothing of a NIC that the VM would not have there.
#[test]
fn a_change_of_the_vm_makes_no_standby_able() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby, mut client) = net::pair(&world);
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    delete_tap("b");
    is_unfit(&world, &protect, "TAP device tap-b");
    qmp(&vm, "chardev-add", json!({ "id": "nul", "backend": { "type": "null", "data": {} } }));
    standby.proc.wait_event("rehearsal-failed");
    is_unfit(&world, &protect, "TAP device tap-b");
    client.is_served(5);
    let _witness = world.witness_again();
    protect.wait_event("gave-up");
    world.wait_role("a", "solo");
    client.is_served(5);
}
