//! A VM is left as it was found; and QEMU need not reach anything of ours.

use crate::{
    guest::Vm,
    proc::{self, Proc, until},
    proxy,
    world::{VM, World, free_addr},
};
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
    refused(&world, &vm, "paused", &["\"paused\"", "has to run", "cont"]);
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
    let vm = world.vm("vm", &[]);
    let standby = world.standby("b");
    std::fs::create_dir(world.path("here")).unwrap();
    let mut command = World::program();
    command.current_dir(world.path("here")).args(["protect", "--vm", VM, "--node", "a", "--run-dir", "run", "--qmp"]);
    command.arg(&vm.qmp).args(["--to", &standby.addr.to_string(), "--arbiter", &world.arbiter, "--state-dir"]);
    command.arg(world.path("state-a"));
    Proc::spawn(world.dir.path(), "a", command).wait_event("protected");
    vm.serial.goes_on();
}

#[test]
fn a_qemu_of_another_user() {
    let Some((world, _witness)) = World::with_witness() else { return };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can run a QEMU as another user");
    }
    let vm = world.vm("vm", &["-runas", "nobody"]);
    let standby = world.standby("b");
    world.protect("a", "a", &vm.qmp, standby.addr, "").wait_event("protected");
    vm.serial.goes_on();
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
