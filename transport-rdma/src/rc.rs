//! A link over reliable queue pairs (RC).
//!
//! ```text
//!   sender                                                 receiver
//!   ------                                                 --------
//!                              <── slot 7: addr, rkey ──── Op::Post(slab): registered, offered
//!   Op::Write(slab) ══ RDMA WRITE, slices ═══════════════> lands in slot 7; the receiver's CPU does not notice
//!                   ── part: slot 7, 32,832 bytes ───────> checksummed that far, while the rest comes
//!                   ── slab: slot 7, 65,600 bytes ───────> header and checksum verified: Completion::Arrived
//!   Op::Send(commit) ── control ─────────────────────────> Completion::Received
//!                              <── control: ACK, credits ─ Op::Send(ack)
//! ```
//!
//! Everything runs on one queue pair, in order: a message that arrives proves that the writes before it have landed. With
//! several queue pairs the slices are striped over all but the first, and a slab is announced when the last of its writes has
//! completed. Messages ([`mc_core::wire::rdma`]) are inline SENDs of 80 bytes.
//!
//! Nothing relies on the device to refuse: send slots are counted here, and each message is covered by a receive that the peer
//! has posted (*credits*, returned in messages of the other direction). A full queue waits; it never ends in "receiver not
//! ready".
//!
//! | file | what |
//! |---|---|
//! | `rc.rs` | options, and how a link comes about: [`Prepared`], then [`RdmaLink`] |
//! | [`link`] | the [`mc_core::transport::Transport`]: state and completions |
//! | [`bell`] | which completion queue is armed: who polls pays no system call, who sleeps is woken |
//! | [`send`] | the queue, slots, credits, chains of work requests |
//! | [`receive`] | messages that arrive, slabs that are posted |
//! | [`fence`] | how the peer's access ends (I3) |

mod bell;
mod fence;
mod link;
mod receive;
mod send;
#[cfg(feature = "testing")]
mod testing;

pub use link::RdmaLink;
#[cfg(feature = "testing")]
pub use testing::Breaker;

use crate::{
    error::RdmaError,
    ffi::{Channel, Context, Cq, Domain, Qp},
    types::{Gid, QpSizes},
};
use mc_core::{
    id::Incarnation,
    wire::rdma::{Endpoint, MAX_QUEUES, MESSAGE_LEN, Queues},
};
use receive::Receiver;
use rustix::rand::{GetRandomFlags, getrandom};
use std::{io, sync::Arc, time::Duration};

/// A device's port and address, chosen.
#[derive(Clone, Debug)]
pub struct Place {
    /// The open device.
    pub context: Arc<Context>,
    /// Which entry of the port's GID table.
    pub gid_index: u8,
    /// That entry.
    pub gid: Gid,
    /// InfiniBand's local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Path MTU: bytes.
    pub mtu: u32,
    /// Nominal rate: Mbit/s; 0 if unknown.
    pub mbit: u32,
    /// A software device: its rate is a fiction, and a busy host delays its answers.
    pub software: bool,
}

impl Place {
    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> RdmaError {
        let device = self.context.name().to_owned();
        move |source| RdmaError::Device { device, doing, source }
    }
}

/// The knobs of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcOptions {
    /// Bytes of one RDMA WRITE at most.
    pub slice_bytes: usize,
    /// Work requests outstanding on each queue pair.
    pub depth: u32,
    /// A completion is asked for with every so many work requests.
    pub signal_every: u32,
    /// Queue pairs: 1, or 1 for messages and the others for data.
    pub queues: usize,
    /// Local ACK timeout: 4.096 µs * 2^this. `None`: from slice size, depth and the port's rate.
    pub timeout: Option<u8>,
    /// Transport retries, 0 to 6. (7 means for ever on some devices.)
    pub retry: u8,
    /// Retries while the peer has no receive posted, 0 to 6. Credits make them a rarity.
    pub rnr_retry: u8,
    /// How long a link that we end waits for the peer to take what was posted, the bye last, while there is no progress. So much
    /// a dead peer costs a takeover.
    pub farewell: Duration,
    /// Operations queued at most: so many writes and sends, and as many posted slabs.
    pub queue: usize,
}

