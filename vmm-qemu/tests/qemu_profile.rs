//! Profiles and QMP, with a stock QEMU.

#![allow(missing_docs, reason = "a test")]

mod qemu_support;

use qemu_support::{Guest, PATIENCE, accel, command};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::net::UnixListener,
    thread,
    time::{Duration, Instant},
};
use vmm_qemu::{
    profile::{Profile, ProfileJsonError},
    qmp::{Qmp, QmpError, instance_id},
};

/// To a command line.
type Change<'a> = &'a dyn Fn(&mut Vec<String>);

/// The profile of the tiny guest's command, changed.
fn profile(change: Change<'_>) -> Profile {
    let dir = tempfile::tempdir().unwrap();
    let mut argv = command(dir.path(), accel());
    change(&mut argv);
    let guest = Guest::spawn(dir.path(), "guest", &argv).expect("qemu-system-x86_64 is not installed");
    Profile::query(&mut guest.qmp()).unwrap()
}

fn replace(argv: &mut [String], option: &str, value: &str) {
    let at = argv.iter().position(|argument| argument == option).unwrap();
    argv[at + 1] = value.into();
}

fn add(argv: &mut Vec<String>, text: &str) {
    argv.extend(text.split(' ').map(str::to_owned));
}

#[test]
fn finds_what_differs_and_nothing_else() {
    let nic = "-netdev user,id=n0 -device e1000,netdev=n0,mac=02:00:00:00:00:02";
    let ours = profile(&|argv| add(argv, nic));
    assert_eq!(ours, Profile::from_json(&ours.to_json()).unwrap());
    assert_eq!((ours.machine.as_str(), ours.vcpus()), ("pc-i440fx-7.2", 1));
    assert_eq!(ours.accel, accel());
    assert_eq!(ours.cpus[0].model, "qemu64-x86_64-cpu");
    assert_eq!(ours.blocks[0].name, "pc.ram");
    assert_eq!(ours.blocks[0].used_length, 0x100_2000);

    // Provided another way, and waiting, and with another name for the network backend.
    let same = profile(&|argv| {
        add(argv, &nic.replace("n0", "other"));
        add(argv, "-incoming defer");
        replace(argv, "-M", "pc-i440fx-7.2");
    });
    assert_eq!(ours.mismatches(&same), Vec::<String>::new());

    let cases: [(&str, Change<'_>, &str); 8] = [
        ("CPU", &|argv| replace(argv, "-cpu", "qemu64,-nx"), "vCPU 0 CPUID.80000001H:EDX"),
        ("CPU model", &|argv| replace(argv, "-cpu", "kvm64"), "vCPU 0 model"),
        ("CPUs", &|argv| replace(argv, "-smp", "2"), "number of vCPUs: 1 on the primary, 2 on the standby"),
        ("RAM", &|argv| replace(argv, "-m", "32M"), "RAM block \"pc.ram\""),
        ("machine", &|argv| replace(argv, "-M", "q35"), "machine type: pc-i440fx-7.2 on the primary"),
        ("version", &|argv| replace(argv, "-M", "pc-i440fx-6.2"), "machine type"),
        ("device", &|argv| add(argv, "-device virtio-rng-pci"), "virtio-rng-pci"),
        ("property", &|argv| *argv = argv.iter().map(|a| a.replace(":02", ":03")).collect(), "mac"),
    ];
    for (name, change, expected) in cases {
        let theirs = profile(&|argv| {
            add(argv, nic);
            change(argv);
        });
        let found = ours.mismatches(&theirs);
        assert!(found.iter().any(|line| line.contains(expected)), "{name}: {found:#?}");
        assert!(!theirs.mismatches(&ours).is_empty(), "{name}");
    }
}

/// Firmware assigns addresses and interrupts; none of that is part of a profile.
#[test]
fn a_vm_that_has_booted_is_the_same_as_one_that_waits() {
    for machine in ["pc", "q35"] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("firmware");
        let text = format!(
            "qemu-system-x86_64 -accel tcg -M {machine} -m 32M -smp 2 -display none -no-user-config -vga std \
             -device virtio-net-pci -device virtio-rng-pci -device qemu-xhci -device usb-tablet \
             -global isa-debugcon.iobase=0x402 -debugcon file:{}",
            log.display()
        );
        let argv: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let running = Guest::spawn(dir.path(), "running", &argv).expect("qemu-system-x86_64 is not installed");
        let deadline = Instant::now() + PATIENCE;
        while !fs::read_to_string(&log).unwrap_or_default().contains("Booting from") {
            assert!(Instant::now() < deadline, "the firmware does not get there");
            thread::sleep(Duration::from_millis(20));
        }
        let waiting = [argv, vec!["-incoming".into(), "defer".into()]].concat();
        let waiting = Guest::spawn(dir.path(), "waiting", &waiting).unwrap();
        let (ours, theirs) = (Profile::query(&mut running.qmp()).unwrap(), Profile::query(&mut waiting.qmp()).unwrap());
        assert_eq!(ours.mismatches(&theirs), Vec::<String>::new(), "{machine}");
        assert!(ours.devices.len() > 30, "{}", ours.devices.len());
    }
}

