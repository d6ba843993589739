//! A NIC or its TAP device that is wrong, or goes away, costs no more than that NIC, and is said.

use crate::{
    guest::Vm,
    net::{Client, Network, delete_tap, device, make_tap, nic},
    proc::{Proc, kill, signal, until},
    world::{Standby, StandbyOptions, VM, World, free_addr, kill_host},
};
use rustix::process::Signal;
use serde_json::Value;

fn vm(world: &World) -> Vm {
    let more = device(world.dir.path(), "a");
    world.vm("vm", &more.iter().map(String::as_str).collect::<Vec<_>>())
}

/// `protect` of a VM that has no standby, and its client, which is served.
fn alone(world: &World, vm: &Vm) -> (Proc, Client) {
    let protect = world.protect("a", "a", &vm.qmp, free_addr(), &format!("--nic {}", nic(world.dir.path(), "a")));
    world.wait_role("a", "solo");
    let mut client = Client::new();
    client.is_served(5);
    (protect, client)
}

fn standby(world: &World) -> Standby {
    let mut qemu = world.standby_qemu("b", None);
    qemu.extend(device(world.dir.path(), "b"));
    let flags = vec!["--nic".to_owned(), nic(world.dir.path(), "b")];
    world.standby_with("b", &StandbyOptions { qemu: Some(qemu), flags, ..StandbyOptions::default() })
}

fn status(world: &World, node: &str) -> (i32, Value) {
    let (code, stdout, _) = world.run(node, &format!("status --vm {VM} --json"));
    (code, serde_json::from_str(&stdout).unwrap_or_default())
}

/// Waits until a node says that something is wrong with its NICs, or that nothing is.
fn wait_network(world: &World, node: &str, wrong: bool) -> (i32, Value) {
    until(&format!("{node}: its NICs are wrong: {wrong}"), || {
        let (code, status) = status(world, node);
        (status["role"].is_string() && status["network"].is_string() == wrong).then_some((code, status))
    })
}

#[test]
fn a_wrong_nic_leaves_the_network_to_whoever_has_it() {
    let Some(_network) = Network::enter(&["a"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = vm(&world);
    let (mut first, mut client) = alone(&world, &vm);
    let wrong = nic(world.dir.path(), "a").replace("tap-a", "tap-A");
    let mut second = world.protect("a", "a2", &vm.qmp, free_addr(), &format!("--nic {wrong}"));
    second.expect_end(6, &["error: TAP device tap-A", "ip tuntap add dev tap-A"]);
    assert!(first.is_running(), "{}", first.said());
    client.is_served(5);

    // Nor does it take a keeper's.
    signal(first.pid(), Signal::TERM);
    first.expect_end(0, &[]);
    first.wait_event("keeper-started");
    let mut third = world.protect("a", "a3", &vm.qmp, free_addr(), &format!("--nic {wrong}"));
    third.expect_end(6, &["error: TAP device tap-A"]);
    client.is_served(5);
}

#[test]
fn a_tap_device_that_is_made_again_on_the_primary_is_found() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = vm(&world);
    let mut standby = standby(&world);
    let flags = format!("--nic {}", nic(world.dir.path(), "a"));
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &flags);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let mut client = Client::new();
    client.is_served(5);
    delete_tap("a");
    let (code, told) = wait_network(&world, "a", true);
    assert_eq!((code, &told["protected"]), (3, &true.into()), "its copy is as good as before: {told}");
    says_which(&world, "a");
    make_tap("a");
    let (code, told) = wait_network(&world, "a", false);
    assert_eq!(code, 0, "{told}");
    client.is_served(5);
    assert_eq!(protect.count("nics-connected"), 1, "{}", protect.said());
}

fn says_which(world: &World, node: &str) -> String {
    until("it says which", || {
        let (_, stdout, _) = world.run(node, &format!("status --vm {VM}"));
        stdout.contains(&format!("NETWORK: TAP device tap-{node}")).then_some(stdout)
    })
}

/// A VM that is taken over without it is mute: such a host does not count as a standby.
#[test]
fn a_standby_whose_tap_device_is_missing_protects_nothing() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = vm(&world);
    let mut standby = standby(&world);
    let flags = format!("--nic {}", nic(world.dir.path(), "a"));
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &flags);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let mut client = Client::new();
    delete_tap("b");
    let (code, told) = wait_network(&world, "b", true);
    assert_eq!((code, &told["protected"]), (3, &false.into()), "{told}");
    says_which(&world, "b");
    let solo = world.wait_role("a", "solo");
    let named = |text: &str| text.contains("TAP device tap-b") && text.contains("ip tuntap add dev tap-b");
    assert!(named(&solo["why_not_protected"]["why"].to_string()), "{solo}");
    // It waits for nobody, and tells of it all the same.
    until("it is idle", || (world.status("b")["role"] == "idle").then_some(()));
    world.run("a", &format!("reprotect --vm {VM}"));
    standby.proc.wait_event("refused");
    assert!(named(&says_which(&world, "b")) && named(&standby.proc.wait_event("refused").to_string()));
    client.is_served(5);
    make_tap("b");
    world.run("a", &format!("reprotect --vm {VM}"));
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    wait_network(&world, "b", false);
    client.is_served(5);
}

/// It is lost in the same moment as the primary: the VM runs, and has its network when the device is there.
#[test]
fn a_vm_is_taken_over_without_its_tap_device() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let mut vm = vm(&world);
    let mut standby = standby(&world);
    let flags = format!("--nic {}", nic(world.dir.path(), "a"));
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &flags);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let mut client = Client::new();
    client.is_served(5);
    delete_tap("b");
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    assert_eq!(standby.proc.count("takeover-failed"), 0, "{}", standby.proc.said());
    // A keeper has the network, and says the same.
    for side in ["standby", "keeper"] {
        until(&format!("the {side} tells of it"), || {
            let (code, stdout, _) = world.run("b", &format!("status --vm {VM} --role {side}"));
            (code == 3 && stdout.contains("NETWORK: TAP device tap-b")).then_some(())
        });
    }
    make_tap("b");
    client.is_served(5);
    until("it is told", || {
        let (_, stdout, _) = world.run("b", &format!("status --vm {VM} --role standby"));
        (!stdout.contains("NETWORK")).then_some(())
    });
}

#[test]
fn a_data_path_whose_tap_device_is_gone_waits_for_it() {
    let Some(_network) = Network::enter(&["a"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = vm(&world);
    let (mut protect, mut client) = alone(&world, &vm);
    let first = protect.data_path();
    delete_tap("a");
    kill(first);
    protect.wait_event("data-path-died");
    let (code, told) = wait_network(&world, "a", true);
    assert_eq!((code, &told["role"]), (3, &"solo".into()), "{told}");
    assert!(protect.is_running(), "{}", protect.said());
    make_tap("a");
    wait_network(&world, "a", false);
    client.is_served(5);
}
