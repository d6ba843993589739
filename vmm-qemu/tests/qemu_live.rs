//! A stock QEMU with the tiny guest: checkpoints, breaks, takeovers.

#![allow(missing_docs, reason = "a test")]

mod qemu_support;

use mc_core::{
    id::BlockId,
    source::{CheckpointSource, SourceError, SourceEvent},
};
use qemu_support::{Guest, Memory, PATIENCE, accel, checkpoints_possible, command, counts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use vmm_qemu::{
    blocks::{RamBlock, main_block},
    colo::ColoSource,
    control::{self, ControlError, Found, MigrationState},
    profile::Profile,
    qmp::Qmp,
    standby::{StandbyConfig, StandbyError, StandbyVm},
    stream::StandbyStream,
};

/// A protected VM, with its checkpoints in memory.
struct Protected {
    guest: Guest,
    qmp: Qmp,
    profile: Profile,
    source: ColoSource,
    memory: Memory,
    dir: TempDir,
}

impl Protected {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::start(dir.path(), "primary", accel(), &[]);
        let mut qmp = guest.qmp();
        let profile = Profile::query(&mut qmp).unwrap();
        let source = ColoSource::new(profile.blocks.clone()).unwrap();
        let memory = Memory::new(&profile.blocks);
        let mut protected = Self { guest, qmp, profile, source, memory, dir };
        protected.begin();
        protected
    }

    fn begin(&mut self) {
        self.source.begin().unwrap();
        control::start_colo(&mut self.qmp, self.source.far_end().unwrap().as_fd()).unwrap();
        self.memory.device.clear();
        self.until(SourceEvent::Captured).unwrap();
    }

    fn until(&mut self, wanted: SourceEvent) -> Result<(), SourceError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = self.source.poll(&mut self.memory)?;
            if event == wanted {
                return Ok(());
            }
            assert!(matches!(event, SourceEvent::Idle | SourceEvent::NoRoom), "{event:?} instead of {wanted:?}");
            assert!(Instant::now() < deadline, "no {wanted:?}");
            if event == SourceEvent::Idle {
                let fd = self.source.wait_fd().expect("has begun");
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), SourceError> {
        self.source.resume()?;
        self.until(SourceEvent::Ready)?;
        self.memory.device.clear();
        self.source.pause()?;
        self.until(SourceEvent::Captured)
    }

    /// The guest's counter as it stands in the memory of the last checkpoint.
    fn counter(&self) -> u32 {
        u32::from_le_bytes(self.memory.block("pc.ram")[0x600..0x604].try_into().unwrap())
    }
}

fn standby_config(dir: &Path, blocks: &[RamBlock]) -> (StandbyConfig, PathBuf, BlockId) {
    let main = main_block(blocks).unwrap();
    let serial = dir.join("standby.serial");
    let mut argv = command(dir, accel());
    argv.extend(["-serial".into(), format!("file:{}", serial.display())]);
    let run_dir = dir.join("run,with comma");
    fs::create_dir_all(&run_dir).unwrap();
    let ram_file = run_dir.join("ram");
    let main_ram = blocks[usize::from(main.0)].clone();
    fs::File::create(&ram_file).unwrap().set_len(main_ram.used_length).unwrap();
    (StandbyConfig { argv, run_dir, ram_file, main_ram }, serial, main)
}

fn others(memory: &Memory, main: BlockId) -> Vec<(BlockId, &[u8])> {
    let all = (0..).map(BlockId).zip(memory.ram.iter().map(Vec::as_slice));
    all.filter(|(id, _)| *id != main).collect()
}

/// Strictly consecutive, from the one after `committed`: nothing lost, nothing twice. The first line may be the rest of
/// one that was being printed.
fn assert_continues(serial: &Path, committed: u32) {
    let deadline = Instant::now() + PATIENCE;
    while counts(serial).len() < 20 {
        assert!(Instant::now() < deadline, "the taken over guest does not count");
        thread::sleep(Duration::from_millis(5));
    }
    let found = counts(serial);
    assert!(found[0] == committed || found[0] == committed + 1, "{} after {committed}", found[0]);
    assert!(found.windows(2).all(|pair| pair[1] == pair[0] + 1), "{found:?}");
}

