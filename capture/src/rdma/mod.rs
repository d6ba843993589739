//! Checkpoints by local RDMA: the device copies dirty pages from guest RAM into staging slabs, both registered, over a pair
//! of queue pairs that are connected to each other.
//!
//! ```text
//!            ┌───────────── device ─────────────┐
//! guest RAM ─┤ writer (RC) ──RDMA WRITE──> reader ├─> slab
//!            └── completions, every 16th ──> LocalCopy::poll
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`engine`] | [`LocalCopy`], the [`mc_core::capture::CaptureEngine`] |
//! | [`plan`] | which pieces of guest RAM go into which write |
//! | [`pair`] | the two queue pairs, credits, completions, the end |
//!
//! Whether this beats the processor is a matter of the device: the bytes cross the bus twice. On SoftRoCE, where the
//! processor does it all, packet by packet, it never does.

mod engine;
mod pair;
mod plan;

pub use engine::LocalCopy;

use std::{io, time::Duration};
use transport_rdma::{
    WorkFailure,
    mr::{MrError, RegisterOptions},
    types::PostError,
};

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Pieces of guest RAM that a write gathers; at most what the device can. 1: a write per run of pages.
    pub gather: u32,
    /// Bytes of a write at most; at least a page.
    pub write_bytes: u32,
    /// Writes outstanding.
    pub depth: u32,
    /// Writes that are posted with one doorbell; at most [`transport_rdma::ffi::CHAIN`].
    pub chain: u32,
    /// Every so many writes there is a completion.
    pub signal_every: u32,
    /// Local ACK timeout: 4.096 µs * 2^this.
    pub timeout: u8,
    /// Transport retries.
    pub retry: u8,
    /// The entry of the device's GID table to use.
    pub gid_index: u8,
    /// How guest RAM is registered.
    pub register: RegisterOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            gather: 16,
            write_bytes: 64 << 10,
            depth: 128,
            chain: 16,
            signal_every: 16,
            // A second: all of `depth` may be queued before a write's turn comes, and there is no peer that dies.
            timeout: 18,
            retry: 6,
            gid_index: 0,
            register: RegisterOptions::default(),
        }
    }
}

impl Options {
    /// Within what can be; `max_sge`, `max_qp_wr`: the device's.
    #[must_use]
    fn bounded(self, max_sge: i32, max_qp_wr: i32) -> Self {
        let most = |limit: i32| u32::try_from(limit).unwrap_or(1).max(1);
        let depth = self.depth.clamp(1, most(max_qp_wr));
        Self {
            gather: self.gather.clamp(1, most(max_sge)),
            write_bytes: self.write_bytes.max(4096),
            depth,
            chain: self.chain.clamp(1, 16).min(depth),
            // A queue that fills up before anything completes would stay full.
            signal_every: self.signal_every.clamp(1, depth.div_ceil(2)),
            ..self
        }
    }
}

/// Why local copies cannot be made, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// An object of the device is not to be had.
    #[error("local copies on {device}: {doing}: {source}")]
    Device {
        /// Its name.
        device: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Memory cannot be registered.
    #[error("local copies: {0}")]
    Memory(#[from] MrError),
    /// A write was not taken.
    #[error("local copies on {device}: queue pair {qpn:#x}: {source}")]
    Post {
        /// The device.
        device: String,
        /// Ours.
        qpn: u32,
        /// What the system said.
        source: PostError,
    },
    /// A write failed.
    #[error("local copies on {device}: queue pair {qpn:#x}: {failure}")]
    Work {
        /// The device.
        device: String,
        /// Ours.
        qpn: u32,
        /// The rest; times count from when the slab was submitted.
        failure: Box<WorkFailure>,
    },
    /// Nothing completes any more.
    #[error(
        "local copies on {device}: queue pair {qpn:#x}: {outstanding} writes outstanding, none completed for {elapsed:.1?}, \
         longer than timeout {timeout} x {} tries allow", .retry + 1
    )]
    Stalled {
        /// The device.
        device: String,
        /// Ours.
        qpn: u32,
        /// How many writes wait.
        outstanding: u64,
        /// Since the last completion.
        elapsed: Duration,
        /// The local ACK timeout in force.
        timeout: u8,
        /// The retries in force.
        retry: u8,
    },
    /// The queue pairs could not be destroyed.
    #[error(
        "local copies on {device}: queue pair {qpn:#x}: {source}; its slabs are given up, the device may write to them"
    )]
    Unstoppable {
        /// The device.
        device: String,
        /// Ours.
        qpn: u32,
        /// What the system said.
        source: io::Error,
    },
    /// It failed before.
    #[error("local copies on {device} have failed before")]
    Broken {
        /// The device.
        device: String,
    },
}
