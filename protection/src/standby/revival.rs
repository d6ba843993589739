//! Schedules restarts of a waiting QEMU that died, and decides when to report that the VM cannot run here. A plain value.

use mc_core::id::Time;
use std::time::Duration;

/// From one attempt to the next: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A QEMU that has waited for so long has not died of what it found at its start.
const LIVED: Duration = Duration::from_secs(60);
/// After so many attempts in a row that failed, this host cannot run the VM. One may be bad luck.
const TRIES: u32 = 2;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Revival {
    /// In a row.
    failures: u32,
    why: Option<String>,
    next: Option<Time>,
    pause: Option<Duration>,
    started_at: Option<Time>,
}

impl Revival {
    /// It is found dead. Whether to start it now; and whether that is news.
    pub(super) fn found_dead(&mut self, now: Time) -> (bool, bool) {
        let started = self.started_at.take();
        if started.is_some_and(|at| now.since(at) >= LIVED) {
            *self = Self::default();
        }
        (self.next.is_none_or(|at| now >= at), self.failures == 0 && self.pause.is_none())
    }

    /// It was started again, and waits.
    pub(super) fn succeeded(&mut self, now: Time) {
        (self.failures, self.why, self.started_at) = (0, None, Some(now));
        self.wait(now);
    }

    /// It was not. True if this host cannot run the VM from now on.
    pub(super) fn failed(&mut self, now: Time, why: String) -> bool {
        self.failures += 1;
        self.why = Some(why);
        self.wait(now);
        self.failures == TRIES
    }

    fn wait(&mut self, now: Time) {
        let pause = self.pause.map_or(PAUSE.0, |pause| (pause * 2).min(PAUSE.1));
        (self.pause, self.next) = (Some(pause), Some(now.after(pause)));
    }

    /// Why this host cannot run the VM.
    pub(super) fn unable(&self) -> Option<&str> {
        self.why.as_deref().filter(|_| self.failures >= TRIES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    #[test]
    fn the_second_failure_says_so_once_and_a_success_takes_it_back() {
        let mut revival = Revival::default();
        assert_eq!(revival.found_dead(at(0)), (true, true));
        assert!(!revival.failed(at(0), "no memory".into()));
        assert_eq!((revival.found_dead(at(100)), revival.unable()), ((false, false), None));
        assert_eq!(revival.found_dead(at(500)), (true, false));
        assert!(revival.failed(at(500), "no memory".into()));
        assert!(!revival.failed(at(2000), "no memory".into()));
        assert_eq!(revival.unable(), Some("no memory"));
        revival.succeeded(at(4000));
        assert_eq!(revival.unable(), None);
    }

    #[test]
    fn pauses_double_and_begin_anew_after_a_qemu_that_lived() {
        let mut revival = Revival::default();
        let mut now = 0;
        for pause in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            revival.failed(at(now), "x".into());
            assert!(!revival.found_dead(at(now + pause - 1)).0 && revival.found_dead(at(now + pause)).0, "{pause}");
            now += pause;
        }
        revival.succeeded(at(now));
        assert_eq!(revival.found_dead(at(now + 1000)), (false, false), "it died of what it found");
        revival.succeeded(at(now));
        assert_eq!(revival.found_dead(at(now + 60_000)), (true, true));
    }
}