/// From each STOP event to the RESUME event after it.
fn print_pauses(primary: &mut Protected) {
    primary.qmp.poll_events().unwrap();
    let events = primary.qmp.take_events();
    let pairs = events.windows(2).filter(|pair| pair[0].name == "STOP" && pair[1].name == "RESUME");
    let mut pauses: Vec<_> = pairs.map(|pair| pair[1].timestamp.saturating_sub(pair[0].timestamp)).collect();
    pauses.sort();
    assert!(pauses.len() > 90, "{} pauses", pauses.len());
    println!("pause: p50 {:?}, max {:?}", pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
}

#[test]
fn a_hundred_checkpoints_then_a_takeover() {
    if !checkpoints_possible() {
        return;
    }
    let mut primary = Protected::start();
    assert_eq!(primary.source.machine(), primary.profile.machine);
    let (config, serial, main) = standby_config(primary.dir.path(), &primary.profile.blocks);
    let ram_file = config.ram_file.clone();
    let mut standby = StandbyVm::launch(config).unwrap();
    assert_eq!(primary.profile.mismatches(&standby.profile().unwrap()), Vec::<String>::new());
    primary.qmp.poll_events().unwrap();
    primary.qmp.take_events();
    for round in 0..100 {
        primary.memory.refuse_every = if round % 10 == 0 { 3 } else { 0 };
        primary.checkpoint().unwrap();
    }
    print_pauses(&mut primary);
    // Died before the takeover: started again over an image that is there already.
    standby.kill().unwrap();
    assert!(!standby.is_alive());
    fs::write(&ram_file, &primary.memory.ram[usize::from(main.0)]).unwrap();
    let first = standby.pid();
    let mut standby = standby.restart().unwrap();
    assert!(standby.is_alive() && standby.pid() != first);
    primary.guest.child.kill().unwrap();
    let feed = StandbyStream {
        machine: &primary.profile.machine,
        blocks: &primary.profile.blocks,
        shared: main,
        others: &others(&primary.memory, main),
        device: &primary.memory.device,
    };
    let times = standby.take_over(&feed).unwrap();
    println!("takeover: sent after {:?}, running after {:?}", times.sent, times.resumed);
    assert_continues(&serial, primary.counter());
    let pid = standby.pid();
    drop(standby);
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "a QEMU that took over outlives its StandbyVm");
    let mut qmp = Qmp::connect(&primary.dir.path().join("run,with comma/standby.qmp"), PATIENCE).unwrap();
    assert_eq!(qmp.peer_pid().unwrap(), pid);
    control::fence(&mut qmp).unwrap();
}

#[test]
fn a_break_while_the_vm_runs() {
    if !checkpoints_possible() {
        return;
    }
    let mut primary = Protected::start();
    for _ in 0..3 {
        primary.checkpoint().unwrap();
    }
    primary.source.resume().unwrap();
    primary.until(SourceEvent::Ready).unwrap();
    primary.guest.assert_runs();
    assert!(matches!(
        control::start_colo(&mut primary.qmp, UnixStream::pair().unwrap().0.as_fd()),
        Err(ControlError::InColo)
    ));
    // The source is gone without a word; the VM runs on.
    primary.source = ColoSource::new(primary.profile.blocks.clone()).unwrap();
    leave_and_protect_again(&mut primary);
}

#[test]
fn a_break_in_the_middle_of_a_checkpoint() {
    if !checkpoints_possible() {
        return;
    }
    let mut primary = Protected::start();
    // Stopped, waiting for our answer: to the initial copy, then to checkpoints; with the socket open and closed.
    for close in [false, true, false] {
        let status = control::run_state(&mut primary.qmp).unwrap();
        assert_ne!(status, "running");
        if close {
            primary.source = ColoSource::new(primary.profile.blocks.clone()).unwrap();
        }
        leave_and_protect_again(&mut primary);
    }
}

fn leave_and_protect_again(primary: &mut Protected) {
    control::leave_colo(&mut primary.qmp, None).unwrap();
    primary.guest.assert_runs();
    control::leave_colo(&mut primary.qmp, None).unwrap();
    primary.guest.assert_runs();
    primary.begin();
    for _ in 0..3 {
        primary.checkpoint().unwrap();
    }
}

