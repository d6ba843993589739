//! The arbiter's client, against a witness, against impostors, and with an operator for an arbiter.

use afterimage::{
    arbiter::{Answer, ArbiterClient, ArbiterError, ArbiterSpec, Ask, ask_once},
    witness::Witness,
};
use mc_core::{
    id::{Generation, Name},
    register::{CasOutcome, Mode, Owner, Register},
    wire::arbiter::{Body, LEN, Message},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn register(generation: u64, node: &str) -> Register {
    Register { generation: Generation(generation), owner: Owner { node: name(node), instance: 1 }, mode: Mode::Solo }
}

fn cas(expect: u64, node: &str, contested: bool) -> Ask {
    Ask::Cas { expect: Generation(expect), new: register(expect + 1, node), contested }
}

fn won(generation: u64, node: &str) -> Answer {
    Answer::Cas(CasOutcome::Won(register(generation, node)))
}

fn spec(address: SocketAddr) -> ArbiterSpec {
    format!("witness://{address}").parse().unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Waits on the descriptor, as a driver does.
fn wait(client: &ArbiterClient) {
    let long = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&long)).unwrap();
    assert_eq!(ready, 1, "nothing happened; {:?}", client.health());
}

fn answer(client: &ArbiterClient) -> Answer {
    loop {
        match client.take_answer() {
            Some(answer) => return answer,
            None => wait(client),
        }
    }
}

/// Waits until the health is as wanted; answers are not expected meanwhile.
fn until(client: &ArbiterClient, reachable: bool, error: &str) {
    loop {
        assert_eq!(client.take_answer(), None);
        let health = client.health();
        let said = health.last_error.clone().unwrap_or_default();
        if health.reachable == reachable && said.is_empty() == error.is_empty() && said.contains(error) {
            return;
        }
        wait(client);
    }
}

fn receive(stream: &mut TcpStream) -> Option<Message> {
    let mut bytes = [0; LEN];
    stream.read_exact(&mut bytes).ok()?;
    Some(Message::decode(&bytes).unwrap())
}

#[test]
fn asks_are_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::start(any(), dir.path()).unwrap();
    let client = ArbiterClient::spawn(spec(witness.local_addr()), name("vm"), Path::new("unused")).unwrap();
    for ask in [Ask::Read, cas(0, "a", false), cas(0, "b", true), cas(1, "b", true)] {
        client.ask(ask);
    }
    assert_eq!(answer(&client), Answer::Read(None));
    assert_eq!(answer(&client), won(1, "a"));
    assert_eq!(answer(&client), Answer::Cas(CasOutcome::Lost(Some(register(1, "a")))));
    assert_eq!(answer(&client), won(2, "b"));
    until(&client, true, "");
    assert!(!client.operator_decides(), "a witness needs no operator");
    witness.stop().unwrap();
}

#[test]
fn a_swap_asked_while_the_witness_is_away_is_answered_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::start(any(), dir.path()).unwrap();
    let address = witness.local_addr();
    let client = ArbiterClient::spawn(spec(address), name("vm"), Path::new("unused")).unwrap();
    until(&client, true, "");
    witness.stop().unwrap();
    // Noticed without a question: the client asks once a second by itself.
    until(&client, false, &address.to_string());
    client.ask(cas(0, "a", true));
    client.ask(cas(0, "a", true));
    let witness = start_again(address, dir.path());
    assert_eq!(answer(&client), won(1, "a"));
    until(&client, true, "");
    assert_eq!(client.take_answer(), None, "equal questions are joined");
    witness.stop().unwrap();
}

