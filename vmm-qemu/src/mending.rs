//! Reconnects NICs that lost QEMU or their TAP device, with retries.

use crate::gate::{GateError, NicGate, NicSpec};
use mc_core::id::Time;
use node::events::{Event, emit};
use rustix::net::sockopt::socket_peercred;
use std::{os::fd::BorrowedFd, time::Duration};

/// From one attempt to get something back to the next: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Between two looks while all works: that a TAP device is down is not noticed otherwise.
const LOOK: Duration = Duration::from_secs(1);

/// What was lost, and when it is tried again.
#[derive(Debug)]
pub struct Mending {
    /// What does not work, in words; its changes are told.
    trouble: Option<String>,
    at: Option<Time>,
    pause: Duration,
    times: u64,
}

impl Mending {
    /// Of a gate that may not be whole: it is looked at once, at this time.
    #[must_use]
    pub fn new(first: Time) -> Self {
        Self { trouble: None, at: Some(first), pause: RETRY.0, times: 0 }
    }

    /// Something failed.
    pub fn lost(&mut self, now: Time, why: String) {
        if self.trouble.is_none() {
            self.at = Some(now);
        }
        self.told(why);
        self.at.get_or_insert(now);
    }

    /// When to try at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.at
    }

    /// What does not work.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// How often all came back.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.times
    }

    /// Nobody misses anything: the other end is gone, and known to be.
    pub fn forget(&mut self) {
        (self.trouble, self.at, self.pause) = (None, None, RETRY.0);
    }

    /// Tries, if it is time. `qemu`: whose sockets the NICs' are, if that is known.
    ///
    /// # Errors
    /// What failed. It is noted, and tried again.
    pub fn mend(
        &mut self,
        now: Time,
        gate: &mut NicGate,
        specs: &[NicSpec],
        qemu: Option<u32>,
    ) -> Result<(), GateError> {
        if self.at.is_none_or(|at| at > now) {
            return Ok(());
        }
        let ours = |connection: BorrowedFd<'_>| qemu.is_none_or(|pid| peer(connection) == Some(pid));
        match gate.mend(specs, ours) {
            Ok(()) => {
                (self.at, self.pause) = (Some(now.after(LOOK)), RETRY.0);
                if self.trouble.take().is_some() {
                    self.times += 1;
                    tracing::info!("all NICs are connected again");
                    emit(Event::NicsConnected);
                }
                Ok(())
            }
            Err(error) => {
                self.told(error.to_string());
                self.at = Some(now.after(self.pause));
                self.pause = (self.pause * 2).min(RETRY.1);
                Err(error)
            }
        }
    }

    /// A line for each change of what does not work.
    fn told(&mut self, why: String) {
        if self.trouble.as_ref() != Some(&why) {
            tracing::warn!(why, "trying again");
            emit(Event::NicLost(why.as_str().into()));
            self.trouble = Some(why);
        }
    }
}

/// The process that listens at the other end (`SO_PEERCRED`).
#[must_use]
pub fn peer(connection: BorrowedFd<'_>) -> Option<u32> {
    let credentials = socket_peercred(connection).ok()?;
    Some(credentials.pid.as_raw_nonzero().get().unsigned_abs())
}
