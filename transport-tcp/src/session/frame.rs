//! Frames over a blocking stream, under one deadline.

use super::{Connected, SessionError, error::printable};
use crate::{link::TcpLink, options::LinkOptions, stream::Stream};
use mc_core::wire::{
    WireError,
    rdma::Endpoint,
    session::{FRAME_LEN, FrameHeader, Hello, Kind, MAGIC, encode_frame},
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What a frame is called in messages.
pub(super) fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Hello => "hello",
        Kind::Profile => "profile",
        Kind::Ready => "ready frame",
        Kind::Refuse => "refusal",
        Kind::Endpoint => "RDMA endpoint",
    }
}

/// Reads a frame's header; what does not even begin like a frame is quoted.
pub(super) fn frame_header(peer: SocketAddr, bytes: &[u8]) -> Result<FrameHeader, SessionError> {
    FrameHeader::decode(bytes).map_err(|source| match source {
        WireError::Magic { .. } => SessionError::Stranger { peer, began: printable(bytes) },
        source => SessionError::Wire { peer, source },
    })
}

/// Whether `bytes`, a frame's first few, are wrong already. Another program's greeting may be shorter than a header.
pub(super) fn is_stranger(bytes: &[u8]) -> bool {
    !MAGIC.to_le_bytes().iter().zip(bytes).all(|(a, b)| a == b)
}

/// A frame's body, once it is the one that was due.
pub(super) fn frame_body(
    peer: SocketAddr,
    header: FrameHeader,
    body: Vec<u8>,
    expected: Kind,
) -> Result<Vec<u8>, SessionError> {
    header.check(&body).map_err(|source| SessionError::Wire { peer, source })?;
    match header.kind {
        kind if kind == expected => Ok(body),
        Kind::Refuse => Err(SessionError::Refused { peer, why: printable(&body) }),
        found => Err(SessionError::Unexpected { peer, found, expected: label(expected) }),
    }
}

/// A hello frame's body.
pub(super) fn hello_of(peer: SocketAddr, body: &[u8]) -> Result<Hello, SessionError> {
    Hello::decode(body).map_err(|source| SessionError::Wire { peer, source })
}

/// An endpoint frame's body.
pub(super) fn endpoint_of(peer: SocketAddr, body: &[u8]) -> Result<Endpoint, SessionError> {
    Endpoint::decode(body).map_err(|source| SessionError::Wire { peer, source })
}

/// A stream that carries frames until `deadline`.
#[derive(Debug)]
pub(super) struct FrameStream {
    stream: Stream,
    peer: SocketAddr,
    deadline: Instant,
    /// The deadline as it was configured, for messages.
    allowed: Duration,
}

impl FrameStream {
    pub(super) fn new(
        stream: Stream,
        peer: SocketAddr,
        deadline: Instant,
        allowed: Duration,
    ) -> Result<Self, SessionError> {
        let this = Self { stream, peer, deadline, allowed };
        this.stream.socket().set_nonblocking(false).map_err(|e| this.io("preparing the socket", e))?;
        Ok(this)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> SessionError {
        SessionError::Io { peer: self.peer, doing, source }
    }

    /// Time that is left; an error of kind `TimedOut` if none is.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Sends frames back to back. If that fails because the peer hung up, its refusal is the better answer.
    pub(super) fn send(&mut self, frames: &[(Kind, &[u8])]) -> Result<(), SessionError> {
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, body)| encode_frame(*kind, body)).collect();
        self.write_all(&bytes).map_err(|error| match self.expect(Kind::Refuse) {
            Ok(why) => SessionError::Refused { peer: self.peer, why: printable(&why) },
            Err(_) if is_timeout(&error) => {
                SessionError::Silent { peer: self.peer, awaited: "readiness to read", after: self.allowed }
            }
            Err(_) => self.io("sending the handshake", error),
        })
    }

    /// What each side says of itself; with `ready`, the standby's agreement.
    pub(super) fn offer(
        &mut self,
        hello: &Hello,
        profile: &[u8],
        endpoint: Option<&Endpoint>,
        ready: bool,
    ) -> Result<(), SessionError> {
        let (hello, endpoint) = (hello.encode(), endpoint.map(Endpoint::encode));
        let mut frames: Vec<(Kind, &[u8])> = vec![(Kind::Hello, &hello), (Kind::Profile, profile)];
        frames.extend(endpoint.as_ref().map(|e| (Kind::Endpoint, &e[..])));
        frames.extend(ready.then_some((Kind::Ready, &[][..])));
        self.send(&frames)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.socket().set_write_timeout(Some(self.left()?))?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads one frame, which must be of this kind.
    pub(super) fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, SessionError> {
        let mut head = [0; FRAME_LEN];
        self.read_exact(&mut head, kind, true)?;
        let header = frame_header(self.peer, &head)?;
        let mut body = vec![0; header.len];
        self.read_exact(&mut body, kind, false)?;
        frame_body(self.peer, header, body, kind)
    }

    fn read_exact(&mut self, buffer: &mut [u8], awaited: Kind, is_header: bool) -> Result<(), SessionError> {
        let (peer, awaited) = (self.peer, label(awaited));
        let mut have = 0;
        while have < buffer.len() {
            match self.read_some(&mut buffer[have..]) {
                Ok(n) => have += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if is_timeout(&e) => return Err(SessionError::Silent { peer, awaited, after: self.allowed }),
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(SessionError::Closed { peer, awaited }),
                Err(e) => return Err(self.io("waiting for the handshake", e)),
            }
            if is_header && is_stranger(&buffer[..have]) {
                return Err(SessionError::Stranger { peer, began: printable(&buffer[..have]) });
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.socket().set_read_timeout(Some(self.left()?))?;
        match self.stream.read(buffer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        }
    }

    /// The handshake is over.
    pub(super) fn into_connected(
        self,
        peer: Hello,
        profile: Vec<u8>,
        endpoint: Option<Endpoint>,
        options: &LinkOptions,
    ) -> Result<Connected, SessionError> {
        let (peer_addr, doing) = (self.peer, "preparing the socket");
        let io = |source| SessionError::Io { peer: peer_addr, doing, source };
        let local_addr = self.stream.socket().local_addr().map_err(io)?;
        let name = format!("{} ({peer_addr})", peer.node);
        let link = TcpLink::with_options(self.stream, peer.slab_size as usize, name, options).map_err(io)?;
        Ok(Connected { link, peer, profile, endpoint, peer_addr, local_addr })
    }
}

/// A socket timeout is reported as one or the other.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
