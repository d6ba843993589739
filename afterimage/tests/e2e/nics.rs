//! A NIC or its TAP device that is wrong, or goes away, costs no more than that NIC, and is said.

use crate::{
    net::{self, Network, delete_tap, make_tap, nic, set_tap},
    proc::{kill, signal, until},
    world::{VM, World, free_addr, kill_host},
};
use rustix::{
    net::{Shutdown, SocketAddrUnix, getpeername, shutdown},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open},
};
use serde_json::Value;
use std::{fs, path::Path};

/// Waits until a node says that something is wrong with its NICs, or that nothing is.
fn wait_network(world: &World, node: &str, wrong: bool) -> (i32, Value) {
    until(&format!("{node}: its NICs are wrong: {wrong}"), || {
        let (code, stdout, _) = world.run(node, &format!("status --vm {VM} --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?; // its data path may have died just now
        (status["role"].is_string() && status["network"].is_string() == wrong).then_some((code, status))
    })
}

#[test]
fn a_wrong_nic_leaves_the_network_to_whoever_has_it() {
    let Some(_network) = Network::enter(&["a"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = net::vm(&world, "a");
    let (mut first, mut client) = net::alone(&world, &vm);
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
    let (_vm, protect, _standby, mut client) = net::pair(&world);
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

/// Breaks a process's connection to this socket.
fn hang_up(pid: u32, socket: &Path) {
    let process = pidfd_open(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), PidfdFlags::empty()).unwrap();
    let address = SocketAddrUnix::new(socket).unwrap();
    let numbers = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
    let theirs = numbers.filter_map(|name| {
        let number = name.to_str().unwrap().parse().unwrap();
        pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()
    });
    let leads_there = |fd: &_| {
        getpeername(fd).ok().flatten().is_some_and(|peer| SocketAddrUnix::try_from(peer).is_ok_and(|p| p == address))
    };
    let connections: Vec<_> = theirs.filter(leads_there).collect();
    assert!(!connections.is_empty(), "{} has no connection to {}", pid, socket.display());
    connections.iter().for_each(|fd| shutdown(fd, Shutdown::Both).unwrap());
}

/// QEMU listens all along; for a while nobody can find it.
#[test]
fn a_connection_that_breaks_is_made_again_on_both_sides() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (_vm, protect, standby, mut client) = net::pair(&world);
    for (node, pid) in [("a", protect.data_path()), ("b", standby.proc.pid())] {
        let (socket, away) = (world.path(&format!("{node}.net")), world.path(&format!("{node}.away")));
        fs::rename(&socket, &away).unwrap();
        hang_up(pid, &socket);
        let (code, told) = wait_network(&world, node, true);
        assert_eq!((code, &told["protected"]), (3, &true.into()), "its copy is as good as before: {told}");
        until("it says which", || {
            let (_, stdout, _) = world.run(node, &format!("status --vm {VM}"));
            let line = stdout.lines().find(|line| line.contains("NETWORK: "))?;
            line.contains(socket.to_str().unwrap()).then_some(())
        });
        fs::rename(&away, &socket).unwrap();
        let (code, told) = wait_network(&world, node, false);
        assert_eq!(code, 0, "{told}");
    }
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
    let (_vm, mut protect, mut standby, mut client) = net::pair(&world);
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

/// It passes no frame, and the kernel tells nobody who has it open.
#[test]
fn a_tap_device_that_is_down_counts_as_one_that_is_missing() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby, mut client) = net::pair(&world);
    set_tap("a", "down");
    let (code, told) = wait_network(&world, "a", true);
    assert_eq!((code, &told["protected"]), (3, &true.into()), "its copy is as good as before: {told}");
    assert!(says_which(&world, "a").contains("ip link set tap-a up"));
    set_tap("a", "up");
    assert_eq!(wait_network(&world, "a", false).0, 0);

    set_tap("b", "down");
    let (code, told) = wait_network(&world, "b", true);
    assert_eq!((code, &told["protected"]), (3, &false.into()), "{told}");
    assert!(says_which(&world, "b").contains("ip link set tap-b up"));
    let solo = world.wait_role("a", "solo");
    assert!(solo["why_not_protected"]["why"].to_string().contains("ip link set tap-b up"), "{solo}");
    client.is_served(5);
    until("it is idle", || (world.status("b")["role"] == "idle").then_some(()));
    set_tap("b", "up");
    world.run("a", &format!("reprotect --vm {VM}"));
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    wait_network(&world, "b", false);

    // In the moment of the takeover.
    set_tap("b", "down");
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    for side in ["standby", "keeper"] {
        until(&format!("the {side} tells of it"), || {
            let (code, stdout, _) = world.run("b", &format!("status --vm {VM} --role {side}"));
            (code == 3 && stdout.contains("ip link set tap-b up")).then_some(())
        });
    }
    set_tap("b", "up");
    client.is_served(5);
}

/// It is lost in the same moment as the primary: the VM runs, and has its network when the device is there.
#[test]
fn a_vm_is_taken_over_without_its_tap_device() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby, mut client) = net::pair(&world);
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
    let vm = net::vm(&world, "a");
    let (mut protect, mut client) = net::alone(&world, &vm);
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
