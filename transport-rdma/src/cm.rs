//! Links that the system's connection manager makes: rdma_cm(7), an option beside the endpoint exchange.
//!
//! ```text
//!   one side                                           the other
//!   --------                                           ---------
//!                                                      CmListener::bind(address)
//!   CmConnection::resolve(address)
//!     .place() ─> Prepared::new
//!     .connect(prepared) ───── request, offer ───────> CmListener::next() ─> CmRequest
//!                                                        .place() ─> Prepared::new
//!                                                        .accept(prepared)
//!                                                        queue pair INIT ─> RTR ─> RTS
//!       queue pair RTR ─> RTS <── acceptance, offer ──
//!       RdmaLink, speaks first ── confirmation ──────>   RdmaLink
//! ```
//!
//! # When
//!
//! The default, an [`Endpoint`] each over the connection that is there anyway ([`Prepared::connect`]), works with every
//! address. rdma_cm needs an IP address on the network interface of the RDMA device, the module `rdma_ucm`, and a route to the
//! peer through that interface. For that it finds the device by the peer's address, takes path, service level, VLAN and
//! partition from the network's own settings, and says so when the peer's process ends ([`RdmaLink::hung_up`]): the kernel
//! disconnects for a process that is killed, but nobody does for a host that has lost its power.
//!
//! # How
//!
//! The session's hello goes over the control connection as ever, so both sides know the incarnation. Whoever accepted it binds
//! a [`CmListener`] before it answers, best to the same address and port: rdma_cm's ports are not TCP's. The other one
//! resolves, prepares a queue pair on [`CmConnection::place`], and connects; the first takes the request, prepares on
//! [`CmRequest::place`], and accepts. What comes out is the same [`RdmaLink`] either way, and the peer's endpoint, whose
//! [`Endpoint::beats`] a keepalive needs. Who has several peers tells requests apart by [`CmRequest::offer`].
//!
//! A link has one queue pair here: [`RcOptions::queues`](crate::rc::RcOptions) must be 1. Timeout and retries are the link's
//! own options.
//!
//! # The end
//!
//! The queue pair stays ours: it is never tied to the manager's object, which therefore moves and destroys none, and the order
//! of a fence is what it is without it. The object goes last, when the link is dropped, and disconnects.

mod error;
mod events;

pub use error::CmError;

use crate::{
    device::{self, DeviceError, Wish},
    error::RdmaError,
    ffi::{CmId, CmOffer},
    patience::patiently,
    rc::{Place, Prepared, RdmaLink},
    types::RcPath,
};
use error::refusal;
use events::{Deadline, call, expect, next};
use mc_core::wire::rdma::{Beats, Endpoint, Offer, Queues};
use rdma_sys::rdma_cm_event_type as kind;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

/// Requests that wait to be taken, at most.
const BACKLOG: u8 = 16;
/// How long one look for a peer's address may take.
const LOOK: Duration = Duration::from_millis(250);

/// Errors of a peer.
fn with<E: Into<CmError>>(peer: &str) -> impl Fn(E) -> RdmaError {
    move |error| RdmaError::Cm { peer: peer.to_owned(), source: error.into() }
}

/// One look. Linux (drivers/infiniband/core/addr.c) misses a neighbour that answers before it has begun to wait, as the other
/// end of a veth does, and then waits out its limit: many short looks find it at once.
fn resolved(to: SocketAddr, from: Option<SocketAddr>, deadline: Deadline) -> Result<CmId, CmError> {
    let limit = deadline.left().min(LOOK);
    let mut id = CmId::new().map_err(|source| CmError::Service { source })?;
    let doing = "resolving its address";
    let from = from.map(|mut address| {
        address.set_port(0);
        address
    });
    id.resolve_address(from, to, limit).map_err(|e| CmError::of(doing, e))?;
    expect(&mut id, kind::RDMA_CM_EVENT_ADDR_RESOLVED, doing, deadline)?;
    let doing = "resolving the route";
    id.resolve_route(deadline.left()).map_err(|e| CmError::of(doing, e))?;
    expect(&mut id, kind::RDMA_CM_EVENT_ROUTE_RESOLVED, doing, deadline)?;
    Ok(id)
}

/// A peer's address, resolved: which device reaches it is known.
#[derive(Debug)]
pub struct CmConnection {
    id: CmId,
    to: SocketAddr,
}

impl CmConnection {
    /// Finds the device that reaches `to`, which leaves through the address `from` of ours if one is given.
    ///
    /// # Errors
    /// [`RdmaError::Cm`]: no connection manager, no device, no way, or not in time.
    pub fn resolve(to: SocketAddr, from: Option<SocketAddr>, deadline: Instant) -> Result<Self, RdmaError> {
        let deadline = Deadline::new(deadline);
        let timed_out = |error: &io::Error| error.raw_os_error() == Some(libc::ETIMEDOUT);
        loop {
            match resolved(to, from, deadline) {
                Ok(id) => return Ok(Self { id, to }),
                Err(CmError::Unreachable { source, .. }) if timed_out(&source) && !deadline.left().is_zero() => {}
                Err(error) => return Err(with(&to.to_string())(error)),
            }
        }
    }

