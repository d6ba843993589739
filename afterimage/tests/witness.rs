//! `afterimage witness` as a process: killed, restarted, on a full disk, with clients that misbehave.

mod witness_common;

use mc_core::{
    id::Generation,
    register::{Owner, Register, Swap, generation_of},
    testing::skip,
    wire::arbiter::{ANSWER_LEN, Answer, Ask, Asker, Outcome, REQUEST_LEN, Request},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};
use witness_common::{
    BINARY, Daemon, NODE, ask, asker, exchange, held, many_files, name, node, protected, run, solo, to, until,
};

fn register(generation: u64, instance: u64) -> Register {
    Register { owner: Owner { node: node(NODE), instance }, ..solo(generation, NODE) }
}

fn cas(expect: u64, instance: u64) -> Ask {
    Ask::Cas(Swap { expect: Generation(expect), new: register(expect + 1, instance), contested: false })
}

fn won(generation: u64, instance: u64) -> Option<(Outcome, Option<Register>)> {
    Some((Outcome::Won, Some(register(generation, instance))))
}

fn signal(daemon: &Daemon, signal: &str) {
    let status = Command::new("kill").args([signal, &daemon.child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Runs a witness that is to end by itself.
fn refused(args: &[&str]) -> (i32, String) {
    run(&[&["witness"], args].concat())
}

#[test]
fn no_won_that_was_told_is_lost_when_it_is_killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = 0;
    for round in 0..12u64 {
        let mut daemon = Daemon::start(dir.path());
        let stream = daemon.connect();
        let found = generation_of(held(&stream, "vm").as_ref()).0;
        assert!(found == told || found == told + 1, "told {told}, found {found} after a restart");
        // What was stored but not told is won by asking again.
        if found == told + 1 {
            assert_eq!(ask(&stream, "vm", cas(told, 7)), won(found, 7));
            told = found;
        }
        let victim = std::thread::spawn(move || {
            // Any moment: a different one each round, in microseconds.
            std::thread::sleep(Duration::from_micros(2_000 + 1_733 * round));
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
        });
        while let Some(answer) = ask(&stream, "vm", cas(told, 7)) {
            assert_eq!(Some(answer), won(told + 1, 7));
            told += 1;
        }
        victim.join().unwrap();
    }
    assert!(told > 0, "nothing was ever won");
}

#[test]
fn a_reply_that_was_lost_is_won_by_the_retry_and_by_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let mut hasty = daemon.connect();
    let asker = asker(&hasty, "vm", NODE, None).unwrap();
    hasty.write_all(&Request { id: 9, vm: name("vm"), asker, ask: cas(0, 7) }.encode()).unwrap();
    drop(hasty);
    let stream = daemon.connect();
    let deadline = Instant::now() + Duration::from_secs(30);
    while held(&stream, "vm").is_none() {
        assert!(Instant::now() < deadline, "the swap never took place");
    }
    assert_eq!(ask(&stream, "vm", cas(0, 8)), Some((Outcome::Lost, Some(register(1, 7)))));
    assert_eq!(ask(&stream, "vm", cas(0, 7)), won(1, 7));
}

#[test]
fn a_full_disk_fails_the_swap_and_leaves_the_register() {
    if !Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|s| s.success()) {
        skip("no private mount namespace (not root?)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    // `unshare` and `sh` become the witness: one process, one id, and a disk of 16 pages that only it sees.
    let script = r#"mount -t tmpfs -o size=64k tmpfs "$1" && exec "$0" witness --listen 127.0.0.1:0 --state "$1""#;
    command.args(["-m", "--propagation", "private", "sh", "-c", script, BINARY]).arg(dir.path());
    let daemon = Daemon::spawn(command);
    let stream = daemon.connect();
    assert_eq!(ask(&stream, "vm", cas(0, 7)), won(1, 7));

    let inside = PathBuf::from(format!("/proc/{}/root", daemon.child.id())).join(dir.path().strip_prefix("/").unwrap());
    let filler = inside.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    assert_eq!(ask(&stream, "vm", cas(1, 7)), Some((Outcome::Failed, Some(register(1, 7)))));
    assert_eq!(ask(&stream, "new", cas(0, 7)), Some((Outcome::Failed, None)));
    let age = || exchange(&stream, "vm", Asker::default(), Ask::Read).unwrap().probe_age_ms.unwrap();
    until("every answer tells since when it cannot store", || age() > 3000);
    assert_eq!(held(&stream, "vm"), Some(register(1, 7)));
    assert_eq!(held(&stream, "new"), None);
    assert!(!inside.join("vm.reg.tmp").exists());

    drop(file);
    fs::remove_file(&filler).unwrap();
    until("and that it can again", || age() < 3000);
    assert_eq!(ask(&stream, "vm", cas(1, 7)), won(2, 7));
}

#[test]
fn a_directory_that_is_gone_or_another_one_is_told_with_every_answer() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("state"), parent.path().join("away"));
    let daemon = Daemon::start(&dir);
    let stream = daemon.connect();
    assert_eq!(ask(&stream, "vm", cas(0, 7)), won(1, 7));
    let age = || exchange(&stream, "vm", Asker::default(), Ask::Read).unwrap().probe_age_ms.unwrap();
    fs::rename(&dir, &away).unwrap();
    until("gone", || age() > 3000);
    assert_eq!(ask(&stream, "vm", cas(1, 7)), Some((Outcome::Failed, Some(register(1, 7)))));
    fs::create_dir(&dir).unwrap();
    let so_far = age();
    until("an empty one in its place does not count", || age() > so_far + 2500);
    fs::remove_dir(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    until("back", || age() < 2000);
    assert_eq!(ask(&stream, "vm", cas(1, 7)), won(2, 7));
}

#[test]
fn a_damaged_register_is_not_vacant_and_its_nodes_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let pair = protected(2, "a", "b");
    {
        let daemon = Daemon::start(dir.path());
        let stream = daemon.connect();
        ask(&stream, "good", cas(0, 7)).unwrap();
        for new in [solo(1, "a"), pair] {
            let a = asker(&stream, "bad", "a", None).unwrap();
            assert_eq!(exchange(&stream, "bad", a, to(new)).unwrap().outcome, Outcome::Won);
        }
    }
    let path = dir.path().join("bad.reg");
    let mut bytes = fs::read(&path).unwrap();
    bytes[80] ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::write(dir.path().join("good.reg.tmp"), b"half a reg").unwrap();
    {
        let daemon = Daemon::start(dir.path());
        assert!(!dir.path().join("good.reg.tmp").exists(), "what was never renamed counts for nothing");
        let stream = daemon.connect();
        assert_eq!(held(&stream, "good"), Some(register(1, 7)), "the others are served");
        let stranger = exchange(&stream, "bad", asker(&stream, "bad", "c", None).unwrap(), to(solo(1, "c")));
        assert!(matches!(stranger.unwrap().outcome, Outcome::Refused(_)));
        let (code, said) = run(&["witness", "list", "--state", dir.path().to_str().unwrap()]);
        assert!(code == 0 && said.contains("bad: nothing (vacant, or damaged); waiting"), "{said}");
    }
    // It is as damaged after a restart.
    let daemon = Daemon::start(dir.path());
    let stream = daemon.connect();
    for who in ["a", "b"] {
        let asker = asker(&stream, "bad", who, Some(pair)).unwrap();
        exchange(&stream, "bad", asker, Ask::Read).unwrap();
    }
    assert_eq!(held(&stream, "bad"), Some(pair));
    let b = asker(&stream, "bad", "b", Some(pair)).unwrap();
    assert_eq!(exchange(&stream, "bad", b, to(solo(3, "b"))).unwrap().outcome, Outcome::Won);
    drop(daemon);

    fs::write(dir.path().join(".hidden.reg"), b"").unwrap();
    let state = dir.path().to_str().unwrap();
    let (code, stderr) = refused(&["--listen", "127.0.0.1:0", "--state", state]);
    assert!(code == 6 && stderr.contains(".hidden.reg") && stderr.contains("what to do"), "{stderr}");
    fs::remove_file(dir.path().join(".hidden.reg")).unwrap();
    fs::write(dir.path().join("identity"), b"nobody\n").unwrap();
    let (code, stderr) = refused(&["--listen", "127.0.0.1:0", "--state", state]);
    assert!(code == 6 && stderr.contains("identity: damaged") && stderr.contains("accept-witness"), "{stderr}");
}

