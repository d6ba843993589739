//! Copies of one VM, on two hosts or on one: whose it is, is a copy's and not a host's.

use crate::{
    net::{self, Network},
    proc::{LONG, is_alive, kill, signal, until},
    takeover::fragile,
    world::{VM, World, free_addr, kill_host},
};
use mc_core::{
    id::Name,
    register::{CasOutcome, Mode, Owner, Register, Swap},
};
use node::{
    arbiter::{Answer, ArbiterConfig, Ask, ask_once},
    identity,
};
use rustix::process::Signal;
use std::path::Path;

/// All of a host's processes are frozen, and its VM is taken over. The host stands by again, and takes the VM over when
/// its owner dies; then the old processes go on.
#[test]
fn an_old_copy_is_fenced_by_a_later_one_of_its_own_host() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let mut vm = world.vm("vm", &[]);
    let mut b = world.standby("b");
    let mut old = world.protect("a", "old", &vm.qmp, b.addr, "");
    old.wait_event("protected");
    b.proc.wait_event("protected");
    let qemu = b.proc.child_with("qemu-system").expect("a waiting QEMU");
    let frozen = [old.pid(), old.data_path(), vm.proc.pid()];
    frozen.into_iter().for_each(|pid| signal(pid, Signal::STOP));
    b.proc.wait_event("running");
    // The host stands by, with the same directories.
    let mut again = world.standby("a");
    let taken_over = world.run_dir("b").join(VM).join("standby.qmp");
    let mut protect = world.protect("b", "b-protect", &taken_over, again.addr, "");
    protect.wait_event("protected");
    again.proc.wait_event("protected");
    [protect.data_path(), protect.pid(), qemu].into_iter().for_each(kill);
    protect.kill();
    again.proc.wait_event("running");
    again.serial.goes_on();
    let held = world.register();
    assert_eq!((held.owner.node.to_string().as_str(), held.mode), ("a", Mode::Solo));

    frozen.into_iter().for_each(|pid| signal(pid, Signal::CONT));
    old.expect_end(4, &["error: ", "another copy of it on this node owns the VM now"]);
    until("the old copy is ended", || (!vm.proc.is_running()).then_some(()));
    assert_eq!(old.count("solo"), 1, "before it was protected: {}", old.said());
    assert_eq!(world.register(), held, "nobody has taken the VM from the later one");
    assert!(again.proc.is_running(), "{}", again.proc.said());
    again.serial.goes_on();
}

#[test]
fn a_second_vm_of_the_name_does_not_end_the_first() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut first) = world.alone();
    let held = world.register();
    let other = world.vm("other", &[]);
    let flags = format!("--run-dir {}", world.path("elsewhere").display());
    let second = || world.protect("a", "second", &other.qmp, free_addr(), &flags);
    let living = format!("process of this host, {}", vm.proc.pid());
    // Stopped by a signal it lives as well.
    for stopped in [false, true] {
        if stopped {
            signal(vm.proc.pid(), Signal::STOP);
        }
        second()
            .expect_end(4, &["error: web is another QEMU", &living, "what to do", "end the QEMU that --qmp leads to"]);
    }
    signal(vm.proc.pid(), Signal::CONT);
    vm.serial.goes_on();
    other.serial.goes_on();
    assert_eq!(world.register(), held, "nothing was changed");
    assert!(first.is_running(), "{}", first.said());
    // Once it is gone, another may follow it.
    vm.proc.kill();
    first.expect_end(1, &["the VM's QEMU died"]);
    second().wait_event("no-session");
    assert!(world.register().owner != held.owner && world.register().mode == Mode::Solo);
}

/// The takeover fails, and the operator gives the VM to the other host.
#[test]
fn a_takeover_is_given_up_when_the_vm_is_given_to_another_node() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (options, broken) = fragile(&world);
    let (mut vm, mut protect, mut standby) = world.pair_with(&options);
    std::fs::write(&broken, "").unwrap();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    kill(waiting);
    until("it is gone", || (!is_alive(waiting)).then_some(()));
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_events("takeover-failed", 2);
    let mut assign = World::program();
    assign.args(["witness", "assign", VM, "a", "--yes-the-others-are-stopped", "--state"]).arg(world.path("witness"));
    assert!(assign.output().unwrap().status.success());
    // Else it would run the VM as soon as it can.
    standby.proc.expect_end(4, &["error: web was given to another node", "Kept the image of"]);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    let kept = standby.proc.wait_event("image-kept");
    let ram = Path::new(kept["ram"].as_str().unwrap());
    for path in [ram, &ram.with_extension("state"), &ram.with_extension("json")] {
        assert!(std::fs::metadata(path).is_ok_and(|file| file.len() > 0), "{kept}: {}", path.display());
    }
}

/// The VM runs on b since a takeover; its host has another copy since, and that one won.
#[test]
fn a_vm_that_was_taken_over_is_not_seen_beside_a_later_copy_of_its_host() {
    let Some(_network) = Network::enter(&["a", "b"]) else { return };
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby, mut client) = net::pair(&world);
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.proc.wait_event("keeper-started");
    client.is_served(5);
    let name = |text| Name::new(text).unwrap();
    let config = ArbiterConfig {
        spec: world.arbiter.parse().unwrap(),
        vm: name(VM),
        node: identity::node(&world.path("state-b"), name("b")).unwrap(),
        run_dir: world.path("other"),
        state_dir: world.path("state-b"),
        accept_witness: false,
    };
    let held = world.register();
    let new = Register {
        generation: held.generation.next(),
        owner: Owner { instance: held.owner.instance ^ 1, ..held.owner },
        ..held
    };
    let won = ask_once(&config, Ask::Cas(Swap { expect: held.generation, new, contested: false }), LONG).unwrap();
    assert_eq!(won, Answer::Cas(CasOutcome::Won(new)));
    standby.proc.expect_end(4, &["belongs to another QEMU process of this node since", "must not reach the network"]);
    // Not by its keeper, either; and its QEMU is left to the operator.
    assert!(client.hears_nothing(), "{}", standby.proc.said());
    standby.serial.goes_on();
}
