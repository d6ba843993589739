//! The control socket, and the commands that speak over it.

use api::{
    ControlError, ControlSocket, Desk, ReplyTo, Request, Response, SCHEMA, Serves, Side, Status, ask, socket_path,
};
use mc_core::id::Name;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const LONG: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn status(vm: &str, role: &str, protected: bool) -> Status {
    let (schema, node, side) = (SCHEMA, "alpha".into(), Side::Primary.into());
    Status { schema, vm: vm.into(), role: role.into(), protected, node, side, ..Status::default() }
}

fn serve(dir: &Path, vm: &str, side: Side, role: &'static str, protected: bool) -> ControlSocket {
    let vm_name = vm.to_owned();
    serve_with(dir, vm, side, move |request| match request {
        Request::Measured => Response::Refused { message: "no session".into(), remedy: None },
        Request::Status => Response::Status(Box::new(status(&vm_name, role, protected))),
        Request::Takeover => Response::Done { message: "taking over".into() },
        Request::Keepalive | Request::KeepaliveSet(_) | Request::Set(_) | Request::Witness(_) => {
            Response::Refused { message: "not in this test".into(), remedy: None }
        }
        Request::Protect => Response::Away { message: "the arbiter is away".into(), remedy: "start it".into() },
        Request::Export { dir } => Response::Done { message: format!("wrote into {}", dir.display()) },
        Request::Solo | Request::Unprotect | Request::Handover | Request::MakeWay => {
            Response::Refused { message: "nothing waits for an operator".into(), remedy: Some("look at status".into()) }
        }
    })
}

fn desk(vm: &str, side: Side, handler: impl Fn(Request, ReplyTo) + Send + Sync + 'static) -> Desk {
    Desk::new(Serves::Vm { vm: name(vm), side, journal: None }, Arc::new(handler))
}

fn serve_with(
    dir: &Path,
    vm: &str,
    side: Side,
    answer: impl Fn(Request) -> Response + Send + Sync + 'static,
) -> ControlSocket {
    let desk = desk(vm, side, move |request, reply| reply.give(answer(request)));
    ControlSocket::spawn(&socket_path(dir, name(vm), side), desk).unwrap()
}

