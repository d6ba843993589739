//! What `protect` finds in its way: each time it ends with a code and a message that names the trouble, and the guest
//! runs on.

use crate::{
    guest::Vm,
    proc::Proc,
    proxy,
    world::{Standby, StandbyOptions, VM, World, free_addr, words},
};
use mc_core::wire::session::{FRAME_LEN, FrameHeader, HELLO_LEN, Hello, Kind, encode_frame};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread::JoinHandle,
};

/// `protect --once` of this VM towards `to` ends so, and the guest counts on.
fn fails(world: &World, vm: &Vm, to: SocketAddr, flags: &str, code: i32, words: &[&str]) {
    let mut protect = world.protect("a", "protect", &vm.qmp, to, &format!("--once {flags}"));
    protect.expect_end(code, words);
    vm.serial.goes_on();
}

#[test]
fn a_qmp_socket_that_is_missing_or_something_else() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let protect = |name: &str, qmp: &Path| world.protect("a", name, qmp, free_addr(), "");

    let missing = world.path("missing.qmp");
    protect("missing", &missing).expect_end(6, &["missing.qmp", "No such file", "what to do"]);
    let dead = world.path("dead.qmp");
    drop(UnixListener::bind(&dead).unwrap());
    protect("dead", &dead).expect_end(6, &["dead.qmp", "refused", "what to do"]);

    let talks: [(&str, &'static [u8], &str); 3] = [
        ("silent", b"", "no QMP greeting at"),
        ("noisy", b"220 mail.example ESMTP\r\n", "is not a QMP socket"),
        ("json", b"{\"hello\": 1}\n", "is not a QMP socket"),
    ];
    for (name, greeting, why) in talks {
        let path = world.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        protect(name, &path).expect_end(6, &[name, why]);
        server.join().unwrap();
    }
}

#[test]
fn an_arbiter_that_is_not_there() {
    let Some(mut world) = World::new() else { return };
    world.arbiter = format!("witness://{}", free_addr());
    let vm = world.vm("vm", &[]);
    let arbiter = world.arbiter.clone();
    fails(&world, &vm, free_addr(), "", 6, &[&arbiter, "cannot be reached", "what to do", "--arbiter manual"]);
}

#[test]
fn a_standby_that_is_not_there_or_is_something_else() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let nobody = free_addr();
    fails(&world, &vm, nobody, "", 1, &[&nobody.to_string(), "refused"]);

    type Answer = fn(&mut TcpStream, Hello);
    let cases: [(Answer, &[&str]); 5] = [
        (|_, _| {}, &["closed the connection before its hello"]),
        (
            |stream, _| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
            &["does not speak Afterimage's protocol", "HTTP/1.1"],
        ),
        (|stream, _| drop(stream.write_all(&oversized())), &["sent: ", "longer than its kind may be"]),
        (
            |stream, hello| {
                let hello = Hello { versions: (9, 9), ..hello };
                let _ = stream.write_all(&encode_frame(Kind::Hello, &hello.encode()));
            },
            &["speaks version", "9", "this build"],
        ),
        (
            |stream, _| drop(stream.write_all(&encode_frame(Kind::Ready, b""))),
            &["sent a Ready frame where its hello was due"],
        ),
    ];
    for (answer, words) in cases {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = hear_hello(&mut stream);
            answer(&mut stream, hello);
        });
        let addr_text = addr.to_string();
        fails(&world, &vm, addr, "", 1, &[&[addr_text.as_str()], words].concat());
        server.join().unwrap();
    }
}

#[test]
fn a_qemu_that_migrates_instead_of_taking_checkpoints() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let ended = ["instead of entering checkpoint mode", "runs on, unprotected", "QEMU 7.2"];
    let cases: [(&str, i32, &[&str]); 2] =
        [("announced", 6, &ended), ("plain", 1, &["an ordinary migration", "x-colo was not set"])];
    for (waiting, (case, code, words)) in cases.into_iter().enumerate() {
        let proxy = world.path(case);
        let proxied = without_colo(&proxy, &vm.qmp, case == "announced");
        let mut protect = world.protect("a", &format!("protect-{case}"), &proxy, standby.addr, "--once");
        protect.expect_end(code, words);
        assert_eq!(protect.count("protected"), 0, "{}", protect.said());
        // QEMU itself may have stopped it.
        vm.serial.goes_on();
        vm.serial.assert_sound();
        standby.proc.wait_events("waiting", 2 + waiting);
        proxied.join().unwrap();
    }
}

/// A control connection to QEMU on which x-colo cannot be switched on. `announced`: its stream begins as if it could,
/// which makes it a QEMU that does what 10.0.2 does.
fn without_colo(listen: &Path, qemu: &Path, announced: bool) -> JoinHandle<()> {
    proxy::qmp(listen, qemu, move |command, fd| {
        let capabilities = command.pointer_mut("/arguments/capabilities").and_then(Value::as_array_mut);
        for one in capabilities.into_iter().flatten().filter(|c| c["capability"] == "x-colo") {
            one["state"] = false.into();
        }
        if let Some(to) = fd.take_if(|_| announced) {
            *fd = Some(announce_colo(to.into()).into());
        }
        None
    })
}

