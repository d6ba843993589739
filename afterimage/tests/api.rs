//! The control socket to strangers: clients that are slow, long-winded, of another version or release, too many, or gone; and a
//! loop that does not answer. Each gets a clear answer, and the loop never waits for one of them.

use api::{
    Control, ControlSocket, Desk, Kind, Late, OfSide, Primary, Problem, ReplyTo, Request, Response, SCHEMA, Serves,
    Side, Status, ask, done, socket_path,
};
use mc_core::id::Name;
use protection::predecessor::relieve_primary;
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(60);

fn vm() -> Name {
    Name::new("web").unwrap()
}

fn status() -> Status {
    let (vm, node, side, role) = ("web".into(), "alpha".into(), OfSide::Primary(Primary::default()), "solo".into());
    Status { schema: SCHEMA, vm, node, side, role, ..Status::default() }
}

fn serve(dir: &Path, handler: impl Fn(Request, ReplyTo) + Send + Sync + 'static) -> (ControlSocket, PathBuf) {
    served(dir, Duration::from_millis(300), handler)
}

/// A loop that has so long to answer.
fn served(
    dir: &Path,
    patience: Duration,
    handler: impl Fn(Request, ReplyTo) + Send + Sync + 'static,
) -> (ControlSocket, PathBuf) {
    let (side, path) = (Side::Primary, socket_path(dir, vm(), Side::Primary));
    let journal = Some(dir.join("web.primary.journal"));
    let desk = Desk::new(Serves::Vm { vm: vm(), side, journal }, Arc::new(handler));
    let late = || Late { why: "it does not turn".into(), status: Some(Status { role: "stalled".into(), ..status() }) };
    (ControlSocket::spawn(&path, desk.late(patience, late)).unwrap(), path)
}

/// Whose loop answers at once.
fn quick(dir: &Path) -> (ControlSocket, PathBuf) {
    serve(dir, |request, reply| {
        reply.give(match request {
            Request::Status => Response::Status(Box::new(status())),
            request => done(&format!("{request:?}")),
        });
    })
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// All that comes, until the other side closes, or breaks off.
fn rest(mut stream: &UnixStream) -> String {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(bytes).unwrap()
}

fn say(path: &Path, bytes: &[u8]) -> String {
    let mut stream = connect(path);
    let _ = stream.write_all(bytes);
    rest(&stream)
}

fn problem(answer: &str) -> Problem {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.to_lowercase().contains("content-type: application/problem+json"), "{head}");
    let problem: Problem = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {} ", problem.status)), "{head}");
    problem
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn what_is_no_request_is_named_and_the_socket_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, path) = quick(dir.path());
    let long_head = format!("GET /v1/vms HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(20 << 10));
    let long_body = request("POST", "/v1/vms/web/settings", &"x".repeat(10 << 20));
    let endless = format!("POST /v1/vms/web/settings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}", {
        format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(3)
    });
    let slip = request("POST", "/v1/vms/web/settings", "{\"epok\":5}");
    let half = request("POST", "/v1/vms/web/settings", "{\"epoch\":");
    let cases: [(&[u8], Kind, &str); 11] = [
        (b"GET /v1/vms\r\n", Kind::Version, "HTTP/0.9"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind::Version, "HTTP/2.0"),
        (b"\x16\x03\x01\x02\r\n", Kind::BadRequest, "no HTTP/1.1 request"),
        (long_head.as_bytes(), Kind::HeadTooLong, "at most 16384 bytes"),
        (&long_body, Kind::BodyTooLong, "at most 65536 bytes"),
        (endless.as_bytes(), Kind::BodyTooLong, "at most 65536 bytes"),
        (&slip, Kind::BadRequest, "unknown field `epok`"),
        (&half, Kind::BadRequest, "not JSON"),
        (b"GET /v2/vms HTTP/1.1\r\nhost: x\r\n\r\n", Kind::NotFound, "version 2"),
        (b"GET /v1/vms/db HTTP/1.1\r\nhost: x\r\n\r\n", Kind::NotFound, "this socket is of the VM web"),
        (b"PUT /v1/vms/web/settings HTTP/1.1\r\nhost: x\r\n\r\n", Kind::MethodNotAllowed, "GET and POST"),
    ];
    for (bytes, kind, words) in cases {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let problem = problem(&say(&path, bytes));
        assert!(problem.is(kind) && problem.detail.contains(words), "{start:?}: {problem:?}");
    }
    let put = say(&path, b"PUT /v1/vms/web/settings HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(put.to_lowercase().contains("\r\nallow: get, post\r\n"), "{put}");
    assert!(ask(&path, Request::Status, LONG).is_ok());
}

#[test]
fn half_a_request_is_answered_once_its_end_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, path) = quick(dir.path());
    let ended = |bytes: &[u8]| {
        let mut stream = connect(&path);
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&stream)
    };
    let half = problem(&ended(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nHo"));
    assert!(half.is(Kind::BadRequest) && half.detail.contains("in the middle of its head"), "{half:?}");
    let half = problem(&ended(b"POST /v1/vms/web/solo HTTP/1.1\r\nhost: x\r\nContent-Length: 9\r\n\r\n{"));
    assert!(half.is(Kind::BadRequest) && half.detail.contains("body"), "{half:?}");
    assert_eq!(ended(b""), "", "nobody asked");
    // Who has said all may close its side.
    let whole = ended(b"GET /v1/vms/web HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.contains("\"role\":\"solo\""), "{whole}");
}

