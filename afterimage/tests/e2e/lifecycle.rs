//! `protect` is the VM's way to its network: it stays, whatever becomes of the standby, and protects by itself when
//! there is one.

use crate::{
    proc::{Proc, is_alive, kill, signal, until},
    world::{StandbyOptions, VM, World, free_addr, words},
};
use mc_core::{
    id::Name,
    register::{Mode, Owner},
};
use node::arbiter::file;
use rustix::process::Signal;
use std::{fs, time::Duration};

#[test]
fn a_standby_that_comes_later_is_found_without_a_word() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let addr = free_addr();
    let mut protect = world.protect("a", "a", &vm.qmp, addr, "");
    let told = protect.wait_event("no-session");
    assert!(told["why"].as_str().is_some_and(|why| why.contains(&addr.to_string())), "{told}");
    let status = until("it has tried again", || {
        let status = world.status("a");
        (status["why_not_protected"]["times"].as_u64()? >= 3).then_some(status)
    });
    assert_eq!(status["role"], "solo", "{status}");
    let why = &status["why_not_protected"];
    assert!(why["why"].as_str().is_some_and(|why| why.contains("refused")), "{status}");
    assert!(why["next_try_in_ms"].is_u64() && why["since_ms"].as_u64() > Some(1_700_000_000_000), "{status}");
    let (code, text, _) = world.run("a", &format!("status --vm {VM}"));
    assert!(code == 3 && text.contains("  not protected\n    because        cannot connect"), "{code} {text}");
    vm.serial.goes_on();
    assert_eq!(protect.count("no-session"), 1, "the same reason is told once: {}", protect.said());

    let mut standby = world.standby_at("b", addr);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    assert!(world.status("a")["why_not_protected"].is_null());
    vm.serial.goes_on();
}

#[test]
fn a_standby_that_refuses_is_no_reason_to_go() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut line = world.standby_qemu("b", None);
    line.extend(words("-smp 2"));
    let options = StandbyOptions { qemu: Some(line), ..StandbyOptions::default() };
    let mut other = world.standby_with("b", &options);
    let mut protect = world.protect("a", "a", &vm.qmp, other.addr, "");
    let told = protect.wait_event("no-session");
    assert!(told["why"].as_str().is_some_and(|why| why.contains("number of vCPUs")) && told["slow"] == true, "{told}");
    let status = world.status("a");
    let next = status["why_not_protected"]["next_try_in_ms"].as_u64();
    assert!(next > Some(10_000), "what an operator must change is tried slowly: {status}");
    vm.serial.goes_on();

    // The operator changes it, and says so.
    other.proc.kill();
    let mut right = world.standby_at("b", other.addr);
    let (code, stdout, stderr) = world.run("a", &format!("reprotect --vm {VM}"));
    assert_eq!((code, stdout.as_str()), (0, "looking for the standby\n"), "{stderr}");
    protect.wait_event("protected");
    right.proc.wait_event("protected");
    vm.serial.goes_on();
}

#[test]
fn a_break_that_ends_a_session_does_not_end_redundancy() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    // For a tenth of a second nothing comes from the standby, or goes to it.
    signal(standby.proc.pid(), Signal::STOP);
    protect.wait_event("suspect");
    std::thread::sleep(Duration::from_millis(120));
    signal(standby.proc.pid(), Signal::CONT);
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    assert_eq!(standby.proc.count("running"), 0, "{}", standby.proc.said());
    assert_eq!(world.register().generation.0, 4, "protected, solo, protected");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// Beats go both ways, and are not proven yet: what passes by itself does not wait for an operator.
#[test]
fn a_gap_in_the_beats_before_they_are_proven_is_tried_again_at_once() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    // To prove them takes five seconds, and this test is ready after two beats.
    let slow = "--beat-interval 1s --detect-multiplier 5";
    let options = StandbyOptions { flags: words(slow), ..StandbyOptions::default() };
    let mut standby = world.standby_with("b", &options);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, slow);
    protect.wait_event("syncing");
    until("beats go both ways", || (world.status("a")["beats"]["received"].as_u64()? >= 3).then_some(()));
    signal(standby.proc.pid(), Signal::STOP);
    let told = protect.wait_event("no-beats");
    assert_eq!(protect.count("protected"), 0, "{}", protect.said());
    let status = until("status says why", || {
        let status = world.status("a");
        (status["why_not_protected"]["why"] == told["why"]).then_some(status)
    });
    let next = status["why_not_protected"]["next_try_in_ms"].as_u64();
    assert!(next.is_none_or(|ms| ms < 10_000), "what an operator must change is tried slowly: {status}");
    signal(standby.proc.pid(), Signal::CONT);
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    vm.serial.goes_on();
}