#[test]
fn what_is_in_use_or_cannot_be_used_is_named() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = Daemon::start(dir.path());
    let (taken, state) = (daemon.address.to_string(), dir.path().to_str().unwrap());
    let (code, stderr) = refused(&["--listen", "127.0.0.1:0", "--state", state]);
    assert!(code == 6 && stderr.contains(state) && stderr.contains("another witness"), "{code} {stderr}");

    let (code, stderr) = refused(&["--listen", &taken, "--state", other.path().to_str().unwrap()]);
    assert!(code == 6 && stderr.contains(&taken) && stderr.contains("--listen"), "{code} {stderr}");

    let (code, stderr) = refused(&["--state", "/nonexistent/parent/state"]);
    assert!(code == 6 && stderr.contains("/nonexistent/parent/state"), "{code} {stderr}");

    let file = other.path().join("file");
    fs::write(&file, b"").unwrap();
    let (code, stderr) = refused(&["--listen", "127.0.0.1:0", "--state", file.to_str().unwrap()]);
    assert!(code == 6 && stderr.contains("file/lock"), "{code} {stderr}");

    let (code, stderr) = refused(&[]);
    assert!(code == 2 && stderr.contains("--state DIR"), "{code} {stderr}");
}

#[test]
fn signals_end_it_cleanly_and_the_state_is_there_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("made");
    for (round, signal) in ["-TERM", "-INT"].into_iter().enumerate() {
        let mut daemon = Daemon::start(&dir);
        let round = round as u64;
        assert_eq!(ask(&daemon.connect(), "vm", cas(round, 7)), won(round + 1, 7));
        self::signal(&daemon, signal);
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0), "{signal}");
    }
    assert_eq!(held(&Daemon::start(&dir).connect(), "vm"), Some(register(2, 7)));
}

