//! A process that is there, beats, and does nothing else: its loop stands still, its log cannot be written, its VM does
//! not run. Each ends as a death does, and neither side calls it protected meanwhile.

use crate::{
    proc::{self, Proc, signal, until},
    way::Way,
    world::{StandbyOptions, VM, World, free_addr, words},
};
use nix::{
    sys::{ptrace, wait},
    unistd::Pid,
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    io::{PipeReader, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

/// One thread of a process that stands still: the one that runs the loop. The others, that which beats among them, go
/// on.
pub(crate) struct Frozen(Pid);

impl Frozen {
    /// The main thread, which has the process's id. Only the test's own thread may let it go on.
    pub(crate) fn main_thread(pid: u32) -> Self {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        ptrace::seize(pid, ptrace::Options::empty()).expect("ptrace(2), as root");
        ptrace::interrupt(pid).unwrap();
        wait::waitpid(pid, Some(wait::WaitPidFlag::__WALL)).unwrap();
        Self(pid)
    }

    pub(crate) fn thaw(self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

#[test]
fn a_primary_whose_loop_stands_still_is_taken_over_and_wakes_up_fenced() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let frozen = Frozen::main_thread(protect.data_path());
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    // Whoever asks meanwhile is not told that all is well, or nothing.
    let (code, status) = world.status_code("a");
    assert_eq!((code, &status["role"], &status["protected"]), (3, &"stalled".into(), &false.into()), "{status}");
    assert!(status["stalled"].as_str().unwrap().contains("the main loop has made no progress for"), "{status}");
    let (code, _, stderr) = world.run("a", &format!("unprotect --vm {VM}"));
    assert!(code == 1 && stderr.contains("the main loop has made no progress for"), "{stderr}");
    vm.serial.assert_continued_by(&standby.serial);
    frozen.thaw();
    protect.expect_end(4, &["error: ", "another node owns the VM now"]);
}

#[test]
fn a_standby_whose_loop_stands_still_is_given_up() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    let solo = protect.count("solo");
    let frozen = Frozen::main_thread(standby.proc.pid());
    protect.wait_events("solo", solo + 1);
    vm.serial.goes_on();
    vm.serial.assert_sound();
    frozen.thaw();
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
}

/// A standby that narrates into a pipe that nobody reads, which is as full as a crowd of callers can make it.
fn mute_standby(world: &World) -> (Proc, std::net::SocketAddr, PipeReader) {
    let (addr, options) = (free_addr(), StandbyOptions::default());
    let (reader, mut pipe) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&pipe, true).unwrap();
    while pipe.write(&[b'.'; 512]).is_ok() {}
    // The descriptor is one with the child's: a line must find the pipe full, and not be refused.
    rustix::io::ioctl_fionbio(&pipe, false).unwrap();
    let mut command = Command::new("sh");
    // `Proc` has its own file for standard error; the pipe is descriptor 0 until the shell makes it 2.
    command.args(["-c", r#"exec "$0" "$@" 2>&0 </dev/null"#]).arg(env!("CARGO_BIN_EXE_afterimage"));
    command.args(["standby", "--vm", options.vm, "--node", "b", "--listen", &addr.to_string()]);
    command.args(["--arbiter", &world.arbiter, "--run-dir"]).arg(world.run_dir("b"));
    command.arg("--state-dir").arg(world.path("state")).arg("--ram-dir").arg(world.dir.path()).arg("--");
    command.args(world.standby_qemu("b", None)).env("AFTERIMAGE_LOG", "debug");
    let mut proc = Proc::spawn_from(world.dir.path(), "b", command, Stdio::from(pipe));
    proc.wait_event("waiting");
    (proc, addr, reader)
}

#[test]
fn a_log_that_nobody_reads_stops_no_standby() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let (mut standby, addr, _unread) = mute_standby(&world);
    let mut protect = world.protect("a", "a", &vm.qmp, addr, "");
    protect.wait_event("protected");
    standby.wait_event("protected");
    for _ in 0..600 {
        drop(TcpStream::connect(addr).unwrap());
    }
    let acked = || world.status("a")["last_ack_epoch"].as_u64().unwrap();
    let then = acked();
    until("epochs are still committed", || (acked() > then + 20).then_some(()));
    assert_eq!(world.wait_role("b", "protecting")["protected"], true);
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();
    // It is killed with its pipe as full as before, and ends.
    signal(standby.pid(), Signal::KILL);
    world.wait_role("a", "solo");
}

/// Beats go another way, and pass.
#[test]
fn a_link_on_which_nothing_passes_is_given_up_though_beats_come() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let way = Way::to(standby.addr);
    let mut protect = world.protect("a", "a", &vm.qmp, way.addr, "");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    way.swallow();
    protect.wait_events("solo", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    way.mend();
    protect.wait_events("protected", 2);
    vm.serial.goes_on();
}

/// With epochs of ten seconds an ACK may take a hundred; it may not once they are short.
#[test]
fn the_deadline_of_a_commit_follows_what_is_set_live() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let way = Way::to(standby.addr);
    let mut protect = world.protect("a", "a", &vm.qmp, way.addr, "--epoch 10s");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let (code, _, stderr) = world.run("a", &format!("set --vm {VM} epoch=20ms"));
    assert_eq!(code, 0, "{stderr}");
    until("epochs are short", || (world.status("a")["last_ack_epoch"].as_u64()? > 10).then_some(()));
    way.swallow();
    protect.wait_events("solo", 2);
    vm.serial.goes_on();
    way.mend();
    protect.wait_events("protected", 2);
}

#[test]
fn a_qemu_that_a_signal_stopped_is_taken_over() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    signal(vm.proc.pid(), Signal::STOP);
    let status = until("status tells", || {
        let (code, stdout, _) = world.run("a", &format!("status --vm {VM} --json"));
        let status: Value = serde_json::from_str(&stdout).ok()?;
        status["stalled"].is_string().then_some((code, status))
    });
    assert!(matches!(status.0, 3 | 4) && status.1["protected"] == false, "{status:?}");
    assert!(status.1["stalled"].as_str().unwrap().contains("was stopped by a signal"), "{status:?}");
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    protect.expect_end(4, &["error: ", "another node owns the VM now"]);
    until("its copy is ended, though it does not answer", || (!vm.proc.is_running()).then_some(()));
    vm.serial.assert_continued_by(&standby.serial);
}

