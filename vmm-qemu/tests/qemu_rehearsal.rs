//! A state that is rehearsed: in a QEMU beside the waiting one, over a private mapping of the image.

#![allow(missing_docs, reason = "a test")]

mod qemu_support;

use mc_core::id::{BlockId, PAGE_SIZE};
use qemu_support::{Guest, Memory, PATIENCE, accel, command, counts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use std::{
    fs,
    io::Read,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use vmm_qemu::{
    blocks::main_block,
    profile::Profile,
    standby::{Rehearsal, RehearsalConfig, RehearsalError, Rehearsed, StandbyConfig, StandbyVm, stock_command},
    stream::{Emitter, Kind, Outcome, Parser, StandbyStream},
};

/// A VM's state at one moment, and the RAM image with its memory.
struct State {
    dir: TempDir,
    guest: Guest,
    profile: Profile,
    memory: Memory,
    main: BlockId,
    ram_file: PathBuf,
}

impl State {
    /// Of the tiny guest with `more` on its command line.
    fn of(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::start(dir.path(), "primary", accel(), more);
        let mut qmp = guest.qmp();
        let profile = Profile::query(&mut qmp).unwrap();
        let path = dir.path().join("sink");
        let listener = UnixListener::bind(&path).unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let uri = json!({ "uri": format!("unix:{}", path.display()) });
        qmp.execute("migrate", uri, PATIENCE).unwrap();
        let bytes = reader.join().unwrap();
        let mut memory = Memory::new(&profile.blocks);
        let mut parser = Parser::new(Kind::Plain, profile.blocks.clone()).unwrap();
        let (mut at, mut captured) = (0, false);
        while let fed = parser.feed(&bytes[at..], &mut memory).unwrap()
            && fed.used > 0
        {
            at += fed.used;
            captured |= fed.outcome == Outcome::Captured;
        }
        assert!(captured, "no whole state in {} bytes", bytes.len());
        let main = main_block(&profile.blocks).unwrap();
        let ram_file = dir.path().join("image.ram");
        fs::write(&ram_file, &memory.ram[usize::from(main.0)]).unwrap();
        Self { dir, guest, profile, memory, main, ram_file }
    }

    fn others(&self) -> impl Iterator<Item = (BlockId, &Vec<u8>)> {
        (0..).map(BlockId).zip(&self.memory.ram).filter(|(id, _)| *id != self.main)
    }

    fn argv(&self, more: &[&str]) -> Vec<String> {
        let mut argv = command(self.dir.path(), accel());
        argv.extend(more.iter().map(|word| (*word).to_owned()));
        argv
    }

    fn config(&self, argv: Vec<String>) -> RehearsalConfig {
        RehearsalConfig {
            argv,
            dir: self.dir.path().join("rehearsal"),
            ram_file: self.ram_file.clone(),
            machine: self.profile.machine.clone(),
            blocks: self.profile.blocks.clone(),
            shared: self.main,
            others: self.others().map(|(id, content)| (id, content.clone())).collect(),
            device: self.memory.device.clone(),
            deadline: PATIENCE,
        }
    }

    /// Rehearses with this command line. Whatever comes of it, nothing is left, and the image is as it was.
    fn rehearse(&self, more: &[&str]) -> Result<Rehearsed, RehearsalError> {
        // The primary has a serial port, for the guest to count on.
        let port: &[&str] = if more.contains(&"-serial") { &[] } else { &["-serial", "stdio"] };
        let config = self.config(self.argv(&[more, port].concat()));
        let dir = config.dir.clone();
        let outcome = ended(&Rehearsal::start(config).unwrap());
        assert!(!dir.exists(), "the rehearsal's directory is left");
        assert_eq!(processes_with(&dir), Vec::<String>::new());
        assert!(
            fs::read(&self.ram_file).unwrap() == self.memory.ram[usize::from(self.main.0)],
            "the image has changed"
        );
        outcome
    }
}

fn ended(rehearsal: &Rehearsal) -> Result<Rehearsed, RehearsalError> {
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        if let Some(outcome) = rehearsal.take() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "the rehearsal does not end");
        poll(
            &mut [PollFd::from_borrowed_fd(rehearsal.as_fd(), PollFlags::IN)],
            Some(&Timespec { tv_sec: 1, tv_nsec: 0 }),
        )
        .unwrap();
    }
}