#[test]
fn another_vcpu_topology_is_found() {
    let cores = profile(&|argv| replace(argv, "-smp", "2,cores=2,sockets=1"));
    let sockets = profile(&|argv| replace(argv, "-smp", "2,cores=1,sockets=2"));
    let found = cores.mismatches(&sockets);
    assert!(found.iter().any(|line| line.contains("vCPU 1 place")), "{found:#?}");
}

#[test]
fn a_profile_from_a_peer_is_checked() {
    assert_eq!(Profile::from_json(&vec![b' '; 2 << 20]), Err(ProfileJsonError::TooLong(2 << 20)));
    assert!(matches!(Profile::from_json(b"{\"surprise\": 1}"), Err(ProfileJsonError::Json(_))));
    let none =
        json!({"qemu-version": "7.2.0", "machine": "pc", "accel": "kvm", "cpus": [], "devices": [], "blocks": []});
    assert!(matches!(Profile::from_json(none.to_string().as_bytes()), Err(ProfileJsonError::Blocks(_))));
}

/// QEMU serves whoever asks, in order, whether or not its answers are waited for.
#[test]
fn commands_whose_answers_are_taken_later() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start(dir.path(), "guest", accel(), &[]);
    let mut qmp = guest.qmp();
    let asked = ["query-status", "no-such-command", "query-name"].map(|name| qmp.ask(name, Value::Null).unwrap());
    qmp.forget(asked[2]);
    // One that is waited for keeps what else comes.
    assert!(qmp.execute("query-kvm", Value::Null, PATIENCE).is_ok());
    assert_eq!(qmp.answer(asked[0]).unwrap().unwrap().unwrap()["status"], "running");
    let refused = qmp.answer(asked[1]).unwrap().unwrap().unwrap_err();
    assert!(matches!(&refused, QmpError::Command { command, .. } if command == "no-such-command"), "{refused}");
    assert!(qmp.answer(asked[1]).unwrap().is_none(), "an answer is taken once");
    assert!(!qmp.has_answered(asked[2]).unwrap(), "forgotten");
}

#[test]
fn commands_and_events() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path(), "guest", accel(), &[]);
    let mut qmp = guest.qmp();
    assert!(qmp.version().starts_with(|c: char| c.is_ascii_digit()), "{}", qmp.version());
    assert_eq!(qmp.peer_pid().unwrap(), guest.child.id());
    assert_ne!(instance_id(guest.child.id()).unwrap(), instance_id(std::process::id()).unwrap());
    assert!(qmp.hmp("info status", PATIENCE).unwrap().contains("running"));
    let refused = qmp.execute("no-such-command", Value::Null, PATIENCE).unwrap_err();
    assert!(matches!(&refused, QmpError::Command { command, .. } if command == "no-such-command"), "{refused}");

    qmp.execute("stop", Value::Null, PATIENCE).unwrap();
    qmp.execute("cont", Value::Null, PATIENCE).unwrap();
    let resumed = qmp.wait_event("RESUME", PATIENCE).unwrap();
    qmp.poll_events().unwrap();
    let others = qmp.take_events();
    assert!(others.iter().any(|event| event.name == "STOP" && event.timestamp <= resumed.timestamp), "{others:?}");
    let none = qmp.wait_event("RESUME", Duration::from_millis(20)).unwrap_err();
    assert!(matches!(none, QmpError::Timeout { .. }), "{none}");

    let second = Qmp::connect(&guest.qmp_path, Duration::from_millis(100)).unwrap_err();
    assert!(second.to_string().contains("one at a time"), "{second}");
    guest.child.kill().unwrap();
    qmp.wait_closed(PATIENCE).unwrap();
    assert!(matches!(qmp.execute("query-status", Value::Null, PATIENCE), Err(QmpError::Closed)));
}

#[test]
fn a_socket_that_is_no_qmp() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    assert!(matches!(Qmp::connect(&path, PATIENCE), Err(QmpError::Connect { .. })));
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let mut kept = Vec::new();
        for greeting in ["SSH-2.0-OpenSSH_9.2\r\n", "login: ", "", "{\"return\": {}}\n"] {
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(greeting.as_bytes()).unwrap();
            if !greeting.is_empty() {
                kept.push(peer);
            }
        }
    });
    for expected in ["SSH-2.0", "login: ", "without a greeting", "expected QMP's greeting"] {
        let error = Qmp::connect(&path, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, QmpError::NotQmp { .. }) && error.to_string().contains(expected), "{error}");
    }
    server.join().unwrap();
}
