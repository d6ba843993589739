//! A takeover that does not succeed at once, the VM as files, and whose files are whose.

use crate::{
    guest::Serial,
    proc::{Proc, is_alive, until},
    world::{StandbyOptions, World, kill_host, words},
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A standby whose QEMU cannot be started while the file `broken` is there.
pub(crate) fn fragile(world: &World) -> (StandbyOptions, PathBuf) {
    let (broken, script) = (world.path("broken"), world.path("qemu-fragile"));
    let text = format!(
        "#!/bin/sh\nif [ -e {} ]; then echo 'no space left on the device of the day' >&2; exit 1; fi\nexec \"$@\"\n",
        broken.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    let mut line = vec![script.display().to_string()];
    line.extend(world.standby_qemu("b", None));
    (StandbyOptions { qemu: Some(line), ..StandbyOptions::default() }, broken)
}

#[test]
fn a_takeover_that_fails_keeps_everything_and_is_tried_until_it_succeeds() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm_options = fragile(&world);
    let mut vm = world.vm("vm", &[]);
    let mut standby = world.standby_with("b", &vm_options.0);
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    standby.proc.wait_event("protected");
    let files = world.vm_files();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(fs::metadata(&files[0]).unwrap().mode() & 0o777, 0o600);
    let refused = world.run("b", &format!("image export --vm web --to {}", world.dir.path().display()));
    assert!(refused.0 == 1 && refused.2.contains("the image changes with every epoch"), "{refused:?}");

    // From now on no QEMU starts here; the one that waited is gone, and then the primary's host.
    fs::write(&vm_options.1, "").unwrap();
    let waiting = standby.proc.child_with("qemu-system").expect("a waiting QEMU");
    crate::proc::kill(waiting);
    until("it is gone", || (!is_alive(waiting)).then_some(()));
    kill_host(&mut vm, &mut protect);
    let failed = standby.proc.wait_events("takeover-failed", 3);
    let why = failed["why"].as_str().unwrap();
    assert!(why.contains("no space left on the device of the day"), "{why}");
    assert!(failed["remedy"].as_str().unwrap().contains("afterimage image export --vm web"), "{failed}");
    let status = world.wait_role("b", "taking-over");
    let notes = status["notes"].to_string();
    assert!(notes.contains("the takeover failed") && notes.contains("no space left on the device"), "{notes}");
    assert_eq!(world.vm_files(), files, "the last copy");
    assert!(standby.proc.is_running());

    export(&world, &vm.serial);

    fs::remove_file(&vm_options.1).unwrap();
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    assert_eq!(world.vm_files(), Vec::<PathBuf>::new(), "QEMU has it mapped, its name is gone");
    let late = world.run("b", &format!("image export --vm web --to {}", world.dir.path().display()));
    assert!(late.0 == 1 && late.2.contains("the VM runs here"), "{late:?}");
}

/// The VM as files: complete, nobody else's to read, never over another file; and a stock QEMU goes on from them.
fn export(world: &World, primary: &Serial) {
    let dir = world.path("it's exported");
    fs::create_dir(&dir).unwrap();
    let args = |dir: &Path| {
        let mut args = words("image export --vm web --run-dir");
        args.extend([world.run_dir("b").display().to_string(), "--to".into(), dir.display().to_string()]);
        args
    };
    // An attempt may be under way: then it says so.
    let out = until("an export between two attempts", || {
        let out = World::program().args(args(&dir)).output().unwrap();
        (!String::from_utf8_lossy(&out.stderr).contains("is being tried at this moment")).then_some(out)
    });
    assert!(out.status.success(), "{out:?}");
    let (stream, text) = (dir.join("web.vmstate"), dir.join("web.txt"));
    for file in [&stream, &text] {
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
    }
    let again = until("a second export between two attempts", || {
        let out = World::program().args(args(&dir)).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (!said.contains("is being tried at this moment")).then_some((out.status.code(), said))
    });
    assert!(again.0 == Some(1) && again.1.contains("never overwrites"), "{again:?}");

    // As an operator would: the line with QEMU, in a shell, on a machine where QEMU works.
    let text = fs::read_to_string(&text).unwrap();
    let line = text.lines().find(|line| line.contains("-incoming")).unwrap_or_else(|| panic!("{text}"));
    let line = line.replace(&world.path("qemu-fragile").display().to_string(), "env");
    let serial = Serial(world.path("exported.serial"));
    let line = line.replace("b.serial", "exported.serial");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null());
    let mut exported = Proc::spawn(world.dir.path(), "exported", command);
    serial.goes_on();
    primary.assert_continued_by(&serial);
    exported.kill();
}