impl Default for RcOptions {
    fn default() -> Self {
        Self {
            slice_bytes: 64 << 10,
            depth: 128,
            signal_every: 16,
            queues: 1,
            timeout: None,
            retry: 6,
            rnr_retry: 6,
            farewell: Duration::from_millis(2),
            queue: 64,
        }
    }
}

impl RcOptions {
    /// What makes sense of them.
    fn sane(self) -> Self {
        Self {
            slice_bytes: self.slice_bytes.clamp(4096, 1 << 30),
            depth: self.depth.clamp(4, 16_384),
            signal_every: self.signal_every.clamp(1, self.depth.max(4) / 2),
            queues: self.queues.clamp(1, MAX_QUEUES),
            retry: self.retry.min(6),
            rnr_retry: self.rnr_retry.min(6),
            queue: self.queue.clamp(1, 1024),
            ..self
        }
    }

    /// Receives that a link posts: for the messages of a full queue, the slots that it offers, and as much again under way.
    fn receives(&self) -> u32 {
        u32::try_from((4 * self.queue + 32).next_power_of_two()).unwrap_or(4096)
    }

    /// The local ACK timeout in force: four times what a full queue takes at the port's rate, within 14 (67 ms) to 20 (4.3 s),
    /// and at least 17 (0.54 s) on a software device. Shorter ones have been seen to end healthy links when a host was busy:
    /// SoftRoCE (Linux 6.1) then sends writes again, and refuses its own repetition as an invalid request.
    #[must_use]
    pub fn timeout_code(&self, place: &Place) -> u8 {
        self.timeout.unwrap_or_else(|| self.derived_timeout(place.mbit, place.software))
    }

    fn derived_timeout(&self, mbit: u32, software: bool) -> u8 {
        let bytes = self.slice_bytes as u64 * u64::from(self.depth) * 4;
        let full = Duration::from_micros(bytes * 8 / u64::from(mbit.max(1000)));
        let shortest = if software { 17 } else { 14 };
        (shortest..20).find(|code| crate::error::ack_timeout(*code) >= full).unwrap_or(20)
    }
}

/// Whether the kernel does the work (rxe, siw): only those have a network interface as their parent in sysfs.
pub(crate) fn is_software(device: &str) -> bool {
    std::path::Path::new("/sys/class/infiniband").join(device).join("parent").exists()
}

/// Queue pairs that are not connected yet. Its endpoint goes to the peer, whose endpoint connects it.
#[derive(Debug)]
pub struct Prepared {
    parts: Parts,
    receiver: Receiver,
    endpoint: Endpoint,
}

/// What a link is made of. One set per peer and incarnation: no key, number or domain is ever used for another.
#[derive(Debug)]
struct Parts {
    place: Place,
    options: RcOptions,
    domain: Arc<Domain>,
    channel: Arc<Channel>,
    send_cq: Arc<Cq>,
    receive_cq: Arc<Cq>,
    queues: Vec<Arc<Qp>>,
}

impl Prepared {
    /// Makes the queue pairs for a session, and posts their receives.
    pub fn new(place: &Place, incarnation: Incarnation, options: &RcOptions) -> Result<Self, RdmaError> {
        let options = options.sane();
        let failed = |doing| place.failed(doing);
        let (context, receives) = (&place.context, options.receives());
        let domain = Domain::new(context).map_err(failed("making a protection domain"))?;
        let channel = Channel::new(context).map_err(failed("making a completion channel"))?;
        let count = u32::try_from(options.queues).unwrap_or(1);
        // Every work request may complete at once: when the link fails, all do.
        let cq = |entries| Cq::new(context, entries, Some(&channel)).map_err(place.failed("making a completion queue"));
        let (send_cq, receive_cq) = (cq(options.depth * count)?, cq(receives + 16)?);
        let mut queues = Vec::with_capacity(options.queues);
        for index in 0..options.queues {
            let inline = u32::try_from(MESSAGE_LEN).unwrap_or(80);
            let receive = if index == 0 { receives } else { 1 };
            let sizes = QpSizes { send: options.depth, receive, pieces: 1, inline };
            let queue = Qp::reliable(&domain, &send_cq, &receive_cq, sizes);
            queues.push(Arc::new(queue.map_err(failed("making a queue pair"))?));
        }
        queues.iter().try_for_each(|q| q.init_reliable(true)).map_err(failed("preparing a queue pair"))?;
        let receiver = Receiver::new(&domain, &queues[0], receives, options.queue);
        let receiver = receiver.map_err(failed("posting receives"))?;
        let numbers: Vec<u32> = queues.iter().map(|q| q.number()).collect();
        let endpoint = Endpoint {
            gid: place.gid,
            lid: place.lid,
            mtu: place.mtu,
            receives,
            psn: random_psn().map_err(failed("drawing a sequence number"))?,
            queues: Queues::new(&numbers).expect("1 to MAX_QUEUES"),
            beats: None,
            incarnation,
        };
        let place = place.clone();
        let parts = Parts { place, options, domain, channel, send_cq, receive_cq, queues };
        Ok(Self { parts, receiver, endpoint })
    }