/// The loop's own thread: how long its longest turn was is told.
fn turning(dir: &Path) -> (PathBuf, std::sync::mpsc::Sender<()>, thread::JoinHandle<Duration>) {
    let control = Control::listen((dir, dir), vm(), Name::new("alpha").unwrap(), Side::Primary).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel();
    let turns = thread::spawn(move || {
        let mut longest = Duration::ZERO;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let begun = Instant::now();
            while let Some(asked) = control.take() {
                asked.reply(Response::Status(Box::new(status())));
            }
            longest = longest.max(begun.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        longest
    });
    (socket_path(dir, vm(), Side::Primary), stop, turns)
}

/// It has 10 s: then it hears so, and until then others are served.
#[test]
fn a_byte_a_second_stalls_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (path, stop, turns) = turning(dir.path());
    let slow = [
        &b"GET /v1/vms/web HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        b"POST /v1/vms/web/solo HTTP/1.1\r\nhost: x\r\nContent-Length: 99\r\n\r\n{",
    ];
    let slow = slow.map(|bytes| {
        let mut stream = connect(&path);
        let bytes = bytes.to_vec();
        thread::spawn(move || {
            // Of the second, the head comes at once, and the body not.
            let (now, later) = if bytes[0] == b'P' { bytes.split_at(bytes.len()) } else { bytes.split_at(0) };
            stream.write_all(now).unwrap();
            for byte in later {
                thread::sleep(Duration::from_secs(1));
                if stream.write_all(&[*byte]).is_err() {
                    break;
                }
            }
            problem(&rest(&stream))
        })
    });
    let mut asked = 0;
    while slow.iter().any(|thread| !thread.is_finished()) {
        assert!(matches!(ask(&path, Request::Status, LONG), Ok(Response::Status(_))));
        asked += 1;
        thread::sleep(Duration::from_millis(20));
    }
    for thread in slow {
        let problem = thread.join().unwrap();
        assert!(problem.is(Kind::TooSlow) && problem.detail.contains("10 s"), "{problem:?}");
    }
    drop(stop);
    println!("{asked} questions were answered meanwhile; the loop's longest turn: {:?}", turns.join().unwrap());
}

#[test]
fn idle_connections_give_way_and_the_oldest_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, path) = quick(dir.path());
    let mut half = connect(&path);
    half.write_all(b"POST /v1/vms/web/solo HTTP/1.1\r\nhost: x\r\nContent-Length: 9\r\n\r\n{").unwrap();
    let _silent: Vec<UnixStream> = (0..15).map(|_| connect(&path)).collect();
    assert!(matches!(ask(&path, Request::Status, LONG), Ok(Response::Status(_))));
    let busy = problem(&rest(&half));
    assert!(busy.is(Kind::Busy) && busy.detail.contains("had not asked anything yet"), "{busy:?}");
}

/// Those give no place up that were heard: who comes then is told so, and asks again.
#[test]
fn too_many_are_told_so_and_ask_again_until_a_place_comes_free() {
    let dir = tempfile::tempdir().unwrap();
    let (heard, hears) = std::sync::mpsc::channel();
    let heard = std::sync::Mutex::new(heard);
    let (_socket, path) = served(dir.path(), LONG, move |request, reply| match request {
        Request::Status => reply.give(Response::Status(Box::new(status()))),
        _ => heard.lock().unwrap().send(reply).unwrap(),
    });
    let asking = || {
        let mut stream = connect(&path);
        stream.write_all(&request("POST", "/v1/vms/web/solo", "")).unwrap();
        (stream, hears.recv_timeout(LONG).unwrap())
    };
    let (streams, mut replies): (Vec<_>, Vec<_>) = (0..16).map(|_| asking()).unzip();
    let busy = problem(&rest(&connect(&path)));
    assert!(busy.is(Kind::Busy) && busy.detail.contains("16 requests"), "{busy:?}");
    let asked = api::statuses(std::slice::from_ref(&path));
    assert_eq!((asked.len(), &*asked[0].role), (1, api::MUTE), "{asked:?}");
    let asks = thread::spawn({
        let path = path.clone();
        move || ask(&path, Request::Status, LONG)
    });
    thread::sleep(Duration::from_millis(200));
    replies.pop().unwrap().give(done("so"));
    assert!(matches!(asks.join().unwrap(), Ok(Response::Status(_))));
    drop(streams);
}

