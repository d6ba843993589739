//! The witness's threads.
//!
//! ```text
//! accept ── a thread per connection ──request, where to answer──> registrar (owns the Arbiter) ──> connection ──> reply
//!                                                                  │  ^
//!                                                          persist v  │ done
//!                                                                 storage (one write at a time)
//! ```
//!
//! A connection has one request under way at a time, so that the number of connections bounds everything behind it; who
//! reads slowly keeps only its own thread.

use super::{
    WitnessError,
    clients::{Client, Clients, MAX_CLIENTS},
    store::Store,
};
use crate::{
    accepting::{accept_until, is_shortage},
    arbiter::file::StoreError,
    metrics::WitnessCounters,
    repeated::and_more,
    wake::Wake,
};
use mc_core::{
    arbiter::{Action, Arbiter, Event, is_request},
    id::{Name, Time},
    machine::Machine,
    register::Register,
    wire::arbiter::{Body, LEN, Message},
};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing::{debug, error, info, warn};

/// A connection without a request for this long is closed, though nobody needs its place. Nodes ask once a second.
const IDLE: Duration = Duration::from_secs(3600);
/// Between a request's first and last byte, and for its answer to be taken.
const MESSAGE: Duration = Duration::from_secs(5);
/// A connection's thread needs a few hundred bytes; the default would be 2 MiB each.
const STACK: usize = 128 * 1024;

/// What the registrar is told.
#[derive(Debug)]
pub(super) enum Input {
    /// A request, and where its answer goes.
    Request { peer: SocketAddr, message: Message, answer: SyncSender<Message> },
    /// A write has ended.
    Stored { vm: Name, result: Result<(), StoreError> },
    /// Finish the writes under way, then end.
    Stop,
}

/// Owns the machine; ends on [`Input::Stop`], or when nobody knows what the disk holds.
pub(super) fn registrar(
    mut arbiter: Arbiter,
    inputs: &Receiver<Input>,
    storage: &Sender<(Name, Register)>,
    counters: &WitnessCounters,
) -> Result<(), WitnessError> {
    let mut asked: BTreeMap<u64, (SocketAddr, SyncSender<Message>)> = BTreeMap::new();
    let mut tokens = 0..;
    let mut stopping = false;
    while !stopping || arbiter.is_persisting() {
        counters.registers.store(arbiter.registers().len() as u64, Ordering::Relaxed);
        let Ok(input) = inputs.recv() else {
            return Ok(());
        };
        let event = match input {
            Input::Stop => {
                stopping = true;
                continue;
            }
            // Dropping `answer` ends the connection; its client will retry elsewhere, or later.
            Input::Request { .. } if stopping => continue,
            Input::Request { peer, message, answer } => {
                let from = tokens.next().expect("2^64 requests");
                asked.insert(from, (peer, answer));
                Event::Request { from, message }
            }
            Input::Stored { vm, result } => stored(vm, result)?,
        };
        // The machine keeps no time.
        arbiter.handle(Time(0), event);
        while let Some(action) = arbiter.poll_action() {
            match action {
                // The storage thread outlives this one, which holds its sender.
                Action::Persist { vm, register } => drop(storage.send((vm, register))),
                Action::Reply { to, message } => {
                    if let Some((peer, answer)) = asked.remove(&to) {
                        narrate(peer, &message);
                        count(counters, &message.body);
                        // A client that has gone meanwhile will ask again.
                        let _ = answer.send(message);
                    }
                }
            }
        }
    }
    Ok(())
}

fn stored(vm: Name, result: Result<(), StoreError>) -> Result<Event, WitnessError> {
    match result {
        Ok(()) => Ok(Event::Persisted { vm }),
        Err(e @ StoreError::Unchanged { .. }) => {
            error!(%vm, "not stored: {e}");
            Ok(Event::PersistFailed { vm })
        }
        Err(source @ StoreError::Unknown { .. }) => Err(WitnessError::Storage { vm, source }),
    }
}

