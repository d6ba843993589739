//! The arbiter's client, against a witness, against impostors, and with an operator for an arbiter.

mod witness_common;

use mc_core::{
    id::{Generation, WitnessId},
    register::{CasOutcome, Register, Swap},
    wire::arbiter::{self as wire, ANSWER_LEN, Outcome, REQUEST_LEN, Refusal, Request, Standing},
};
use node::arbiter::{Answer, ArbiterClient, ArbiterConfig, ArbiterError, ArbiterSpec, Ask, ask_once};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};
use witness::Witness;
use witness_common::{name, node, solo};

const LONG: Duration = Duration::from_secs(60);

fn cas(expect: u64, node: &str, contested: bool) -> Ask {
    Ask::Cas(Swap { expect: Generation(expect), new: solo(expect + 1, node), contested })
}

fn won(generation: u64, node: &str) -> Answer {
    Answer::Cas(CasOutcome::Won(solo(generation, node)))
}

fn spec(address: SocketAddr) -> ArbiterSpec {
    format!("witness://{address}").parse().unwrap()
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Node `who` asks about "vm", and keeps everything in `dir`.
fn config(spec: ArbiterSpec, who: &str, dir: &Path) -> ArbiterConfig {
    let (run_dir, state_dir) = (dir.join("run"), dir.join("state"));
    ArbiterConfig { spec, vm: name("vm"), node: node(who), run_dir, state_dir, accept_witness: false }
}

fn spawn(spec: ArbiterSpec, who: &str, dir: &Path) -> ArbiterClient {
    ArbiterClient::spawn(&config(spec, who, dir)).unwrap()
}

/// Waits on the descriptor, as a driver does.
fn wait(client: &ArbiterClient) {
    let long = Timespec { tv_sec: 30, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&long)).unwrap();
    assert_eq!(ready, 1, "nothing happened; {:?}", client.health());
}

/// The answer to a swap; reads come by themselves.
fn swapped(client: &ArbiterClient) -> Answer {
    loop {
        match client.take_answer() {
            Some(answer @ Answer::Cas(_)) => return answer,
            Some(_) => {}
            None => wait(client),
        }
    }
}

/// The next that is read, whether it was asked for or not.
fn read(client: &ArbiterClient) -> Answer {
    loop {
        match client.take_answer() {
            Some(answer @ Answer::Read(_)) => return answer,
            Some(_) => {}
            None => wait(client),
        }
    }
}

/// Waits until the health is as wanted; no swap is answered meanwhile.
fn until(client: &ArbiterClient, reachable: bool, error: &str) {
    loop {
        let answer = client.take_answer();
        assert!(!matches!(answer, Some(Answer::Cas(_))), "{answer:?}");
        let health = client.health();
        let said = health.last_error.clone().unwrap_or_default();
        if health.reachable == reachable && said.is_empty() == error.is_empty() && said.contains(error) {
            return;
        }
        if answer.is_none() {
            wait(client);
        }
    }
}

fn receive(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = [0; REQUEST_LEN];
    stream.read_exact(&mut bytes).ok()?;
    Some(Request::decode(&bytes).unwrap())
}

/// What a witness says that is in order.
fn says(request: &Request, outcome: Outcome, held: Option<Register>) -> wire::Answer {
    wire::Answer {
        id: request.id,
        vm: request.vm,
        witness: WitnessId([9; 16]),
        boot: 5,
        probe_age_ms: Some(1),
        standing: Standing::Settled,
        outcome,
        held,
    }
}

#[test]
fn asks_are_answered_in_order() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let witness = Witness::start(any(), dir.path()).unwrap();
    let client = spawn(spec(witness.local_addr()), "a", home.path());
    for ask in [Ask::Read, cas(0, "a", false), cas(2, "a", true), cas(1, "a", true)] {
        client.ask(ask);
    }
    assert_eq!(read(&client), Answer::Read(None));
    assert_eq!(swapped(&client), won(1, "a"));
    assert_eq!(swapped(&client), Answer::Cas(CasOutcome::Lost(Some(solo(1, "a")))));
    assert_eq!(swapped(&client), won(2, "a"));
    until(&client, true, "");
    assert!(!client.operator_decides(), "a witness that answers needs no operator");
    assert_eq!(client.health().failover_possible(), Ok(()));
    witness.stop().unwrap();
}

