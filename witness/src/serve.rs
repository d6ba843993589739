//! Accepts the nodes' connections, and reads and answers their requests.
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
    clients::{Client, Clients, MAX_CLIENTS},
    registrar::Input,
};
use mc_core::wire::arbiter::{REQUEST_LEN, Request};
use node::{
    accepting::{accept_until, is_shortage},
    repeated::and_more,
    wake::Wake,
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{Sender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing::{debug, warn};

/// A connection without a request for this long is closed, though nobody needs its place. Nodes ask once a second.
const IDLE: Duration = Duration::from_secs(3600);
/// Between a request's first and last byte, and for its answer to be taken.
const MESSAGE: Duration = Duration::from_secs(5);
/// A connection's thread needs a few hundred bytes; the default would be 2 MiB each.
const STACK: usize = 128 * 1024;

/// Accepts connections until `stop` is readable.
pub(crate) fn accept(listener: &TcpListener, stop: &Wake, clients: &Arc<Clients>, registrar: &Sender<Input>) {
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
        let request = Request::decode(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        client.asks();
        let (answer, answered) = sync_channel(1);
        if registrar.send(Input::Request { peer, request, answer }).is_err() {
            return Ok(());
        }
        match answered.recv() {
            Ok(reply) => {
                client.is_told(&reply);
                { stream }.write_all(&reply.encode())?;
            }
            // The witness ends.
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// The next message's bytes; `None` when the client closed, or has been idle for long, in between two.
fn read_message(mut stream: &TcpStream) -> io::Result<Option<[u8; REQUEST_LEN]>> {
    let mut bytes = [0; REQUEST_LEN];
    let (mut have, mut deadline) = (0, None);
    stream.set_read_timeout(Some(IDLE))?;
    while have < REQUEST_LEN {
        match stream.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{have} of {REQUEST_LEN} bytes")));
            }
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && have == 0 => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset && have == 0 => return Ok(None),
            Err(e) => return Err(e),
        }
        let now = Instant::now();
        let until = *deadline.get_or_insert(now + MESSAGE);
        if have < REQUEST_LEN {
            let Some(left) = until.checked_duration_since(now).filter(|d| !d.is_zero()) else {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{have} of {REQUEST_LEN} bytes in {MESSAGE:?}"),
                ));
            };
            stream.set_read_timeout(Some(left))?;
        }
    }
    Ok(Some(bytes))
}
