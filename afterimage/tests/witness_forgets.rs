//! A witness that forgot, went back, or is another one: what the nodes of a VM make of it, and what an operator can do.

mod witness_common;

use mc_core::{
    id::Generation,
    register::{CasOutcome, Register, Swap},
    seen::Fault,
    wire::arbiter as wire,
};
use node::arbiter::{Answer, ArbiterClient, ArbiterConfig, Ask, accept_witness, ask_once};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use witness_common::{BINARY, Daemon, LONG, asker, exchange, many_files, name, node, protected, run, solo, until};

/// The state directory of a witness, and of two nodes, a and b.
struct World {
    witness: TempDir,
    a: TempDir,
    b: TempDir,
}

impl World {
    fn new() -> Self {
        let [witness, a, b] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        Self { witness, a, b }
    }

    fn config(&self, who: &str, address: SocketAddr) -> ArbiterConfig {
        let home = if who == "a" { &self.a } else { &self.b };
        ArbiterConfig {
            spec: format!("witness://{address}").parse().unwrap(),
            vm: name("vm"),
            node: node(who),
            run_dir: home.path().join("run"),
            state_dir: home.path().to_owned(),
            accept_witness: false,
        }
    }

    fn client(&self, who: &str, address: SocketAddr) -> ArbiterClient {
        ArbiterClient::spawn(&self.config(who, address)).unwrap()
    }

    /// Makes the register say (2, a protected by b), which both have read. The witness ends; where it listened.
    fn protect(&self) -> SocketAddr {
        let daemon = Daemon::start(self.witness.path());
        let a = self.client("a", daemon.address);
        for new in [solo(1, "a"), protected(2, "a", "b")] {
            assert_eq!(swap(&a, new), CasOutcome::Won(new));
        }
        self.both_read(&a, daemon.address, protected(2, "a", "b"));
        daemon.address
    }

    fn both_read(&self, a: &ArbiterClient, address: SocketAddr, register: Register) {
        let b = self.client("b", address);
        for client in [a, &b] {
            hear(client, "the register", |answer| *answer == Answer::Read(Some(register)));
        }
    }
}

/// A witness at the same address as before: the port may be in the hands of closed connections for a moment.
fn again(dir: &Path, address: SocketAddr) -> Daemon {
    let listen = address.to_string();
    let mut command = Command::new(BINARY);
    command.args(["witness", "--listen", &listen, "--state"]).arg(dir);
    Daemon::spawn(command)
}

/// Takes answers until one is as wanted.
fn hear(client: &ArbiterClient, what: &str, mut wanted: impl FnMut(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + LONG;
    loop {
        match client.take_answer() {
            Some(answer) if wanted(&answer) => return answer,
            Some(_) => continue,
            None => {}
        }
        assert!(Instant::now() < deadline, "never heard: {what}; {:?}", client.health());
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&second)).unwrap();
    }
}

fn contested(new: Register) -> Ask {
    Ask::Cas(Swap { expect: Generation(new.generation.0 - 1), new, contested: true })
}