/// Runs the binary with `--run-dir`: its exit code, stdout and stderr.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = process::Command::new(env!("CARGO_BIN_EXE_afterimage"));
    let out = command.args(args).arg("--run-dir").arg(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn status_shows_what_was_asked_for_and_exits_accordingly() {
    let dir = tempfile::tempdir().unwrap();
    let _web = serve(dir.path(), "web", Side::Primary, "protected", true);
    let _db = serve(dir.path(), "db.1", Side::Standby, "syncing", false);
    let _old = serve(dir.path(), "old", Side::Primary, "fenced", false);

    let (code, stdout, _) = run(dir.path(), &["status", "--vm", "web"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.starts_with("web on alpha (primary): protected\n"), "{stdout}");
    let (code, stdout, _) = run(dir.path(), &["status", "--vm", "db.1", "--json"]);
    assert_eq!(code, 3);
    assert_eq!(serde_json::from_str::<Status>(&stdout).unwrap(), status("db.1", "syncing", false));
    let (code, stdout, _) = run(dir.path(), &["status", "--role", "standby"]);
    assert!(code == 3 && !stdout.contains("web on"), "{code} {stdout}");
    let (code, stdout, _) = run(dir.path(), &["status"]);
    assert_eq!((code, stdout.lines().count()), (4, 4), "the worst decides: {stdout}");
    assert!(stdout.contains("\nweb   primary  protected  yes "), "a table: {stdout}");
    let (code, _, stderr) = run(dir.path(), &["status", "--vm", "nobody"]);
    assert!(code == 1 && stderr.contains("nothing runs here for nobody: no control socket in "), "{code} {stderr}");
    assert!(stderr.contains("`afterimage why --vm nobody` shows how it ended"), "{stderr}");
}

#[test]
fn a_watch_survives_a_process_that_goes_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let watch = |flags: &[&str]| {
        let mut command = process::Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.args(["status", "--watch", "10ms", "--run-dir"]).arg(dir.path()).args(flags);
        let mut child = command.stdout(process::Stdio::piped()).stderr(process::Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (mut child, mut lines) = watch(&[]);
    let mut next = |words: &str| {
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains(words), "{words}: {line}");
    };
    next("nothing runs here yet");
    let first = serve(dir.path(), "web", Side::Primary, "protected", true);
    next("web primary: protected, generation");
    drop(first);
    next("web primary: gone (");
    let _second = serve(dir.path(), "web", Side::Primary, "solo", false);
    next("web primary: solo, NOT PROTECTED");
    child.kill().unwrap();
    child.wait().unwrap();

    let (mut child, lines) = watch(&["--json"]);
    for line in lines.take(3) {
        let status: Status = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!((status.vm.as_str(), status.role.as_str()), ("web", "solo"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_operators_words_reach_their_side() {
    let dir = tempfile::tempdir().unwrap();
    let _standby = serve(dir.path(), "web", Side::Standby, "claiming", false);
    let yes = "--yes-the-other-side-is-stopped";
    let (code, stdout, stderr) = run(dir.path(), &["takeover", "--vm", "web", yes, "--no-wait"]);
    assert_eq!((code, stdout.as_str()), (0, "taking over\n"), "{stderr}");
    let (code, _, stderr) = run(dir.path(), &["solo", "--vm", "web", yes]);
    assert!(
        code == 1 && stderr.contains("`solo` is for the primary of web; what runs on this host is its standby"),
        "{code} {stderr}"
    );
    let _primary = serve(dir.path(), "web", Side::Primary, "protected", true);
    let (code, _, stderr) = run(dir.path(), &["solo", "--vm", "web", yes]);
    assert!(code == 1 && stderr.contains("nothing waits") && stderr.contains("what to do: look at status"), "{stderr}");
    let (code, _, stderr) = run(dir.path(), &["reprotect", "--vm", "web"]);
    assert!(code == 6 && stderr.contains("the arbiter is away\n  what to do: start it"), "{code} {stderr}");
}

/// One wording, whatever is asked of a VM that is not here; and one for the other side of one that is.
#[test]
fn who_is_not_here_is_said_in_one_way() {
    let dir = tempfile::tempdir().unwrap();
    let yes = "--yes-the-other-side-is-stopped";
    let to = dir.path().to_str().unwrap();
    let commands: [(&[&str], &str); 9] = [
        (&["set", "--vm", "web", "epoch=5ms"], "`set` is for the primary of web"),
        (&["solo", "--vm", "web", yes], "`solo` is for the primary of web"),
        (&["unprotect", "--vm", "web"], "`unprotect` is for the primary of web"),
        (&["reprotect", "--vm", "web"], "`reprotect` is for the primary of web"),
        (
            &["keepalive", "set", "--vm", "web", "--role", "primary", "--interval", "5ms"],
            "`keepalive set` is for the primary of web",
        ),
        (&["keepalive", "show", "--vm", "web", "--role", "primary"], "`keepalive show` is for the primary of web"),
        (&["keepalive", "probe", "--vm", "web", "--role", "primary"], "`keepalive probe` is for the primary of web"),
        (&["status", "--vm", "web", "--role", "primary"], "`status` is for the primary of web"),
        (&["image", "export", "--vm", "other", "--to", to], "nothing runs here for other"),
    ];
    for (args, _) in commands {
        let (code, stdout, stderr) = run(dir.path(), args);
        assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
        assert!(
            stderr.starts_with("error: nothing runs here for ") && stderr.contains("what to do: "),
            "{args:?}: {stderr}"
        );
    }
    let _standby = serve(dir.path(), "web", Side::Standby, "protecting", true);
    for (args, words) in commands {
        let (code, _, stderr) = run(dir.path(), args);
        assert!(code == 1 && stderr.contains(words), "{args:?}: {stderr}");
    }
}

/// A standby whose primary was heard `ago_ms` ago, and that counts what it is told.
fn standby_of(dir: &Path, ago_ms: u64, witness: bool) -> (ControlSocket, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let socket = serve_with(dir, "web", Side::Standby, move |request| match request {
        Request::Status => {
            let role = if counted.load(Ordering::Relaxed) == 0 { "protecting" } else { "running" };
            let mut status = status("web", role, true);
            status.peer = "host-a at 10.0.0.1:7410".into();
            (status.beats.detection_time_us, status.beats.last_heard_ago_ms) = (50_000, Some(ago_ms));
            status.arbiter.reachable = true;
            status.arbiter.witness = witness.then(|| "w".into());
            Response::Status(Box::new(status))
        }
        _ => {
            counted.fetch_add(1, Ordering::Relaxed);
            Response::Done { message: "taking over".into() }
        }
    });
    (socket, told)
}

#[test]
fn who_beats_is_not_believed_to_be_stopped() {
    let takeover = ["takeover", "--vm", "web", "--yes-the-other-side-is-stopped"];
    let although = |node| [&takeover[..3], &["--although-it-beats", node]].concat();
    for witness in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (_socket, told) = standby_of(dir.path(), 7, witness);
        for args in [&takeover[..], &takeover[..3]] {
            let (code, stdout, stderr) = run(dir.path(), args);
            assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
            assert!(
                stderr.contains("beats of host-a arrive (the last one 7 ms ago): the primary is alive"),
                "{stderr}"
            );
            assert_eq!(stderr.contains("the witness decides"), witness, "{stderr}");
            assert!(stderr.contains("--although-it-beats host-a"), "{stderr}");
        }
        let (code, _, stderr) = run(dir.path(), &although("host-b"));
        assert!(code == 2 && stderr.contains("host-a is its name"), "{code} {stderr}");
        assert_eq!(told.load(Ordering::Relaxed), 0, "nothing was done");
        assert_eq!(run(dir.path(), &although("host-a")).0, 0);
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
    let dir = tempfile::tempdir().unwrap();
    let (_socket, told) = standby_of(dir.path(), 50, false);
    assert_eq!(run(dir.path(), &takeover).0, 0, "silent for as long as that");
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

/// A side that is `first` until it is told something, and `then` what came of it.
fn decides(dir: &Path, side: Side, first: &'static str, then: &'static str) -> ControlSocket {
    let (told, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    serve_with(dir, "web", side, move |request| match request {
        Request::Status => {
            let decided = told.load(Ordering::Relaxed) > 0 && asked.fetch_add(1, Ordering::Relaxed) > 2;
            let mut status = status("web", if decided { then } else { first }, false);
            status.generation = 5;
            if !decided {
                status.peer = "host-a at 10.0.0.1:7410".into();
            }
            Response::Status(Box::new(status))
        }
        _ => {
            told.fetch_add(1, Ordering::Relaxed);
            Response::Done { message: "begun".into() }
        }
    })
}

/// A command, to which side, its role before and after; the exit code and some words.
type OrderCase<'a> = (&'a [&'a str], Side, [&'static str; 2], i32, &'a str);

#[test]
fn an_order_ends_with_what_came_of_it() {
    let yes = "--yes-the-other-side-is-stopped";
    let takeover: &[&str] = &["takeover", "--vm", "web", yes];
    let solo: &[&str] = &["solo", "--vm", "web", yes];
    let unprotect: &[&str] = &["unprotect", "--vm", "web"];
    let (standby, primary) = (Side::Standby, Side::Primary);
    let cases: [OrderCase<'_>; 6] = [
        (takeover, standby, ["claiming", "running"], 0, "web runs here now (g5)\n"),
        (takeover, standby, ["claiming", "idle"], 4, "not taken over: host-a won web; this standby is idle"),
        (takeover, standby, ["revoking", "lost"], 4, "not taken over: host-a won web; this standby is lost"),
        (solo, primary, ["claiming", "solo"], 0, "web runs here alone (g5), unprotected\n"),
        (unprotect, primary, ["claiming", "solo"], 0, "web runs here alone (g5), unprotected\n"),
        (unprotect, primary, ["claiming", "fenced"], 4, "web does not go on here: host-a won it"),
    ];
    for (args, side, [first, then], wanted, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let _socket = decides(dir.path(), side, first, then);
        let (code, stdout, stderr) = run(dir.path(), args);
        assert_eq!(code, wanted, "{args:?} {then}: {stdout}{stderr}");
        assert!((stdout + &stderr).contains(words), "{args:?} {then}: {stderr}");
        let (code, stdout, _) = run(dir.path(), &[args, &["--no-wait"]].concat());
        assert_eq!((code, stdout.as_str()), (0, "begun\n"));
    }
    let dir = tempfile::tempdir().unwrap();
    let _socket = decides(dir.path(), Side::Standby, "claiming", "claiming");
    let (code, _, stderr) = run(dir.path(), takeover);
    assert!(code == 3 && stderr.contains("not decided yet: web is claiming here"), "{code} {stderr}");
    assert!(stderr.contains("the order stands\n  what to do: "), "{stderr}");
}

/// What a process left of itself is beside its successor on this host: the successor is told, and nothing is wrong.
#[test]
fn a_dead_socket_hides_no_living_process_of_the_same_vm() {
    let dir = tempfile::tempdir().unwrap();
    let dead = socket_path(dir.path(), name("web"), Side::Primary);
    drop(UnixListener::bind(&dead).unwrap());
    let yes = "--yes-the-other-side-is-stopped";
    for args in [&["solo", "--vm", "web", yes][..], &["unprotect", "--vm", "web"], &["set", "--vm", "web", "epoch=5ms"]]
    {
        let (code, _, stderr) = run(dir.path(), args);
        assert!(code == 1 && stderr.contains("the primary of web does not run any more"), "{stderr}");
        assert!(stderr.contains("what to do: `afterimage why --vm web`"), "{stderr}");
    }
    let _standby = serve(dir.path(), "web", Side::Standby, "protecting", true);
    let (code, _, stderr) = run(dir.path(), &["solo", "--vm", "web", yes]);
    assert!(code == 1 && stderr.contains("what runs on this host is its standby"), "{stderr}");
    let (_, _, stderr) = run(dir.path(), &["keepalive", "set", "--vm", "web", "--interval", "5ms"]);
    assert!(stderr.contains("not in this test"), "the standby was asked: {stderr}");
    let (code, stdout, _) = run(dir.path(), &["status"]);
    assert_eq!(code, 0, "{stdout}");
    let left = format!("left over from before the failover, and harmless: `rm {}`", dead.display());
    assert!(stdout.contains(&left) && !stdout.contains("start it again"), "{stdout}");
}

#[test]
fn all_processes_of_a_named_vm_are_shown_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let _keeper = serve(dir.path(), "web", Side::Keeper, "keeping", false);
    let _standby = serve(dir.path(), "web", Side::Standby, "running", false);
    // Or the only one.
    for args in [&["status", "--vm", "web"][..], &["status"]] {
        let (code, stdout, _) = run(dir.path(), args);
        assert_eq!(code, 3, "{stdout}");
        let heads = stdout.lines().filter(|line| line.starts_with("web on alpha ("));
        assert_eq!(heads.count(), 2, "{stdout}");
        assert!(stdout.contains("running, NOT PROTECTED") && !stdout.contains("TROUBLE"), "{stdout}");
    }
}

#[test]
fn one_process_serves_a_socket_and_only_its_owner_may_speak() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("made");
    let path = socket_path(&run_dir, name("web"), Side::Primary);
    let first = serve(&run_dir, "web", Side::Primary, "solo", false);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&run_dir)), (0o600, 0o700));
    let second = ControlSocket::spawn(&path, desk("web", Side::Primary, |_, _| unreachable!()));
    assert!(matches!(second, Err(ControlError::Busy { .. })), "{second:?}");
    assert!(ask(&path, Request::Status, LONG).is_ok(), "the first still serves");
    drop(first);
    assert!(!path.exists());
    // A predecessor that was killed leaves its socket behind.
    drop(UnixListener::bind(&path).unwrap());
    let _third = serve(&run_dir, "web", Side::Primary, "solo", false);
    assert!(ask(&path, Request::Status, LONG).is_ok());
}

#[test]
fn a_socket_that_speaks_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_path(dir.path(), name("web"), Side::Primary);
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"{\"QMP\": {\"version\": 7}}\n").unwrap();
        let _ = stream.read(&mut [0; 100]);
    });
    let (code, stdout, _) = run(dir.path(), &["status"]);
    assert!(code == 3 && stdout.contains("web.primary.sock") && stdout.contains("QMP"), "{code} {stdout}");
    thread.join().unwrap();
}

