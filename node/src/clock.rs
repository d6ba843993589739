//! The one clock: `CLOCK_BOOTTIME`, as the core's [`Time`].
//!
//! `CLOCK_MONOTONIC` stands still while the host is suspended. To a process that reads it, a host that slept for an hour was
//! never away: it would take an ACK that waited in its socket for a fresh one, and beat as if nothing had happened, while its
//! standby took the VM over long ago. So everything that asks "was I away?" (a loop's stall notice, the beat thread's watch over
//! its loop, the detector's view of its own lateness) reads the clock that goes on: a suspension is an absence like any other,
//! and ends with the wait for a fresh ACK (docs/adr/0003). "How long did I listen" does not need the other clock: the detector
//! takes its own lateness off the peer's silence.

use crate::{outside, progress::Progress};
use mc_core::id::Time;

/// Reads `CLOCK_BOOTTIME`. Its zero is the host's boot, so times of all processes of one host compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Nanoseconds since boot, those included for which the host was suspended.
    #[must_use]
    pub fn now(self) -> Time {
        Time(outside::boot_ns())
    }
}

/// Milliseconds since 1970, by the clock that somebody may set.
#[must_use]
pub fn unix_ms() -> u64 {
    outside::unix_ms()
}

/// The same, and every reading is a sign that the loop gets on. For a driver, which reads its clock all along a long capture
/// (`mc_core::driver`): what takes long and works is told from what stands still.
#[derive(Clone, Debug)]
pub struct WatchedClock(pub Progress);

impl mc_core::driver::Clock for Clock {
    fn now(&self) -> Time {
        Self::now(*self)
    }
}

impl mc_core::driver::Clock for WatchedClock {
    fn now(&self) -> Time {
        let now = Clock.now();
        self.0.note(now);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::id::nanos;
    use mc_core::testing::skip;
    use rustix::time::{ClockId, clock_gettime};
    use std::{process::Command, time::Duration};

    #[test]
    fn it_moves_forward_and_is_never_zero() {
        let (first, second) = (Clock.now(), Clock.now());
        assert!(first.0 > 0 && first <= second);
    }

    #[test]
    fn a_reading_is_a_sign_of_progress() {
        let progress = Progress::new();
        let clock = WatchedClock(progress.clone());
        let later = Clock.now().after(Duration::from_secs(60));
        assert!(progress.since(later) >= Duration::from_secs(59));
        let read = mc_core::driver::Clock::now(&clock);
        assert_eq!(progress.since(read), Duration::ZERO);
    }

    /// In a time namespace whose boot was a day earlier, as after a day of suspension, the clock is a day ahead of
    /// `CLOCK_MONOTONIC`.
    #[test]
    fn it_counts_the_time_that_the_host_slept() {
        const INSIDE: &str = "AFTERIMAGE_TEST_SLEPT";
        const DAY: Duration = Duration::from_secs(86_400);
        if std::env::var_os(INSIDE).is_some() {
            let awake = clock_gettime(ClockId::Monotonic);
            let awake = Duration::new(awake.tv_sec.unsigned_abs(), u32::try_from(awake.tv_nsec).unwrap_or(0));
            assert!(Clock.now().0 >= nanos(awake + DAY), "{:?} is no day after {awake:?}", Clock.now());
            return;
        }
        let enter = |line: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["--time", "--fork", "--boottime", "86400", "--"]).args(line).env(INSIDE, "1");
            command.output().is_ok_and(|output| output.status.success())
        };
        if !enter(&["true"]) {
            return skip("no time namespaces here");
        }
        let test = std::env::current_exe().expect("this test");
        let name = "clock::tests::it_counts_the_time_that_the_host_slept";
        assert!(enter(&[test.to_str().expect("a path"), "--exact", name]), "not a day ahead");
    }
}