/// A stream that is passed on, with the command that enables COLO behind the configuration.
fn announce_colo(mut to: UnixStream) -> UnixStream {
    let (mut from, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut header = [0; 13]; // magic, version, 0x07, the length of the machine's name
        from.read_exact(&mut header).unwrap();
        let mut name = vec![0; u32::from_be_bytes([header[9], header[10], header[11], header[12]]) as usize];
        from.read_exact(&mut name).unwrap();
        for part in [&header[..], &name, &[0x08, 0, 8, 0, 0]] {
            to.write_all(part).unwrap();
        }
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    theirs
}

/// The header of a hello of 4 GiB.
fn oversized() -> Vec<u8> {
    let mut frame = encode_frame(Kind::Hello, b"");
    frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    frame
}

/// Reads the primary's hello and profile.
fn hear_hello(stream: &mut TcpStream) -> Hello {
    let mut head = [0; FRAME_LEN];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(FrameHeader::decode(&head).unwrap().kind, Kind::Hello);
    let mut body = [0; HELLO_LEN];
    stream.read_exact(&mut body).unwrap();
    let hello = Hello::decode(&body).unwrap();
    stream.read_exact(&mut head).unwrap();
    let mut profile = vec![0; FrameHeader::decode(&head).unwrap().len];
    stream.read_exact(&mut profile).unwrap();
    hello
}

#[test]
fn a_standby_with_another_vm() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let qemu = |change: &dyn Fn(&mut Vec<String>)| {
        let mut line = world.standby_qemu("b", None);
        change(&mut line);
        StandbyOptions { qemu: Some(line), ..StandbyOptions::default() }
    };
    let replace = |from: &'static str, to: &'static str| {
        qemu(&|line| line.iter_mut().filter(|w| *w == from).for_each(|w| *w = to.to_owned()))
    };
    let cases: [(&str, StandbyOptions, &[&str]); 7] = [
        ("name", StandbyOptions { vm: "db", ..StandbyOptions::default() }, &["stands by for db, not for web"]),
        ("cpu", replace("qemu64", "qemu64,-cx16"), &["vCPU 0", "on the primary"]),
        ("ram", replace("16392K", "32776K"), &["of main memory", "-m 32776K"]),
        ("vcpus", qemu(&|line| line.extend(words("-smp 2"))), &["number of vCPUs: 1 on the primary, 2 on the standby"]),
        ("machine", replace("pc", "q35"), &["pc-i440fx", "on the primary", "pc-q35", "on the standby"]),
        (
            "device",
            qemu(&|line| line.extend(words("-device isa-debug-exit"))),
            &["isa-debug-exit", "on the standby only"],
        ),
        ("qemu", qemu(&|line| line.extend(words("-no-such-option"))), &["standby's QEMU", "no-such-option"]),
    ];
    for (case, options, words) in cases {
        let mut standby: Standby = world.standby_with("b", &options);
        let mut protect: Proc = world.protect("a", &format!("protect-{case}"), &vm.qmp, standby.addr, "--once");
        protect.expect_end(1, words);
        assert!(protect.stderr().contains("refused: "), "{}", protect.said());
        vm.serial.goes_on();
        // It says the same, and waits for the next one.
        standby.proc.wait_event("refused");
        assert_eq!(world.run("b", &format!("status --vm {}", options.vm)).0, 3, "{}", standby.proc.said());
    }
}

/// What a standby cannot do without is looked at before anybody counts on it.
#[test]
fn a_standby_finds_its_own_mistakes_at_once() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let good = world.standby_qemu("b", None);
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", world.path("0.net").display());
    let with_nic: Vec<_> = good.iter().cloned().chain(["-netdev".to_owned(), netdev]).collect();
    let nic = |tap: &str, n: u32| format!("--nic {}={tap}", world.path(&format!("{n}.net")).display());
    let ends = |name: &str, flags: &str, qemu: &[String], code: i32, says: &[&str]| {
        let mut command = World::program();
        command.args(["standby", "--vm", VM, "--node", "b", "--listen", &free_addr().to_string(), "--arbiter"]);
        command
            .arg(&world.arbiter)
            .arg("--run-dir")
            .arg(world.run_dir("b"))
            .arg("--state-dir")
            .arg(world.path("state"));
        command.args(words(flags)).arg("--").args(qemu);
        Proc::spawn(world.dir.path(), name, command).expect_end(code, says);
    };
    let ram = format!("--ram-dir {}", world.dir.path().display());
    let none = ["qemu-system-x86-64".to_owned()];
    ends("program", &ram, &none, 6, &["no program qemu-system-x86-64", "what to do: install it"]);
    let missing = world.path("missing");
    let at = missing.display().to_string();
    ends("ram-dir", &format!("--ram-dir {at}"), &good, 6, &[&at, "No such file", "what to do: --ram-dir needs"]);
    let lone = format!("{ram} {}", nic("tap-x", 7));
    ends("socket", &lone, &good, 2, &["no -netdev of the standby's QEMU command", "what to do: give QEMU"]);
    ends(
        "tap",
        &format!("{ram} {}", nic("no-such-tap", 0)),
        &with_nic,
        6,
        &["TAP device no-such-tap", "ip tuntap add"],
    );
    let twice = format!("{ram} {} {}", nic("tap-x", 0), nic("tap-x", 1));
    ends("twice", &twice, &good, 2, &["tap-x is another NIC's already", "what to do: give each"]);
}
