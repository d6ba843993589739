//! The one clock: `CLOCK_MONOTONIC`, as the core's [`Time`].

use mc_core::id::Time;
use rustix::time::{ClockId, clock_gettime};

/// Reads `CLOCK_MONOTONIC`. Its zero is the host's boot, so times of all processes of one host compare; it stands still
/// while the host is suspended, which is right for "how long did I listen".
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Nanoseconds since boot.
    #[must_use]
    pub fn now(self) -> Time {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Time(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0)))
    }
}

impl mc_core::driver::Clock for Clock {
    fn now(&self) -> Time {
        (*self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn it_moves_forward_and_is_never_zero() {
        let (first, second) = (Clock.now(), Clock.now());
        assert!(first.0 > 0 && first <= second);
    }
}
