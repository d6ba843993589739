//! What leaves the VM past the gate: refused by name, forced by name, and noticed when it comes while the VM is
//! protected.

use crate::{
    guest::Vm,
    proc::{self, Proc, until},
    world::{StandbyOptions, VM, World, free_addr, words},
};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) fn qmp(vm: &Vm, command: &str, arguments: Value) {
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
    assert!(text.contains(" but for serial1, d0, n1, which nothing holds"), "{text}");
    assert!(text.contains("not held, as --unheld allows: netdev n1: "), "{text}");
    let (code, text, _) = world.run("b", &format!("status --vm {VM}"));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains(" but for serial1, d0, n1, which nothing holds"), "{text}");
    vm.serial.goes_on();
}

/// Words of the newest event `outputs`.
fn told(protect: &Proc) -> Option<Value> {
    protect.events().into_iter().rfind(|event| event["event"] == "outputs")
}

/// A chardev that reaches other programs comes.
pub(crate) fn leak(world: &World, vm: &Vm) {
    let addr = json!({ "type": "unix", "data": { "path": world.path("leak") } });
    let backend = json!({ "type": "socket", "data": { "addr": addr, "server": true, "wait": false } });
    qmp(vm, "chardev-add", json!({ "id": "leak", "backend": backend }));
}

/// To a protected VM.
fn a_leak_comes(world: &World, vm: &Vm, protect: &Proc, standby: &mut Proc) {
    leak(world, vm);
    standby.wait_events("waiting", 2);
    let status = until("the leak is why", || {
        let status = world.wait_role("a", "solo");
        status["why_not_protected"]["why"].as_str()?.contains("chardev leak").then_some(status)
    });
    let news = told(protect).unwrap();
    assert_eq!((&news["unheld"], &news["came"]), (&json!(["leak"]), &json!(["chardev leak (unheld)"])), "{news}");
    let why = status["why_not_protected"]["why"].as_str().unwrap();
    for word in ["that is not held: chardev leak", "type socket", "what to do"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    let (code, text, _) = world.run("a", &format!("status --vm {VM}"));
    assert!(code == 3 && text.contains("NOT PROTECTED") && text.contains("unheld chardev"), "{code} {text}");
    vm.serial.goes_on();
    assert_eq!(protect.count("protected"), 1, "{}", protect.said());
}

fn the_leak_goes(vm: &Vm, protect: &Proc, standby: &mut Proc) {
    qmp(vm, "chardev-remove", json!({ "id": "leak" }));
    until("it is protected again", || (protect.count("protected") == 2).then_some(())); // its supervisor may be gone
    standby.wait_events("protected", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn an_output_that_comes_ends_protection_until_it_goes() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    a_leak_comes(&world, &vm, &protect, &mut standby.proc);
    assert!(protect.stderr().contains("chardev leak"), "{}", protect.said());
    // A data path that is started anew knows of it.
    proc::kill(protect.data_path());
    protect.wait_events("solo", 3);
    until("it does not look for a standby", || {
        let why = world.status("a")["why_not_protected"]["why"].as_str()?.to_owned();
        why.contains("chardev leak").then_some(())
    });
    assert_eq!(standby.proc.count("syncing"), 1, "{}", standby.proc.said());
    the_leak_goes(&vm, &protect, &mut standby.proc);
}

#[test]
fn a_data_path_without_its_supervisor_looks_by_itself() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, mut standby) = world.pair();
    proc::kill(protect.pid());
    until("the data path is alone", || (protect.count("supervisor-died") == 1).then_some(()));
    a_leak_comes(&world, &vm, &protect, &mut standby.proc);
    the_leak_goes(&vm, &protect, &mut standby.proc);
}

/// The position of the `n`th such event.
fn position(events: &[Value], name: &str, n: usize) -> usize {
    let mut found = events.iter().enumerate().filter(|(_, event)| event["event"] == name);
    found.nth(n - 1).unwrap_or_else(|| panic!("{name} {n}: {events:?}")).0
}