    /// For the peer. `beats` is the caller's to fill in.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Connects to the peer's endpoint. One side `speaks_first`: the one that knows that the other is connected already. `peer`
    /// is for messages.
    ///
    /// # Errors
    /// The endpoint is of another session, has another number of queue pairs, or cannot be reached from this port.
    pub fn connect(
        self,
        theirs: &Endpoint,
        peer: impl Into<String>,
        speaks_first: bool,
    ) -> Result<RdmaLink, RdmaError> {
        let peer = peer.into();
        let (ours, count) = (self.endpoint, theirs.queues.numbers().len());
        if theirs.incarnation != ours.incarnation {
            let what = format!("its endpoint is of session {}, this is {}", theirs.incarnation, ours.incarnation);
            return Err(RdmaError::Mismatch { peer, what });
        }
        if count != self.parts.queues.len() {
            let what = format!("it has {count} queue pairs, this side {}: make them equal", self.parts.queues.len());
            return Err(RdmaError::Mismatch { peer, what });
        }
        for (queue, number) in self.parts.queues.iter().zip(theirs.queues.numbers()) {
            let failed =
                |source| RdmaError::Verb { peer: peer.clone(), qpn: queue.number(), doing: "connecting", source };
            crate::patience::patiently(|| queue.connect(&self.path(theirs, *number))).map_err(failed)?;
        }
        Ok(RdmaLink::new(self.parts, self.receiver, theirs, peer, speaks_first))
    }

    fn path(&self, theirs: &Endpoint, qpn: u32) -> crate::types::RcPath {
        let Parts { place, options, .. } = &self.parts;
        crate::types::RcPath {
            gid_index: place.gid_index,
            gid: theirs.gid,
            lid: theirs.lid,
            qpn,
            mtu: place.mtu.min(theirs.mtu),
            psn: self.endpoint.psn,
            peer_psn: theirs.psn,
            timeout: options.timeout_code(place),
            retry: options.retry,
            rnr_retry: options.rnr_retry,
        }
    }
}

/// 24 bits that no earlier session's packets are likely to match.
fn random_psn() -> io::Result<u32> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes[..3], GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_covers_a_full_queue_and_is_never_short() {
        let options = RcOptions::default();
        // 4 x 8 MiB at 100 Gbit/s are 3 ms; the floor is 67 ms.
        assert_eq!(options.derived_timeout(100_000, false), 14);
        // At 2.5 Gbit/s they are 107 ms.
        assert_eq!(options.derived_timeout(2_500, false), 15);
        assert_eq!(options.derived_timeout(0, false), 16);
        assert_eq!(options.derived_timeout(100_000, true), 17);
    }

    #[test]
    fn options_are_bounded() {
        let wild = RcOptions { retry: 7, rnr_retry: 7, queues: 99, signal_every: 1000, depth: 8, ..Default::default() };
        let sane = wild.sane();
        assert_eq!((sane.retry, sane.rnr_retry, sane.queues, sane.signal_every), (6, 6, MAX_QUEUES, 4));
    }
}
