//! Events about slowness, for `afterimage why`: absences of the main loop, and the arbiter's response times.

use crate::events::{Answered, Event, Stalled, emit, ms};
use mc_core::{id::Time, register::CasOutcome};
use std::time::Duration;

/// Between two reports of absences that are alike.
const QUIET: Duration = Duration::from_secs(60);

/// The loop was away for so long that it must ask whether the VM is still its own.
///
/// A busy host makes that many times a second; told each time, it would push everything else out of the journal. So the
/// first is told, then one a minute, and at once any that is twice as long as the longest told in that minute.
#[derive(Debug, Default)]
pub struct Stalls {
    times: u64,
    told: Option<(Time, Duration)>,
}

impl Stalls {
    /// Counts one, and tells it if it is news.
    pub fn tell(&mut self, now: Time, away: Duration, limit: Duration) {
        self.times += 1;
        let known = self.told.is_some_and(|(at, longest)| now.since(at) < QUIET && away < longest * 2);
        if !known {
            self.told = Some((now, away));
            emit(Event::Stalled(Stalled { away_ms: ms(away), limit_ms: ms(limit), times: self.times }));
        }
    }
}

/// The swaps that the arbiter was asked for: how long the newest takes, and how many were won and lost.
#[derive(Debug, Default)]
pub struct Swaps {
    asked_at: Option<Time>,
    answered: (u64, u64),
}

impl Swaps {
    /// It is asked now.
    pub fn asked(&mut self, now: Time) {
        self.asked_at = Some(now);
    }

    /// It was answered: how, and how long that took.
    pub fn answered(&mut self, now: Time, outcome: &CasOutcome) -> Answered {
        match outcome {
            CasOutcome::Won(_) => self.answered.0 += 1,
            CasOutcome::Lost(_) => self.answered.1 += 1,
        }
        let took_ms = self.asked_at.take().map(|at| ms(now.since(at)));
        Answered::new(outcome, took_ms)
    }

    /// How many were won, and lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.answered
    }
}