    /// The device and the address that the peer is reached from: where to prepare the queue pair.
    pub fn place(&self) -> Result<Place, DeviceError> {
        place(&self.id)
    }

    /// Connects to whoever listens. The peer must be of the same session. `beats` are ours, `peer` is for messages.
    ///
    /// # Errors
    /// [`RdmaError::Cm`]: rejected, unreachable, not in time, not our protocol; [`RdmaError::Mismatch`]: of another session,
    /// prepared with several queue pairs or on another device.
    pub fn connect(
        mut self,
        prepared: Prepared,
        beats: Option<Beats>,
        peer: impl Into<String>,
        deadline: Instant,
    ) -> Result<(RdmaLink, Endpoint), RdmaError> {
        let (deadline, peer) = (Deadline::new(deadline), format!("{} ({})", peer.into(), self.to));
        fits(&prepared, &self.id, &peer)?;
        let offer = offer(&prepared, beats).encode();
        self.id.connect(said(&prepared, &offer)).map_err(call("asking for a connection")).map_err(with(&peer))?;
        let doing = "waiting for its answer";
        let answer = expect(&mut self.id, kind::RDMA_CM_EVENT_CONNECT_RESPONSE, doing, deadline);
        let answer = answer.map_err(with(&peer))?;
        let theirs = understand(&mut self.id, &answer.data, &peer)?;
        same_session(&mut self.id, &prepared, &theirs, &peer)?;
        let path = ready(&mut self.id, &prepared, &peer)?;
        self.id.establish().map_err(call("confirming the connection")).map_err(with(&peer))?;
        Ok(link(self.id, prepared, path, &theirs, peer, true))
    }
}

/// Takes requests.
#[derive(Debug)]
pub struct CmListener {
    id: CmId,
    address: SocketAddr,
}

impl CmListener {
    /// Listens at `address`, which an RDMA device must have; port 0 means any.
    ///
    /// # Errors
    /// [`RdmaError::Cm`]: no connection manager, no device with that address, or the port is taken.
    pub fn bind(address: SocketAddr) -> Result<Self, RdmaError> {
        let bind = || -> Result<CmId, CmError> {
            let mut id = CmId::new().map_err(|source| CmError::Service { source })?;
            id.bind(address).map_err(|e| CmError::of("listening", e))?;
            id.listen(BACKLOG).map_err(|e| CmError::of("listening", e))?;
            Ok(id)
        };
        let id = bind().map_err(with(&address.to_string()))?;
        let address = id.local().unwrap_or(address);
        Ok(Self { id, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request. One that makes no sense is rejected, with words, and is an error that names its sender: the next call
    /// waits for the next one.
    ///
    /// # Errors
    /// [`RdmaError::Cm`]: [`CmError::TimedOut`], [`CmError::Data`], or the system fails.
    pub fn next(&mut self, deadline: Instant) -> Result<CmRequest, RdmaError> {
        let (deadline, doing) = (Deadline::new(deadline), "waiting for a request");
        let here = self.address.to_string();
        loop {
            let event = next(&mut self.id, doing, deadline).map_err(with(&here))?;
            // (Of a listener nothing else is told but that its device is gone: then no request comes.)
            let Some(mut id) = event.request else { continue };
            let Some(from) = id.remote() else { continue };
            let offer = understand(&mut id, &event.data, &from.to_string())?;
            return Ok(CmRequest { id, offer, from });
        }
    }
}

/// Readable when there is a request.
impl AsFd for CmListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.as_fd()
    }
}

/// Somebody asks for a connection. Dropped, it is rejected.
#[derive(Debug)]
pub struct CmRequest {
    id: CmId,
    offer: Offer,
    from: SocketAddr,
}

impl CmRequest {
    /// What it says.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Who it is.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The device and the address that it came to: where to prepare the queue pair.
    pub fn place(&self) -> Result<Place, DeviceError> {
        place(&self.id)
    }

    /// Accepts it. The peer must be of the same session. `beats` are ours, `peer` is for messages.
    ///
    /// # Errors
    /// As [`CmConnection::connect`]. The peer is rejected, with words.
    pub fn accept(
        mut self,
        prepared: Prepared,
        beats: Option<Beats>,
        peer: impl Into<String>,
        deadline: Instant,
    ) -> Result<(RdmaLink, Endpoint), RdmaError> {
        let (deadline, peer) = (Deadline::new(deadline), format!("{} ({})", peer.into(), self.from));
        fits(&prepared, &self.id, &peer).inspect_err(|_| reject(&mut self.id, "this side cannot: see its log"))?;
        same_session(&mut self.id, &prepared, &self.offer, &peer)?;
        // Before the answer: who gets it may write at once.
        let path = ready(&mut self.id, &prepared, &peer)?;
        let offer = offer(&prepared, beats).encode();
        self.id.accept(said(&prepared, &offer)).map_err(call("accepting it")).map_err(with(&peer))?;
        let doing = "waiting for its confirmation";
        expect(&mut self.id, kind::RDMA_CM_EVENT_ESTABLISHED, doing, deadline).map_err(with(&peer))?;
        Ok(link(self.id, prepared, path, &self.offer, peer, false))
    }

