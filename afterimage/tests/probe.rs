//! `afterimage keepalive probe`, `serve` and `tune` as their users run them, over loopback; and peers that are none.

use mc_core::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    testing::skip,
    wire::{
        beat::BeatKey,
        session::{Hello, Purpose, VERSIONS},
    },
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};
use transport_tcp::session::{Call, Listener, SessionError, SessionOptions};

/// Ends with the test.
struct Serving(Child, SocketAddr);

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn afterimage() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.args(["keepalive"]);
    command
}

fn serve() -> Serving {
    serve_with(&["--listen", "127.0.0.1:0", "--transport", "tcp"])
}

fn serve_with(words: &[&str]) -> Serving {
    let mut command = afterimage();
    command.arg("serve").args(words);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    Serving(child, address)
}

fn probe(peer: SocketAddr, more: &[&str]) -> (i32, String, String) {
    let mut command = afterimage();
    command.args(["probe", "--transport", "tcp", "--peer", &peer.to_string()]).args(more);
    run(&mut command)
}

fn run(command: &mut Command) -> (i32, String, String) {
    let out = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn a_probe_that_is_interrupted_shows_what_it_has() {
    let serving = serve();
    let mut command = afterimage();
    command.args(["probe", "--transport", "tcp", "--peer", &serving.1.to_string()]);
    command.args(["--for", "3600s", "--interval", "2ms", "--load", "2MiB", "--json"]);
    let mut probing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It says a line every ten seconds: by then there are beats.
    let mut line = String::new();
    let mut narration = BufReader::new(probing.stderr.take().unwrap());
    while !line.contains(" heard, ") {
        line.clear();
        assert_ne!(narration.read_line(&mut line).unwrap(), 0, "it ended");
    }
    let pid = rustix::process::Pid::from_child(&probing);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let out = probing.wait_with_output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(0), "{found}");
    let phases = found["phases"].as_array().unwrap();
    assert_eq!((phases.len(), &phases[0]["name"]), (1, &"idle".into()), "{found}");
    assert!(phases[0]["seconds"].as_f64().is_some_and(|s| s < 3600.0), "{found}");
    let notes = found["notes"].to_string();
    assert!(notes.contains("interrupted: phase idle ended after") && notes.contains("loaded was not"), "{notes}");
}

