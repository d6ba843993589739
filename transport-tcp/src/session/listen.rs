//! The standby's side: a listener that handshakes with several peers at once, so that a slow one blocks nobody.
//!
//! ```text
//!             connection            hello, profile, endpoint complete
//! listening ─────────────> pending (<= 8) ───────────────────────> Offer ── accept ──> Connected
//!                            │ deadline, hang-up, garbage,           └───── refuse ──> closed
//!                            │ wrong version, crowded out
//!                            └──> closed, SessionError
//! ```
//!
//! Nothing here waits for a peer. When a newcomer finds no place, or no file descriptor, the host with the most unfinished
//! connections loses its oldest one. When nothing can be accepted for another reason, the listener rests a little, longer each
//! time: a connection that stays in the backlog must not keep its owner's loop spinning.

use super::{
    Offer, SessionError, SessionOptions,
    error::versions,
    frame::{endpoint_of, frame_body, frame_header, hello_of, is_stranger, label},
    offer::cut,
};
use crate::stream::Stream;
use mc_core::wire::{
    rdma::Endpoint,
    session::{FRAME_LEN, FrameHeader, Hello, Kind, VERSIONS, encode_frame},
};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// Handshakes under way at most.
const MAX_PENDING: usize = 8;
/// How long it rests after the first failed accept …
const REST: Duration = Duration::from_millis(50);
/// … and at most. A connection that waits is seen so late.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps until they are accepted. Ample: a crowd must not make a primary's SYN wait.
const BACKLOG: i32 = 128;

/// Accepts sessions. Its descriptor ([`AsFd`]) is readable when [`Listener::accept`] has something to do; call that every half
/// second or so all the same: handshakes run out of time and rests end without an event.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    epoll: OwnedFd,
    pending: VecDeque<Pending>,
    options: SessionOptions,
    /// Nothing is accepted before, and the socket not watched.
    rests_until: Option<Instant>,
    /// How long the last rest was; zero once something was accepted.
    rest: Duration,
}

/// A connection whose hello and profile are not complete.
#[derive(Debug)]
struct Pending {
    stream: Stream,
    peer: SocketAddr,
    deadline: Instant,
    hello: Option<Hello>,
    profile: Option<Vec<u8>>,
    header: Option<FrameHeader>,
    bytes: Vec<u8>,
}

/// A complete offer's profile and endpoint.
type Said = (Vec<u8>, Option<Endpoint>);