/// What QEMU 10.0.2 does when it is told to enter COLO: the migration completes, and the VM is stopped for good.
#[test]
fn a_migration_that_completed() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path(), "primary", accel(), &[]);
    let mut qmp = guest.qmp();
    let path = dir.path().join("sink");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap());
    let uri = serde_json::json!({ "uri": format!("unix:{}", path.display()) });
    qmp.execute("migrate", uri, PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while control::colo_state(&mut qmp).unwrap() != MigrationState::Completed {
        assert!(Instant::now() < deadline, "the migration does not complete");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(reader.join().unwrap() > 100_000);
    // Somebody else's: the VM may run elsewhere now. A second copy would be the worst that could be done to it.
    control::leave_colo(&mut qmp, None).unwrap();
    assert_eq!(control::run_state(&mut qmp).unwrap(), "postmigrate");
    assert!(matches!(control::look(&mut qmp), Err(ControlError::NotRunning { status }) if status == "postmigrate"));
    // One of ours.
    let ours = serde_json::json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
    qmp.execute("migrate-set-capabilities", ours, PATIENCE).unwrap();
    assert_eq!(control::look(&mut qmp).unwrap(), Found::LeftOver);
    control::leave_colo(&mut qmp, None).unwrap();
    guest.assert_runs();
}

/// QEMU's settings for migrations.
fn settings(qmp: &mut Qmp) -> [serde_json::Value; 2] {
    let parameters = qmp.execute("query-migrate-parameters", serde_json::Value::Null, PATIENCE).unwrap();
    let capabilities = qmp.execute("query-migrate-capabilities", serde_json::Value::Null, PATIENCE).unwrap();
    [parameters, capabilities]
}

#[test]
fn the_initial_copy_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path(), "primary", accel(), &[]);
    let mut qmp = guest.qmp();
    let profile = Profile::query(&mut qmp).unwrap();
    let set = serde_json::json!({ "capabilities": [{ "capability": "xbzrle", "state": true }] });
    qmp.execute("migrate-set-capabilities", set, PATIENCE).unwrap();
    qmp.execute("migrate-set-parameters", serde_json::json!({ "max-bandwidth": 12_345_678 }), PATIENCE).unwrap();
    let found = settings(&mut qmp);
    for paused in [false, true] {
        let mut source = ColoSource::new(profile.blocks.clone()).unwrap();
        source.begin().unwrap();
        let before = control::start_colo(&mut qmp, source.far_end().unwrap().as_fd()).unwrap();
        assert_ne!(settings(&mut qmp), found);
        // Nobody reads.
        assert_eq!(control::colo_state(&mut qmp).unwrap(), MigrationState::Active);
        assert_eq!(control::look(&mut qmp).unwrap(), Found::LeftOver);
        if paused {
            qmp.execute("stop", serde_json::Value::Null, PATIENCE).unwrap();
        }
        control::leave_colo(&mut qmp, Some(&before)).unwrap();
        assert!(!matches!(control::colo_state(&mut qmp).unwrap(), MigrationState::Active | MigrationState::Colo));
        assert_eq!(settings(&mut qmp), found, "what was set for checkpoints is put back");
        if !paused {
            guest.assert_runs();
        }
    }
    assert_eq!(control::run_state(&mut qmp).unwrap(), "paused", "its operator paused it");
}

#[test]
fn a_vm_that_is_not_ours_to_touch() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path(), "primary", accel(), &[]);
    let mut qmp = guest.qmp();
    let stream = UnixStream::pair().unwrap();
    qmp.execute("stop", serde_json::Value::Null, PATIENCE).unwrap();
    let found = settings(&mut qmp);
    assert!(matches!(
        control::start_colo(&mut qmp, stream.0.as_fd()),
        Err(ControlError::NotRunning { status }) if status == "paused"
    ));
    control::leave_colo(&mut qmp, None).unwrap();
    assert_eq!(control::run_state(&mut qmp).unwrap(), "paused");

    qmp.execute("cont", serde_json::Value::Null, PATIENCE).unwrap();
    // Its operator moves it: to somebody who does not read.
    let path = dir.path().join("sink");
    let _sink = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let uri = serde_json::json!({ "uri": format!("unix:{}", path.display()) });
    qmp.execute("migrate", uri, PATIENCE).unwrap();
    assert!(matches!(control::start_colo(&mut qmp, stream.0.as_fd()), Err(ControlError::Busy(_))));
    control::leave_colo(&mut qmp, None).unwrap();
    assert_eq!(control::colo_state(&mut qmp).unwrap(), MigrationState::Active);
    assert_eq!(settings(&mut qmp), found);
    qmp.execute("migrate_cancel", serde_json::Value::Null, PATIENCE).unwrap();
    guest.assert_runs();
}

#[test]
fn a_qemu_killed_in_the_middle() {
    if !checkpoints_possible() {
        return;
    }
    let mut primary = Protected::start();
    primary.checkpoint().unwrap();
    primary.source.resume().unwrap();
    primary.until(SourceEvent::Ready).unwrap();
    primary.source.pause().unwrap();
    primary.guest.child.kill().unwrap();
    let result = primary.until(SourceEvent::Captured).and_then(|()| primary.checkpoint());
    assert!(matches!(result, Err(SourceError::Closed)), "{result:?}");
    assert!(matches!(primary.source.poll(&mut primary.memory), Err(SourceError::Closed)));
    // While the VM runs, its death is noticed too.
    let mut primary = Protected::start();
    primary.source.resume().unwrap();
    primary.until(SourceEvent::Ready).unwrap();
    primary.guest.child.kill().unwrap();
    primary.guest.child.wait().unwrap();
    assert!(matches!(primary.source.poll(&mut primary.memory), Err(SourceError::Closed)));
}

