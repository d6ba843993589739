//! When the next checkpoint is due: an epoch after the last one, or sooner if it would outgrow staging.
//!
//! ```text
//!   pause ──> resume ─────────── the VM runs, and dirties ───────────> pause
//!     |<---------------- an epoch at most ----------------------------->|
//!                |<-- at most as long as fills half of the cap, going --|
//!                    by what the last run dirtied
//! ```
//!
//! Half, because then two checkpoints fit: one is captured while the other is on its way. A checkpoint of more than that waits
//! for its predecessor; one of more than the cap is streamed with the VM held, which is what this is to avoid.
//!
//! The forecast is a line through the last run, and a guest that writes the same pages again and again lies above it, so a
//! shorter run can dirty as much as a long one. Then nothing would be gained by ever shorter runs: they end at an eighth of
//! the epoch, or a millisecond. Runs that grow again at most double from one checkpoint to the next.

use crate::id::{Time, nanos};
use std::time::Duration;

/// One run is never shorter than this part of an epoch …
const SHORTEST: u32 = 8;
/// … or than this.
const FLOOR: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pace {
    epoch: Duration,
    /// The VM runs so long at most between two checkpoints.
    run: Duration,
    /// The end of the epoch that the last pause began; before the first, long ago.
    end: Time,
    paused_at: Time,
    resumed_at: Time,
    /// How long the VM ran before the last pause.
    ran: Duration,
    sooner: u64,
}

impl Pace {
    pub(super) fn new(epoch: Duration) -> Self {
        let never = Time(0);
        Self { epoch, run: epoch, end: never, paused_at: never, resumed_at: never, ran: Duration::ZERO, sooner: 0 }
    }

    /// From the next pause on.
    pub(super) fn set_epoch(&mut self, epoch: Duration) {
        self.run = if self.run < self.epoch { self.run.min(epoch) } else { epoch };
        self.epoch = epoch;
    }

    pub(super) fn epoch(&self) -> Duration {
        self.epoch
    }

    /// How long the VM runs between two checkpoints now, at most.
    pub(super) fn run(&self) -> Duration {
        self.run
    }

    /// Checkpoints that came before their epoch was over.
    pub(super) fn sooner(&self) -> u64 {
        self.sooner
    }

    pub(super) fn due(&self) -> Time {
        self.end.min(self.resumed_at.after(self.run))
    }

    /// The VM is being stopped.
    pub(super) fn pause(&mut self, now: Time) {
        self.sooner += u64::from(self.run < self.epoch && now < self.paused_at.after(self.epoch));
        self.ran = now.since(self.resumed_at);
        (self.paused_at, self.end) = (now, now.after(self.epoch));
    }

    /// It runs on.
    pub(super) fn resume(&mut self, now: Time) {
        self.resumed_at = now;
    }

    /// What the run before the last pause came to, of staging that may hold `cap` bytes.
    pub(super) fn measured(&mut self, bytes: u64, cap: u64) {
        let floor = (self.epoch / SHORTEST).max(FLOOR).min(self.epoch);
        let wanted = match (nanos(self.ran), bytes) {
            (0, _) | (_, 0) => self.epoch,
            (ran, bytes) => {
                let ns = u128::from(ran) * u128::from(cap / 2) / u128::from(bytes);
                Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
            }
        };
        let longest = (self.run * 2).max(floor).min(self.epoch);
        self.run = wanted.clamp(floor, longest);
    }
}