impl Listener {
    /// Listens on `addr`; port 0 for any.
    pub fn bind(addr: SocketAddr, options: SessionOptions) -> Result<Self, SessionError> {
        let (socket, epoll) = listen(addr, &options).map_err(|source| SessionError::Listen { addr, source })?;
        let addr = socket.local_addr().map_err(|source| SessionError::Listen { addr, source })?;
        let pending = VecDeque::with_capacity(MAX_PENDING);
        Ok(Self { socket, addr, epoll, pending, options, rests_until: None, rest: Duration::ZERO })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits up to `wait` (zero: not at all) for an offer. An error tells of one peer that failed, or of the socket
    /// ([`SessionError::Accept`]); the listener goes on, call it again.
    pub fn accept(&mut self, wait: Duration) -> Result<Option<Offer>, SessionError> {
        let until = Instant::now() + wait;
        loop {
            if let Some(offer) = self.step()? {
                return Ok(Some(offer));
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            let next = self.pending.iter().map(|p| p.deadline).chain(self.rests_until).fold(until, Instant::min);
            self.sleep(next.saturating_duration_since(now))?;
        }
    }

    fn accept_error(&self, source: io::Error) -> SessionError {
        SessionError::Accept { addr: self.addr, source }
    }

    fn sleep(&self, timeout: Duration) -> Result<(), SessionError> {
        let timeout = Timespec::try_from(timeout).ok();
        let mut event = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
        match epoll::wait(&self.epoll, &mut event[..], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.accept_error(error.into())),
        }
    }

    /// Moves the pending connections on, up to the first that is complete or fails, and takes new ones in. One at a time:
    /// in a flood, whoever has said everything gets its turn before it is crowded out.
    fn step(&mut self) -> Result<Option<Offer>, SessionError> {
        loop {
            if let Some(offer) = self.pump()? {
                return Ok(Some(offer));
            }
            if self.is_resting()? {
                return Ok(None);
            }
            match self.socket.accept() {
                Ok((stream, peer)) => {
                    self.rest = Duration::ZERO;
                    self.add(stream, peer)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                // Linux looks for a free descriptor first, and for a caller then.
                Err(_) if !self.has_caller() => return Ok(None),
                Err(error) => return Err(self.cannot_accept(error)),
            }
        }
    }

    /// Whether a connection waits to be accepted; unknown counts as one.
    fn has_caller(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
    }

    /// Ends a rest that is over.
    fn is_resting(&mut self) -> Result<bool, SessionError> {
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return Ok(true);
        }
        if self.rests_until.is_some() {
            watch(&self.epoll, &self.socket).map_err(|error| self.accept_error(error))?;
            self.rests_until = None;
        }
        Ok(false)
    }

    /// For want of a descriptor an unfinished handshake gives its own up; for want of anything else the listener rests.
    fn cannot_accept(&mut self, error: io::Error) -> SessionError {
        let shortage = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
        if rustix::io::Errno::from_io_error(&error).is_some_and(|e| shortage.contains(&e))
            && let Some(old) = self.crowd_out()
        {
            return old;
        }
        self.rest = (self.rest * 2).clamp(REST, LONGEST_REST);
        self.rests_until = Some(Instant::now() + self.rest);
        // It fails only if it is not watched, which is what we want.
        let _ = epoll::delete(&self.epoll, &self.socket);
        self.accept_error(error)
    }

    /// Drops the oldest unfinished handshake of the host that has the most.
    fn crowd_out(&mut self) -> Option<SessionError> {
        let of = |ip| self.pending.iter().filter(|p| p.peer.ip() == ip).count();
        let most = self.pending.iter().map(|p| of(p.peer.ip())).max()?;
        let index = self.pending.iter().position(|p| of(p.peer.ip()) == most)?;
        let old = self.forget(index);
        Some(SessionError::Crowded { peer: old.peer, awaited: label(old.due()) })
    }

    fn pump(&mut self) -> Result<Option<Offer>, SessionError> {
        for index in 0..self.pending.len() {
            match self.pending[index].pump(self.options.deadline) {
                Ok(None) => {}
                Ok(Some(said)) => return self.forget(index).into_offer(said, self.options).map(Some),
                Err(error) => {
                    self.forget(index).explain(&error);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    fn add(&mut self, stream: TcpStream, peer: SocketAddr) -> Result<(), SessionError> {
        let io = |source| SessionError::Io { peer, doing: "preparing the socket", source };
        stream.set_nonblocking(true).map_err(io)?;
        watch(&self.epoll, &stream).map_err(io)?;
        let crowded = if self.pending.len() == MAX_PENDING { self.crowd_out() } else { None };
        let deadline = Instant::now() + self.options.deadline;
        self.pending.push_back(Pending {
            stream: stream.into(),
            peer,
            deadline,
            hello: None,
            profile: None,
            header: None,
            bytes: Vec::new(),
        });
        crowded.map_or(Ok(()), Err)
    }

    fn forget(&mut self, index: usize) -> Pending {
        let pending = self.pending.remove(index).expect("the caller has seen it");
        // It fails only if it is not watched, which is what we want.
        let _ = epoll::delete(&self.epoll, &pending.stream);
        pending
    }
}

fn listen(addr: SocketAddr, options: &SessionOptions) -> io::Result<(TcpListener, OwnedFd)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    options.link.set_buffers(&SockRef::from(&socket))?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    watch(&epoll, &socket)?;
    Ok((socket.into(), epoll))
}

fn watch(epoll: &OwnedFd, socket: impl AsFd) -> io::Result<()> {
    Ok(epoll::add(epoll, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Pending {
    /// The frame that is due.
    fn due(&self) -> Kind {
        match (self.hello, &self.profile) {
            (None, _) => Kind::Hello,
            (_, None) => Kind::Profile,
            _ => Kind::Endpoint,
        }
    }

    /// Reads what is there, never past the frame that is due. `Some`: the offer is complete.
    fn pump(&mut self, allowed: Duration) -> Result<Option<Said>, SessionError> {
        let (peer, awaited) = (self.peer, label(self.due()));
        loop {
            match self.read_some() {
                Ok(0) => return Err(SessionError::Closed { peer, awaited }),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < self.deadline => return Ok(None),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(SessionError::Silent { peer, awaited, after: allowed });
                }
                Err(source) => return Err(SessionError::Io { peer, doing: "waiting for the handshake", source }),
            }
            if let Some(said) = self.advance()? {
                return Ok(Some(said));
            }
        }
    }

    /// One read of at most what the current header or body still lacks.
    fn read_some(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let need = self.header.map_or(FRAME_LEN, |h| h.len) - self.bytes.len();
        let room = need.min(chunk.len());
        let got = self.stream.read(&mut chunk[..room])?;
        self.bytes.extend_from_slice(&chunk[..got]);
        Ok(got)
    }

    /// Makes of the bytes what they allow.
    fn advance(&mut self) -> Result<Option<Said>, SessionError> {
        if self.header.is_none() {
            if is_stranger(&self.bytes) {
                let began = super::error::printable(&self.bytes);
                return Err(SessionError::Stranger { peer: self.peer, began });
            }
            if self.bytes.len() < FRAME_LEN {
                return Ok(None);
            }
            self.header = Some(frame_header(self.peer, &self.bytes)?);
            self.bytes.clear();
        }
        let Some(header) = self.header.take_if(|h| h.len == self.bytes.len()) else { return Ok(None) };
        let body = frame_body(self.peer, header, std::mem::take(&mut self.bytes), self.due())?;
        match (self.hello, self.profile.take()) {
            (None, _) => self.greet(&body)?,
            (Some(hello), None) if hello.rdma => self.profile = Some(body),
            (_, None) => return Ok(Some((body, None))),
            (_, Some(profile)) => return Ok(Some((profile, Some(endpoint_of(self.peer, &body)?)))),
        }
        Ok(None)
    }

    fn greet(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let hello = hello_of(self.peer, body)?;
        if Hello::negotiate(VERSIONS, hello.versions).is_err() {
            return Err(SessionError::Version { peer: self.peer, theirs: hello.versions, ours: VERSIONS });
        }
        self.hello = Some(hello);
        Ok(())
    }

    fn into_offer(self, (profile, endpoint): Said, options: SessionOptions) -> Result<Offer, SessionError> {
        let Self { stream, peer, hello, .. } = self;
        let local = stream.socket().local_addr();
        let local_addr = local.map_err(|source| SessionError::Io { peer, doing: "preparing the socket", source })?;
        let hello = hello.expect("a profile is due only after the hello");
        Ok(Offer { hello, profile, endpoint, peer_addr: peer, local_addr, stream, options })
    }

    /// Tells a peer that speaks our protocol what was wrong. One write, never waited for: an empty socket takes it whole.
    fn explain(mut self, error: &SessionError) {
        let why = match error {
            SessionError::Version { theirs, ours, .. } => {
                format!("the standby speaks {}, you speak {}", versions(*ours), versions(*theirs))
            }
            SessionError::Wire { source, .. } => source.to_string(),
            SessionError::Unexpected { .. } => error.to_string(),
            _ => return,
        };
        let _ = self.stream.write(&encode_frame(Kind::Refuse, cut(&why).as_bytes()));
    }
}
