//! Callers that are too many, that say nothing, or that are not whom they say: at everything that accepts connections.

use api::{Request, Response, ask};
use mc_core::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    register::{CasOutcome, Mode, Owner, Register, Swap},
    wire::{
        arbiter::{self as wire, ANSWER_LEN, Asker, Request as WireRequest},
        beat::BeatKey,
        session::{Hello, Purpose, VERSIONS},
    },
};
use node::arbiter::{Answer, ArbiterClient, ArbiterConfig, Ask};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};
use transport_tcp::session::{Call, SessionError, SessionOptions};
use witness::Witness;

const LONG: Duration = Duration::from_secs(60);
/// The issue's own number.
const FILES: &str = "24";

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        sleep(Duration::from_millis(10));
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The program, killed when dropped.
struct Program {
    child: Child,
    dir: PathBuf,
}

impl Program {
    /// With at most so many file descriptors, if that is not empty.
    fn start(dir: &Path, files: &str, args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let script = r#"test -z "$1" || ulimit -n "$1"; shift; exec "$@""#;
        command.args(["-c", script, "sh", files, env!("CARGO_BIN_EXE_afterimage")]).args(args);
        let file = |name: &str| File::create(dir.join(name)).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Self { child, dir: dir.to_owned() }
    }

    fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("err")).unwrap()).into_owned()
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("out")).unwrap();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let all = whole.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}")));
        all.filter(|event: &Value| event["event"] == name).collect()
    }

    fn end(&mut self) -> (i32, String) {
        let status = until("its end", || self.child.try_wait().unwrap());
        (status.code().unwrap_or(-1), self.err())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.err());
        }
    }
}

/// A standby whose QEMU only notes that it was started.
fn standby(dir: &Path, files: &str, listen: SocketAddr, arbiter: &str) -> Program {
    let qemu = dir.join("qemu");
    fs::write(&qemu, "#!/bin/sh\n: >\"$0.started\"\nexit 1\n").unwrap();
    fs::set_permissions(&qemu, PermissionsExt::from_mode(0o755)).unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let args = ["standby", "--vm", "web", "--node", "b", "--listen", &listen.to_string(), "--arbiter", arbiter];
    let dirs = ["--run-dir", &at("run"), "--state-dir", &at("state"), "--ram-dir", &at("ram"), "--transport", "tcp"];
    fs::create_dir_all(dir.join("ram")).unwrap();
    let metrics = ["--metrics", &free().to_string(), "--", qemu.to_str().unwrap()];
    let program = Program::start(dir, files, &[&args[..], &dirs, &metrics].concat());
    until("it waits", || (!program.events("waiting").is_empty()).then_some(()));
    program
}

/// Its identity is its first letter, sixteen times.
fn node(text: &str) -> Node {
    Node { name: name(text), id: NodeId([text.as_bytes()[0]; 16]) }
}

/// Of a primary "a".
fn hello(vm: &str, generation: u64) -> Hello {
    Hello {
        versions: VERSIONS,
        slab_size: 1 << 20,
        staging_slabs: 4,
        rdma: false,
        incarnation: Incarnation(1),
        generation: Generation(generation),
        purpose: Purpose::Protect(name(vm)),
        node: node("a"),
        witness: WitnessId::NONE,
        instance: 1,
        beat_key: BeatKey([0; 32]),
        beat_port: 9,
        detect_multiplier: 5,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
    }
}

/// A profile whose main memory has so many bytes.
fn profile(bytes: u64) -> Vec<u8> {
    let blocks = json!([{ "name": "pc.ram", "used-length": bytes }, { "name": "pc.bios", "used-length": 65536 }]);
    let profile = json!({
        "qemu-version": "7.2.0", "machine": "pc", "accel": "tcg", "cpus": [], "devices": [], "blocks": blocks,
    });
    serde_json::to_vec(&profile).unwrap()
}