#[test]
fn who_sends_garbage_is_cut_off_and_nobody_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let good = daemon.connect();
    assert_eq!(held(&good, "vm"), None);
    let request = |id| Request { id, vm: name("vm"), asker: Asker::default(), ask: Ask::Read }.encode();
    let mut flipped = request(1);
    flipped[20] ^= 4;
    let mut old = [0; REQUEST_LEN];
    old[..4].copy_from_slice(b"AIA1");
    for bytes in [[0; REQUEST_LEN], [0xff; REQUEST_LEN], flipped, old] {
        let mut bad = daemon.connect();
        bad.write_all(&bytes).unwrap();
        assert_eq!(bad.read(&mut [0; 1]).unwrap(), 0, "closed without a word");
    }
    // Half a message, then gone.
    daemon.connect().write_all(&flipped[..100]).unwrap();
    // Many messages at once are answered one by one.
    let burst: Vec<u8> = (0..50).flat_map(request).collect();
    let mut stream = daemon.connect();
    stream.write_all(&burst).unwrap();
    for id in 0..50 {
        let mut bytes = [0; ANSWER_LEN];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(Answer::decode(&bytes).unwrap().id, id);
    }
    assert_eq!(ask(&good, "vm", cas(0, 7)), won(1, 7));
}

#[test]
fn idle_callers_keep_no_node_out_and_give_their_places_up() {
    many_files();
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let node = daemon.connect();
    assert_eq!(ask(&node, "vm", cas(0, 7)), won(1, 7));
    let idle: Vec<TcpStream> = (0..4095).map(|_| daemon.connect()).collect();
    // Connections are accepted in order: when this one is answered, all of them were.
    let newcomer = daemon.connect();
    assert_eq!(held(&newcomer, "new"), None);
    assert_eq!(ask(&newcomer, "new", cas(0, 8)), won(1, 8));
    assert_eq!(held(&node, "vm"), Some(register(1, 7)));
    idle.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let closed = idle.iter().take_while(|stream| { *stream }.read(&mut [0; 1]).is_ok_and(|n| n == 0)).count();
    assert!(closed >= 2000, "the first that came and said nothing went: {closed}");
}

#[test]
fn it_serves_so_many_nodes_and_no_more() {
    many_files();
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    assert!(ask(&daemon.connect(), "vm", cas(0, 7)).is_some());
    let node = || {
        let stream = daemon.connect();
        assert_eq!(held(&stream, "vm"), Some(register(1, 7)));
        stream
    };
    // The one of the swap may not have been seen to go.
    let mut open: Vec<TcpStream> = (0..4096).map(|_| node()).collect();
    open.retain(|stream| ask(stream, "vm", Ask::Read).is_some());
    assert!(open.len() >= 4095, "{}", open.len());
    assert_eq!(daemon.connect().read(&mut [0; 1]).unwrap(), 0);
    drop(open.remove(0));
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&daemon.connect(), "vm", Ask::Read).is_none() {
        assert!(Instant::now() < deadline, "the place that became free was never given away");
    }
}