#[test]
fn a_standby_that_ends_is_followed_by_the_next_one() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut first) = world.pair();
    first.proc.kill();
    protect.wait_event("no-session");
    let mut second = world.standby_at("c", first.addr);
    protect.wait_events("protected", 2);
    second.proc.wait_event("protected");
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

#[test]
fn who_was_told_unprotect_waits_for_reprotect() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    assert_eq!(world.run("a", &format!("unprotect --vm {VM}")).0, 0);
    protect.wait_events("solo", 2);
    standby.proc.wait_events("waiting", 2);
    let status = world.wait_role("a", "solo");
    let why = &status["why_not_protected"];
    assert!(why["why"].as_str().is_some_and(|why| why.contains("an operator ended protection")), "{status}");
    assert!(why["next_try_in_ms"].is_null(), "{status}");
    // Not even a new data path forgets what the operator said.
    let first = protect.data_path();
    kill(first);
    protect.wait_events("solo", 3);
    let status = world.wait_role("a", "solo");
    assert!(status["why_not_protected"]["next_try_in_ms"].is_null(), "{status}");
    assert_eq!(standby.proc.count("syncing"), 1, "{}", standby.proc.said());
    assert_eq!(world.run("a", &format!("reprotect --vm {VM}")).0, 0);
    protect.wait_events("protected", 2);
    vm.serial.goes_on();
}

#[test]
fn a_data_path_that_died_is_followed_by_protection() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    // It cannot ask for the VM meanwhile.
    signal(standby.proc.pid(), Signal::STOP);
    kill(protect.data_path());
    protect.wait_events("solo", 2);
    signal(standby.proc.pid(), Signal::CONT);
    protect.wait_events("protected", 2);
    standby.proc.wait_events("protected", 2);
    vm.serial.goes_on();
    vm.serial.assert_sound();
}

/// As a host dies: process by process, in either order. Whoever asks for the VM must be able to run it.
#[test]
fn a_data_path_and_a_qemu_that_are_killed_together_are_taken_over() {
    for round in 0..20 {
        let Some((world, _witness)) = World::with_witness() else { return };
        let (mut vm, mut protect, mut standby) = world.pair();
        let (data_path, qemu) = (protect.data_path(), vm.proc.pid());
        let order = if round % 2 == 0 { [data_path, qemu] } else { [qemu, data_path] };
        order.into_iter().for_each(kill);
        standby.proc.wait_event("running");
        standby.serial.goes_on();
        vm.serial.assert_continued_by(&standby.serial);
        // The standby may have won before anybody here saw that QEMU is gone, or the data path have seen that before it was killed: then
        // that is what is said.
        protect.expect_end(4, &["error: ", " died"]);
        assert_eq!(world.register().owner.node.to_string(), "b");
        vm.proc.kill();
    }
}

/// The supervisor has asked for the VM, and QEMU dies before that is answered: what it wins is of use to the standby
/// only.
#[test]
fn a_vm_that_dies_while_it_is_asked_for_is_handed_back() {
    let Some(world) = World::new() else { return };
    let (mut vm, mut protect, _standby) = world.pair();
    kill(protect.data_path());
    protect.wait_events("asking", 2);
    vm.proc.kill();
    let (code, _, stderr) = world.run("a", &format!("solo --vm {VM} --yes-the-other-side-is-stopped"));
    assert_ne!(code, 0, "it does not run here: {stderr}");
    let told = protect.wait_event("hand-back");
    assert_eq!((&told["register"]["generation"], &told["standby"]), (&3.into(), &"b".into()), "{told}");
    protect.expect_end(4, &["QEMU and the data path died; the standby b has the VM's last commit, and takes over"]);
    let path = world.run_dir("a").join(format!("{VM}.manual.reg"));
    let held = file::load(&path, Name::new(VM).unwrap()).unwrap().expect("a register");
    assert_eq!((held.generation.0, held.owner.node.to_string().as_str()), (4, "b"));
    assert_ne!(held.owner.instance, Owner::ANY, "just that copy: another one on b has another number");
    assert_eq!(held.mode, Mode::Solo);
}

