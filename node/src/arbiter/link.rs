//! The connection to a witness: kept open and warm, so that the swap which matters costs one round trip and one fsync.
//!
//! Every request says what this node has seen, and every answer is compared with that, and kept, before it goes anywhere
//! ([`super::memory`]).

use super::{
    Answer, ArbiterConfig, Ask, HostPort, Told,
    backend::{Attempt, Backend},
    memory::{Memory, MemoryError},
};
use crate::units::spoken;
use mc_core::{
    id::{Name, Node, WitnessId},
    register::{CasOutcome, Mode, Register, Swap},
    seen::{Fault, Heard},
    wire::arbiter::{self as wire, ANSWER_LEN, Asker, Outcome, Refusal, Request},
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};
use transport_tcp::reach::reach;

/// For a connection to come about, to any of the witness's addresses.
const CONNECT: Duration = Duration::from_millis(500);
/// For an answer. Then the connection is given up: what comes later on it would answer something else.
const REPLY: Duration = Duration::from_millis(500);
/// Between two reads while nothing is asked.
const CHECK: Duration = Duration::from_secs(1);

/// Asks one witness about one VM.
#[derive(Debug)]
pub(super) struct Link {
    dial: Box<dyn Dial>,
    vm: Name,
    node: Node,
    memory: Memory,
    connection: Option<Connection>,
    id: u64,
    told: Option<Told>,
}

/// How a witness is reached.
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public for tests"))]
pub trait Dial: std::fmt::Debug + std::fmt::Display + Send {
    /// Within half a second or so.
    ///
    /// # Errors
    /// Why not, in words.
    fn dial(&self) -> Result<(Box<dyn Exchange>, SocketAddr), String>;
}

/// A connection to a witness.
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public for tests"))]
pub trait Exchange: std::fmt::Debug + Send {
    /// Asks, and waits for the answer: half a second at most. What comes later would answer something else: after an error the
    /// connection is given up.
    ///
    /// # Errors
    /// The operating system's, or there was no answer in time.
    fn round_trip(&mut self, request: &Request) -> io::Result<[u8; ANSWER_LEN]>;
}

impl Dial for HostPort {
    fn dial(&self) -> Result<(Box<dyn Exchange>, SocketAddr), String> {
        let addresses = self.addresses().map_err(|e| format!("looking up {self}: {e}"))?;
        let deadline = Instant::now() + CONNECT;
        let (stream, address) =
            reach(&self.to_string(), &addresses, None, deadline, |_| Ok(())).map_err(|e| e.to_string())?;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(Some(REPLY)));
        prepared.map_err(|e| format!("connecting to {address}: {e}"))?;
        Ok((Box::new(stream), address))
    }
}

#[derive(Debug)]
struct Connection {
    stream: Box<dyn Exchange>,
    address: SocketAddr,
    /// The witness process that was known when this was opened; `None` once an answer came.
    opened: Option<u64>,
}

/// An answer, and what it means to this node.
#[derive(Debug)]
struct Said {
    answer: wire::Answer,
    heard: Heard,
    /// What this node had seen counts with the process that answered.
    counted: bool,
}

enum Trouble {
    Unreachable(String),
    Memory(MemoryError),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Unreachable(why)
    }
}

impl From<MemoryError> for Trouble {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl Link {
    pub(super) fn new(witness: HostPort, config: &ArbiterConfig) -> Result<Self, MemoryError> {
        Self::dialling(Box::new(witness), config)
    }

    pub(super) fn dialling(dial: Box<dyn Dial>, config: &ArbiterConfig) -> Result<Self, MemoryError> {
        let memory = Memory::open(&config.state_dir, config.vm, config.accept_witness)?;
        Ok(Self { dial, vm: config.vm, node: config.node, memory, connection: None, id: 0, told: None })
    }

    fn connect(&self, boot: u64) -> Result<Connection, String> {
        let (stream, address) = self.dial.dial()?;
        Ok(Connection { stream, address, opened: Some(boot) })
    }

    fn exchange(&mut self, ask: Ask) -> Result<Said, Trouble> {
        let known = self.memory.read()?;
        let mut connection = match self.connection.take() {
            Some(warm) => warm,
            None => self.connect(known.boot)?,
        };
        self.id += 1;
        let asker = Asker { node: self.node.id, seen: known.seen.register, boot: known.boot };
        let request = Request { id: self.id, vm: self.vm, asker, ask };
        let answer = answer_to(&request, &mut connection)?;
        let address = connection.address;
        let heard = self.memory.hear(&answer, connection.opened.take())?;
        let heard = heard.ok_or_else(|| format!("{address}: the answer is from a witness process that has ended"))?;
        self.connection = Some(connection);
        self.told = Some(Told { boot: answer.boot, standing: answer.standing, probe_age_ms: answer.probe_age_ms });
        Ok(Said { answer, heard, counted: answer.boot == asker.boot })
    }

