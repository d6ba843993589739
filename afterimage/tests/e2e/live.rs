//! A running pair is changed: its keepalive from either side, its epoch, its staging.

use crate::{
    guest::{Serial, Vm},
    proc::{Proc, until},
    world::{Standby, StandbyOptions, VM, World, kill_host, words},
};
use serde_json::Value;
use std::fs;

/// `keepalive …` of a node, as JSON.
fn keepalive(world: &World, node: &str, line: &str) -> Value {
    let (code, stdout, stderr) = world.run(node, &format!("keepalive {line} --vm {VM} --json"));
    assert_eq!(code, 0, "{line}: {stdout} {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"))
}

/// The command fails with this code, and says these words.
fn fails(world: &World, node: &str, line: &str, code: i32, words: &[&str]) {
    let (ended, stdout, stderr) = world.run(node, line);
    assert_eq!((ended, stdout.as_str()), (code, ""), "{line}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{line}: {word:?} is not in {stderr}");
    }
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer}: {value}"))
}

/// Both directions of one side's report: sends, hears, bears, is borne.
fn in_force(report: &Value) -> [u64; 4] {
    ["transmit_interval_us", "receive_interval_us", "detection_time_us", "remote_detection_time_us"]
        .map(|key| number(report, &format!("/in_force/{key}")))
}

/// This machine's own tail is not what these tests are about: intervals are long, and `--force` is given.
#[test]
fn one_command_on_either_side_changes_both_directions_and_a_death_is_found_by_them() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let set = keepalive(&world, "a", "set --interval 30ms --multiplier 20 --force");
    assert_eq!(in_force(&set), [30_000, 30_000, 600_000, 600_000], "{set}");
    let there = keepalive(&world, "b", "show");
    assert_eq!(in_force(&there), [30_000, 30_000, 600_000, 600_000], "{there}");
    assert_eq!((number(&there, "/schema"), number(&there, "/changes")), (1, 1), "{there}");

    let back = keepalive(&world, "b", "set --interval 20ms --multiplier 30 --force");
    assert_eq!(in_force(&back), [20_000, 20_000, 600_000, 600_000], "{back}");
    let here = keepalive(&world, "a", "show");
    assert_eq!(in_force(&here), [20_000, 20_000, 600_000, 600_000], "{here}");

    // One side only: of each direction the slower wish is in force.
    let one = keepalive(&world, "a", "set --interval 50ms --this-side --force");
    assert_eq!(in_force(&one), [50_000, 50_000, 1_500_000, 1_500_000], "{one}");
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();

    let last = keepalive(&world, "a", "set --interval 10ms --multiplier 25 --force");
    let advertised = number(&last, "/in_force/remote_detection_time_us");
    assert_eq!(advertised, 250_000);
    // Nothing but beats tells the standby: the connection is kept open by a stopped data path.
    let host = [protect.pid(), protect.data_path(), vm.proc.pid()];
    host.iter().for_each(|pid| crate::proc::signal(*pid, rustix::process::Signal::STOP));
    let suspect = standby.proc.wait_event("suspect");
    assert_eq!(suspect["detection_ms"], advertised as f64 / 1e3, "{suspect}");
    // What the survivor was late by itself is discounted, and adds to it: by one detection time at most, and its own
    // stalls.
    let silent = suspect["silent_ms"].as_f64().unwrap();
    assert!((250.0..10_000.0).contains(&silent), "{suspect}");
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    kill_host(&mut vm, &mut protect);
    vm.serial.assert_continued_by(&standby.serial);
}

