//! The witness's connections.
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

use super::registrar::Input;
use crate::{
    metrics::{Witness, WitnessCounters},
    wake::Wake,
};
use mc_core::wire::arbiter::{REQUEST_LEN, Request};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{Sender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing::{debug, error, warn};

/// Connections at a time; one more is closed at once.
pub(super) const MAX_CLIENTS: usize = 1024;
/// A connection without a request for this long is closed. Nodes ask once a second.
const IDLE: Duration = Duration::from_secs(3600);
/// Between a request's first and last byte, and for its answer to be taken.
const MESSAGE: Duration = Duration::from_secs(5);
/// A connection's thread needs a few hundred bytes; the default would be 2 MiB each.
const STACK: usize = 128 * 1024;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Clients {
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
    /// What became of their requests.
    pub(super) counters: WitnessCounters,
}

impl Clients {
    /// What metrics are made of.
    pub(super) fn read(&self) -> Witness {
        self.counters.read(self.open.lock().len())
    }

    /// Closes every connection.
    pub(super) fn close(&self) {
        for stream in self.open.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Accepts connections until `stop` is readable.
pub(super) fn accept(listener: &TcpListener, stop: &Wake, clients: &Arc<Clients>, registrar: &Sender<Input>) {
    let mut crowded = false;
    for number in 0u64.. {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return error!("poll: {e}"),
        }
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => {
                // Out of file descriptors, mostly: the connection stays in the backlog, so do not spin on it.
                warn!("accept: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let full = clients.open.lock().len() >= MAX_CLIENTS;
        if full && !crowded {
            warn!(%peer, "closed: {MAX_CLIENTS} connections are open already");
        }
        crowded = full;
        if !full {
            spawn(number, stream, peer, clients, registrar);
        }
    }
}

fn spawn(number: u64, stream: TcpStream, peer: SocketAddr, clients: &Arc<Clients>, registrar: &Sender<Input>) {
    let stream = Arc::new(stream);
    clients.open.lock().insert(number, Arc::clone(&stream));
    let (everyone, registrar) = (Arc::clone(clients), registrar.clone());
    let thread = std::thread::Builder::new().name(format!("client {number}")).stack_size(STACK);
    let spawned = thread.spawn(move || {
        match serve(&stream, peer, &registrar) {
            Ok(()) => debug!(%peer, "closed"),
            Err(e) => warn!(%peer, "connection closed: {e}"),
        }
        everyone.open.lock().remove(&number);
    });
    if let Err(e) = spawned {
        warn!(%peer, "closed: no thread for it: {e}");
        clients.open.lock().remove(&number);
    }
}

/// Answers one connection's requests, until it closes or sends what is no request.
fn serve(stream: &TcpStream, peer: SocketAddr, registrar: &Sender<Input>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(MESSAGE))?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    while let Some(bytes) = read_message(stream)? {
        let request = Request::decode(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        let (answer, answered) = sync_channel(1);
        if registrar.send(Input::Request { peer, request, answer }).is_err() {
            return Ok(());
        }
        match answered.recv() {
            Ok(reply) => { stream }.write_all(&reply.encode())?,
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