    /// Until the witness process that answers is the one that was told what this node has seen.
    fn ask(&mut self, ask: Ask) -> Result<Said, Trouble> {
        let warm = self.connection.is_some();
        let said = match self.exchange(ask) {
            // The witness may have been restarted since the last question: that is no reason to wait.
            Err(Trouble::Unreachable(_)) if warm => self.exchange(ask)?,
            said => said?,
        };
        let foreign = matches!(said.heard, Heard::Fault(Fault::Foreign { .. }));
        if said.counted || foreign { Ok(said) } else { self.exchange(ask) }
    }

    /// The other nodes that this node last saw named.
    fn others(&self) -> String {
        let named = |r: Register| match r.mode {
            Mode::Solo => [Some(r.owner.node), None],
            Mode::Protected { standby } => [Some(r.owner.node), Some(standby.node)],
        };
        let seen = self.memory.latest().seen.register;
        let others = seen.into_iter().flat_map(named).flatten().filter(|node| node.id != self.node.id);
        let others: Vec<_> = others.map(|node| node.name.to_string()).collect();
        if others.is_empty() { "nodes unknown to this one".to_owned() } else { others.join(", ") }
    }

    fn refused(&self, refusal: Refusal) -> String {
        match refusal {
            Refusal::StaleBoot => "the witness was restarted just now".to_owned(),
            Refusal::Waiting => {
                format!(
                    "the witness has started, and waits for what other nodes have seen of the VM: {}",
                    self.others()
                )
            }
            Refusal::Disputed => {
                "the nodes of the VM have seen what the witness does not hold, and do not agree".to_owned()
            }
            Refusal::NotEntitled => "the register names others".to_owned(),
        }
    }

    /// What an answer means; `None` if it answers another question.
    fn interpret(&self, ask: Ask, said: &Said) -> Option<Attempt> {
        let held = said.answer.held;
        if let Heard::Fault(fault) = said.heard {
            return Some(Attempt::Fault(fault));
        }
        Some(match (ask, said.answer.outcome) {
            (Ask::Read, Outcome::Holds) => Attempt::Answer(Answer::Read(held)),
            (Ask::Cas(swap), Outcome::Won) if held == Some(swap.new) => {
                Attempt::Answer(Answer::Cas(CasOutcome::Won(swap.new)))
            }
            (Ask::Cas(_), Outcome::Lost | Outcome::Refused(Refusal::NotEntitled)) => {
                Attempt::Answer(Answer::Cas(CasOutcome::Lost(held)))
            }
            (Ask::Cas(_), Outcome::Refused(refusal)) => Attempt::Refused(self.refused(refusal)),
            (_, Outcome::Failed) => {
                Attempt::Refused("the witness could not store the register (its log says why)".into())
            }
            _ => return None,
        })
    }
}

fn answer_to(request: &Request, connection: &mut Connection) -> Result<wire::Answer, String> {
    let address = connection.address;
    let bytes = connection.stream.round_trip(request).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("{address}: no answer in {}", spoken(REPLY)),
        io::ErrorKind::UnexpectedEof => format!("{address} closed the connection"),
        _ => format!("{address}: {e}"),
    })?;
    let answer = wire::Answer::decode(&bytes).map_err(|e| format!("{address} sent: {e}"))?;
    if (answer.id, answer.vm) != (request.id, request.vm) {
        let (id, vm) = (answer.id, answer.vm);
        return Err(format!(
            "{address} answered request {id} about {vm}, asked was {} about {}",
            request.id, request.vm
        ));
    }
    Ok(answer)
}

impl Exchange for TcpStream {
    fn round_trip(&mut self, request: &Request) -> io::Result<[u8; ANSWER_LEN]> {
        self.write_all(&request.encode())?;
        let deadline = Instant::now() + REPLY;
        let (mut reply, mut have) = ([0; ANSWER_LEN], 0);
        while have < ANSWER_LEN {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.set_read_timeout(Some(left))?;
            match self.read(&mut reply[have..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(reply)
    }
}

fn kept_nothing(error: &MemoryError) -> Attempt {
    Attempt::NotKept(format!(
        "this node cannot store what it reads from the witness, so it does not act on it: {error}"
    ))
}

impl Backend for Link {
    fn attempt(&mut self, ask: &Ask, decided: bool) -> Attempt {
        if let Ask::Cas(Swap { new, contested: true, .. }) = *ask
            && decided
        {
            let outcome = self.memory.overrule(new);
            return outcome.map_or_else(|e| kept_nothing(&e), |o| Attempt::Decided(Answer::Cas(o)));
        }
        match self.ask(*ask) {
            Ok(said) => self.interpret(*ask, &said).unwrap_or_else(|| {
                self.connection = None;
                Attempt::Unreachable(format!("{}: its answer is not one to what was asked", self.dial))
            }),
            Err(Trouble::Unreachable(why)) => Attempt::Unreachable(why),
            Err(Trouble::Memory(error)) => kept_nothing(&error),
        }
    }

    fn check_every(&self) -> Option<Duration> {
        Some(CHECK)
    }

    fn witness(&self) -> WitnessId {
        self.memory.latest().seen.witness.unwrap_or_default()
    }

    fn seen(&self) -> Option<Register> {
        self.memory.latest().seen.register
    }

    fn told(&self) -> Option<Told> {
        self.told
    }
}
