//! The standby's side: a listener that handshakes with several peers at once, so that a slow one blocks nobody.
//!
//! ```text
//!             connection            hello, profile, endpoint complete
//! listening ─────────────> pending (<= 8) ───────────────────────> Offer ── accept ──> Connected
//!                            │ deadline, hang-up, garbage,           └───── refuse ──> closed
//!                            │ wrong version, crowded out
//!                            └──> closed, SessionError
//! ```

use super::{
    Connected, SessionError, SessionOptions, VERSIONS, check_profile,
    error::versions,
    frame::{FrameStream, endpoint_of, frame_body, frame_header, hello_of, is_stranger, label},
};
use mc_core::wire::{
    rdma::Endpoint,
    session::{FRAME_LEN, FrameHeader, Hello, Kind, MAX_REFUSAL, encode_frame},
};
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// Handshakes under way at most; the oldest is dropped for a newcomer.
const MAX_PENDING: usize = 8;
/// Connections that the kernel keeps until they are accepted. Ample: a crowd must not make a primary's SYN wait.
const BACKLOG: i32 = 128;

/// Accepts sessions. Its descriptor ([`AsFd`]) is readable when [`Listener::accept`] has something to do.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    epoll: OwnedFd,
    pending: VecDeque<Pending>,
    options: SessionOptions,
}

/// A connection whose hello and profile are not complete.
#[derive(Debug)]
struct Pending {
    stream: TcpStream,
    peer: SocketAddr,
    deadline: Instant,
    hello: Option<Hello>,
    profile: Option<Vec<u8>>,
    header: Option<FrameHeader>,
    bytes: Vec<u8>,
}

/// A complete offer's profile and endpoint.
type Said = (Vec<u8>, Option<Endpoint>);

/// A primary that wants to be protected.
#[derive(Debug)]
pub struct Offer {
    /// Its hello; the versions overlap with ours.
    pub hello: Hello,
    /// Its VM's profile.
    pub profile: Vec<u8>,
    /// Its RDMA endpoint, if it wants RDMA.
    pub endpoint: Option<Endpoint>,
    /// Where it is.
    pub peer_addr: SocketAddr,
    /// Where it reached us: its beats will come to this address, too.
    pub local_addr: SocketAddr,
    stream: TcpStream,
    options: SessionOptions,
}

impl Listener {
    /// Listens on `addr`; port 0 for any.
    pub fn bind(addr: SocketAddr, options: SessionOptions) -> Result<Self, SessionError> {
        let (socket, epoll) = listen(addr, &options).map_err(|source| SessionError::Listen { addr, source })?;
        let addr = socket.local_addr().map_err(|source| SessionError::Listen { addr, source })?;
        Ok(Self { socket, addr, epoll, pending: VecDeque::with_capacity(MAX_PENDING), options })
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
            let next = self.pending.iter().map(|p| p.deadline).fold(until, Instant::min);
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
            match self.socket.accept() {
                Ok((stream, peer)) => self.add(stream, peer)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(self.accept_error(error)),
            }
        }
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
        let crowded = (self.pending.len() == MAX_PENDING).then(|| self.forget(0));
        let deadline = Instant::now() + self.options.deadline;
        self.pending.push_back(Pending {
            stream,
            peer,
            deadline,
            hello: None,
            profile: None,
            header: None,
            bytes: Vec::new(),
        });
        match crowded {
            Some(old) => Err(SessionError::Crowded { peer: old.peer, awaited: label(old.due()) }),
            None => Ok(()),
        }
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
        let local = stream.local_addr();
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

/// As much of a refusal as its frame may carry.
fn cut(why: &str) -> &str {
    let mut end = why.len().min(MAX_REFUSAL);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    &why[..end]
}

impl Offer {
    /// Agrees: answers with our hello and profile, and that we are ready. What the standby must echo (incarnation,
    /// generation, VM, beat key, slab size) and the version taken are filled in here, whatever `hello` says. With `endpoint`,
    /// which counts only if the offer has one, the slabs come over RDMA.
    pub fn accept(
        self,
        mut hello: Hello,
        profile: &[u8],
        endpoint: Option<&Endpoint>,
    ) -> Result<Connected, SessionError> {
        check_profile(profile)?;
        let peer = self.peer_addr;
        let version = Hello::negotiate(VERSIONS, self.hello.versions).map_err(|_| SessionError::Version {
            peer,
            theirs: self.hello.versions,
            ours: VERSIONS,
        })?;
        hello.versions = (version, version);
        hello.incarnation = self.hello.incarnation;
        hello.generation = self.hello.generation;
        hello.vm = self.hello.vm;
        hello.beat_key = self.hello.beat_key;
        hello.slab_size = self.hello.slab_size;
        let endpoint = endpoint.filter(|_| self.endpoint.is_some());
        hello.rdma = endpoint.is_some();
        let mut frames = frames(self.stream, peer, &self.options)?;
        frames.offer(&hello, profile, endpoint, true)?;
        frames.into_connected(self.hello, self.profile, self.endpoint.filter(|_| hello.rdma), &self.options.link)
    }

    /// Says no, and why; the primary sees the text. Best effort: a peer that has gone needs no refusal.
    pub fn refuse(self, why: &str) -> Result<(), SessionError> {
        frames(self.stream, self.peer_addr, &self.options)?.send(&[(Kind::Refuse, cut(why).as_bytes())])
    }
}

fn frames(stream: TcpStream, peer: SocketAddr, options: &SessionOptions) -> Result<FrameStream, SessionError> {
    FrameStream::new(stream, peer, Instant::now() + options.deadline, options.deadline)
}
