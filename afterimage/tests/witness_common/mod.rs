//! A witness process, and nodes that speak its protocol.

#![allow(dead_code, reason = "each of the tests that share it needs a part")]

use mc_core::{
    id::{Generation, Name, Node, NodeId},
    register::{Mode, Owner, Register, Swap},
    wire::arbiter::{ANSWER_LEN, Answer, Ask, Asker, Outcome, Request},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_afterimage");
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A witness process, killed with SIGKILL when dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Daemon {
    pub(crate) fn start(dir: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["witness", "--listen", "127.0.0.1:0", "--state"]).arg(dir);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}"));
        Self { address: address.parse().unwrap(), child }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The node of that name: its identity is its first letter, sixteen times.
pub(crate) fn node(text: &str) -> Node {
    Node { name: name(text), id: NodeId([text.as_bytes()[0]; 16]) }
}

pub(crate) fn solo(generation: u64, owner: &str) -> Register {
    let owner = Owner { node: node(owner), instance: 7 };
    Register { generation: Generation(generation), owner, mode: Mode::Solo }
}

pub(crate) fn protected(generation: u64, owner: &str, standby: &str) -> Register {
    let standby = Owner { node: node(standby), instance: 9 };
    Register { mode: Mode::Protected { standby }, ..solo(generation, owner) }
}

pub(crate) fn to(new: Register) -> Ask {
    Ask::Cas(Swap { expect: Generation(new.generation.0 - 1), new, contested: false })
}

/// One question, one answer; `None` if the connection ends instead.
pub(crate) fn exchange(mut stream: &TcpStream, vm: &str, asker: Asker, ask: Ask) -> Option<Answer> {
    stream.write_all(&Request { id: 9, vm: name(vm), asker, ask }.encode()).ok()?;
    let mut bytes = [0; ANSWER_LEN];
    stream.read_exact(&mut bytes).ok()?;
    let answer = Answer::decode(&bytes).unwrap();
    assert_eq!((answer.id, answer.vm), (9, name(vm)));
    Some(answer)
}

/// Of a node that has heard of this witness process, and has seen what is held; or more than that.
pub(crate) fn asker(stream: &TcpStream, vm: &str, who: &str, seen: Option<Register>) -> Option<Asker> {
    let known = exchange(stream, vm, Asker { node: node(who).id, seen: None, boot: 0 }, Ask::Read)?;
    Some(Asker { node: node(who).id, seen: seen.or(known.held), boot: known.boot })
}

/// The node that all tests are content with.
pub(crate) const NODE: &str = "node";

pub(crate) fn ask(stream: &TcpStream, vm: &str, ask: Ask) -> Option<(Outcome, Option<Register>)> {
    let answer = exchange(stream, vm, asker(stream, vm, NODE, None)?, ask)?;
    Some((answer.outcome, answer.held))
}

pub(crate) fn held(stream: &TcpStream, vm: &str) -> Option<Register> {
    ask(stream, vm, Ask::Read).expect("an answer").1
}

/// Runs a command that ends by itself: its exit code, and all that it says.
pub(crate) fn run(args: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = Command::new(BINARY).args(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

/// Waits until it is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets this process have as many descriptors as it may.
pub(crate) fn many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