/// Command lines of processes that name this path.
fn processes_with(path: &Path) -> Vec<String> {
    let name = path.display().to_string();
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(&name)).collect()
}

/// Beside a QEMU that waits with the same command line, which takes over afterwards as if nothing had been.
#[test]
fn a_state_that_loads_passes_and_nothing_is_touched() {
    let nic = [
        "-netdev",
        "stream,id=n0,server=on,addr.type=unix,addr.path=/dev/null/no",
        "-device",
        "ne2k_isa,netdev=n0,iobase=0x300,irq=9",
    ];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for disk in ["ro.img", "rw.img"] {
        fs::write(at(disk), vec![7; 1 << 20]).unwrap();
    }
    let primary_nic = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", at("primary.net"));
    let disks = [
        format!("file={},if=none,id=d0,format=raw,readonly=on", at("ro.img")),
        format!("file={},if=none,id=d1,format=raw,file.locking=off", at("rw.img")),
    ];
    let common = [
        "-drive",
        &disks[0],
        "-drive",
        &disks[1],
        "-device",
        "virtio-blk-pci,drive=d0",
        "-device",
        "virtio-blk-pci,drive=d1",
    ];
    let mut state = State::of(&[&["-netdev", &primary_nic, nic[2], nic[3]], &common[..]].concat());

    let own_nic = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", at("standby.net"));
    let (serial, pid, monitor) =
        (at("standby.serial"), at("pid"), format!("unix:{},server=on,wait=off", at("monitor")));
    let serial_option = format!("file:{serial}");
    let vnc = format!("unix:{}", at("vnc"));
    let reaching_out = [
        "-S",
        "-netdev",
        &own_nic,
        nic[2],
        nic[3],
        "-serial",
        &serial_option,
        "-pidfile",
        &pid,
        "-monitor",
        &monitor,
        "-vnc",
        &vnc,
    ];
    let more = [&reaching_out[..], &common[..]].concat();
    let run_dir = dir.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    let main_ram = state.profile.blocks[usize::from(state.main.0)].clone();
    let waiting = StandbyConfig { argv: state.argv(&more), run_dir, ram_file: state.ram_file.clone(), main_ram };
    let mut waiting = StandbyVm::launch(waiting).unwrap();
    assert!(waiting.notes().iter().any(|note| note.starts_with("-S was left out")), "{:?}", waiting.notes());
    let pid_before = fs::read(&pid).unwrap();

    let passed = state.rehearse(&more).unwrap();
    println!("rehearsed in {:?}; {} KiB private", passed.took, passed.private_bytes >> 10);
    assert!(passed.private_bytes > 0);
    assert_eq!(fs::read(&pid).unwrap(), pid_before);
    assert!(fs::read(&serial).unwrap().is_empty(), "the guest ran in its rehearsal");
    for disk in ["ro.img", "rw.img"] {
        assert!(fs::read(at(disk)).unwrap() == vec![7; 1 << 20], "{disk} has changed");
    }
    // Again, and then for real.
    state.rehearse(&more).unwrap();
    assert!(waiting.is_alive());
    state.guest.child.kill().unwrap();
    let others: Vec<_> = state.others().map(|(id, content)| (id, content.as_slice())).collect();
    let feed = StandbyStream {
        machine: &state.profile.machine,
        blocks: &state.profile.blocks,
        shared: state.main,
        others: &others,
        device: &state.memory.device,
    };
    waiting.take_over(&feed).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while counts(Path::new(&serial)).len() < 5 {
        assert!(Instant::now() < deadline, "the VM does not run after its rehearsals");
        thread::sleep(Duration::from_millis(5));
    }
    waiting.kill().unwrap();
}