/// Its control socket answers each line with one, until the other side closes.
#[test]
fn a_process_of_the_release_before_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(socket_path(dir.path(), name("web"), Side::Primary)).unwrap();
    std::thread::spawn(move || {
        let remedy = r#"send one line of at most 4096 bytes, such as {\"command\":\"status\"}"#;
        let why = "no request: expected value at line 1 column 1";
        let answer = format!("{{\"refused\":{{\"message\":\"{why}\",\"remedy\":\"{remedy}\"}}}}\n");
        for stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            lines.take_while(|_| (&stream).write_all(answer.as_bytes()).is_ok()).for_each(drop);
        }
    });
    let older = "its process speaks the control protocol of an older afterimage";
    let (code, stdout, stderr) = run(dir.path(), &["status"]);
    assert!(code == 3 && stdout.contains(older) && stdout.contains("upgrade it"), "{code} {stdout}{stderr}");
    for args in [&["unprotect", "--vm", "web"][..], &["set", "--vm", "web", "epoch=5ms"]] {
        let (code, _, stderr) = run(dir.path(), args);
        assert!(code == 1 && stderr.contains(older) && stderr.contains("what to do: upgrade it"), "{code} {stderr}");
    }
}

#[test]
fn a_process_that_is_dead_or_stopped_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let _web = serve(dir.path(), "web", Side::Primary, "protected", true);
    drop(UnixListener::bind(socket_path(dir.path(), name("dead"), Side::Primary)).unwrap());
    let _stopped = UnixListener::bind(socket_path(dir.path(), name("mute"), Side::Standby)).unwrap();

    let (code, stdout, stderr) = run(dir.path(), &["status"]);
    assert_eq!(code, 3, "{stdout}{stderr}");
    for words in ["dead  primary  gone ", "mute  standby  does not answer ", "web   primary  protected        yes"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let us = format!("process {} is there, and did not answer within 5 s", process::id());
    assert!(stdout.contains(&us) && stdout.contains("`afterimage why --vm dead` shows how it ended"), "{stdout}");
    let (code, stdout, stderr) = run(dir.path(), &["keepalive", "show"]);
    assert_eq!(code, 3, "{stdout}{stderr}");
    for words in
        ["dead (primary): gone: ", "mute (standby): does not answer: ", "web (primary): none: not in this test"]
    {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let (code, stdout, _) = run(dir.path(), &["status", "--vm", "dead"]);
    assert!(code == 3 && stdout.starts_with("dead primary: gone: its process has ended"), "{code} {stdout}");
}

#[test]
fn json_of_a_host_is_an_array_and_of_one_process_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let parse = |flags: &[&str]| {
        let (_, stdout, stderr) = run(dir.path(), &[&["status", "--json"], flags].concat());
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}"))
    };
    let _web = serve(dir.path(), "web", Side::Primary, "protected", true);
    let one = parse(&[]);
    assert_eq!((one.as_array().unwrap().len(), &one[0]["vm"]), (1, &"web".into()));
    assert_eq!(parse(&["--vm", "web"])["role"], "protected");
    drop(UnixListener::bind(socket_path(dir.path(), name("web"), Side::Keeper)).unwrap());
    let roles = |all: serde_json::Value| all.as_array().unwrap().iter().map(|s| s["role"].clone()).collect::<Vec<_>>();
    assert_eq!(roles(parse(&[])), ["gone", "protected"]);
    assert_eq!(roles(parse(&["--vm", "web"])), ["gone", "protected"]);
    assert_eq!(parse(&["--vm", "web", "--role", "primary"])["role"], "protected");
}