/// What a standby answers to a primary that it cannot take.
fn refusal(to: SocketAddr, hello: &Hello, profile: &[u8]) -> String {
    let options = SessionOptions { deadline: LONG, ..SessionOptions::default() };
    match Call::connect("standby", &[to], None, &options).and_then(|call| call.shake_hands(hello, profile, None)) {
        Err(SessionError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

fn crowd(to: SocketAddr) -> Vec<TcpStream> {
    (0..40).map(|_| TcpStream::connect(to).unwrap()).collect()
}

/// Forty connections are open, and stay: what is said of it must not grow with time.
fn assert_quiet(program: &Program) {
    until("it has said something", || {
        let said = program.err();
        (said.contains("cannot accept") || said.contains("too many") || said.contains("refused a connection"))
            .then_some(())
    });
    sleep(Duration::from_secs(3));
    let said = program.err();
    assert!(said.lines().count() < 20, "{} lines", said.lines().count());
}

#[test]
fn forty_callers_and_24_descriptors_are_a_few_lines_of_a_witness() {
    let dir = tempfile::tempdir().unwrap();
    let (state, at) = (dir.path().join("witness").display().to_string(), free());
    let program = Program::start(dir.path(), FILES, &["witness", "--listen", &at.to_string(), "--state", &state]);
    // It raises the limit as far as it may: 24.
    until("it listens", || TcpStream::connect(at).ok());
    let many = crowd(at);
    // A node is served all the same: whoever said nothing for longest makes room.
    until("an answer", || {
        let mut node = TcpStream::connect(at).ok()?;
        node.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let read = WireRequest { id: 1, vm: name("web"), asker: Asker::default(), ask: wire::Ask::Read };
        node.write_all(&read.encode()).ok()?;
        node.read_exact(&mut [0; ANSWER_LEN]).ok()
    });
    assert_quiet(&program);
    drop(many);
}

#[test]
fn forty_callers_and_24_descriptors_are_a_few_lines_of_a_standby() {
    let dir = tempfile::tempdir().unwrap();
    let at = free();
    let program = standby(dir.path(), FILES, at, "manual");
    let many = crowd(at);
    assert_quiet(&program);
    // A primary is answered all the same.
    until("an answer", || {
        let call = Call::connect("standby", &[at], None, &SessionOptions::default()).ok()?;
        match call.shake_hands(&hello("db", 2), &profile(1 << 20), None) {
            Err(SessionError::Refused { why, .. }) => why.contains("stands by for web, not for db").then_some(()),
            _ => None,
        }
    });
    drop(many);
}

#[test]
fn forty_callers_and_24_descriptors_are_a_few_lines_of_a_probes_server() {
    let dir = tempfile::tempdir().unwrap();
    let at = free();
    let args = ["keepalive", "serve", "--listen", &at.to_string(), "--transport", "tcp"];
    let program = Program::start(dir.path(), "12", &args);
    until("it listens", || TcpStream::connect(at).ok());
    let many = crowd(at);
    assert_quiet(&program);
    drop(many);
}

#[test]
fn forty_callers_and_24_descriptors_are_a_few_lines_of_control_socket_and_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let program = standby(dir.path(), FILES, free(), "manual");
    let socket = dir.path().join("run/web.standby.sock");
    let many: Vec<_> = (0..40).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    assert_quiet(&program);
    drop(many);
    let answer = until("an answer", || ask(&socket, Request::Status, Duration::from_secs(5)).ok());
    assert!(matches!(answer, Response::Status(_)), "{answer:?}");
}

#[test]
fn thousands_of_refused_callers_are_a_few_events_and_every_one_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let at = free();
    let program = standby(dir.path(), "", at, "manual");
    const CALLERS: u64 = 2000;
    for _ in 0..CALLERS {
        assert!(refusal(at, &hello("db", 2), b"{}").contains("stands by for web, not for db"));
    }
    let counted = |events: &[Value]| {
        let one = |e: &Value| e["more"].as_u64().map_or_else(|| e["callers"].as_u64().unwrap(), |more| more + 1);
        events.iter().map(one).sum::<u64>()
    };
    let events = until("all are counted", || {
        let events = program.events("refused");
        (counted(&events) == CALLERS).then_some(events)
    });
    assert!(events.len() < 20, "{} events", events.len());
    assert!(program.err().lines().count() < 40, "{} lines", program.err().lines().count());
}

/// A witness whose register of "web" is this, where it is, and who.
fn witness(dir: &Path, register: Option<Register>) -> (Witness, String, WitnessId) {
    let witness = Witness::start("127.0.0.1:0".parse().unwrap(), &dir.join("witness")).unwrap();
    let arbiter = format!("witness://{}", witness.local_addr());
    let client = ArbiterClient::spawn(&ArbiterConfig {
        spec: arbiter.parse().unwrap(),
        vm: name("web"),
        node: register.map_or(node("a"), |r| r.owner.node),
        run_dir: dir.to_owned(),
        state_dir: dir.join("owner"),
        accept_witness: false,
    });
    let client = client.unwrap();
    if let Some(new) = register {
        client.ask(Ask::Cas(Swap { expect: Generation(0), new, contested: false }));
        let won = Answer::Cas(CasOutcome::Won(new));
        until("the swap", || client.take_answer().filter(|answer| *answer == won));
    }
    let id = until("its identity", || Some(client.health().witness).filter(|id| *id != WitnessId::NONE));
    (witness, arbiter, id)
}

fn solo(name: &str) -> Option<Register> {
    let owner = Owner { node: node(name), instance: 1 };
    Some(Register { generation: Generation(1), owner, mode: Mode::Solo })
}

/// Nothing was started, and no RAM file made.
fn assert_untouched(dir: &Path) {
    assert!(!dir.join("qemu.started").exists(), "QEMU was started");
    // A lock is there from the start.
    let bytes = |file: std::io::Result<fs::DirEntry>| file.unwrap().metadata().unwrap().len();
    assert_eq!(fs::read_dir(dir.join("ram")).unwrap().map(bytes).sum::<u64>(), 0, "a RAM file was made");
}

#[test]
fn nothing_is_allocated_for_a_primary_that_the_register_does_not_vouch_for() {
    for (register, generation, words) in [
        (None, 1, "it knows no web"),
        (solo("c"), 2, "web belongs to c, alone"),
        (solo("a"), 3, "it holds generation 1, so a session is of generation 2, not of generation 3"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (_witness, arbiter, id) = witness(dir.path(), register);
        let at = free();
        let mut program = standby(dir.path(), "", at, &arbiter);
        let why = refusal(at, &Hello { witness: id, ..hello("web", generation) }, &profile(32 << 20));
        assert!(why.contains("does not vouch for") && why.contains(words), "{why}");
        assert_untouched(dir.path());
        assert!(program.child.try_wait().unwrap().is_none());
    }
}

#[test]
fn the_owner_is_taken_on_if_its_vm_fits_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let (_witness, arbiter, witness) = witness(dir.path(), solo("a"));
    let at = free();
    let _program = standby(dir.path(), "", at, &arbiter);
    let hello = Hello { witness, ..hello("web", 2) };
    let why = refusal(at, &hello, &profile(1 << 50));
    assert!(why.contains("the VM needs 1073741824 MiB"), "{why}");
    let why = refusal(at, &Hello { node: node("b"), ..hello }, &profile(32 << 20));
    assert!(why.contains("both nodes are named b"), "{why}");
    assert_untouched(dir.path());
    // Its QEMU is started, and is none.
    let why = refusal(at, &hello, &profile(32 << 20));
    assert!(why.contains("standby's QEMU"), "{why}");
    assert!(dir.path().join("qemu.started").exists());
}

#[test]
fn while_the_arbiter_says_nothing_nobody_is_kept_and_the_caller_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // Takes connections, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let arbiter = format!("witness://{}", mute.local_addr().unwrap());
    let at = free();
    let _program = standby(dir.path(), "", at, &arbiter);
    let waits = || spawn(move || refusal(at, &hello("web", 2), &profile(32 << 20)));
    let (first, second) = (waits(), waits());
    let socket = dir.path().join("run/web.standby.sock");
    assert!(matches!(ask(&socket, Request::Status, LONG).unwrap(), Response::Status(_)));
    let mut told = [first.join().unwrap(), second.join().unwrap()];
    told.sort();
    assert!(told[0].contains(&format!("the arbiter {arbiter} does not answer this standby: ")), "{told:?}");
    // Unless it came when the first had been told already.
    assert!(told[1].contains("asking the arbiter about another primary") || told[1] == told[0], "{told:?}");
    assert_untouched(dir.path());
}