fn swap(client: &ArbiterClient, new: Register) -> CasOutcome {
    client.ask(contested(new));
    match hear(client, "the outcome", |answer| matches!(answer, Answer::Cas(_))) {
        Answer::Cas(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn fault(client: &ArbiterClient) -> Fault {
    match hear(client, "a fault", |answer| matches!(answer, Answer::Fault(_))) {
        Answer::Fault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

fn pair() -> Register {
    protected(2, "a", "b")
}

/// Copies the files of `from`, as a backup would.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn a_witness_with_registers_gone_is_mended_by_both_nodes_and_one_alone_decides_nothing() {
    let w = World::new();
    let address = w.protect();
    fs::remove_file(w.witness.path().join("vm.reg")).unwrap();
    let daemon = again(w.witness.path(), address);
    let b = w.client("b", daemon.address);
    assert_eq!(fault(&b), Fault::Behind { seen: pair(), held: None });
    let why = b.health().failover_possible().unwrap_err();
    assert!(why.contains("forgot the VM: this node has seen g2"), "{why}");
    assert!(b.health().remedy().unwrap().contains("witness assign"));
    // It is asked for the VM, and waits for the other node's word.
    b.ask(contested(solo(3, "b")));
    let (_, listed) = run(&["witness", "list", "--state", w.witness.path().to_str().unwrap()]);
    assert!(listed.contains("waiting, waits for a"), "{listed}");
    let a = w.client("a", daemon.address);
    hear(&a, "what both have seen", |answer| *answer == Answer::Read(Some(pair())));
    let won = hear(&b, "the swap", |answer| matches!(answer, Answer::Cas(_)));
    assert_eq!(won, Answer::Cas(CasOutcome::Won(solo(3, "b"))));
    until("no fault", || b.health().failover_possible().is_ok());
}

#[test]
fn a_backup_of_the_register_that_is_put_back_gives_the_old_owner_nothing() {
    let w = World::new();
    let backup = tempfile::tempdir().unwrap();
    let address = w.protect();
    copy(w.witness.path(), backup.path());
    let daemon = again(w.witness.path(), address);
    {
        let (a, b) = (w.client("a", address), w.client("b", address));
        hear(&a, "settled", |answer| matches!(answer, Answer::Read(Some(_))));
        assert_eq!(swap(&b, solo(3, "b")), CasOutcome::Won(solo(3, "b")));
        drop(a); // before it reads that: it is frozen
    }
    drop(daemon);
    // a may have read it after all: put what it had seen back, too.
    fs::write(w.a.path().join("vm.seen"), seen_by_a(&w)).unwrap();
    copy(backup.path(), w.witness.path());
    let daemon = again(w.witness.path(), address);
    let a = w.client("a", daemon.address);
    a.ask(contested(solo(3, "a")));
    until("a is refused", || {
        a.health().last_error.is_some_and(|why| why.contains("waits for what other nodes have seen"))
    });
    let b = w.client("b", daemon.address);
    let lost = hear(&a, "the outcome", |answer| matches!(answer, Answer::Cas(_)));
    assert_eq!(lost, Answer::Cas(CasOutcome::Lost(Some(solo(3, "b")))), "a reads that b owns the VM");
    until("b's word was taken", || b.health().failover_possible().is_ok());
}

/// The file of a node that has seen (2, a protected by b) at this witness.
fn seen_by_a(w: &World) -> Vec<u8> {
    let other = tempfile::tempdir().unwrap();
    let spare = Daemon::start(other.path());
    fs::copy(w.witness.path().join("identity"), other.path().join("identity")).unwrap();
    drop(spare);
    fs::write(other.path().join("vm.reg"), wire::Stored { vm: name("vm"), register: pair() }.encode()).unwrap();
    let spare = Daemon::start(other.path());
    let home = tempfile::tempdir().unwrap();
    let config = ArbiterConfig { state_dir: home.path().to_owned(), ..w.config("a", spare.address) };
    ask_once(&config, Ask::Read, LONG).unwrap();
    fs::read(home.path().join("vm.seen")).unwrap()
}

#[test]
fn another_witness_is_not_believed_until_both_accept_it_and_then_it_learns_what_they_have_seen() {
    let w = World::new();
    w.protect();
    let empty = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(empty.path());
    let (a, b) = (w.client("a", daemon.address), w.client("b", daemon.address));
    for client in [&a, &b] {
        assert!(matches!(fault(client), Fault::Foreign { .. }));
        assert!(client.health().remedy().unwrap().contains("accept-witness"));
        client.ask(contested(solo(3, "b")));
    }
    // Nothing that they say counts there: the VM is unknown.
    let (_, listed) = run(&["witness", "list", "--state", empty.path().to_str().unwrap()]);
    assert!(!listed.contains("vm:"), "{listed}");
    let (code, said) = run(&["accept-witness", "--vm", "vm", "--state-dir", w.a.path().to_str().unwrap()]);
    assert!(code == 0 && said.contains("accepted, once"), "{said}");
    let (code, said) = run(&["accept-witness", "--vm", "nope", "--state-dir", w.a.path().to_str().unwrap()]);
    assert!(code == 6 && said.contains("has no nope.seen") && said.contains("--state-dir is where"), "{said}");
    assert!(!w.a.path().join("nope.seen").exists(), "no permission stays");
    assert_eq!(fault(&a), Fault::Behind { seen: pair(), held: None }, "a process that runs takes it up");
    accept_witness(w.b.path(), name("vm")).unwrap();
    hear(&b, "the swap", |answer| *answer == Answer::Cas(CasOutcome::Won(solo(3, "b"))));
}

#[test]
fn with_accept_witness_the_next_one_is_taken_and_no_third() {
    let w = World::new();
    w.protect();
    let (second, third) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = Daemon::start(second.path());
    let accepting = ArbiterConfig { accept_witness: true, ..w.config("a", daemon.address) };
    let a = ArbiterClient::spawn(&accepting).unwrap();
    assert!(matches!(fault(&a), Fault::Behind { .. }));
    assert_ne!(a.health().witness, mc_core::id::WitnessId::NONE);
    let address = daemon.address;
    drop(daemon);
    let _daemon = again(third.path(), address);
    hear(&a, "the third", |answer| matches!(answer, Answer::Fault(Fault::Foreign { .. })));
}

#[test]
fn an_operator_decides_when_the_witness_cannot_and_the_witness_learns_it() {
    let w = World::new();
    let address = w.protect();
    let b = w.client("b", address);
    b.ask(contested(solo(3, "b")));
    assert!(!b.operator_decides(), "it may come back at once");
    until("its operator may decide", || b.operator_decides());
    let won = hear(&b, "the swap", |answer| matches!(answer, Answer::Cas(_)));
    assert_eq!(won, Answer::Cas(CasOutcome::Won(solo(3, "b"))));
    assert!(!b.health().reachable, "it is as far away as before");
    let daemon = again(w.witness.path(), address);
    hear(&b, "what it decided", |answer| *answer == Answer::Read(Some(solo(3, "b"))));
    // The other node learns it from there.
    let a = w.client("a", daemon.address);
    hear(&a, "who owns the VM", |answer| *answer == Answer::Read(Some(solo(3, "b"))));
}

#[test]
fn an_operator_on_the_witness_host_assigns_and_forgets() {
    let w = World::new();
    let address = w.protect();
    let state = w.witness.path().to_str().unwrap().to_owned();
    let operate = |args: &[&str]| run(&[&["witness"], args, &["--state", &state]].concat());
    let (code, said) = operate(&["list"]);
    assert!(code == 6 && said.contains("no witness answers") && said.contains("--state"), "{said}");

    let daemon = again(w.witness.path(), address);
    let b = w.client("b", daemon.address);
    hear(&b, "the register", |answer| *answer == Answer::Read(Some(pair())));
    let (code, said) = operate(&["assign", "vm", "b"]);
    assert!(code == 2 && said.contains("--yes-the-others-are-stopped"), "{said}");
    let yes = "--yes-the-others-are-stopped";
    let (code, said) = operate(&["assign", "vm", "z", yes]);
    assert!(code == 1 && said.contains("no node of that name") && said.contains("NAME=ID"), "{said}");
    let (code, said) = operate(&["assign", "vm", "b", yes]);
    assert!(code == 0 && said.contains("vm belongs to b") && said.contains("since g3"), "{said}");
    let assigned = |r: Option<Register>| r.is_some_and(|r| r.owner.node == node("b") && r.generation == Generation(3));
    hear(&b, "that it owns the VM", |answer| matches!(answer, Answer::Read(held) if assigned(*held)));
    assert_eq!(swap(&b, solo(4, "b")), CasOutcome::Won(solo(4, "b")));

    let (code, said) = operate(&["forget", "vm"]);
    assert!(code == 1 && said.contains("nodes reported vm within the last 10 s"), "{said}");
    drop(b);
    until("nobody tells of it any more", || operate(&["forget", "vm"]).0 == 0);
    assert!(!w.witness.path().join("vm.reg").exists());
    let (_, said) = operate(&["list", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["registers"].as_array().unwrap().len(), 0, "{said}");
    let (code, said) = operate(&["forget", "vm"]);
    assert!(code == 1 && said.contains("nothing to forget"), "{said}");
}

/// Seen: its state disk hung, the witness died, and the arbiter was called reachable for ever.
#[test]
fn a_client_that_hangs_says_so() {
    use rustix::fs::{FlockOperation, flock};
    let world = World::new();
    let daemon = Daemon::start(world.witness.path());
    let client = world.client("a", daemon.address);
    until("it answers", || client.health().reachable);
    let lock =
        fs::File::options().write(true).create(true).truncate(false).open(world.a.path().join("vm.seen.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    until("it is said", || !client.health().reachable);
    let why = client.health().failover_possible().unwrap_err();
    assert!(why.contains("for its name service or for the disk of --state-dir"), "{why}");
    drop(lock);
    until("it answers again", || client.health().failover_possible().is_ok());
}

/// 1,000 VMs, each with a connection for each of its nodes, which ask once a second, while one swap after the other is
/// timed. Told, not judged.
#[test]
fn a_thousand_vms_on_one_witness() {
    const VMS: usize = 1000;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    many_files();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut took: Vec<Duration> = Vec::new();
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (daemon, stop) = (&daemon, &stop);
            scope.spawn(move || {
                // Two nodes a VM, each over a connection of its own, each once a second.
                let nodes: Vec<_> = (part..2 * VMS).step_by(8).map(|node| (node / 2, daemon.connect())).collect();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for (vm, stream) in &nodes {
                        asker(stream, &format!("vm-{vm}"), "a", None).unwrap();
                        std::thread::sleep(Duration::from_millis(4));
                    }
                }
            });
        }
        let stream = daemon.connect();
        for vm in 0..VMS {
            let vm = format!("vm-{vm}");
            let asker = asker(&stream, &vm, "a", None).unwrap();
            let began = Instant::now();
            let answer = exchange(&stream, &vm, asker, witness_common::to(solo(1, "a"))).unwrap();
            took.push(began.elapsed());
            assert_eq!(answer.outcome, wire::Outcome::Won);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    took.sort();
    let at = |thousandths: usize| took[thousandths * (VMS - 1) / 1000];
    println!("{VMS} swaps beside 2000 reads a second: p50 {:?}, p99 {:?}, max {:?}", at(500), at(990), at(1000));
    let probe = exchange(&daemon.connect(), "vm-0", wire::Asker::default(), wire::Ask::Read).unwrap().probe_age_ms;
    assert!(probe.is_some());
}
