//! The connection to a witness: kept open and warm, so that the swap which matters costs one round trip and one fsync.

use super::{
    Answer, Ask, HostPort,
    worker::{Attempt, Backend},
};
use mc_core::{
    id::Name,
    register::CasOutcome,
    wire::arbiter::{Body, LEN, Message},
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
    witness: HostPort,
    vm: Name,
    stream: Option<(TcpStream, SocketAddr)>,
    id: u64,
}

impl Link {
    pub(super) fn new(witness: HostPort, vm: Name) -> Self {
        Self { witness, vm, stream: None, id: 0 }
    }

    fn connect(&self) -> Result<(TcpStream, SocketAddr), String> {
        let addresses = self.witness.addresses().map_err(|e| format!("looking up {}: {e}", self.witness))?;
        let deadline = Instant::now() + CONNECT;
        let (stream, address) =
            reach(&self.witness.to_string(), &addresses, None, deadline, |_| Ok(())).map_err(|e| e.to_string())?;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_write_timeout(Some(REPLY)));
        prepared.map_err(|e| format!("connecting to {address}: {e}"))?;
        Ok((stream, address))
    }

    fn exchange(&mut self, body: Body) -> Result<Body, String> {
        let (stream, address) = match self.stream.take() {
            Some(warm) => warm,
            None => self.connect()?,
        };
        self.id += 1;
        let request = Message { id: self.id, vm: self.vm, body };
        let reply = round_trip(&stream, &request).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!("{address}: no answer in {REPLY:?}"),
            io::ErrorKind::UnexpectedEof => format!("{address} closed the connection"),
            _ => format!("{address}: {e}"),
        })?;
        let reply = Message::decode(&reply).map_err(|e| format!("{address} sent: {e}"))?;
        if (reply.id, reply.vm) != (request.id, request.vm) {
            let (id, vm) = (reply.id, reply.vm);
            return Err(format!("{address} answered request {id} about {vm}, asked was {} about {}", self.id, self.vm));
        }
        self.stream = Some((stream, address));
        Ok(reply.body)
    }
}

fn round_trip(mut stream: &TcpStream, request: &Message) -> io::Result<[u8; LEN]> {
    stream.write_all(&request.encode())?;
    let deadline = Instant::now() + REPLY;
    let (mut reply, mut have) = ([0; LEN], 0);
    while have < LEN {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut reply[have..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(reply)
}

/// What an answer means; `None` if it answers another question.
fn interpret(asked: &Body, told: Body) -> Option<Attempt> {
    match (asked, told) {
        (Body::Read, Body::Holds(register)) => Some(Attempt::Answer(Answer::Read(register))),
        (Body::Cas { new, .. }, Body::Won(r)) if r == *new => Some(Attempt::Answer(Answer::Cas(CasOutcome::Won(r)))),
        (Body::Cas { .. }, Body::Lost(r)) => Some(Attempt::Answer(Answer::Cas(CasOutcome::Lost(r)))),
        (_, Body::Failed) => {
            Some(Attempt::Refused("the witness could not store the register (its log says why)".into()))
        }
        _ => None,
    }
}

impl Backend for Link {
    fn attempt(&mut self, ask: &Ask, _decided: bool) -> Attempt {
        let body = match *ask {
            Ask::Read => Body::Read,
            Ask::Cas { expect, new, .. } => Body::Cas { expect, new },
        };
        let warm = self.stream.is_some();
        let told = match self.exchange(body) {
            // The witness may have been restarted since the last question: that is no reason to wait.
            Err(_) if warm => self.exchange(body),
            told => told,
        };
        match told {
            Ok(told) => interpret(&body, told).unwrap_or_else(|| {
                self.stream = None;
                Attempt::Unreachable(format!("{}: {told:?} is no answer to {body:?}", self.witness))
            }),
            Err(why) => Attempt::Unreachable(why),
        }
    }

    fn check_every(&self) -> Option<Duration> {
        Some(CHECK)
    }
}
