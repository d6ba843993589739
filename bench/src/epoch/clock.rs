//! The clock that the guest, the primary and the standby share: they are processes of one machine.

use mc_core::{driver::Clock, id::Time};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Time {
        Time(nanos(clock_gettime(ClockId::Monotonic)))
    }
}

/// Nanoseconds of [`Monotonic`].
#[must_use]
pub fn now_ns() -> u64 {
    Monotonic.now().0
}

/// Processor time of this process, seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    nanos(clock_gettime(ClockId::ProcessCPUTime)) as f64 / 1e9
}

fn nanos(time: Timespec) -> u64 {
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}