#[test]
fn impossible_settings_are_refused_with_numbers_and_change_nothing() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, protect, _standby) = world.pair();
    let before = keepalive(&world, "a", "show");
    let set = format!("keepalive set --vm {VM}");
    fails(&world, "a", &format!("{set} --interval 10ms --multiplier 0"), 2, &["2 to 255"]);
    fails(
        &world,
        "a",
        &format!("{set} --multiplier 1 --force"),
        2,
        &["with 1, a single lost or late beat", "2 to 255"],
    );
    fails(&world, "a", &format!("{set} --interval 50us"), 2, &["50us is out of range", "100us to 10s"]);
    fails(&world, "a", &format!("{set} --interval 11s"), 2, &["11s is out of range", "100us to 10s"]);
    fails(&world, "a", &format!("{set} --interval 5m"), 2, &["5m is out of range", "100us to 10s"]);
    fails(&world, "a", &format!("{set} --interval 5"), 2, &["invalid duration \"5\"", "us, ms, s, m or h"]);
    fails(&world, "a", &set, 2, &["--interval"]);
    fails(&world, "a", &format!("{set} --interval 20ms --save"), 2, &["started without one", "--save=FILE"]);
    let shortest = number(&before, "/machine/shortest_interval_us");
    if shortest > 100 {
        let line = format!("{set} --interval {}us --multiplier 200 --force", shortest - 1);
        fails(&world, "a", &line, 1, &["is too short for this machine", "late", "The shortest interval here is"]);
    }
    let after = keepalive(&world, "a", "show");
    assert_eq!((&after["local"], &after["changes"]), (&before["local"], &before["changes"]));
    let set = format!("set --vm {VM}");
    fails(&world, "a", &format!("{set} epoch=30ms staging=1MiB"), 1, &["at least 2MiB", "nothing was changed"]);
    fails(&world, "a", &format!("{set} epoch=30ms epoch=40ms"), 2, &["twice"]);
    fails(&world, "a", &format!("{set} epoch=30ms window=3"), 2, &["window", "epoch=TIME"]);
    fails(&world, "a", &format!("{set} epoch=0.5ms on-cap=unprotect"), 2, &["1ms to 60s"]);
    fails(&world, "b", &format!("{set} epoch=30ms"), 1, &["`set` is for the primary of web", "its standby"]);
    let status = world.status("a");
    assert_eq!((number(&status, "/epoch_us"), status["on_cap"].as_str()), (20_000, Some("throttle")), "{status}");
    assert_eq!(status["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();
}

/// The other side's beats do not come: the first command waits for its final, and the second is told so.
#[test]
fn a_second_operator_is_told_that_a_change_is_under_way() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (_vm, mut protect, standby) = world.pair();
    keepalive(&world, "a", "set --interval 100ms --multiplier 200 --force");
    crate::proc::signal(standby.proc.pid(), rustix::process::Signal::STOP);
    let first = World::program()
        .args(words(&format!("keepalive set --vm {VM} --interval 90ms --force --run-dir")))
        .arg(world.run_dir("a"))
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut first = first.unwrap();
    until("the poll is out", || {
        let (_, stdout, _) = world.run("a", &format!("keepalive show --vm {VM} --json"));
        (serde_json::from_str::<Value>(&stdout).ok()?["change_under_way"] == true).then_some(())
    });
    let second = format!("keepalive set --vm {VM} --interval 80ms --force");
    fails(&world, "a", &second, 1, &["another change is in progress", "nothing was changed"]);
    crate::proc::signal(standby.proc.pid(), rustix::process::Signal::CONT);
    let ended = first.wait().unwrap();
    let report = until("it settles", || {
        let report = keepalive(&world, "a", "show");
        (report["change_under_way"] == false).then_some(report)
    });
    assert_eq!(number(&report, "/local/advertised/interval_us"), 90_000, "{report}");
    assert!(ended.success() || ended.code() == Some(1), "{ended}");
    assert!(protect.is_running());
}

#[test]
fn what_was_set_is_saved_with_its_comments_and_shown_by_the_next_process() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let file = world.path("a.toml");
    fs::write(&file, "[protect]\n# as measured\nbeat_interval_ms = 10 # was 12\nepoch_ms = 20\n").unwrap();
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &format!("--config {}", file.display()));
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    keepalive(&world, "a", "set --interval 12.5ms --multiplier 40 --force --save");
    let (code, stdout, stderr) = world.run("a", &format!("set --vm {VM} epoch=50ms on-cap=grow:8MiB --save"));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("web: epoch 50 ms, staging 64MiB (no more than 72MiB), on-cap grow:8MiB"), "{stdout}");
    let saved = fs::read_to_string(&file).unwrap();
    let expected = "[protect]\n# as measured\nbeat_interval = \"12.5ms\" # was 12\nepoch = \"50ms\"\ndetect_multiplier = 40\n\
                    on_cap = \"grow:8MiB\"\n";
    assert_eq!(saved, expected);
    let status = world.status("a");
    assert_eq!((number(&status, "/epoch_us"), number(&status, "/staging_limit_bytes")), (50_000, 72 << 20), "{status}");
    vm.serial.goes_on();
}

