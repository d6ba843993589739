//! The handshake: how a stream becomes a [`TcpLink`].
//!
//! ```text
//! primary                                   standby
//!   Call::connect                             Listener::accept
//!   Call::shake_hands
//!   hello, profile, [endpoint] ─────────────>   versions overlap? ── no ──> refuse, close
//!                                               └─> Offer ── the caller compares profiles
//!   hello, profile, [endpoint], ready <───── Offer::accept
//!   refuse <──────────────────────────────── Offer::refuse
//!   Connected                                 Connected
//! ```
//!
//! Frames are [`mc_core::wire::session`]'s. They are read to the byte, so that the link begins where the handshake ends.
//! Both sides work under a deadline for the whole handshake, not per byte: a peer that trickles gains nothing. An answer that
//! is no frame is quoted in the error, for it is usually another program's greeting.
//!
//! A primary that has RDMA sends its endpoint along; a standby that takes it answers with its own. Then the slabs go another
//! way, and the [`TcpLink`] stands by: nothing is sent over it while the other one works.

mod error;
mod frame;
mod listen;
mod offer;

pub use error::SessionError;
pub use listen::Listener;
pub use offer::Offer;

use crate::{link::TcpLink, options::LinkOptions, reach::reach, stream::Stream};
use frame::{FrameStream, endpoint_of, hello_of};
use mc_core::wire::{
    rdma::Endpoint,
    session::{Hello, Kind, MAX_PROFILE},
};
use socket2::{SockRef, Socket};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// For the whole handshake of one connection: connecting, hello, profile, answer. The primary's must leave the standby
    /// time to compare the profiles.
    pub deadline: Duration,
    /// Of that for connecting, at most: whoever is away for a while is better called again than waited for.
    pub connect: Duration,
    /// Of the link that comes out.
    pub link: LinkOptions,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), connect: Duration::from_secs(4), link: LinkOptions::default() }
    }
}

/// A session that both sides agreed on.
#[derive(Debug)]
pub struct Connected {
    /// The link.
    pub link: TcpLink,
    /// The peer's hello.
    pub peer: Hello,
    /// The peer's profile.
    pub profile: Vec<u8>,
    /// The peer's RDMA endpoint, if both sides want RDMA.
    pub endpoint: Option<Endpoint>,
    /// Where the peer is; beats go to its address and the hello's port.
    pub peer_addr: SocketAddr,
    /// Where we are, for the beats' socket.
    pub local_addr: SocketAddr,
}

/// The primary's side: a connection on which nothing was said yet. What the hello says of beats follows from its addresses,
/// so they are known before it is sent.
#[derive(Debug)]
pub struct Call {
    stream: Stream,
    peer_addr: SocketAddr,
    local_addr: SocketAddr,
    deadline: Instant,
    options: SessionOptions,
}

impl Call {
    /// Connects to one of the `addresses` that `to` stands for ([`reach`]); from the address `from` of ours if one is given.
    /// Blocks until the deadline at most.
    ///
    /// # Errors
    /// [`SessionError::Connect`] names every address that was tried, and why it failed.
    pub fn connect(
        to: &str,
        addresses: &[SocketAddr],
        from: Option<SocketAddr>,
        options: &SessionOptions,
    ) -> Result<Self, SessionError> {
        let deadline = Instant::now() + options.deadline;
        let prepare = |socket: &Socket| options.link.set_buffers(&SockRef::from(socket));
        let reached_by = deadline.min(Instant::now() + options.connect);
        let (stream, peer_addr) = reach(to, addresses, from, reached_by, prepare)?;
        let local = stream.local_addr();
        let local_addr =
            local.map_err(|source| SessionError::Io { peer: peer_addr, doing: "preparing the socket", source })?;
        Ok(Self { stream: stream.into(), peer_addr, local_addr, deadline, options: *options })
    }

    /// Where we are: beats leave from there.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Offers `hello`, `profile` and, for RDMA, `endpoint`, and waits for the standby's answer. Blocks until the deadline at
    /// most, which began with the connection.
    ///
    /// # Errors
    /// The standby's refusal, or whatever else makes that no session. Each names the peer.
    pub fn shake_hands(
        self,
        hello: &Hello,
        profile: &[u8],
        endpoint: Option<&Endpoint>,
    ) -> Result<Connected, SessionError> {
        check_profile(profile)?;
        let Self { stream, peer_addr, deadline, options, .. } = self;
        let mut frames = FrameStream::new(stream, peer_addr, deadline, options.deadline)?;
        let hello = Hello { rdma: endpoint.is_some(), ..*hello };
        frames.offer(&hello, profile, endpoint, false)?;
        let peer = hello_of(peer_addr, &frames.expect(Kind::Hello)?)?;
        check_answer(&hello, &peer, peer_addr)?;
        let theirs = frames.expect(Kind::Profile)?;
        let endpoint = if peer.rdma { Some(endpoint_of(peer_addr, &frames.expect(Kind::Endpoint)?)?) } else { None };
        frames.expect(Kind::Ready)?;
        frames.into_connected(peer, theirs, endpoint, &options.link)
    }
}

fn check_profile(profile: &[u8]) -> Result<(), SessionError> {
    if profile.len() > MAX_PROFILE {
        return Err(SessionError::Profile { len: profile.len() });
    }
    Ok(())
}

/// The standby must have taken one version of our range, and echo what identifies the session.
fn check_answer(ours: &Hello, theirs: &Hello, peer: SocketAddr) -> Result<(), SessionError> {
    if theirs.versions.0 != theirs.versions.1 || Hello::negotiate(ours.versions, theirs.versions).is_err() {
        return Err(SessionError::Version { peer, theirs: theirs.versions, ours: ours.versions });
    }
    let echoes = [
        ("incarnation", ours.incarnation == theirs.incarnation),
        ("generation", ours.generation == theirs.generation),
        ("purpose", ours.purpose == theirs.purpose),
        ("beat key", ours.beat_key == theirs.beat_key),
        ("slab size", ours.slab_size == theirs.slab_size),
        ("transport", ours.rdma || !theirs.rdma),
    ];
    match echoes.into_iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(SessionError::Echo { peer, field }),
        None => Ok(()),
    }
}
