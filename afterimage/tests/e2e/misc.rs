//! Control sockets, run directories, ports, configuration files.

use crate::{
    proc::Proc,
    world::{StandbyOptions, VM, World, free_addr, words},
};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::Command,
};

#[test]
fn garbage_on_the_control_sockets_is_refused_in_words() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let (vm, mut protect, mut standby) = world.pair();
    for socket in ["a/web.primary.sock", "b/web.standby.sock"] {
        for line in ["garbage", "{\"command\":\"fly\"}", "\u{0}\u{1}\u{2}", &"x".repeat(100_000)] {
            let mut stream = UnixStream::connect(world.path(socket)).unwrap();
            let _ = stream.write_all(line.as_bytes()); // it may hang up on the long one
            let _ = stream.write_all(b"\n");
            let mut answer = String::new();
            let _ = BufReader::new(stream).read_line(&mut answer);
            let refused = answer.starts_with("HTTP/1.1 4") || answer.contains("newer afterimage");
            assert!(answer.is_empty() || refused, "{line:?}: {answer:?}");
        }
    }
    assert_eq!(world.status("a")["role"], "protected");
    assert_eq!(world.status("b")["role"], "protecting");
    vm.serial.goes_on();
    assert!(protect.is_running() && standby.proc.is_running());
}

#[test]
fn commands_that_find_nobody_say_so() {
    let Some(world) = World::new() else { return };
    let (code, _, stderr) = world.run("nowhere", "status");
    assert_eq!((code, stderr.contains("nothing runs here")), (1, true), "{stderr}");
    std::fs::create_dir(world.run_dir("empty")).unwrap();
    let (code, _, stderr) = world.run("empty", &format!("status --vm {VM}"));
    assert_eq!((code, stderr.contains("nothing runs here for web: no control socket in")), (1, true), "{stderr}");
    for command in ["takeover", "solo"] {
        let (code, _, stderr) = world.run("empty", &format!("{command} --vm {VM} --yes-the-other-side-is-stopped"));
        assert_eq!((code, stderr.contains("nothing runs here for web: no control socket in")), (1, true), "{stderr}");
    }
}

fn standby(world: &World, name: &str, flags: &[&str]) -> Proc {
    standby_of(World::program(), world, name, flags)
}

fn standby_of(mut command: Command, world: &World, name: &str, flags: &[&str]) -> Proc {
    command.args(["standby", "--vm", VM, "--node", "b", "--arbiter", "manual"]).args(flags);
    command.arg("--state-dir").arg(world.path("state")).arg("--ram-dir").arg(world.dir.path());
    command.arg("--").args(world.standby_qemu("b", None));
    Proc::spawn(world.dir.path(), name, command)
}

#[test]
fn a_standby_that_cannot_start() {
    let Some(world) = World::new() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let file = world.path("file");
    std::fs::write(&file, "not a directory").unwrap();
    let (run, below) = (world.path("run"), file.join("run"));
    let free = free_addr().to_string();
    let text = |path: &PathBuf| path.display().to_string();
    let spill = file.join("spill");

    let flags = ["--listen", &addr, "--run-dir", &text(&run)];
    standby(&world, "port", &flags).expect_end(6, &["error: ", &addr, "Address already in use", "ss -ltnp"]);
    let flags = ["--listen", &free, "--run-dir", &text(&below)];
    standby(&world, "run-dir", &flags).expect_end(1, &["error: ", "run directory", &text(&below), "Not a directory"]);
    let flags = ["--listen", &free, "--run-dir", &text(&run), "--spill", &text(&spill)];
    standby(&world, "spill", &flags).expect_end(1, &["error: ", "spill file", &text(&spill)]);

    let first = world.standby_with("b", &StandbyOptions::default());
    let flags = ["--listen", &free, "--run-dir", &text(&world.run_dir("b"))];
    standby(&world, "twice", &flags).expect_end(6, &["error: another standby of web runs here (process", "what to do"]);
    drop(first);
}

#[test]
fn a_protect_that_cannot_start() {
    let Some((world, _witness)) = World::with_witness() else { return };
    let vm = world.vm("vm", &[]);
    let protect = |name: &str, flags: &str| world.protect("a", name, &vm.qmp, free_addr(), flags);

    let below = world.path("vm.serial").join("run");
    let flags = format!("--run-dir {}", below.display());
    let mut command = World::program();
    command.args(["protect", "--vm", VM, "--to", "127.0.0.1:1", "--arbiter", "manual", "--qmp"]).arg(&vm.qmp);
    let mut run_dir = Proc::spawn(world.dir.path(), "run-dir", {
        command.args(words(&flags));
        command
    });
    run_dir.expect_end(1, &["error: ", "run directory", "vm.serial/run"]);

    let config = world.path("a.toml");
    std::fs::write(&config, "[protect]\nepoch = \"20ms\"\nepcoh = \"30ms\"\n").unwrap();
    protect("config", &format!("--config {}", config.display())).expect_end(2, &["a.toml:3", "did you mean `epoch`?"]);
    protect("nic", "--nic /nowhere.sock=nosuchtap").expect_end(6, &["error: ", "nosuchtap"]);
    vm.serial.goes_on();
}

#[test]
fn a_run_directory_that_is_not_writable() {
    let Some(world) = World::new() else { return };
    let dir = world.run_dir("b");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o500)).unwrap();
    let mut program = World::program();
    if rustix::process::geteuid().is_root() {
        // Permissions stop nobody who may override them.
        program = Command::new("setpriv");
        program.args(["--bounding-set=-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_afterimage")]);
    }
    let flags = ["--listen", &free_addr().to_string(), "--run-dir", &dir.display().to_string()];
    standby_of(program, &world, "run-dir", &flags).expect_end(1, &["error: ", "b/web.standby", "Permission denied"]);
}
