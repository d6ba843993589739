//! Links to measure: what both processes must agree on, and how each waits.

use anyhow::{Context, Result};
use clap::ValueEnum;
use mc_core::{id::Incarnation, transport::Transport};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use transport_rdma::{
    Prepared, RcOptions,
    device::{Choice, Wish, choose},
};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Reliable queue pairs of RDMA devices
    Rdma,
    /// One connection over loopback
    Tcp,
}

/// What a side does while it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Look again at once, as perftest does
    Busy,
    /// Let others run, then look again
    Yield,
    /// Sleep until the link's descriptor is ready
    Event,
}

/// The longest sleep: a link that must be polled for another reason is, at last then.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

impl Poll {
    /// Nothing was ready: waits a little, at most until `most` has passed.
    pub fn idle(self, link: &dyn Transport, most: Duration) {
        match self {
            Self::Busy => std::hint::spin_loop(),
            Self::Yield => std::thread::yield_now(),
            Self::Event => sleep_on(link, most.min(LONGEST_SLEEP)),
        }
    }
}

fn sleep_on(link: &dyn Transport, most: Duration) {
    let Some(fd) = link.wait_fd() else { return };
    let mut flags = PollFlags::RDHUP;
    flags.set(PollFlags::IN, link.wants_read());
    flags.set(PollFlags::OUT, link.wants_write());
    let timeout = Timespec::try_from(most).ok();
    // An error or a signal is as good as readiness: the link is polled next.
    let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, flags)], timeout.as_ref());
}

/// The knobs of reliable queue pairs that are worth trying: [`RcOptions`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RcKnobs {
    /// Bytes of one RDMA WRITE at most.
    pub slice_bytes: usize,
    /// Work requests outstanding on each queue pair.
    pub send_depth: u32,
    /// A completion with every so many work requests.
    pub signal_every: u32,
    /// Queue pairs.
    pub queues: usize,
    /// Local ACK timeout: 4.096 µs * 2^this; `None` for the default.
    pub timeout: Option<u8>,
}

impl Default for RcKnobs {
    fn default() -> Self {
        let RcOptions { slice_bytes, depth, signal_every, queues, timeout, .. } = RcOptions::default();
        Self { slice_bytes, send_depth: depth, signal_every, queues, timeout }
    }
}

/// Operations that a link queues at most, and so the most slabs that are posted or on their way.
pub(crate) const QUEUE: usize = 64;

impl RcKnobs {
    fn options(self) -> RcOptions {
        RcOptions {
            slice_bytes: self.slice_bytes,
            depth: self.send_depth,
            signal_every: self.signal_every,
            queues: self.queues,
            timeout: self.timeout,
            queue: QUEUE,
            ..RcOptions::default()
        }
    }
}

/// One side's port of an RDMA network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The device's name.
    pub device: String,
    /// Index in its GID table.
    pub gid_index: u8,
}

impl Port {
    /// The port of that device, with that entry of its GID table or the default one.
    ///
    /// # Errors
    /// What is wrong with the device, its port or its GID.
    pub fn find(device: &str, gid_index: Option<u8>) -> Result<Self> {
        let wish = Wish { device: Some(device.to_owned()), gid_index, local: None };
        let choice = choose(&wish)?;
        Ok(Self { device: choice.device, gid_index: choice.gid_index })
    }

    /// It, opened.
    ///
    /// # Errors
    /// It has gone since it was found.
    pub fn open(&self) -> Result<Choice> {
        let wish = Wish { device: Some(self.device.clone()), gid_index: Some(self.gid_index), local: None };
        Ok(choose(&wish)?)
    }

    /// Queue pairs that are not connected yet.
    ///
    /// # Errors
    /// The device, its port or its GID is not there; the device refuses.
    pub fn prepare(&self, incarnation: Incarnation, knobs: RcKnobs) -> Result<Prepared> {
        Prepared::new(&self.open()?.place(), incarnation, &knobs.options())
            .with_context(|| format!("preparing queue pairs on {}", self.device))
    }
}
