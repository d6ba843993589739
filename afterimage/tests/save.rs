//! `set --save`: what becomes of the file, and what is said of it.

use api::{ControlSocket, Desk, ReplyTo, Request, Response, Serves, SettingsReport, Side, socket_path};
use mc_core::{id::Name, testing::skip};
use std::{fs, path::Path, process::Command, sync::Arc};

const FILE: &str = "# mine\n[protect]\nepoch_ms = 20\n";

/// A primary that does what it is told.
fn serve(dir: &Path) -> ControlSocket {
    let answer = |request| match request {
        Request::Set(settings) => {
            let epoch_us = settings.epoch_us.unwrap_or(20_000);
            let report = SettingsReport { vm: "web".into(), epoch_us, on_cap: "throttle".into(), ..Default::default() };
            Response::Settings(Box::new(report))
        }
        other => Response::Refused { message: format!("{other:?}"), remedy: None },
    };
    let (vm, side) = (Name::new("web").unwrap(), Side::Primary);
    let handler = Arc::new(move |request, reply: ReplyTo| reply.give(answer(request)));
    let desk = Desk::new(Serves::Vm { vm, side, journal: None }, handler);
    ControlSocket::spawn(&socket_path(dir, vm, side), desk).unwrap()
}

/// Runs `afterimage set --save` after `prepare`, in a mount namespace of its own: the exit code, stdout and stderr.
/// `None`, with the reason printed, where there can be none.
fn set(dir: &Path, prepare: &str) -> Option<(i32, String, String)> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
        command.env("F", dir.join("web.toml")).env("D", dir).env("A", env!("CARGO_BIN_EXE_afterimage")).output()
    };
    if !unshare("mount -t tmpfs none /mnt").is_ok_and(|out| out.status.success()) {
        skip("no mount namespace can be made here");
        return None;
    }
    let script = format!("{prepare}\n\"$A\" set --vm web epoch=50ms --save=\"$F\" --run-dir \"$D\"");
    let out = unshare(&script).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((out.status.code().unwrap(), text(out.stdout), text(out.stderr)))
}

#[test]
fn a_file_that_is_a_mount_point_is_written_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let _web = serve(dir.path());
    let (file, outside) = (dir.path().join("web.toml"), dir.path().join("outside.toml"));
    fs::write(&file, "").unwrap();
    fs::write(&outside, FILE.to_owned() + "# a tail that is longer than before\n").unwrap();
    let Some((code, stdout, stderr)) = set(dir.path(), "mount --bind \"$D/outside.toml\" \"$F\"") else { return };
    assert!(code == 0 && stdout.contains("saved in ") && stderr.is_empty(), "{code} {stdout} {stderr}");
    let expected = FILE.replace("epoch_ms = 20", "epoch = \"50ms\"") + "# a tail that is longer than before\n";
    assert_eq!(fs::read_to_string(&outside).unwrap(), expected);
    let left = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.into_iter().all(|name| !name.starts_with('.')), "nothing is left beside it");
}

#[test]
fn a_change_that_could_not_be_saved_is_said_to_be_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let _web = serve(dir.path());
    fs::write(dir.path().join("web.toml"), FILE).unwrap();
    let Some((code, stdout, stderr)) = set(dir.path(), "mount --bind -o ro \"$D\" \"$D\"") else { return };
    assert_eq!(code, 1, "{stdout} {stderr}");
    assert!(stdout.contains("web: epoch 50 ms") && !stdout.contains("saved"), "{stdout}");
    for words in ["the change is in force, but it was not saved", "the file is unchanged", "what to do: "] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}
