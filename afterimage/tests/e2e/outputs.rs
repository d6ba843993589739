//! What leaves the VM past the gate: refused by name, forced by name, and noticed when it comes while the VM is protected.

use crate::{
    guest::Vm,
    proc::{self, Proc, until},
    world::{StandbyOptions, VM, World, words},
};
use serde_json::{Value, json};
use std::time::Duration;

fn qmp(vm: &Vm, command: &str, arguments: Value) {
    proc::qmp(&vm.look).execute(command, arguments, Duration::from_secs(10)).unwrap();
}

/// A NIC with a user netdev, a writable disk, and a serial port that is a TCP socket.
fn leaky(world: &World, node: &str) -> Vec<String> {
    let disk = world.path(&format!("{node}.img"));
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let drive = format!("file={},if=none,id=d0,format=raw,file.locking=off", disk.display());
    let mut line = words("-netdev user,id=n1 -device virtio-net-pci,netdev=n1,romfile=,mac=02:00:00:00:00:01");
    line.extend(words("-serial tcp:127.0.0.1:0,server=on,wait=off -device virtio-blk-pci,drive=d0 -drive"));
    line.push(drive);
    line
}

#[test]
fn outputs_that_nobody_holds_are_refused_by_name_and_forced_by_name() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let line = leaky(&world, "a");
    let vm = world.vm("vm", &line.iter().map(String::as_str).collect::<Vec<_>>());
    let mut qemu = world.standby_qemu("b", None);
    qemu.extend(leaky(&world, "b"));
    let mut standby = world.standby_with("b", &StandbyOptions { qemu: Some(qemu), ..StandbyOptions::default() });
    let ends = |name: &str, flags: &str, code, words: &[&str]| {
        let mut protect = world.protect("a", name, &vm.qmp, standby.addr, flags);
        protect.expect_end(code, words);
        vm.serial.goes_on();
    };
    let all = ["netdev n1", "type user", "disk d0", "a.img", "chardev serial1", "what to do", "--nic", "--unheld"];
    ends("refused", "", 6, &[&all[..], &["serial1,d0,n1"], &["read-only"]].concat());
    ends("some", "--unheld n1,serial1", 6, &["disk d0", "--unheld d0"]);
    ends("disks", "--force-writable-disks --unheld n1", 6, &["chardev serial1"]);
    ends("unknown", "--unheld n1,n7", 2, &["no output called n7", "its outputs are", "compat_monitor0", "d0"]);
    // Nobody was asked for anything yet.
    assert!(!world.path("witness").join(format!("{VM}.reg")).exists());

    let flags = "--unheld n1,serial1 --unheld d0";
    let mut protect = world.protect("a", "forced", &vm.qmp, standby.addr, flags);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let status = world.wait_role("a", "protected");
    assert_eq!(status["protected"], true);
    let class = |name: &str| {
        let outputs = status["outputs"].as_array().unwrap();
        outputs.iter().find(|output| output["name"] == name).unwrap_or_else(|| panic!("{name}: {status}"))["class"]
            .clone()
    };
    for (name, expected) in [
        ("n1", "unheld"),
        ("d0", "unheld"),
        ("serial1", "unheld"),
        ("serial0", "operator"),
        ("compat_monitor0", "operator"),
    ] {
        assert_eq!(class(name), expected, "{name}");
    }
    let (code, text, _) = world.run("a", &format!("status --vm {VM}"));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("protected but for serial1, d0, n1, which nothing holds"), "{text}");
    assert!(text.contains("not held, as --unheld allows: netdev n1: "), "{text}");
    vm.serial.goes_on();
}

/// The VM's outputs of a protected pair change; what is told of it, and where the pair ends.
fn outputs_come(world: &World, vm: &Vm, protect: &Proc, standby: &mut Proc) {
    // A netdev without a NIC lets nothing out; but a standby without one of its kind could not load the VM's state.
    qmp(vm, "netdev_add", json!({ "type": "user", "id": "n7" }));
    let outputs = || protect.events().into_iter().rfind(|event| event["event"] == "outputs");
    let told = until("the netdev is noticed", outputs);
    assert_eq!((&told["needs_rehearsal"], &told["unheld"]), (&json!(true), &json!([])), "{told}");
    assert_eq!(world.status("a")["role"], "protected");

    // QEMU lets nobody add a device while checkpoints are taken, but everything else.
    let addr = json!({ "type": "unix", "data": { "path": world.path("leak") } });
    let backend = json!({ "type": "socket", "data": { "addr": addr, "server": true, "wait": false } });
    qmp(vm, "chardev-add", json!({ "id": "leak", "backend": backend }));
    let status = world.wait_role("a", "solo");
    let told = outputs().unwrap();
    assert_eq!(told["unheld"], json!(["leak"]), "{told}");
    let notes = status["notes"].to_string();
    for word in ["not protected: chardev leak", "type socket", "what to do"] {
        assert!(notes.contains(word), "{word}: {notes}");
    }
    assert_eq!(world.run("a", &format!("status --vm {VM}")).0, 3);
    standby.wait_events("waiting", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn an_output_that_comes_ends_protection() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, mut standby) = world.pair();
    outputs_come(&world, &vm, &protect, &mut standby.proc);
    assert!(protect.stderr().contains("chardev leak"), "{}", protect.said());
}

#[test]
fn a_data_path_without_its_supervisor_looks_by_itself() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, mut standby) = world.pair();
    proc::kill(protect.pid());
    until("the data path is alone", || (protect.count("supervisor-died") == 1).then_some(()));
    outputs_come(&world, &vm, &protect, &mut standby.proc);
}
