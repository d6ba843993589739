//! The handshake: hello, profile, ready; or a refusal in words. Blocking, with a deadline for every byte.
//!
//! ```text
//! primary                                   standby
//!    │── hello, profile ─────────────────────>│  knows the version? the VM? is free? starts a VM, compares
//!    │<───────────── hello, profile, ready ───│  or refuse
//!    │  compares                              │
//!    │── slabs ──────────────────────────────>│
//! ```

use crate::{TcpLink, options};
use mc_core::wire::{
    WireError,
    session::{FRAME_LEN, FrameHeader, HELLO_LEN, Hello, Kind, MAX_REFUSAL, encode_frame},
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

/// How long a stranger may take to say who it is.
pub const GREETING: Duration = Duration::from_secs(5);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Nobody there.
    #[error("cannot connect to {peer}: {source}")]
    Connect {
        /// Who.
        peer: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The connection broke, or took too long.
    #[error("{peer}: handshake: {doing}: {source}")]
    Io {
        /// Who.
        peer: SocketAddr,
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The peer is no Afterimage, or out of step.
    #[error("{peer}: handshake: {source}")]
    Wire {
        /// Who.
        peer: SocketAddr,
        /// What is wrong.
        source: WireError,
    },
    /// The peer said something else than it had to.
    #[error("{peer}: handshake: expected {expected:?}, got {found:?}")]
    Unexpected {
        /// Who.
        peer: SocketAddr,
        /// Wanted.
        expected: Kind,
        /// Found.
        found: Kind,
    },
    /// No common version.
    #[error("{peer} speaks versions {theirs:?} of the protocol, this build {ours:?}")]
    Version {
        /// Who.
        peer: SocketAddr,
        /// Its range.
        theirs: (u16, u16),
        /// Ours.
        ours: (u16, u16),
    },
    /// The peer refused, in its own words.
    #[error("{peer} refuses: {why}")]
    Refused {
        /// Who.
        peer: SocketAddr,
        /// Why.
        why: String,
    },
}

impl SessionError {
    /// Whether nobody answered: a peer that is being started may do so later.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

/// A session that is ready for slabs.
#[derive(Debug)]
pub struct Connected {
    /// The link.
    pub link: TcpLink,
    /// The peer's hello.
    pub peer: Hello,
    /// The peer's profile; empty at the standby, which has read it before.
    pub profile: Vec<u8>,
    /// The peer's address.
    pub peer_addr: SocketAddr,
}

/// Connects to a standby. `timeout` bounds the whole handshake, in which the standby starts a VM.
pub fn connect(to: SocketAddr, hello: &Hello, profile: &[u8], timeout: Duration) -> Result<Connected, SessionError> {
    let stream =
        TcpStream::connect_timeout(&to, GREETING).map_err(|source| SessionError::Connect { peer: to, source })?;
    let mut wire = Wire::new(stream, to, timeout)?;
    wire.send(Kind::Hello, &hello.encode())?;
    wire.send(Kind::Profile, profile)?;
    let peer = wire.receive_hello()?;
    check_version(to, hello.versions, peer.versions)?;
    let profile = wire.receive(Kind::Profile)?;
    wire.receive(Kind::Ready)?;
    let link = wire.into_link(hello.slab_size as usize)?;
    Ok(Connected { link, peer, profile, peer_addr: to })
}

fn check_version(peer: SocketAddr, ours: (u16, u16), theirs: (u16, u16)) -> Result<u16, SessionError> {
    Hello::negotiate(ours, theirs).map_err(|_| SessionError::Version { peer, theirs, ours })
}

/// Listens for primaries.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Listens on `address`.
    pub fn bind(address: SocketAddr) -> Result<Self, SessionError> {
        let listener = TcpListener::bind(address).map_err(|source| SessionError::Listen { address, source })?;
        Ok(Self { listener })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Waits for somebody to knock. Greet it on a thread of its own: it may be slow, or nobody we know.
    pub fn accept(&self) -> io::Result<Knock> {
        let (stream, peer) = self.listener.accept()?;
        Ok(Knock { stream, peer })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A connection of which nothing is known yet.
#[derive(Debug)]
pub struct Knock {
    stream: TcpStream,
    peer: SocketAddr,
}

impl Knock {
    /// Reads hello and profile. `versions` is what this build speaks.
    pub fn greet(self, versions: (u16, u16)) -> Result<Offer, SessionError> {
        let peer = self.peer;
        let local_addr =
            self.stream.local_addr().map_err(|source| SessionError::Io { peer, doing: "getsockname", source })?;
        let mut wire = Wire::new(self.stream, peer, GREETING)?;
        let hello = wire.receive_hello()?;
        let profile = wire.receive(Kind::Profile)?;
        let offer = Offer { wire, hello, profile, local_addr };
        match check_version(peer, versions, hello.versions) {
            Ok(_) => Ok(offer),
            Err(error) => {
                offer.refuse(&format!("this standby speaks versions {versions:?} of the protocol"));
                Err(error)
            }
        }
    }
}

/// A primary that asks for a standby.
#[derive(Debug)]
pub struct Offer {
    wire: Wire,
    hello: Hello,
    profile: Vec<u8>,
    local_addr: SocketAddr,
}

impl Offer {
    /// Its hello.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Its VM's profile.
    #[must_use]
    pub fn profile(&self) -> &[u8] {
        &self.profile
    }

    /// Its address.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.wire.peer
    }

    /// The address that it called.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Takes it on.
    pub fn accept(mut self, hello: &Hello, profile: &[u8]) -> Result<Connected, SessionError> {
        self.wire.deadline = Instant::now() + GREETING;
        self.wire.send(Kind::Hello, &hello.encode())?;
        self.wire.send(Kind::Profile, profile)?;
        self.wire.send(Kind::Ready, &[])?;
        let peer_addr = self.wire.peer;
        let link = self.wire.into_link(hello.slab_size as usize)?;
        Ok(Connected { link, peer: self.hello, profile: Vec::new(), peer_addr })
    }

    /// Turns it away, saying why. Best effort.
    pub fn refuse(mut self, why: &str) {
        let end = (0..=why.len().min(MAX_REFUSAL)).rev().find(|i| why.is_char_boundary(*i)).unwrap_or(0);
        self.wire.deadline = Instant::now() + GREETING;
        let _ = self.wire.send(Kind::Refuse, &why.as_bytes()[..end]);
    }
}

/// A connection during the handshake.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    peer: SocketAddr,
    deadline: Instant,
}

impl Wire {
    fn new(stream: TcpStream, peer: SocketAddr, timeout: Duration) -> Result<Self, SessionError> {
        options::apply(&stream).map_err(|source| SessionError::Io { peer, doing: "socket options", source })?;
        Ok(Self { stream, peer, deadline: Instant::now() + timeout })
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> SessionError {
        let peer = self.peer;
        move |source| {
            let late = matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            let source = if late { io::Error::new(io::ErrorKind::TimedOut, "took too long") } else { source };
            SessionError::Io { peer, doing, source }
        }
    }

    fn wire(&self) -> impl Fn(WireError) -> SessionError + use<> {
        let peer = self.peer;
        move |source| SessionError::Wire { peer, source }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn send(&mut self, kind: Kind, body: &[u8]) -> Result<(), SessionError> {
        let sent = self
            .left()
            .and_then(|left| self.stream.set_write_timeout(Some(left)))
            .and_then(|()| self.stream.write_all(&encode_frame(kind, body)));
        sent.map_err(self.io("sending"))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut have = 0;
        while have < buffer.len() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(&mut buffer[have..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => have += n,
            }
        }
        Ok(())
    }

    fn receive(&mut self, expected: Kind) -> Result<Vec<u8>, SessionError> {
        let mut head = [0; FRAME_LEN];
        self.read(&mut head).map_err(self.io("receiving"))?;
        let header = FrameHeader::decode(&head).map_err(self.wire())?;
        let mut body = vec![0; header.len];
        self.read(&mut body).map_err(self.io("receiving"))?;
        header.check(&body).map_err(self.wire())?;
        match header.kind {
            kind if kind == expected => Ok(body),
            Kind::Refuse => {
                let why = String::from_utf8_lossy(&body).chars().map(printable).collect();
                Err(SessionError::Refused { peer: self.peer, why })
            }
            found => Err(SessionError::Unexpected { peer: self.peer, expected, found }),
        }
    }

    fn receive_hello(&mut self) -> Result<Hello, SessionError> {
        let body = self.receive(Kind::Hello)?;
        let exact = if body.len() == HELLO_LEN { &body[..] } else { &[] };
        Hello::decode(exact).map_err(self.wire())
    }

    fn into_link(self, slab_size: usize) -> Result<TcpLink, SessionError> {
        let peer = self.peer;
        let io = |source| SessionError::Io { peer, doing: "socket options", source };
        self.stream.set_read_timeout(None).map_err(io)?;
        self.stream.set_write_timeout(None).map_err(io)?;
        TcpLink::new(self.stream, slab_size).map_err(io)
    }
}

/// A stranger's words go to a terminal: line breaks stay, other control characters don't.
fn printable(c: char) -> char {
    if c.is_control() && c != '\n' { ' ' } else { c }
}
