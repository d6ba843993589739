//! Plain values of the verbs: limits, states, completions, what is posted.

use crate::ffi::Address;
use rdma_sys as sys;
use std::io;

/// Bytes of an address in RoCE and InfiniBand: an IPv6 address, or an IPv4 one mapped into it.
pub type Gid = [u8; 16];

/// The first port; every device here uses it unless told otherwise.
pub const PORT: u8 = 1;

/// What a device can do, as far as it matters here. Counts and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Bytes of one memory region at most.
    pub max_mr_size: u64,
    /// Memory regions at most.
    pub max_mr: i32,
    /// Queue pairs at most.
    pub max_qp: i32,
    /// Work requests outstanding on a queue.
    pub max_qp_wr: i32,
    /// Scatter/gather entries of a work request.
    pub max_sge: i32,
    /// Entries of a completion queue.
    pub max_cqe: i32,
    /// Multicast groups; 0: no multicast.
    pub max_mcast_grp: i32,
    /// Outstanding RDMA reads and atomics of a queue pair.
    pub max_qp_rd_atom: i32,
    /// Whether the device does atomics at all.
    pub atomics: bool,
    /// Ports.
    pub ports: u8,
}

/// A port's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Port {
    /// Up, and ready for traffic.
    pub active: bool,
    /// The path MTU that it allows: bytes.
    pub mtu: u32,
    /// Entries of its GID table.
    pub gids: i32,
    /// Over Ethernet: RoCE, and a GID is needed.
    pub ethernet: bool,
    /// InfiniBand's local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Nominal rate, Mbit/s; 0 if the device does not say.
    pub mbit: u32,
}

/// Bytes of an MTU code (`enum ibv_mtu`).
pub(crate) fn mtu_bytes(code: sys::ibv_mtu::Type) -> u32 {
    128 << code.clamp(1, 5)
}

/// The largest MTU code of not more than `bytes`; IBTA: 256, 512, 1024, 2048, 4096.
pub(crate) fn mtu_code(bytes: u32) -> sys::ibv_mtu::Type {
    (1..=5).rev().find(|code| mtu_bytes(*code) <= bytes).unwrap_or(1)
}

/// Lanes of a port: `active_width` of ibv_query_port(3).
pub(crate) fn lanes(width: u8) -> u32 {
    match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    }
}

/// Mbit/s of a lane: `active_speed` of ibv_query_port(3).
pub(crate) fn lane_mbit(speed: u8) -> u32 {
    match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    }
}

/// How a work request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The number that it was posted with.
    pub id: u64,
    /// 0 for success; see [`crate::ffi::status_words`].
    pub status: u32,
    /// The vendor's own code.
    pub vendor: u32,
    /// Received bytes.
    pub bytes: u32,
    /// The queue pair that sent it (datagrams).
    pub from: u32,
    /// Whether 40 bytes of routing header precede the payload (datagrams).
    pub routed: bool,
}

/// A work request was given back since its queue pair is in error: it tells of an earlier failure, not of its own.
pub const FLUSHED: u32 = sys::ibv_wc_status::IBV_WC_WR_FLUSH_ERR;
/// No answer from the peer after all retries.
pub const RETRY_EXCEEDED: u32 = sys::ibv_wc_status::IBV_WC_RETRY_EXC_ERR;
/// The peer had no receive posted, after all retries.
pub const RNR_EXCEEDED: u32 = sys::ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR;
/// The peer's memory is not ours to reach (any more).
pub const REMOTE_ACCESS: u32 = sys::ibv_wc_status::IBV_WC_REM_ACCESS_ERR;
/// The peer's queue pair refuses the operation.
pub const REMOTE_INVALID: u32 = sys::ibv_wc_status::IBV_WC_REM_INV_REQ_ERR;
/// Our own memory key or bounds are wrong.
pub const LOCAL_PROTECTION: u32 = sys::ibv_wc_status::IBV_WC_LOC_PROT_ERR;

/// Who may write into a region beside the device on our behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nobody: the device reads it, to send.
    Read,
    /// Work requests of our own queue pairs, received messages among them.
    LocalWrite,
    /// Also the peer, by RDMA write.
    RemoteWrite,
}

/// A piece of registered memory: address, bytes, local key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Where it begins.
    pub addr: u64,
    /// Bytes.
    pub length: u32,
    /// The key of its region.
    pub lkey: u32,
}
// It is handed to the library as it is.
const _: () =
    assert!(size_of::<Piece>() == size_of::<sys::ibv_sge>() && align_of::<Piece>() == align_of::<sys::ibv_sge>());

/// What a work request does.
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// Gathers `from` into the peer's memory at `to`.
    Write {
        /// In our own domain; at most what the queue pair was made for.
        from: &'a [Piece],
        /// The address in the peer's region.
        to: u64,
        /// The key of the peer's region.
        rkey: u32,
    },
    /// Sends a message, copied while it is posted (inline).
    Send(&'a [u8]),
    /// Sends a datagram, copied while it is posted (inline).
    Datagram {
        /// The payload.
        bytes: &'a [u8],
        /// Where to. Must live until the request has completed.
        to: &'a Address,
        /// The queue pair there; [`MULTICAST_QPN`] for a group.
        qpn: u32,
        /// Its Q_Key.
        qkey: u32,
    },
    /// Sends a datagram out of registered memory: one too long to be inline.
    LongDatagram {
        /// In our own domain.
        from: &'a [Piece],
        /// Where to. Must live until the request has completed.
        to: &'a Address,
        /// The queue pair there.
        qpn: u32,
        /// Its Q_Key.
        qkey: u32,
    },
}

/// A work request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Comes back in the [`Completion`].
    pub id: u64,
    /// Whether there is a completion if it succeeds. There always is one if it fails.
    pub signaled: bool,
    /// What to do.
    pub work: Work<'a>,
}

/// The queue pair number that stands for all members of a multicast group (IBTA 10.5.2.1).
pub const MULTICAST_QPN: u32 = 0xff_ffff;

/// Not all of a chain was posted.
#[derive(Debug, thiserror::Error)]
#[error("posting: {source} (the first {posted} of the chain were posted)")]
pub struct PostError {
    /// How many were. Only those complete.
    pub posted: usize,
    /// Why.
    pub source: io::Error,
}

/// How large a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpSizes {
    /// Send work requests outstanding.
    pub send: u32,
    /// Receives outstanding.
    pub receive: u32,
    /// Pieces that a write gathers.
    pub pieces: u32,
    /// Bytes of an inline message.
    pub inline: u32,
}

/// What connects a reliable queue pair to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcPath {
    /// Our GID table's entry that packets leave with.
    pub gid_index: u8,
    /// The peer's GID.
    pub gid: Gid,
    /// The peer's local identifier (InfiniBand).
    pub lid: u16,
    /// The peer's queue pair.
    pub qpn: u32,
    /// Path MTU: bytes.
    pub mtu: u32,
    /// First packet sequence number of what we send.
    pub psn: u32,
    /// First packet sequence number of what the peer sends.
    pub peer_psn: u32,
    /// Local ACK timeout: 4.096 µs * 2^this (IBTA 9.7.6.1.3); 1..=31.
    pub timeout: u8,
    /// Transport retries; at most 6: 7 means for ever on some devices.
    pub retry: u8,
    /// Retries while the peer has no receive posted; at most 6, likewise.
    pub rnr_retry: u8,
}
