//! Measures how punctual this machine's timers are, at the start of a session, on the beat thread.

use super::worker::settle;
use mc_core::{detector::MIN_INTERVAL, histogram::Histogram};
use std::{
    io, thread,
    time::{Duration, Instant},
};

const SLEEPS: u32 = 20;
const SLEEP: Duration = Duration::from_micros(200);

/// How late the thread's timers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timer {
    /// Half of the sleeps ended by no more than this too late.
    pub late_p50: Duration,
    /// None was later.
    pub late_max: Duration,
}

impl Timer {
    /// Measures; takes a few milliseconds.
    pub(super) fn measure() -> Self {
        let mut late = Histogram::new();
        let mut worst = Duration::ZERO;
        for _ in 0..SLEEPS {
            let start = Instant::now();
            thread::sleep(SLEEP);
            let by = start.elapsed().saturating_sub(SLEEP);
            late.record(by);
            worst = worst.max(by);
        }
        Self { late_p50: Duration::from_micros(late.percentiles().p50), late_max: worst }
    }

    /// The same, by a thread that is made as punctual as the one that beats.
    pub(super) fn measure_elsewhere() -> io::Result<Self> {
        let thread = thread::Builder::new().name("timer".into()).spawn(|| {
            let _ = settle();
            Self::measure()
        })?;
        thread.join().map_err(|_| io::Error::other("the thread \"timer\" died"))
    }

    /// The shortest interval that it can time: a wake-up that is late by more than a quarter of the interval counts as not
    /// listening, and half of all would.
    #[must_use]
    pub fn floor(self) -> Duration {
        (self.late_p50 * 4).max(MIN_INTERVAL)
    }
}