/// What QEMU itself does not say before the takeover: another kind of back end has no place for the first one's state.
#[test]
fn a_network_back_end_of_another_kind_fails_in_qemus_words() {
    let user = ["-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22", "-device", "e1000,netdev=n0"];
    let state = State::of(&user);
    state.rehearse(&user).unwrap();
    let stream = ["-netdev", "stream,id=n0,server=on,addr.type=unix,addr.path=/nowhere", "-device", "e1000,netdev=n0"];
    let error = state.rehearse(&stream).unwrap_err();
    assert!(matches!(error, RehearsalError::Refused { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("cannot load this VM") && said.contains("Unknown savevm section or instance 'slirp'"),
        "{said}"
    );
    // Another device than the primary's, too.
    let error = state.rehearse(&["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]).unwrap_err();
    assert!(matches!(error, RehearsalError::Refused { .. }) && error.to_string().contains("e1000"), "{error}");
}

#[test]
fn displays_and_default_devices_rehearse() {
    let state =
        State::of(&["-vga", "std", "-device", "virtio-rng-pci", "-audiodev", "none,id=a", "-device", "intel-hda"]);
    let passed =
        state.rehearse(&["-vga", "std", "-device", "virtio-rng-pci", "-vnc", "none", "-device", "intel-hda"]).unwrap();
    println!("with a display: {:?}; {} KiB private", passed.took, passed.private_bytes >> 10);
}

#[test]
fn what_cannot_be_isolated_is_not_started() {
    let state = State::of(&[]);
    let error = state.rehearse(&["-device", "vhost-vsock-pci,guest-cid=3"]).unwrap_err();
    assert!(matches!(error, RehearsalError::Option(_)) && error.to_string().contains("vhost-vsock-pci"), "{error}");
    let error = state.rehearse(&["-no-such-option"]).unwrap_err();
    assert!(error.to_string().contains("-no-such-option"), "{error}");
    let error = state.rehearse(&["-device", "no-such-device"]).unwrap_err();
    assert!(matches!(error, RehearsalError::Start(_)) && error.to_string().contains("no-such-device"), "{error}");
    let broken = RehearsalConfig { device: Vec::new(), ..state.config(state.argv(&[])) };
    let error = ended(&Rehearsal::start(broken).unwrap()).unwrap_err();
    assert!(error.to_string().contains("the device state of 0 bytes"), "{error}");
}

/// A program that never answers, in the place of QEMU.
fn silent(state: &State) -> Vec<String> {
    let program = state.dir.path().join("qemu-silent");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    vec![program.display().to_string()]
}

#[test]
fn a_qemu_that_does_not_answer_is_given_up() {
    let state = State::of(&[]);
    let config = RehearsalConfig { deadline: Duration::from_millis(300), ..state.config(silent(&state)) };
    let error = ended(&Rehearsal::start(config).unwrap()).unwrap_err();
    assert!(matches!(error, RehearsalError::Start(_)), "{error}");
    assert_eq!(processes_with(&state.dir.path().join("rehearsal")), Vec::<String>::new());
}

#[test]
fn dropping_it_calls_it_off() {
    let state = State::of(&[]);
    let config = state.config(silent(&state));
    let dir = config.dir.clone();
    let rehearsal = Rehearsal::start(config).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !dir.join("standby.stderr").exists() {
        assert!(Instant::now() < deadline, "the rehearsal does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    drop(rehearsal);
    assert!(!dir.exists());
    // `exec sleep` has lost the path: look for the child that would be ours.
    let me = format!(" {} ", std::process::id());
    let orphans =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let asleep = orphans.filter(|stat| stat.contains("(sleep)") && stat.contains(&me) && !stat.contains(" Z "));
    assert_eq!(asleep.count(), 0, "its QEMU lives on");
}

/// A VM whose memory is a NUMA node's, as virt-manager makes them: the image takes the node's place.
#[test]
fn a_numa_nodes_memory_is_the_image() {
    let numa = ["-object", "memory-backend-memfd,id=node0,size=16392K", "-numa", "node,nodeid=0,cpus=0,memdev=node0"];
    let mut state = State::of(&numa);
    state.rehearse(&numa).unwrap();
    let run_dir = state.dir.path().join("run");
    fs::create_dir(&run_dir).unwrap();
    let serial = state.dir.path().join("standby.serial");
    let mut argv = state.argv(&numa);
    argv.extend([
        "-serial".to_owned(),
        format!("file:{}", serial.display()),
        "-daemonize".into(),
        "-mem-prealloc".into(),
    ]);
    let main_ram = state.profile.blocks[usize::from(state.main.0)].clone();
    let config = StandbyConfig { argv, run_dir, ram_file: state.ram_file.clone(), main_ram };
    let mut standby = StandbyVm::launch(config).unwrap();
    assert_eq!(standby.notes().len(), 3, "{:?}", standby.notes());
    assert_eq!(state.profile.mismatches(&standby.profile().unwrap()), Vec::<String>::new());
    state.guest.child.kill().unwrap();
    let others: Vec<_> = state.others().map(|(id, content)| (id, content.as_slice())).collect();
    let feed = StandbyStream {
        machine: &state.profile.machine,
        blocks: &state.profile.blocks,
        shared: state.main,
        others: &others,
        device: &state.memory.device,
    };
    standby.take_over(&feed).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while counts(&serial).len() < 5 {
        assert!(Instant::now() < deadline, "the VM does not run");
        thread::sleep(Duration::from_millis(5));
    }
    let status = standby.qmp().execute("query-status", Value::Null, PATIENCE).unwrap();
    assert_eq!(status["status"], "running");
    standby.kill().unwrap();
}

/// What a standby leaves when it keeps its image: the RAM file, and a stream of everything else, for a stock QEMU with
/// no capability set. (Pages that a stream does not have stay as they are.)
#[test]
fn a_kept_image_runs_from_its_file() {
    let mut state = State::of(&[]);
    let (serial, beside) = (state.dir.path().join("kept.serial"), state.dir.path().join("kept.state"));
    let mut out = Vec::new();
    let mut emitter = Emitter::new(&mut out, &state.profile.blocks);
    emitter.header(&state.profile.machine, false).unwrap();
    emitter.ram_start(false).unwrap();
    emitter.ram_end_begin().unwrap();
    for (id, content) in state.others() {
        for (index, page) in (0..).zip(content.as_chunks::<PAGE_SIZE>().0) {
            emitter.page(id, index * PAGE_SIZE as u64, page).unwrap();
        }
    }
    emitter.section_end().unwrap();
    emitter.finish(&state.memory.device, b"{}").unwrap();
    fs::write(&beside, out).unwrap();
    state.guest.child.kill().unwrap();

    let argv = state.argv(&["-serial", &format!("file:{}", serial.display()), "-S"]);
    let main = &state.profile.blocks[usize::from(state.main.0)];
    let load = format!("exec:cat {}", beside.display());
    let line = stock_command(&argv, main, Some(&state.ram_file), &load).unwrap();
    let mut qemu = Command::new("sh").args(["-c", &format!("exec {line}")]).stdin(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while counts(&serial).len() < 5 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let found = counts(&serial);
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    let at = u32::from_le_bytes(state.memory.block("pc.ram")[0x600..0x604].try_into().unwrap());
    assert!(
        found.len() >= 5 && found[0].abs_diff(at) <= 1,
        "the guest counted {at}, and goes on with {found:?}: {line}"
    );
}