    /// Says no. The peer reads the first 130 bytes or so of why.
    pub fn reject(mut self, why: &str) {
        reject(&mut self.id, why);
    }
}

fn place(id: &CmId) -> Result<Place, DeviceError> {
    let wish = Wish { device: id.device(), local: id.local(), ..Wish::default() };
    Ok(device::choose(&wish)?.place())
}

/// Best effort: who is not told gets the rejection of an object that is gone.
fn reject(id: &mut CmId, why: &str) {
    if let Err(error) = id.reject(&refusal(why)) {
        tracing::debug!(%error, "rdma_reject failed");
    }
}

/// Whether this queue pair can be connected this way.
fn fits(prepared: &Prepared, id: &CmId, peer: &str) -> Result<(), RdmaError> {
    let mismatch = |what| Err(RdmaError::Mismatch { peer: peer.to_owned(), what });
    let count = prepared.queues().len();
    if count != 1 {
        let what = format!("rdma_cm connects one queue pair, not {count}: prepare one, or use the endpoint exchange");
        return mismatch(what);
    }
    let (ours, needed) = (prepared.place().context.name(), id.device().unwrap_or_default());
    if ours != needed {
        return mismatch(format!("it is reached through RDMA device {needed}, the queue pair is on {ours}"));
    }
    Ok(())
}

fn offer(prepared: &Prepared, beats: Option<Beats>) -> Offer {
    let Endpoint { receives, incarnation, .. } = prepared.endpoint();
    Offer { receives, beats, incarnation }
}

fn said<'a>(prepared: &Prepared, data: &'a [u8]) -> CmOffer<'a> {
    let patience = prepared.patience();
    CmOffer { qpn: prepared.queues()[0].number(), retries: (patience.retry, patience.rnr_retry), data }
}

/// What the peer says; who talks nonsense is rejected.
fn understand(id: &mut CmId, data: &[u8], peer: &str) -> Result<Offer, RdmaError> {
    let offer = Offer::decode(data);
    offer.inspect_err(|why| reject(id, &format!("your private data: {why}"))).map_err(with(peer))
}

fn same_session(id: &mut CmId, prepared: &Prepared, theirs: &Offer, peer: &str) -> Result<(), RdmaError> {
    let ours = prepared.endpoint().incarnation;
    if theirs.incarnation == ours {
        return Ok(());
    }
    reject(id, &format!("you are of session {}, this is {ours}", theirs.incarnation));
    let what = format!("its offer is of session {}, this is {ours}", theirs.incarnation);
    Err(RdmaError::Mismatch { peer: peer.to_owned(), what })
}

/// Connects the queue pair to where the manager says.
fn ready(id: &mut CmId, prepared: &Prepared, peer: &str) -> Result<RcPath, RdmaError> {
    let queue = &prepared.queues()[0];
    let path = patiently(|| queue.connect_through(id, prepared.patience()));
    path.map_err(|source| {
        reject(id, &format!("my queue pair cannot be connected: {source}"));
        RdmaError::Verb { peer: peer.to_owned(), qpn: queue.number(), doing: "connecting", source }
    })
}

fn link(id: CmId, prepared: Prepared, path: RcPath, theirs: &Offer, peer: String, first: bool) -> (RdmaLink, Endpoint) {
    let endpoint = Endpoint {
        gid: path.gid,
        lid: path.lid,
        mtu: path.mtu,
        receives: theirs.receives,
        psn: path.peer_psn,
        queues: Queues::new(&[path.qpn]).expect("one"),
        beats: theirs.beats,
        incarnation: theirs.incarnation,
    };
    (prepared.connected(Tie { id, hung_up: false }, &endpoint, peer, first), endpoint)
}

/// What a link keeps of its connection.
#[derive(Debug)]
pub(crate) struct Tie {
    id: CmId,
    hung_up: bool,
}

impl Tie {
    /// See [`RdmaLink::hung_up`].
    pub(crate) fn hung_up(&mut self) -> bool {
        while !self.hung_up
            && let Ok(Some(event)) = self.id.event()
        {
            self.hung_up = [kind::RDMA_CM_EVENT_DISCONNECTED, kind::RDMA_CM_EVENT_DEVICE_REMOVAL].contains(&event.kind);
        }
        self.hung_up
    }
}

impl AsFd for Tie {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.id.as_fd()
    }
}