/// What the documents say: an operator who wants it paused ends protection first.
#[test]
fn a_pause_of_a_protected_vm_is_undone_by_its_next_checkpoint() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, _standby) = world.pair();
    proc::qmp(&vm.look).execute("stop", Value::Null, proc::LONG).unwrap();
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert_eq!(protect.count("protected"), 1, "{}", protect.said());
}

/// Somebody wants that of a VM that runs alone: it is told.
#[test]
fn a_vm_that_its_operator_paused_is_said_to_be() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, _standby) = world.pair();
    let (code, _, stderr) = world.run("a", &format!("unprotect --vm {VM}"));
    assert_eq!(code, 0, "{stderr}");
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    let mut look = proc::qmp(&vm.look);
    look.execute("stop", Value::Null, proc::LONG).unwrap();
    until("it is said to be paused", || {
        let status = world.status("a");
        status["stalled"].as_str()?.contains("the VM is paused (QEMU says paused)").then_some(())
    });
    look.execute("cont", Value::Null, proc::LONG).unwrap();
    until("it is said to run", || world.status("a")["stalled"].is_null().then_some(()));
    vm.serial.goes_on();
    assert!(protect.is_running(), "{}", protect.said());
}

#[test]
fn a_qemu_that_runs_again_before_anybody_took_the_vm_goes_on() {
    let Some((world, witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    // Nobody can win: the arbiter is away.
    signal(witness.pid(), Signal::STOP);
    standby.proc.wait_event("arbiter-unreachable");
    signal(vm.proc.pid(), Signal::STOP);
    world.wait_role("b", "claiming");
    protect.wait_event("yielding");
    standby.proc.kill();
    signal(vm.proc.pid(), Signal::CONT);
    protect.wait_events("asking", 2);
    signal(witness.pid(), Signal::CONT);
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn beats_that_would_fence_a_live_host_are_refused_before_anything_is_touched() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    for (flags, said, remedy) in [
        ("--beat-interval 10ms --detect-multiplier 1", "with 1, a single lost or late beat", "expected 2 to 255"),
        ("--beat-interval 100us --detect-multiplier 3", "100us", "what to do: take a "),
    ] {
        world.protect("a", "a", &vm.qmp, free_addr(), flags).expect_end(2, &["error: ", said, remedy]);
        let mut command = World::program();
        command.args(["standby", "--vm", VM, "--node", "b", "--listen", &free_addr().to_string()]).args(words(flags));
        command.args(["--arbiter", &world.arbiter, "--run-dir"]).arg(world.run_dir("b")).arg("--state-dir");
        command.arg(world.path("state")).arg("--").args(world.standby_qemu("b", None));
        Proc::spawn(world.dir.path(), "b", command).expect_end(2, &["error: ", said, remedy]);
    }
    vm.serial.goes_on();
}