#[test]
fn slow_callers_keep_neither_a_primary_nor_an_operator_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let at = free();
    let _program = standby(dir.path(), "", at, "manual");
    let _silent: Vec<_> = (0..6).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut half = TcpStream::connect(at).unwrap();
    half.write_all(b"AIH1\x01").unwrap();
    assert!(refusal(at, &hello("db", 2), b"{}").contains("stands by for web"));
    let socket = dir.path().join("run/web.standby.sock");
    assert!(matches!(ask(&socket, Request::Status, LONG).unwrap(), Response::Status(_)));
}

#[test]
fn a_port_in_use_ends_with_6_and_says_how_to_find_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (run, state) = (path("run"), path("state"));
    let standby = ["standby", "--vm", "web", "--arbiter", "manual", "--run-dir", &run, "--state-dir", &state];
    let standby = [&standby[..], &["--listen", &at, "--", "true"]].concat();
    for args in [&standby[..], &["keepalive", "serve", "--transport", "tcp", "--listen", &at]] {
        let (code, said) = Program::start(dir.path(), "", args).end();
        assert_eq!(code, 6, "{args:?}: {said}");
        for words in [&at[..], "Address already in use", "what to do", "ss -ltnp", "--listen"] {
            assert!(said.contains(words), "{args:?}: {words:?} is not in: {said}");
        }
    }
    let (listen, metrics) = (free().to_string(), ["--metrics", &at, "--", "true"]);
    let args = ["standby", "--vm", "web", "--arbiter", "manual", "--run-dir", &run, "--state-dir", &state, "--listen"];
    let (code, said) = Program::start(dir.path(), "", &[&args[..], &[&listen], &metrics].concat()).end();
    assert!(code == 6 && said.contains("ss -ltnp") && said.contains("--metrics"), "{code} {said}");
}