#[test]
fn all_processes_are_asked_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // None answers before all were asked.
    let all_asked = Arc::new(Barrier::new(3));
    let _served: Vec<ControlSocket> = ["a", "b", "c"]
        .map(|vm| {
            let all_asked = Arc::clone(&all_asked);
            let desk = desk(vm, Side::Primary, move |_, reply| {
                let all_asked = Arc::clone(&all_asked);
                // Whoever waits must not do so on the control plane.
                std::thread::spawn(move || {
                    all_asked.wait();
                    reply.give(Response::Status(Box::new(status(vm, "protected", true))));
                });
            });
            ControlSocket::spawn(&socket_path(dir.path(), name(vm), Side::Primary), desk).unwrap()
        })
        .into();
    let (code, stdout, _) = run(dir.path(), &["status"]);
    assert_eq!((code, stdout.matches("protected").count()), (0, 3), "{stdout}");
}

#[test]
fn an_export_is_asked_of_the_standby_with_a_whole_path() {
    let dir = tempfile::tempdir().unwrap();
    let _web = serve(dir.path(), "web", Side::Standby, "taking-over", false);
    let (code, _, stderr) = run(dir.path(), &["image", "export", "--vm", "web", "--to", "/no/such/dir"]);
    assert!(
        code == 2 && stderr.contains("--to /no/such/dir: No such file") && stderr.contains("what to do"),
        "{stderr}"
    );
    let (code, stdout, _) = run(dir.path(), &["image", "export", "--vm", "web", "--to", "/usr/../tmp"]);
    assert_eq!((code, stdout.as_str()), (0, "wrote into /tmp\n"));
}
