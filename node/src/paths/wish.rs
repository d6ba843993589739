//! Which way checkpoints and beats shall go: the same settings on both sides.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What carries checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportWish {
    /// RDMA, or nothing
    Rdma,
    /// TCP
    Tcp,
    /// RDMA where both sides have it, else TCP
    Auto,
}

/// What carries beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepaliveWish {
    /// RDMA datagrams
    Ud,
    /// UDP
    Udp,
    /// Both at once: the other side is suspect when both are silent
    Both,
}

/// The settings, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathsConfig {
    /// What carries checkpoints.
    pub transport: TransportWish,
    /// What carries beats, where RDMA is in use; UDP does elsewhere.
    pub keepalive: KeepaliveWish,
    /// This side's UDP port for beats; 0: any; `None`: as its end of the connection has it.
    #[serde(default)]
    pub beat_port: Option<u16>,
    /// The RDMA device; `None`: chosen.
    pub rdma_device: Option<String>,
    /// The entry of its GID table; `None`: chosen.
    pub rdma_gid_index: Option<u8>,
    /// Local ACK timeout: 4.096 µs * 2^this; `None`: computed.
    pub rdma_timeout: Option<u8>,
    /// Transport retries.
    pub rdma_retry: u8,
    /// Staging, which RDMA pins as it grows.
    pub staging_bytes: u64,
}

impl PathsConfig {
    /// Everything over TCP and UDP.
    #[must_use]
    pub fn tcp(staging_bytes: u64) -> Self {
        Self {
            transport: TransportWish::Tcp,
            keepalive: KeepaliveWish::Udp,
            beat_port: None,
            rdma_device: None,
            rdma_gid_index: None,
            rdma_timeout: None,
            rdma_retry: 6,
            staging_bytes,
        }
    }

    /// RDMA where both sides have it, else TCP.
    #[must_use]
    pub fn auto(staging_bytes: u64) -> Self {
        let (transport, keepalive) = (TransportWish::Auto, KeepaliveWish::Both);
        Self { transport, keepalive, ..Self::tcp(staging_bytes) }
    }

    /// Whether RDMA is tried.
    #[must_use]
    pub fn wants_rdma(&self) -> bool {
        self.transport != TransportWish::Tcp
    }

    /// Whether beats may go as RDMA datagrams.
    #[must_use]
    pub fn wants_ud(&self) -> bool {
        self.wants_rdma() && self.keepalive != KeepaliveWish::Udp
    }

    /// How long RDMA may take to find out that the other side is gone, and to fall back: twice what its timeout and retries
    /// come to. Without --rdma-timeout, as for a device in software (0.54 s).
    #[must_use]
    pub fn rdma_give_up(&self) -> Duration {
        let timeout = Duration::from_nanos(4096 << self.rdma_timeout.unwrap_or(17).min(22));
        timeout * (u32::from(self.rdma_retry) + 1) * 2
    }

    /// Whether beats may go over UDP.
    #[must_use]
    pub fn wants_udp(&self) -> bool {
        self.keepalive != KeepaliveWish::Ud
    }
}