#[test]
fn answers_out_of_turn_are_refused() {
    let blocks = vec![RamBlock { name: "pc.ram".into(), used_length: 4096 }];
    let mut source = ColoSource::new(blocks.clone()).unwrap();
    assert!(source.wait_fd().is_none() && source.far_end().is_none());
    assert!(source.pause().is_err() && source.resume().is_err());
    source.begin().unwrap();
    assert!(source.wait_fd().is_some());
    assert_eq!(source.poll(&mut Memory::new(&blocks)).unwrap(), SourceEvent::Idle);
    assert!(source.pause().is_err() && source.resume().is_err());
    assert!(ColoSource::new(Vec::new()).is_err());
}

#[test]
fn a_peer_that_is_no_qemu_or_gives_up() {
    use std::io::Write;
    let blocks = vec![RamBlock { name: "pc.ram".into(), used_length: 4096 }];
    let mut source = ColoSource::new(blocks.clone()).unwrap();
    source.begin().unwrap();
    UnixStream::from(source.far_end().unwrap()).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let error = source.poll(&mut Memory::new(&blocks)).unwrap_err();
    assert!(error.to_string().contains("not a migration stream"), "{error}");
    // A migration that ends before it has begun is seen.
    source.begin().unwrap();
    drop(source.far_end());
    assert!(matches!(source.poll(&mut Memory::new(&blocks)), Err(SourceError::Closed)));
}

#[test]
fn a_fenced_vm_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path(), "primary", accel(), &[]);
    let mut qmp = guest.qmp();
    control::fence(&mut qmp).unwrap();
    guest.child.wait().unwrap();
    control::fence(&mut qmp).unwrap();
    if checkpoints_possible() {
        let mut primary = Protected::start();
        primary.checkpoint().unwrap();
        control::fence(&mut primary.qmp).unwrap();
        primary.guest.child.wait().unwrap();
    }
}

#[test]
fn a_standby_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = [RamBlock { name: "pc.ram".into(), used_length: 0x100_2000 }];
    let (config, ..) = standby_config(dir.path(), &blocks);
    let wrong = |change: &dyn Fn(&mut StandbyConfig)| {
        let mut config = config.clone();
        change(&mut config);
        StandbyVm::launch(config).unwrap_err()
    };
    let option = wrong(&|config| config.argv.push("-nonsense".into()));
    assert!(matches!(option, StandbyError::Exited { .. }) && option.to_string().contains("nonsense"), "{option}");
    let program = wrong(&|config| config.argv[0] = "/nonexistent/qemu".into());
    assert!(program.to_string().contains("/nonexistent/qemu"), "{program}");
    let snapshot = wrong(&|config| config.argv.extend(["-loadvm".into(), "x".into()]));
    assert!(matches!(snapshot, StandbyError::Argument { .. }), "{snapshot}");
    assert!(matches!(wrong(&|config| config.argv.clear()), StandbyError::NoCommand));
    fs::write(&config.ram_file, "short").unwrap();
    assert!(matches!(wrong(&|_| {}), StandbyError::RamFile { found: 5, expected: 0x100_2000, .. }));
}

#[test]
fn a_takeover_that_fails_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = [("pc.ram", 0x100_2000), ("pc.bios", 0x1_0000)];
    let blocks = blocks.map(|(name, used_length)| RamBlock { name: name.into(), used_length });
    let (config, _, main) = standby_config(dir.path(), &blocks);
    let mut standby = StandbyVm::launch(config).unwrap();
    let bios = vec![0; 0x1_0000];
    let feed = StandbyStream {
        machine: "pc-i440fx-5.1",
        blocks: &blocks,
        shared: main,
        others: &[(BlockId(1), &bios)],
        device: &[4, 0],
    };
    let short = StandbyStream { others: &[(BlockId(1), &bios[..4096])], ..feed };
    assert!(matches!(standby.take_over(&short), Err(StandbyError::Feed(_))));
    assert!(matches!(standby.take_over(&StandbyStream { device: &[], ..feed }), Err(StandbyError::Feed(_))));
    let error = standby.take_over(&feed).unwrap_err();
    assert!(error.to_string().contains("pc-i440fx-5.1"), "{error}");
    let deadline = Instant::now() + PATIENCE;
    while standby.is_alive() {
        assert!(Instant::now() < deadline, "it refused the stream, and lives on");
        thread::sleep(Duration::from_millis(5));
    }
    let pid = standby.restart().unwrap().pid();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "dropped without a takeover, it dies");
}
