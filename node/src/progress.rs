//! The time of the main loop's last turn: the loop writes it, the beat thread reads it and stops beating when it is too old.

use crate::clock::Clock;
use mc_core::id::Time;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Copies share one mark. The loop is its only writer; marking costs a reading of the clock and a store.
#[derive(Clone, Debug)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Of a loop that gets on now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(Clock.now().0)))
    }

    /// The loop gets on.
    pub fn mark(&self) {
        self.note(Clock.now());
    }

    /// The same, by a reading that was taken anyway.
    pub fn note(&self, now: Time) {
        self.0.store(now.0, Ordering::Release);
    }

    /// The loop begins something that it waits for, and that takes `most` at most: a program that it starts. Until then, or the
    /// next mark, it counts as getting on.
    pub fn busy(&self, most: Duration) {
        self.note(Clock.now().after(most));
    }

    /// How long it has not been seen to.
    #[must_use]
    pub fn since(&self, now: Time) -> Duration {
        now.since(Time(self.0.load(Ordering::Acquire)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_waits_for_something_bounded_gets_on_until_then() {
        let progress = Progress::new();
        let now = Clock.now();
        progress.busy(Duration::from_secs(10));
        assert_eq!(progress.since(now.after(Duration::from_secs(5))), Duration::ZERO);
        assert!(progress.since(now.after(Duration::from_secs(30))) >= Duration::from_secs(19));
        progress.mark();
        assert!(progress.since(now.after(Duration::from_secs(10))) >= Duration::from_secs(9), "a mark ends it");
    }
}
