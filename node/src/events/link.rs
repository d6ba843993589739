//! Sessions, and how they go.

use crate::{beats::Wish, paths::RdmaInfo};
use mc_core::{
    id::{Generation, Name, Node},
    register::Owner,
    wire::control::NackReason,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// How a side beats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeatsWish {
    /// Between two beats, ms.
    pub interval_ms: f64,
    /// Missed beats until it is suspect.
    pub multiplier: u8,
}

/// A session began. A primary tells `standby`; a standby `primary`, `generation` and `beats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Syncing {
    /// The standby's copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<Owner>,
    /// The primary's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<Node>,
    /// The other side's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// The generation that the register would have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// How the other side beats, as it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_beats: Option<BeatsWish>,
    /// How this side does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beats: Option<BeatsWish>,
}

/// Which way a session goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// "rdma" or "tcp".
    pub transport: String,
    /// Why that one.
    pub why: String,
    /// "ud", "udp" or "both".
    pub keepalive: String,
    /// This side of RDMA.
    pub rdma: Option<RdmaInfo>,
}

/// RDMA failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FellBack {
    /// "rdma".
    pub from: String,
    /// "tcp".
    pub to: String,
    /// In words.
    pub why: String,
    /// How often that was so, in all sessions of this process.
    pub fallbacks: u64,
}

/// No session with a standby came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoSession {
    /// In words.
    pub why: String,
    /// Whether it is tried again at leisure only: it does not pass by itself.
    pub slow: bool,
    /// The reason before this one.
    pub before: Option<Before>,
}

/// A reason that counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// In words.
    pub why: String,
    /// How often it was so.
    pub times: u64,
}

/// A primary was turned away, or a checkpoint refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// In words.
    pub why: String,
    /// Who called, on a standby.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<Node>,
    /// From where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// Others of the same kind that were not told since the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
    /// Callers that were only counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers: Option<u64>,
}

/// The standby refused an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRefused {
    /// What kind of refusal.
    pub reason: Nack,
    /// In words.
    pub why: String,
}

/// Why an epoch is refused, as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Nack {
    /// It needs more staging than the standby has.
    TooLarge,
    /// It does not follow the last one.
    OutOfOrder,
    /// It does not fit the VM's profile.
    Malformed,
    /// The standby could not write.
    Storage,
    /// The standby's QEMU could not load it.
    Rehearsal,
}

impl From<NackReason> for Nack {
    fn from(reason: NackReason) -> Self {
        match reason {
            NackReason::TooLarge => Self::TooLarge,
            NackReason::OutOfOrder => Self::OutOfOrder,
            NackReason::Malformed => Self::Malformed,
            NackReason::Storage => Self::Storage,
            NackReason::Rehearsal => Self::Rehearsal,
        }
    }
}

/// A fenced primary becomes a standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoining {
    /// The VM.
    pub vm: Name,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// Why it was fenced.
    pub why: String,
}

/// Beats have other parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepaliveSet {
    /// Between two beats, µs.
    pub interval_us: u64,
    /// Missed beats until a side is suspect.
    pub multiplier: u8,
}

impl From<Wish> for KeepaliveSet {
    fn from(wish: Wish) -> Self {
        Self { interval_us: u64::try_from(wish.interval.as_micros()).unwrap_or(u64::MAX), multiplier: wish.multiplier }
    }
}

/// Settings were changed while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Between two checkpoints, µs.
    pub epoch_us: u64,
    /// Staging, bytes at most.
    pub max_staging_bytes: u64,
    /// What a full staging does: "throttle" or "unprotect".
    pub on_cap: String,
}