#[test]
fn two_hosts_are_probed_and_the_file_is_tuned_from() {
    let serving = serve();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("probe.json");
    let path = file.to_str().unwrap();
    let (code, stdout, stderr) =
        probe(serving.1, &["--for", "700ms", "--interval", "2ms", "--load", "2MiB", "--out", path, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&found["schema"], &found["kind"]), (&1.into(), &"keepalive-probe".into()));
    assert_eq!((&found["settings"]["transport"], &found["settings"]["keepalive"]), (&"tcp".into(), &"udp".into()));
    for (phase, name) in found["phases"].as_array().unwrap().iter().zip(["idle", "loaded"]) {
        assert_eq!(phase["name"], name);
        for end in ["here", "there"] {
            let heard = |value: &serde_json::Value| !value["counts"].as_array().unwrap().is_empty();
            let end = &phase[end];
            assert!(["gap", "rtt", "excess", "lateness"].iter().all(|name| heard(&end[name])), "{end}");
            assert!(heard(&end["paths"][0]["one_way"]) && end["paths"][0]["name"] == "udp");
            assert_eq!(end["interval_us"], 2000);
        }
    }
    assert!(found["phases"][1]["load_mib_per_s"].as_f64().unwrap() > 0.0);

    let (_, stdout, stderr) = run(afterimage().args(["tune", "--from", path, "--detect-within", "100ms"]));
    assert!(stdout.contains("2 ms x 5") && stdout.contains("loaded, heard there"), "{stdout}{stderr}");
    let (code, stdout, _) = run(afterimage().args(["tune", "--from", path, "--what-if", "interval=4ms,k=3", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, told["rows"].as_array().unwrap().len()), (0, 1), "one row, no wish to miss");

    std::fs::write(&file, stdout).unwrap();
    let (code, _, stderr) = run(afterimage().args(["tune", "--from", path, "--detect-within", "100ms"]));
    assert!(code == 1 && stderr.contains("kind \"keepalive-tune\""), "{stderr}");
}

/// Two devices on one host, as `scripts/lab run` has them.
#[test]
#[cfg(feature = "rdma")]
fn beats_by_rdma_datagrams_are_probed_beside_rdma_writes() {
    let missing =
        ["rxe0", "rxe1"].into_iter().find(|d| !std::path::Path::new("/sys/class/infiniband").join(d).exists());
    if let Some(device) = missing {
        return skip(format!("there is no RDMA device {device}; scripts/lab has them"));
    }
    let serving = serve_with(&["--listen", "10.77.1.2:0", "--transport", "rdma", "--rdma-device", "rxe1"]);
    let peer = serving.1.to_string();
    let mut command = afterimage();
    command.args(["probe", "--peer", &peer, "--transport", "rdma", "--rdma-device", "rxe0", "--for", "3s"]);
    let (code, stdout, stderr) = run(command.args(["--interval", "50ms", "--load", "1MiB", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&found["settings"]["transport"], &found["settings"]["keepalive"]), (&"rdma".into(), &"ud".into()));
    for phase in found["phases"].as_array().unwrap() {
        for end in ["here", "there"] {
            assert!(!phase[end]["gap"]["counts"].as_array().unwrap().is_empty(), "{phase}");
        }
    }
    assert!(found["phases"][1]["load_mib_per_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_peer_that_speaks_no_afterimage_is_quoted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP ready, what is it\r\n").unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    let (code, _, stderr) = probe(address, &["--for", "1s"]);
    other.join().unwrap();
    assert!(code == 1 && stderr.contains("220 mail.example") && stderr.contains("keepalive serve"), "{stderr}");
}

#[test]
fn a_standby_is_told_from_a_server() {
    let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), SessionOptions::default()).unwrap();
    let address = listener.local_addr();
    // As `afterimage standby --vm web` says it.
    let standby = thread::spawn(move || {
        let offer = listener.accept(std::time::Duration::from_secs(20)).unwrap().unwrap();
        let why = format!("this standby stands by for web, not for {}", offer.hello.purpose);
        offer.refuse(&why).unwrap();
    });
    let (code, _, stderr) = probe(address, &["--for", "1s"]);
    standby.join().unwrap();
    assert!(code == 1 && stderr.contains("stands by for web") && stderr.contains("keepalive serve"), "{stderr}");
}

#[test]
fn a_peer_that_answers_nonsense_is_named() {
    let mut listener = Listener::bind("127.0.0.1:0".parse().unwrap(), SessionOptions::default()).unwrap();
    let address = listener.local_addr();
    let other = thread::spawn(move || {
        let offer = listener.accept(std::time::Duration::from_secs(20)).unwrap().unwrap();
        let hello = offer.hello;
        offer.accept(hello, b"{\"kind\":\"keepalive-probe\",\"version\":7}", None).map(drop)
    });
    let (code, _, stderr) = probe(address, &["--for", "1s"]);
    let _ = other.join().unwrap();
    assert!(code == 1 && stderr.contains("version 7"), "{stderr}");
}

#[test]
fn a_primary_that_finds_a_server_is_told_what_it_found() {
    let serving = serve();
    let hello = Hello {
        versions: VERSIONS,
        slab_size: 1 << 20,
        staging_slabs: 4,
        rdma: false,
        incarnation: Incarnation(1),
        generation: Generation(1),
        purpose: Purpose::Protect(Name::new("web").unwrap()),
        node: Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) },
        witness: WitnessId::NONE,
        instance: 1,
        beat_key: BeatKey([0; 32]),
        beat_port: 9,
        detect_multiplier: 5,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
    };
    let connect = |hello: &Hello, words: &[u8]| {
        let call = Call::connect("serve", &[serving.1], None, &SessionOptions::default())?;
        call.shake_hands(hello, words, None)
    };
    let answer = connect(&hello, b"{}");
    assert!(matches!(&answer, Err(SessionError::Refused { why, .. }) if why.contains("only measures")), "{answer:?}");
    // And a probe's words that are none.
    let hello = Hello { purpose: Purpose::Probe, ..hello };
    let answer = connect(&hello, b"{\"kind\":\"vm\"}");
    assert!(
        matches!(&answer, Err(SessionError::Refused { why, .. }) if why.contains("not an `afterimage keepalive`")),
        "{answer:?}"
    );
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    for (args, words) in [
        (&["probe"][..], "--peer"),
        (&["probe", "--peer", "a:1", "--interval", "20us"], "100"),
        (&["probe", "--peer", "a:1", "--transport", "tcp", "--keepalive", "ud"], "need RDMA"),
        (&["probe", "--peer", "a:1", "--load", "3"], "invalid size"),
        (&["tune", "--from", "x", "--what-if", "k=0"], "2 to 255"),
        (&["tune", "--from", "x"], "--detect-within"),
        (&["tune", "--from", "x", "--false-failovers", "1/eon"], "1/year"),
        (&["tune", "--from", "live", "--detect-within", "50ms"], "--vm"),
    ] {
        let (code, _, stderr) = run(afterimage().args(args));
        assert!(code == 2 && stderr.contains(words), "{args:?}: {code} {stderr}");
    }
}