#[test]
fn what_the_register_holds_is_told_once_a_second_without_a_question() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let witness = Witness::start(any(), dir.path()).unwrap();
    let (a, b) = (spawn(spec(witness.local_addr()), "a", home.path()), tempfile::tempdir().unwrap());
    let b = spawn(spec(witness.local_addr()), "b", b.path());
    assert_eq!(read(&b), Answer::Read(None));
    a.ask(cas(0, "a", false));
    assert_eq!(swapped(&a), won(1, "a"));
    while read(&b) != Answer::Read(Some(solo(1, "a"))) {}
    // Nobody takes them: they do not pile up.
    std::thread::sleep(Duration::from_millis(2500));
    while b.take_answer().is_some() {}
    witness.stop().unwrap();
}

#[test]
fn a_swap_by_who_is_not_named_is_lost() {
    let (dir, homes) = (tempfile::tempdir().unwrap(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let witness = Witness::start(any(), dir.path()).unwrap();
    let a = spawn(spec(witness.local_addr()), "a", homes[0].path());
    a.ask(cas(0, "a", false));
    assert_eq!(swapped(&a), won(1, "a"));
    let stranger = spawn(spec(witness.local_addr()), "c", homes[1].path());
    stranger.ask(cas(1, "c", true));
    assert_eq!(swapped(&stranger), Answer::Cas(CasOutcome::Lost(Some(solo(1, "a")))));
    witness.stop().unwrap();
}

#[test]
fn a_swap_asked_while_the_witness_is_away_is_answered_when_it_is_back() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let witness = Witness::start(any(), dir.path()).unwrap();
    let address = witness.local_addr();
    let client = spawn(spec(address), "a", home.path());
    until(&client, true, "");
    witness.stop().unwrap();
    // Noticed without a question: the client asks once a second by itself.
    until(&client, false, &address.to_string());
    assert!(client.health().failover_possible().unwrap_err().contains("cannot be reached"));
    client.ask(cas(0, "a", true));
    client.ask(cas(0, "a", true));
    let witness = start_again(address, dir.path());
    assert_eq!(swapped(&client), won(1, "a"));
    until(&client, true, "");
    assert!(!matches!(client.take_answer(), Some(Answer::Cas(_))), "equal questions are joined");
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
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let patience = Duration::from_millis(200);
    let error = ask_once(&config(spec(closed), "a", home.path()), Ask::Read, patience).unwrap_err();
    assert!(matches!(error, ArbiterError::Unanswered { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("witness://{closed}")) && text.contains("refused"), "{text}");

    let witness = Witness::start(any(), dir.path()).unwrap();
    let config = config(spec(witness.local_addr()), "a", home.path());
    assert_eq!(ask_once(&config, Ask::Read, LONG).unwrap(), Answer::Read(None));
    assert_eq!(ask_once(&config, cas(0, "a", false), LONG).unwrap(), won(1, "a"));
    witness.stop().unwrap();
}

/// Serves one connection after the other with `script`: what to answer to the n-th request, or `None` to hang up.
fn impostor(script: impl Fn(usize, &Request) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(any()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut n = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(request) = receive(&mut stream) {
                let reply = script(n, &request);
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
    static SWAPS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let (seen, requests) = std::sync::mpsc::channel();
    let address = impostor(move |_, request| {
        let answer = |outcome, held| Some(says(request, outcome, held).encode().to_vec());
        let wire::Ask::Cas(Swap { new, .. }) = request.ask else { return answer(Outcome::Holds, None) };
        if request.asker.boot != 5 {
            return answer(Outcome::Refused(Refusal::StaleBoot), None);
        }
        seen.send(request.ask).unwrap();
        match SWAPS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => None,
            1 => Some(vec![0; ANSWER_LEN]),
            2 => answer(Outcome::Failed, None),
            3 => {
                let other = Request { id: request.id + 1, ..*request };
                Some(says(&other, Outcome::Won, Some(new)).encode().to_vec())
            }
            4 => answer(Outcome::Refused(Refusal::Waiting), None),
            5 => answer(Outcome::Holds, None),
            _ => answer(Outcome::Won, Some(new)),
        }
    });
    let home = tempfile::tempdir().unwrap();
    let client = spawn(spec(address), "a", home.path());
    client.ask(cas(0, "a", true));
    assert_eq!(swapped(&client), won(1, "a"));
    let sent: Vec<wire::Ask> = requests.try_iter().collect();
    assert_eq!(sent.len(), 7);
    assert!(sent.iter().all(|ask| *ask == sent[0]), "{sent:?}");
}

#[test]
fn a_witness_that_cannot_store_is_reachable_and_the_health_says_why() {
    let address = impostor(|_, request| {
        let outcome = if request.ask == wire::Ask::Read { Outcome::Holds } else { Outcome::Failed };
        let answer = wire::Answer { probe_age_ms: Some(9000), ..says(request, outcome, None) };
        Some(answer.encode().to_vec())
    });
    let home = tempfile::tempdir().unwrap();
    let client = spawn(spec(address), "a", home.path());
    until(&client, true, "");
    let health = client.health();
    assert!(health.failover_possible().unwrap_err().contains("cannot store any more"));
    assert!(health.remedy().unwrap().contains("disk"));
    client.ask(cas(0, "a", false));
    until(&client, true, "could not store");
}

#[test]
fn nothing_is_told_before_it_is_kept() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let witness = Witness::start(any(), dir.path()).unwrap();
    let client = spawn(spec(witness.local_addr()), "a", home.path());
    until(&client, true, "");
    // A directory in the place of the file that would be written: every try to keep anything fails.
    let obstacle = home.path().join("state/vm.seen.tmp");
    std::fs::create_dir(&obstacle).unwrap();
    client.ask(cas(0, "a", false));
    until(&client, true, "cannot store what it reads from the witness");
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(swapped(&client), won(1, "a"));
    witness.stop().unwrap();
}

#[test]
fn manual_answers_at_once_what_nobody_else_can_want() {
    let run = tempfile::tempdir().unwrap();
    let dir = run.path().join("made");
    let client = spawn(ArbiterSpec::Manual, "a", &dir);
    client.ask(Ask::Read);
    client.ask(cas(0, "a", false));
    client.ask(cas(0, "b", false));
    assert_eq!(read(&client), Answer::Read(None));
    assert_eq!(swapped(&client), won(1, "a"));
    assert_eq!(swapped(&client), Answer::Cas(CasOutcome::Lost(Some(solo(1, "a")))));
    drop(client);
    let again = ask_once(&config(ArbiterSpec::Manual, "a", &dir), Ask::Read, LONG).unwrap();
    assert_eq!(again, Answer::Read(Some(solo(1, "a"))), "it survives the process");
}

#[test]
fn manual_promotes_nobody_until_the_operator_says_so() {
    // Two hosts, each with its own run directory. The standby learnt generation 2 from its primary, not from its own
    // file.
    let (primary_dir, standby_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let primary = spawn(ArbiterSpec::Manual, "a", primary_dir.path());
    let standby = spawn(ArbiterSpec::Manual, "a", standby_dir.path());
    for generation in 0..2 {
        primary.ask(cas(generation, "a", false));
        assert_eq!(swapped(&primary), won(generation + 1, "a"));
    }
    primary.ask(cas(2, "a", true));
    standby.ask(cas(2, "b", true));
    until(&primary, true, "afterimage solo");
    until(&standby, true, "afterimage takeover");
    assert!(standby.operator_decides());
    assert_eq!(swapped(&standby), won(3, "b"));
    until(&standby, true, "");
    assert!(!standby.operator_decides(), "nothing waits any more");
    until(&primary, true, "afterimage solo");
}

#[test]
fn manual_remembers_a_decision_that_comes_before_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let client = spawn(ArbiterSpec::Manual, "a", dir.path());
    assert!(!client.operator_decides(), "nothing was asked");
    client.ask(Ask::Read);
    client.ask(cas(0, "a", true));
    assert!(client.operator_decides());
    assert_eq!(read(&client), Answer::Read(None));
    assert_eq!(swapped(&client), won(1, "a"));
    client.ask(cas(1, "a", true));
    until(&client, true, "operator");
}

#[test]
fn manual_on_one_shared_directory_lets_only_one_of_two_decisions_through() {
    let dir = tempfile::tempdir().unwrap();
    let client = || spawn(ArbiterSpec::Manual, "a", dir.path());
    let (a, b) = (client(), client());
    a.ask(cas(0, "a", true));
    b.ask(cas(0, "b", true));
    until(&a, true, "operator");
    until(&b, true, "operator");
    assert!(a.operator_decides());
    assert_eq!(swapped(&a), won(1, "a"));
    assert!(b.operator_decides());
    assert_eq!(swapped(&b), Answer::Cas(CasOutcome::Lost(Some(solo(1, "a")))));
}

#[test]
fn manual_with_a_damaged_register_answers_nothing_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    std::fs::write(dir.path().join("run/vm.manual.reg"), b"damaged").unwrap();
    let patience = Duration::from_millis(200);
    let error = ask_once(&config(ArbiterSpec::Manual, "a", dir.path()), Ask::Read, patience).unwrap_err();
    assert!(error.to_string().contains("vm.manual.reg"), "{error}");
}
