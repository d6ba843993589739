//! The arbiter is away: what needs it is refused, or waits without holding output that was free.

use crate::{
    net::{self, Client, Network, device, nic},
    proc::{Proc, signal, until},
    world::{StandbyOptions, VM, World, free_addr, words},
};
use rustix::process::Signal;

fn acked(world: &World) -> u64 {
    world.status("a")["last_ack_epoch"].as_u64().unwrap()
}

/// Epochs are committed, so output is released.
pub(crate) fn output_flows(world: &World) {
    let then = acked(world);
    until("epochs are committed", || (acked(world) > then + 5).then_some(()));
}

fn refuses(world: &World, line: &str) {
    let (code, stdout, stderr) = world.run("a", line);
    assert_eq!((code, stdout.as_str()), (6, ""), "{line}: {stderr}");
    for word in ["through the arbiter, and witness://", "does not answer", "nothing was changed", "what to do"] {
        assert!(stderr.contains(word), "{line}: {word:?} is not in {stderr}");
    }
    let status = world.status("a");
    assert_eq!((&status["role"], &status["protected"]), (&"protected".into(), &true.into()), "{status}");
}

#[test]
fn protection_is_not_ended_while_the_arbiter_is_away() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let (unprotect, solo) = (format!("unprotect --vm {VM}"), format!("solo --vm {VM} --although-it-beats b"));
    // Hung, and not known to be yet.
    signal(witness.pid(), Signal::STOP);
    refuses(&world, &unprotect);
    output_flows(&world);
    signal(witness.pid(), Signal::CONT);
    // Dead, and known to be.
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    refuses(&world, &unprotect);
    refuses(&world, &solo);
    output_flows(&world);
    vm.serial.goes_on();
    assert_eq!(protect.count("asking"), 1, "nothing was asked for: {}", protect.said());

    let _witness = world.witness_again();
    protect.wait_event("arbiter-reachable");
    let (code, stdout, stderr) = world.run("a", &unprotect);
    assert!(code == 0 && stdout.starts_with("web runs here alone (g3), unprotected"), "{code} {stdout} {stderr}");
    world.wait_role("a", "solo");
    standby.proc.wait_events("waiting", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn an_operator_who_is_the_arbiter_is_told_what_to_do() {
    let Some(world) = World::new() else { return };
    let (vm, _protect, _standby) = world.pair();
    let (code, stdout, stderr) = world.run("a", &format!("unprotect --vm {VM}"));
    assert_eq!((code, stdout.as_str()), (6, ""), "{stderr}");
    assert!(
        stderr.contains("with --arbiter manual only an operator") && stderr.contains("stop the standby"),
        "{stderr}"
    );
    output_flows(&world);
    vm.serial.goes_on();
}

fn waits(world: &World, protect: &mut Proc) {
    let status = world.wait_role("a", "waiting-for-arbiter");
    assert!(status["notes"].to_string().contains("gate stays closed"), "{status}");
    assert_eq!(status["arbiter"]["reachable"], false, "{status}");
    let told = protect.wait_event("waiting-for-arbiter");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("refused")), "{told}");
    assert_eq!(world.run("a", &format!("status --vm {VM}")).0, 3);
    let (code, _, stderr) = world.run("a", &format!("unprotect --vm {VM}"));
    assert!(code == 1 && stderr.contains("who owns the VM"), "{code} {stderr}");
}

/// It hangs after the standby has begun, and before it is told of it: beats are so slow that this takes seconds.
#[test]
fn a_witness_that_hangs_while_protection_is_asked_for_mutes_nobody() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, witness)) = World::with_witness() else { return };
    let vm = net::vm(&world, "a");
    let slow = "--beat-interval 1s --detect-multiplier 4";
    let mut qemu = world.standby_qemu("b", None);
    qemu.extend(device(world.dir.path(), "b"));
    let flags = words(&format!("{slow} --nic {}", nic(world.dir.path(), "b")));
    let mut standby = world.standby_with("b", &StandbyOptions { qemu: Some(qemu), flags, ..StandbyOptions::default() });
    let flags = format!("{slow} --nic {}", nic(world.dir.path(), "a"));
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &flags);
    standby.proc.wait_event("syncing");
    signal(witness.pid(), Signal::STOP);
    assert_eq!(protect.count("asking"), 0, "{}", protect.said());
    protect.wait_event("asking");
    let mut client = Client::new();
    client.is_served(20);
    assert_eq!(protect.count("protected"), 0, "{}", protect.said());
    signal(witness.pid(), Signal::CONT);
    protect.wait_event("protected");
    client.is_served(5);
}

/// After a power cut everything boots at once.
#[test]
fn at_the_start_protect_waits_for_the_arbiter_with_the_gate_closed() {
    let Some(mut world) = World::new() else { return };
    world.arbiter = format!("witness://{}", free_addr());
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    waits(&world, &mut protect);
    assert_eq!(protect.count("attached"), 0, "{}", protect.said());
    let _witness = world.witness_again();
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    vm.serial.goes_on();
}

#[test]
fn who_waits_for_the_arbiter_is_ended_by_a_signal_or_by_a_successor() {
    let Some(mut world) = World::new() else { return };
    world.arbiter = format!("witness://{}", free_addr());
    let vm = world.vm("vm", &[]);
    let mut first = world.protect("a", "a", &vm.qmp, free_addr(), "");
    waits(&world, &mut first);
    let mut second = world.protect("a", "a2", &vm.qmp, free_addr(), "");
    first.expect_end(0, &[]);
    world.wait_role("a", "waiting-for-arbiter");
    second.wait_event("waiting-for-arbiter");
    signal(second.pid(), Signal::TERM);
    second.expect_end(0, &[]);
    vm.serial.goes_on();
}

/// Whoever is the VM's way to its network goes on when its successor cannot begin.
#[test]
fn a_successor_that_cannot_begin_changes_nothing() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let addr = free_addr();
    let mut first = world.protect("a", "a", &vm.qmp, addr, "");
    first.wait_event("no-session");
    let generation = world.register().generation;
    let mut command = World::program();
    let args = ["protect", "--vm", VM, "--node", "a", "--to", "127.0.0.1:1", "--arbiter"];
    command.args(args).arg(format!("witness://{}", free_addr())).arg("--qmp").arg(&vm.qmp);
    command.arg("--run-dir").arg(world.run_dir("a")).arg("--state-dir").arg(world.path("state-a"));
    let mut second = Proc::spawn(world.dir.path(), "a2", command);
    second.expect_end(6, &["the arbiter", "cannot be reached", "the `protect` that has the VM goes on"]);
    assert_eq!(world.status("a")["role"], "solo");
    assert_eq!(world.register().generation, generation);
    vm.serial.goes_on();
    // It has QEMU's control connection again, and looks for standbys again.
    let _standby = world.standby_at("b", addr);
    first.wait_event("protected");
    assert!(first.stderr().contains("did not start"), "{}", first.said());
    vm.serial.goes_on();
}