/// Passes connections on to `to`. Once so many bytes went there, what else the callers of then send goes nowhere, as
/// behind a packet filter.
fn black_hole(to: SocketAddr, after: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for caller in listener.incoming() {
            let (caller, peer) = (caller.unwrap(), TcpStream::connect(to).unwrap());
            let (mut back, mut to_caller) = (peer.try_clone().unwrap(), caller.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back, &mut to_caller));
            thread::spawn(move || pass(caller, peer, after));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, after: usize) {
    let (mut passed, mut buffer) = (0, [0; 4096]);
    while passed < after {
        match from.read(&mut buffer) {
            Ok(n) if n > 0 => to.write_all(&buffer[..n]).unwrap(),
            _ => return,
        }
        passed += buffer.len();
    }
    loop {
        thread::park();
    }
}

#[test]
fn a_load_that_gets_nowhere_fails_the_probe_and_what_was_measured_is_shown() {
    let serving = serve();
    let filtered = black_hole(serving.1, 256 << 10);
    let (code, stdout, stderr) = probe(filtered, &["--for", "1s", "--interval", "2ms", "--load", "2MiB"]);
    assert_eq!(code, 1, "{stdout} {stderr}");
    assert!(stderr.contains("phase loaded: no checkpoint reached") && stderr.contains("what to do: "), "{stderr}");
    assert!(stdout.contains("\nidle: ") && stdout.contains("note: phase loaded: no checkpoint reached"), "{stdout}");
}

#[test]
fn what_cannot_be_had_is_said_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody is there: whoever came so far would say that.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let missing = dir.path().join("missing/probe.json");
    let (code, _, stderr) = probe(nobody, &["--out", missing.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("nothing was measured") && stderr.contains("what to do"), "{code} {stderr}");
    let good = dir.path().join("probe.json");
    let (code, _, stderr) = probe(nobody, &["--out", good.to_str().unwrap()]);
    assert!(code == 1 && stderr.contains("Connection refused") && !good.exists(), "{code} {stderr}");
    std::fs::write(&good, "of yesterday").unwrap();
    let _ = probe(nobody, &["--out", good.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&good).unwrap(), "of yesterday");

    let mut named = afterimage();
    named.args(["probe", "--peer", &nobody.to_string(), "--transport", "auto", "--rdma-device", "nosuch0"]);
    let (code, _, stderr) = run(&mut named);
    assert!(code == 6 && stderr.contains("what to do: ") && !stderr.contains("refused"), "{code} {stderr}");
}