#[test]
fn two_at_once_are_both_answered_and_who_leaves_early_is_missed_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let waiting = std::sync::Mutex::new(Vec::new());
    // Answers when two have asked.
    let (_socket, path) = serve(dir.path(), move |request, reply| {
        let mut waiting = waiting.lock().unwrap();
        waiting.push((request, reply));
        if waiting.len() == 2 {
            waiting.drain(..).for_each(|(request, reply)| reply.give(done(&format!("{request:?}"))));
        }
    });
    let ask = |word: &str| {
        let mut stream = connect(&path);
        stream.write_all(&request("POST", &format!("/v1/vms/web/{word}"), "")).unwrap();
        stream
    };
    let (first, second) = (ask("solo"), ask("takeover"));
    assert!(rest(&first).contains("{\"message\":\"Solo\"}") && rest(&second).contains("{\"message\":\"Takeover\"}"));
    drop(ask("solo"));
    assert!(rest(&ask("unprotect")).contains("{\"message\":\"Unprotect\"}"));
}

#[test]
fn a_loop_that_does_not_answer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let kept = std::sync::Mutex::new(Vec::new());
    let (_socket, path) = serve(dir.path(), move |request, reply| {
        // Of one the reply is kept, of one it is dropped: as by a loop that is stuck, and by one that is gone.
        if request == Request::Solo {
            kept.lock().unwrap().push(reply);
        }
    });
    for word in ["solo", "takeover"] {
        let problem = problem(&say(&path, &request("POST", &format!("/v1/vms/web/{word}"), "")));
        assert!(problem.is(Kind::Stalled) && problem.detail == "it does not turn", "{problem:?}");
        assert_eq!((problem.exit_code, problem.instance), (Some(1), format!("/v1/vms/web/{word}")));
    }
    let told = say(&path, &request("GET", "/v1/vms/web", ""));
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.contains("\"role\":\"stalled\""), "{told}");
}

/// It reads one line, and takes it for the answer.
#[test]
fn a_command_of_the_release_before_is_told_to_be_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, path) = quick(dir.path());
    let told = say(&path, b"{\"command\":\"status\"}\n");
    let told: Response = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told:?}"));
    let Response::Refused { message, remedy } = told else { panic!("{told:?}") };
    assert!(message.contains("newer afterimage") && remedy.unwrap().contains("upgrade"), "{message}");
}

/// Or its host could not be upgraded without an outage.
#[test]
fn a_process_of_the_release_before_is_relieved() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(socket_path(dir.path(), vm(), Side::Primary)).unwrap();
    let older = thread::spawn(move || {
        // It answers each line with one, until it has left.
        for stream in listener.incoming().map(Result::unwrap) {
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let leaves = line == "{\"command\":\"handover\"}";
                let refusal =
                    "{\"refused\":{\"message\":\"no request: expected value at line 1 column 1\",\"remedy\":null}}\n";
                let answer = if leaves { "{\"done\":{\"message\":\"leaving\"}}\n" } else { refusal };
                let sent = (&stream).write_all(answer.as_bytes());
                if leaves {
                    return;
                }
                if sent.is_err() {
                    break;
                }
            }
        }
    });
    relieve_primary(dir.path(), vm()).unwrap();
    older.join().unwrap();
}

#[test]
fn curl_lists_the_vm_and_its_newest_events() {
    let dir = tempfile::tempdir().unwrap();
    let (_socket, path) = quick(dir.path());
    let line = |at_ms: u64| format!("{{\"schema\":1,\"event\":\"arbiter-mended\",\"at_ms\":{at_ms}}}\n");
    fs::write(dir.path().join("web.primary.journal"), (1..=9).map(line).collect::<String>()).unwrap();
    let curl = |target: &str| {
        let mut command = Command::new("curl");
        command.args(["-s", "--unix-socket"]).arg(&path).arg(format!("http://localhost{target}"));
        let Ok(out) = command.output() else {
            mc_core::testing::skip("there is no curl");
            return None;
        };
        assert!(out.status.success(), "{out:?}");
        Some(serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}")))
    };
    let Some(vms) = curl("/v1/vms") else { return };
    assert_eq!((&vms["vms"][0]["vm"], &vms["vms"][0]["role"]), (&"web".into(), &"solo".into()), "{vms}");
    let one = curl(vms["vms"][0]["href"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_value::<Status>(one).unwrap(), status());
    let events = curl("/v1/vms/web/events?limit=2&since_ms=5").unwrap();
    let at: Vec<f64> = events["events"].as_array().unwrap().iter().map(|e| e["at_ms"].as_f64().unwrap()).collect();
    assert_eq!((at, &events["more"]), (vec![8.0, 9.0], &true.into()), "{events}");
    let problem = curl("/v1/vms/web/nothing").unwrap();
    assert_eq!((&problem["status"], &problem["instance"]), (&404.into(), &"/v1/vms/web/nothing".into()));
}