#[test]
fn two_standbys_of_one_name_do_not_share_a_directory() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (mut vm, mut protect, mut standby) = world.pair();
    let mut second = World::program();
    second.args([
        "standby",
        "--vm",
        "web",
        "--node",
        "c",
        "--arbiter",
        &world.arbiter,
        "--listen",
        "127.0.0.1:0",
        "--run-dir",
    ]);
    second.arg(world.run_dir("c")).arg("--state-dir").arg(world.path("state2")).arg("--ram-dir").arg(world.dir.path());
    second.arg("--").args(world.standby_qemu("c", None));
    let mut second = Proc::spawn(world.dir.path(), "c", second);
    second.expect_end(6, &["error: another standby of web uses", "what to do", "--ram-dir"]);
    // On the same host, with the same directories.
    let mut third = World::program();
    third.args(["standby", "--vm", "web", "--node", "b", "--arbiter", &world.arbiter, "--listen", "127.0.0.1:0"]);
    third.arg("--run-dir").arg(world.run_dir("b")).arg("--state-dir").arg(world.path("state3"));
    third.arg("--").args(world.standby_qemu("b", None));
    let named = format!("error: another standby of web runs here (process {})", standby.proc.pid());
    Proc::spawn(world.dir.path(), "third", third).expect_end(6, &[&named, "what to do"]);
    // The first is unharmed.
    assert_eq!(world.status("b")["protected"], true);
    kill_host(&mut vm, &mut protect);
    standby.proc.wait_event("running");
    standby.serial.goes_on();
    vm.serial.assert_continued_by(&standby.serial);
    assert_eq!(world.vm_files(), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_standbys_memory_is_removed_by_its_successor() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    standby.proc.kill();
    assert_eq!(world.vm_files().len(), 1);
    protect.wait_event("solo");
    let mut next = world.standby("b");
    next.proc.wait_event("leftover-removed");
    assert_eq!(world.vm_files(), Vec::<PathBuf>::new());
    vm.serial.goes_on();
}

/// What stands in the way on the command line: said, and the VM is protected all the same; or refused before anything
/// starts.
#[test]
fn a_command_line_made_for_another_purpose() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let mut line = world.standby_qemu("b", None);
    line.extend(words("-S -daemonize -mem-prealloc -incoming tcp:127.0.0.1:4444"));
    let mut standby = world.standby_with("b", &StandbyOptions { qemu: Some(line), ..StandbyOptions::default() });
    let mut protect = world.protect("a", "a", &vm.qmp, standby.addr, "");
    protect.wait_event("protected");
    let changed = standby.proc.wait_event("qemu-command-changed");
    assert_eq!(changed["notes"].as_array().map(Vec::len), Some(4), "{changed}");
    assert!(world.status("b")["notes"].to_string().contains("-S was left out: the VM has to run"));

    let mut line = world.standby_qemu("c", None);
    line.extend(words("-loadvm yesterday"));
    let mut second = World::program();
    second.args([
        "standby",
        "--vm",
        "db",
        "--node",
        "c",
        "--arbiter",
        &world.arbiter,
        "--listen",
        "127.0.0.1:0",
        "--run-dir",
    ]);
    second.arg(world.run_dir("c")).arg("--ram-dir").arg(world.dir.path()).arg("--").args(line);
    Proc::spawn(world.dir.path(), "c", second).expect_end(2, &["-loadvm yesterday", "leave it out"]);
}