#[test]
fn a_qemu_that_does_not_answer_is_not_asked_for_and_not_killed() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    // The standby cannot ask either, so that the supervisor has all the time that it wants.
    signal(standby.proc.pid(), Signal::STOP);
    signal(vm.proc.pid(), Signal::STOP);
    kill(protect.data_path());
    protect.wait_event("qemu-silent");
    assert_eq!(protect.count("asking"), 1, "protection, and nothing since: {}", protect.said());
    protect.expect_end(4, &["QEMU does not answer", "left to b", "was not touched"]);
    assert!(is_alive(vm.proc.pid()));
    assert!(matches!(world.register().mode, Mode::Protected { .. }));
    signal(standby.proc.pid(), Signal::CONT);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
}

/// `protect` on node a, which stands by at `addr` once it was fenced.
fn rejoining(world: &World, qmp: &std::path::Path, to: std::net::SocketAddr, addr: std::net::SocketAddr) -> Proc {
    let file = world.path("a.toml");
    let qemu: Vec<String> = world.standby_qemu("again", None).iter().map(|word| format!("{word:?}")).collect();
    let lines = [
        "[protect]".to_owned(),
        "rejoin = true".to_owned(),
        "[standby]".to_owned(),
        format!("vm = \"{VM}\"\nnode = \"a\"\nlisten = \"{addr}\"\narbiter = \"{}\"", world.arbiter),
        format!("run_dir = {:?}\nstate_dir = {:?}", world.run_dir("a"), world.path("state-a")),
        format!("ram_dir = {:?}\nqemu = [{}]", world.dir.path(), qemu.join(", ")),
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    world.protect("a", "a", qmp, to, &format!("--config {}", file.display()))
}

#[test]
fn a_fenced_primary_becomes_the_next_standby_when_it_was_told_so() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let mut vm = world.vm("vm", &[]);
    let mut b = world.standby("b");
    let addr = free_addr();
    let mut a = rejoining(&world, &vm.qmp, b.addr, addr);
    a.wait_event("protected");
    b.proc.wait_event("protected");
    let host = [a.pid(), a.data_path(), vm.proc.pid()];
    host.iter().for_each(|pid| signal(*pid, Signal::STOP));
    b.proc.wait_event("running");
    host.iter().for_each(|pid| signal(*pid, Signal::CONT));
    a.wait_event("rejoining");
    until("its copy is stopped", || (!vm.proc.is_running()).then_some(()));
    a.wait_event("waiting");

    let mut protect = world.protect("b", "b2", &world.run_dir("b").join("web/standby.qmp"), addr, "");
    b.proc.expect_end(0, &[]);
    protect.wait_event("protected");
    b.serial.goes_on();
    vm.serial.assert_continued_by(&b.serial);
    assert_eq!(world.register().owner.node.to_string(), "b");
}

#[test]
fn rejoining_needs_to_know_how() {
    let Some(world) = World::new() else { return };
    let nowhere = world.path("nowhere.qmp");
    let protect = |name: &str, flags: &str| world.protect("a", name, &nowhere, free_addr(), flags);
    protect("none", "--rejoin").expect_end(2, &["error: --rejoin needs --config FILE", "[standby]"]);
    let file = world.path("a.toml");
    fs::write(&file, "[protect]\nepoch = \"20ms\"\n").unwrap();
    let flags = format!("--rejoin --config {}", file.display());
    protect("section", &flags).expect_end(2, &["--rejoin needs a section [standby] in", "a.toml"]);
    fs::write(&file, "[standby]\nvm = \"db\"\narbiter = \"manual\"\nqemu = [\"qemu-system-x86_64\"]\n").unwrap();
    protect("vm", &flags).expect_end(2, &["a section [standby] of web", "stands by for db"]);
    fs::write(&file, "[standby]\nvm = \"web\"\n").unwrap();
    protect("incomplete", &flags).expect_end(2, &["afterimage standby needs", "--arbiter"]);
}