/// A guest that rewrites 8 MiB with every tick.
fn hungry(world: &World, flags: &str) -> (Vm, Proc, Standby) {
    const PAGES: u32 = 2048;
    let serial = Serial(world.path("vm.serial"));
    let line = world.machine.qemu(world.dir.path(), &serial, Some(PAGES));
    let vm = world.start_vm("vm", &line, serial);
    let qemu = Some(world.standby_qemu("b", Some(PAGES)));
    let standby = world.standby_with("b", &StandbyOptions { qemu, ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, &format!("--slab 256KiB {flags}"));
    protect.wait_event("protected");
    (vm, protect, standby)
}

fn assert_within_limit(status: &Value, limit: u64) {
    assert_eq!(number(status, "/staging_limit_bytes"), limit, "{status}");
    assert!(
        number(status, "/staging_most_bytes") <= limit && number(status, "/staging_live_bytes") <= limit,
        "{status}"
    );
}

#[test]
fn a_guest_that_dirties_everything_makes_staging_grow_as_far_as_it_may_and_no_further() {
    let Some((world, _witness)) = World::with_witness() else { return };
    // Runs are never shorter than an eighth of the epoch: in 25 ms the guest rewrites more than fits on any machine.
    let (vm, protect, _standby) = hungry(&world, "--epoch 200ms --staging 2MiB --on-cap grow:2MiB");
    let counter = |status: &Value, name: &str| number(status, &format!("/counters/{name}"));
    until("it has grown, and holds the VM all the same", || {
        let status = world.status("a");
        assert_within_limit(&status, 4 << 20);
        let grown = number(&status, "/staging_most_bytes") > 2 << 20;
        (grown && counter(&status, "streamed_while_held") > 20 && counter(&status, "sooner_epochs") > 0).then_some(())
    });
    // Live: all of it fits, and nobody is held; then less again.
    let (code, stdout, stderr) = world.run("a", &format!("set --vm {VM} staging=64MiB on-cap=throttle"));
    assert_eq!(code, 0, "{stdout} {stderr}");
    let status = world.status("a");
    let held = counter(&status, "streamed_while_held");
    let epoch = number(&status, "/last_ack_epoch");
    until("twenty epochs more", || {
        let status = world.status("a");
        (number(&status, "/last_ack_epoch") > epoch + 20).then_some(())
    });
    let after = counter(&world.status("a"), "streamed_while_held");
    assert!(after <= held + 1, "one checkpoint may have been on its way: {held} {after}");
    let (code, _, stderr) = world.run("a", &format!("set --vm {VM} staging=4MiB"));
    assert_eq!(code, 0, "{stderr}");
    until("memory falls to the cap as slabs come back", || {
        (number(&world.status("a"), "/staging_live_bytes") <= 4 << 20).then_some(())
    });
    for _ in 0..20 {
        assert!(number(&world.status("a"), "/staging_live_bytes") <= 4 << 20);
    }
    assert_eq!(world.status("a")["role"], "protected", "{}", protect.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn rather_than_hold_the_vm_protection_is_given_up_through_the_arbiter() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = hungry(&world, "--staging 64MiB");
    let (code, _, stderr) = world.run("a", &format!("set --vm {VM} staging=2MiB on-cap=unprotect"));
    assert_eq!(code, 0, "{stderr}");
    let event = protect.wait_event("gave-up");
    assert!(event["why"].as_str().unwrap().contains("did not fit into staging (2MiB)"), "{event}");
    let status = world.wait_role("a", "solo");
    let why = status["why_not_protected"]["why"].as_str();
    assert!(why.is_some_and(|why| why.contains("on-cap is unprotect")), "{status}");
    let won = protect.events().into_iter().filter(|e| e["event"] == "cas" && e["outcome"] == "won").count();
    assert_eq!(won, 2, "protected, then solo: {}", protect.said());
    standby.proc.wait_events("waiting", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    vm.serial.goes_on();
    vm.serial.assert_sound();
    assert!(protect.is_running(), "the VM's network passes through that process");
}

/// Nobody could say that protection has ended: the VM waits for room, and is heard.
#[test]
fn while_the_arbiter_is_away_a_full_staging_ends_nothing() {
    let Some((world, mut witness)) = World::with_witness() else { return };
    let (vm, mut protect, _standby) = hungry(&world, "--staging 64MiB");
    witness.kill();
    protect.wait_event("arbiter-unreachable");
    let (code, _, stderr) = world.run("a", &format!("set --vm {VM} staging=2MiB on-cap=unprotect"));
    assert_eq!(code, 0, "{stderr}");
    until("the VM is held, and goes on", || {
        (number(&world.status("a"), "/counters/streamed_while_held") > 5).then_some(())
    });
    assert_eq!((protect.count("asking"), protect.count("gave-up")), (1, 0), "{}", protect.said());
    vm.serial.goes_on();
    let _witness = world.witness_again();
    protect.wait_event("gave-up");
    world.wait_role("a", "solo");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}