/// A netdev without a NIC lets nothing out; but its QEMU has a section in the device state that the standby's does not
/// know.
#[test]
fn a_change_that_the_standby_cannot_load_ends_protection_and_is_named_on_both_hosts() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    qmp(&vm, "netdev_add", json!({ "type": "user", "id": "n7" }));
    let failed = standby.proc.wait_event("rehearsal-failed");
    assert!(failed["why"].as_str().is_some_and(|why| why.contains("slirp")), "{failed}");
    protect.wait_events("solo", 2);
    let events = protect.events();
    let (changed, ended) = (position(&events, "outputs", 1), position(&events, "solo", 2));
    let holding = events[changed..].iter().position(|event| event["event"] == "holding").expect("no claim") + changed;
    assert!(changed < holding && holding < ended, "{}", protect.said());
    assert_eq!(events[changed]["came"][0], "netdev n7 (harmless)", "{}", events[changed]);
    assert_eq!(protect.count("protected"), 1, "{}", protect.said());
    for (node, field) in [("a", "why_not_protected"), ("b", "notes")] {
        let status = world.status(node);
        assert!(status[field].to_string().contains("slirp"), "{node}: {status}");
        assert_eq!(world.run(node, &format!("status --vm {VM}")).0, 3, "{status}");
    }
    vm.serial.goes_on();

    qmp(&vm, "netdev_del", json!({ "id": "n7" }));
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn a_change_that_the_standby_can_load_ends_the_claim_until_it_has() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, standby) = world.pair();
    qmp(&vm, "object-add", json!({ "qom-type": "rng-builtin", "id": "r0" }));
    protect.wait_events("protected", 2);
    let events = protect.events();
    let (first, changed) = (position(&events, "protected", 1), position(&events, "outputs", 1));
    let between = &events[changed..position(&events, "protected", 2)];
    assert!(first < changed && between.iter().any(|event| event["event"] == "holding"), "{}", protect.said());
    assert_eq!(standby.proc.count("rehearsed"), 2, "{}", standby.proc.said());
    assert_eq!(world.status("a")["protected"], true);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// It answers at once, so that nobody waits for what will not come.
#[test]
fn a_change_is_no_end_of_protection_where_nothing_is_rehearsed() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let options = StandbyOptions { flags: words("--no-rehearsal"), ..StandbyOptions::default() };
    let (vm, mut protect, standby) = world.pair_with(&options);
    qmp(&vm, "object-add", json!({ "qom-type": "rng-builtin", "id": "r0" }));
    protect.wait_event("outputs");
    // The claim ends; the standby's answer may come so soon that nobody sees it.
    until("it is claimed again", || {
        let status = world.status("a");
        (status["protected"] == true && !status["notes"].to_string().contains("the VM's devices have changed"))
            .then_some(())
    });
    assert_eq!(protect.count("solo"), 1, "protection did not end: {}", protect.said());
    let rehearsals = ["rehearsing", "rehearsed"].map(|event| standby.proc.count(event));
    assert_eq!((rehearsals, standby.proc.count("waiting")), ([0, 0], 1), "{}", standby.proc.said());
    assert_eq!(world.status("a")["protected"], true);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// A session that begins later is with the VM as it is then.
#[test]
fn a_device_that_comes_before_the_standby_belongs_to_the_vm() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let addr = free_addr();
    let mut protect = world.protect("a", "a", &vm.qmp, addr, "");
    protect.wait_event("no-session");
    qmp(&vm, "device_add", json!({ "driver": "virtio-balloon-pci", "id": "b0", "addr": "0x10" }));
    until("it is noticed", || told(&protect));
    let mut line = world.standby_qemu("b", None);
    line.extend(words("-device virtio-balloon-pci,id=b0,addr=0x10"));
    let options = StandbyOptions { qemu: Some(line), addr: Some(addr), ..StandbyOptions::default() };
    let mut standby = world.standby_with("b", &options);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