fn count(counters: &WitnessCounters, body: &Body) {
    let counter = match body {
        Body::Won(_) => &counters.won,
        Body::Lost(_) => &counters.lost,
        Body::Failed => &counters.failed,
        Body::Holds(_) | Body::Read | Body::Cas { .. } => &counters.read,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn narrate(peer: SocketAddr, message: &Message) {
    let vm = message.vm;
    match message.body {
        Body::Won(r) => info!(%vm, %peer, "won: {} {} {:?}", r.generation, r.owner.node, r.mode),
        Body::Lost(Some(r)) => {
            info!(%vm, %peer, "lost: the register holds {} {} {:?}", r.generation, r.owner.node, r.mode);
        }
        Body::Lost(None) => info!(%vm, %peer, "lost: the register is vacant"),
        Body::Failed => warn!(%vm, %peer, "failed: not stored, or a limit reached"),
        Body::Holds(_) | Body::Read | Body::Cas { .. } => debug!(%vm, %peer, "{:?}", message.body),
    }
}

/// Writes what the registrar asks for, until it ends.
pub(super) fn storage(store: &Store, work: &Receiver<(Name, Register)>, done: &Sender<Input>) {
    while let Ok((vm, register)) = work.recv() {
        let result = store.persist(vm, register);
        if done.send(Input::Stored { vm, result }).is_err() {
            return;
        }
    }
}

/// Accepts connections until `stop` is readable.
pub(super) fn accept(listener: &TcpListener, stop: &Wake, clients: &Arc<Clients>, registrar: &Sender<Input>) {
    let next = || {
        listener.accept().inspect_err(|e| {
            if is_shortage(e) {
                clients.make_room();
            }
        })
    };
    let mut numbers = 0..;
    accept_until("witness", listener, stop, next, |(stream, peer)| {
        let number = numbers.next().expect("2^64 connections");
        match clients.take_in(number, stream) {
            Some(client) => spawn(number, client, peer, clients, registrar),
            None => say(clients, "crowded", || format!("{peer}: closed: {MAX_CLIENTS} nodes are connected already")),
        }
    });
}

/// What strangers can bring about is counted, not repeated.
fn say(clients: &Clients, kind: &str, line: impl FnOnce() -> String) {
    if let Some(more) = clients.said.lock().say(kind, Instant::now()) {
        warn!("{}{}", line(), and_more(more));
    }
}

fn spawn(number: u64, client: Arc<Client>, peer: SocketAddr, clients: &Arc<Clients>, registrar: &Sender<Input>) {
    let (everyone, registrar) = (Arc::clone(clients), registrar.clone());
    let thread = std::thread::Builder::new().name(format!("client {number}")).stack_size(STACK);
    let spawned = thread.spawn(move || {
        match serve(&client, peer, &registrar) {
            Ok(()) => debug!(%peer, "closed"),
            Err(e) => say(&everyone, &e.kind().to_string(), || format!("{peer}: connection closed: {e}")),
        }
        everyone.forget(number);
    });
    if let Err(e) = spawned {
        say(clients, "thread", || format!("{peer}: closed: no thread for it: {e}"));
        clients.forget(number);
    }
}

/// Answers one connection's requests, until it closes or sends what is no request.
fn serve(client: &Client, peer: SocketAddr, registrar: &Sender<Input>) -> io::Result<()> {
    let stream = &client.stream;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(MESSAGE))?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    while let Some(bytes) = read_message(stream)? {
        let message = Message::decode(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if !is_request(&message.body) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer where a request belongs"));
        }
        client.asks();
        let (answer, answered) = sync_channel(1);
        if registrar.send(Input::Request { peer, message, answer }).is_err() {
            return Ok(());
        }
        match answered.recv() {
            Ok(reply) => {
                client.is_told(&reply.body);
                { stream }.write_all(&reply.encode())?;
            }
            // The witness ends.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// The next message's bytes; `None` when the client closed, or has been idle for long, in between two.
fn read_message(mut stream: &TcpStream) -> io::Result<Option<[u8; LEN]>> {
    let mut bytes = [0; LEN];
    let (mut have, mut deadline) = (0, None);
    stream.set_read_timeout(Some(IDLE))?;
    while have < LEN {
        match stream.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{have} of {LEN} bytes"))),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && have == 0 => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && have == 0 => return Ok(None),
            Err(e) => return Err(e),
        }
        let now = Instant::now();
        let until = *deadline.get_or_insert(now + MESSAGE);
        if have < LEN {
            let Some(left) = until.checked_duration_since(now).filter(|d| !d.is_zero()) else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{have} of {LEN} bytes in {MESSAGE:?}")));
            };
            stream.set_read_timeout(Some(left))?;
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::Generation,
        register::{Mode, Owner},
    };
    use std::sync::mpsc::{RecvTimeoutError, channel};

    #[test]
    fn when_nobody_knows_what_is_stored_nobody_is_told_and_it_ends() {
        let vm = Name::new("vm").unwrap();
        let owner = Owner { node: Name::new("a").unwrap(), instance: 1 };
        let new = Register { generation: Generation(1), owner, mode: Mode::Solo };
        let message = Message { id: 1, vm, body: Body::Cas { expect: Generation(0), new } };
        let (inputs, inbox) = channel();
        let (work, todo) = channel();
        let (answer, answered) = sync_channel(1);
        inputs.send(Input::Request { peer: "127.0.0.1:1".parse().unwrap(), message, answer }).unwrap();
        let source = io::Error::from_raw_os_error(libc::EIO);
        let unknown = StoreError::Unknown { doing: "fsync of directory", path: "state".into(), source };
        inputs.send(Input::Stored { vm, result: Err(unknown) }).unwrap();
        let error = registrar(Arbiter::default(), &inbox, &work, &WitnessCounters::default()).unwrap_err().to_string();
        assert!(error.contains("vm") && error.contains("fsync of directory state"), "{error}");
        assert_eq!(todo.recv().unwrap(), (vm, new));
        assert_eq!(answered.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_is_being_written_is_finished_before_it_stops() {
        let vm = Name::new("vm").unwrap();
        let owner = Owner { node: Name::new("a").unwrap(), instance: 1 };
        let new = Register { generation: Generation(1), owner, mode: Mode::Solo };
        let peer = "127.0.0.1:1".parse().unwrap();
        let (inputs, inbox) = channel();
        let (work, _todo) = channel();
        let (answer, answered) = sync_channel(1);
        let message = Message { id: 1, vm, body: Body::Cas { expect: Generation(0), new } };
        inputs.send(Input::Request { peer, message, answer }).unwrap();
        inputs.send(Input::Stop).unwrap();
        let (late, too_late) = sync_channel(1);
        inputs.send(Input::Request { peer, message, answer: late }).unwrap();
        inputs.send(Input::Stored { vm, result: Ok(()) }).unwrap();
        registrar(Arbiter::default(), &inbox, &work, &WitnessCounters::default()).unwrap();
        assert_eq!(answered.recv().unwrap().body, Body::Won(new));
        assert_eq!(too_late.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }
}