/// The port may be in the hands of closed connections for a moment.
fn start_again(address: SocketAddr, dir: &Path) -> Witness {
    let deadline = Instant::now() + LONG;
    loop {
        match Witness::start(address, dir) {
            Ok(witness) => return witness,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ask_once_says_which_arbiter_did_not_answer_and_why() {
    let closed = TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let patience = Duration::from_millis(200);
    let error = ask_once(&spec(closed), name("vm"), Path::new("unused"), Ask::Read, patience).unwrap_err();
    assert!(matches!(error, ArbiterError::Unanswered { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("witness://{closed}")) && text.contains("refused"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let witness = Witness::start(any(), dir.path()).unwrap();
    let answer = ask_once(&spec(witness.local_addr()), name("vm"), Path::new("unused"), Ask::Read, LONG).unwrap();
    assert_eq!(answer, Answer::Read(None));
    witness.stop().unwrap();
}

/// Serves one connection after the other with `script`: what to answer to the n-th request, or `None` to hang up.
fn impostor(script: impl Fn(usize, Message) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(any()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut n = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(request) = receive(&mut stream) {
                let reply = script(n, request);
                n += 1;
                match reply {
                    Some(bytes) if stream.write_all(&bytes).is_ok() => {}
                    _ => break,
                }
            }
        }
    });
    address
}

#[test]
fn the_same_swap_is_sent_again_after_hang_ups_garbage_and_failures() {
    let (seen, requests) = std::sync::mpsc::channel();
    let address = impostor(move |_, request| {
        let Body::Cas { new, .. } = request.body else {
            return Some(Message { body: Body::Holds(None), ..request }.encode().to_vec());
        };
        seen.send(request.body).unwrap();
        let reply = |body| Some(Message { body, ..request }.encode().to_vec());
        static SWAPS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        match SWAPS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => None,
            1 => Some(vec![0; LEN]),
            2 => reply(Body::Failed),
            3 => Some(Message { id: request.id + 1, vm: request.vm, body: Body::Won(new) }.encode().to_vec()),
            4 => reply(Body::Won(register(1, "somebody-else"))),
            5 => reply(Body::Holds(Some(new))),
            _ => reply(Body::Won(new)),
        }
    });
    let client = ArbiterClient::spawn(spec(address), name("vm"), Path::new("unused")).unwrap();
    client.ask(cas(0, "a", true));
    assert_eq!(answer(&client), won(1, "a"));
    let sent: Vec<Body> = requests.try_iter().collect();
    assert_eq!(sent.len(), 7);
    assert!(sent.iter().all(|body| *body == sent[0]), "{sent:?}");
}

#[test]
fn a_witness_that_cannot_store_is_reachable_and_the_health_says_why() {
    let address = impostor(|_, request| {
        let body = if request.body == Body::Read { Body::Holds(None) } else { Body::Failed };
        Some(Message { body, ..request }.encode().to_vec())
    });
    let client = ArbiterClient::spawn(spec(address), name("vm"), Path::new("unused")).unwrap();
    client.ask(cas(0, "a", false));
    until(&client, true, "could not store");
}

#[test]
fn manual_answers_at_once_what_nobody_else_can_want() {
    let run = tempfile::tempdir().unwrap();
    let dir = run.path().join("made");
    let client = ArbiterClient::spawn(ArbiterSpec::Manual, name("vm"), &dir).unwrap();
    client.ask(Ask::Read);
    client.ask(cas(0, "a", false));
    client.ask(cas(0, "b", false));
    assert_eq!(answer(&client), Answer::Read(None));
    assert_eq!(answer(&client), won(1, "a"));
    assert_eq!(answer(&client), Answer::Cas(CasOutcome::Lost(Some(register(1, "a")))));
    drop(client);
    let again = ask_once(&ArbiterSpec::Manual, name("vm"), &dir, Ask::Read, LONG).unwrap();
    assert_eq!(again, Answer::Read(Some(register(1, "a"))), "it survives the process");
}

#[test]
fn manual_promotes_nobody_until_the_operator_says_so() {
    // Two hosts, each with its own run directory. The standby learnt generation 2 from its primary, not from its own file.
    let (primary_dir, standby_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let primary = ArbiterClient::spawn(ArbiterSpec::Manual, name("vm"), primary_dir.path()).unwrap();
    let standby = ArbiterClient::spawn(ArbiterSpec::Manual, name("vm"), standby_dir.path()).unwrap();
    for generation in 0..2 {
        primary.ask(cas(generation, "a", false));
        assert_eq!(answer(&primary), won(generation + 1, "a"));
    }
    primary.ask(cas(2, "a", true));
    standby.ask(cas(2, "b", true));
    until(&primary, true, "afterimage solo");
    until(&standby, true, "afterimage takeover");
    assert!(standby.operator_decides());
    assert_eq!(answer(&standby), won(3, "b"));
    until(&standby, true, "");
    assert!(!standby.operator_decides(), "nothing waits any more");
    until(&primary, true, "afterimage solo");
}

#[test]
fn manual_remembers_a_decision_that_comes_before_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let client = ArbiterClient::spawn(ArbiterSpec::Manual, name("vm"), dir.path()).unwrap();
    assert!(!client.operator_decides(), "nothing was asked");
    client.ask(Ask::Read);
    client.ask(cas(0, "a", true));
    assert!(client.operator_decides());
    assert_eq!(answer(&client), Answer::Read(None));
    assert_eq!(answer(&client), won(1, "a"));
    client.ask(cas(1, "a", true));
    until(&client, true, "operator");
}

#[test]
fn manual_on_one_shared_directory_lets_only_one_of_two_decisions_through() {
    let dir = tempfile::tempdir().unwrap();
    let spawn = || ArbiterClient::spawn(ArbiterSpec::Manual, name("vm"), dir.path()).unwrap();
    let (a, b) = (spawn(), spawn());
    a.ask(cas(0, "a", true));
    b.ask(cas(0, "b", true));
    until(&a, true, "operator");
    until(&b, true, "operator");
    assert!(a.operator_decides());
    assert_eq!(answer(&a), won(1, "a"));
    assert!(b.operator_decides());
    assert_eq!(answer(&b), Answer::Cas(CasOutcome::Lost(Some(register(1, "a")))));
}

#[test]
fn manual_with_a_damaged_register_answers_nothing_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vm.manual.reg"), b"damaged").unwrap();
    let patience = Duration::from_millis(200);
    let error = ask_once(&ArbiterSpec::Manual, name("vm"), dir.path(), Ask::Read, patience).unwrap_err();
    assert!(error.to_string().contains("vm.manual.reg"), "{error}");
}
