//! A VM is left as it was found; and QEMU need not reach anything of ours.

use crate::{
    guest::{Serial, Vm},
    proc::{self, Proc, until},
    proxy,
    world::{StandbyOptions, VM, World, free_addr, kill_host, words},
};
use mc_core::testing::skip;
use serde_json::{Value, json};
use std::{os::unix::net::UnixListener, time::Duration};

fn ask(vm: &Vm, command: &str) -> Value {
    proc::qmp(&vm.look).execute(command, Value::Null, Duration::from_secs(10)).unwrap()
}

/// `protect` is refused, and has not even asked the arbiter.
fn refused(world: &World, vm: &Vm, name: &str, words: &[&str]) {
    let mut protect = world.protect("a", name, &vm.qmp, free_addr(), "");
    protect.expect_end(6, &[words, &["what to do", "nothing was changed"]].concat());
    assert!(!world.path("witness").join(format!("{VM}.reg")).exists());
}

#[test]
fn a_paused_vm_stays_paused() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    ask(&vm, "stop");
    refused(&world, &vm, "paused", &["\"paused\"", "must be running", "cont"]);
    assert_eq!(ask(&vm, "query-status")["status"], "paused");
    ask(&vm, "cont");
    vm.serial.goes_on();
}

#[test]
fn a_migration_of_the_operators_goes_on() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    // To somebody who does not read.
    let sink = world.path("sink");
    let _sink = UnixListener::bind(&sink).unwrap();
    let uri = json!({ "uri": format!("unix:{}", sink.display()) });
    proc::qmp(&vm.look).execute("migrate", uri, Duration::from_secs(10)).unwrap();
    until("the migration goes on", || (ask(&vm, "query-migrate")["status"] == "active").then_some(()));
    refused(&world, &vm, "migrated", &["a migration of the VM is under way", "did not begin"]);
    assert_eq!(ask(&vm, "query-migrate")["status"], "active");
    ask(&vm, "migrate_cancel");
    vm.serial.goes_on();
}

#[test]
fn a_run_directory_that_qemu_would_not_find() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let mut vm = world.vm("vm", &[]);
    let addr = free_addr().to_string();
    std::fs::create_dir(world.path("here")).unwrap();
    let start = |node: &str, line: &[&str], more: &[String]| {
        let mut command = World::program();
        command.current_dir(world.path("here")).arg(line[0]).args(["--vm", VM, "--node", node, "--run-dir", node]);
        command.args(["--arbiter", &world.arbiter, "--state-dir"]).arg(world.path(&format!("state-{node}")));
        Proc::spawn(world.dir.path(), node, {
            command.args(&line[1..]).args(more);
            command
        })
    };
    let ram = world.dir.path().display().to_string();
    let mut standby =
        start("b", &["standby", "--listen", &addr, "--ram-dir", &ram, "--"], &world.standby_qemu("b", None));
    standby.wait_event("waiting");
    let mut protect = start("a", &["protect", "--to", &addr, "--qmp", vm.qmp.to_str().unwrap()], &[]);
    protect.wait_event("protected");
    vm.serial.goes_on();
    is_taken_over(&mut vm, &mut protect, &mut standby, &Serial(world.path("b.serial")));
}

/// QEMU there is handed what it needs, as here.
fn is_taken_over(vm: &mut Vm, protect: &mut Proc, standby: &mut Proc, serial: &Serial) {
    standby.wait_event("protected");
    kill_host(vm, protect);
    standby.wait_event("running");
    serial.goes_on();
    vm.serial.assert_continued_by(serial);
}

#[test]
fn a_qemu_of_another_user() {
    let Some((world, _witness)) = World::with_witness() else { return };
    if !rustix::process::geteuid().is_root() {
        return skip("only root can run a QEMU as another user");
    }
    let mut vm = world.vm("vm", &["-runas", "nobody"]);
    let mut qemu = world.standby_qemu("b", None);
    qemu.extend(words("-runas nobody"));
    let mut standby = world.standby_with("b", &StandbyOptions { qemu: Some(qemu), ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    vm.serial.goes_on();
    is_taken_over(&mut vm, &mut protect, &mut standby.proc, &standby.serial);
}

/// Today's QEMUs cannot do that any more, since they need not connect; whatever else may stop one is seen all the same.
#[test]
fn a_migration_that_never_begins() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut standby = world.standby("b");
    let proxy = world.path("proxy");
    let mut kept = Vec::new();
    let proxied = proxy::qmp(&proxy, &vm.qmp, move |command, fd| {
        kept.extend(fd.take()); // or its end would tell
        ["getfd", "migrate"].iter().any(|name| command["execute"] == *name).then(|| json!({ "return": {} }))
    });
    let mut protect = world.protect("a", "a", &proxy, standby.addr, "--once");
    protect.expect_end(1, &["QEMU did not begin to send checkpoints"]);
    standby.proc.wait_events("waiting", 2);
    vm.serial.goes_on();
    proxied.join().unwrap();
}
