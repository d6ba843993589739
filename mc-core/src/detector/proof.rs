//! Whether the beats have been seen to work, both ways: before anybody relies on a detector, it must be known that it hears.
//!
//! A detector that never heard its peer suspects it, rightly; so a network that drops beats and lets checkpoints pass would make
//! a pair that is protected for a second, and then fences a live primary. The proof is an unbroken run of *echoes*: beats of
//! the peer that name a newer beat of ours than the one before. Each of them came here, and its echo says that one of ours
//! came there.
//!
//! ```text
//!            an echo                  K echoes, over a detection time
//!   None ──────────────> Running ─────────────────────────────────────> Proven
//!    ^                      │                                             │
//!    └──────────────────────┴──── no echo within the limit, suspicion ────┘
//! ```
//!
//! K is the larger multiplier and the detection time the longer one of the two directions. The limit is what the two add up to:
//! the peer may rightly not have heard us for as long as it bears our silence, and we may hear of its next echo as late as we
//! bear its own.

use crate::id::Time;
use std::time::Duration;

/// What is known of the beats, for whoever must decide whether to rely on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Proof {
    /// They go both ways now, and have for K intervals.
    pub proven: bool,
    /// New beats of the peer that came here.
    pub heard: u64,
    /// How many of those named a newer beat of ours than the ones before: ours arrive there.
    pub echoed: u64,
    /// The peer's newest beat says that it suspects us.
    pub accused: bool,
}

/// What a run of echoes must come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Between two echoes at most.
    pub(super) limit: Duration,
    /// From the first to the last at least.
    pub(super) span: Duration,
    /// After the first at least.
    pub(super) echoes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Run {
    since: Time,
    last: Time,
    /// After the first one.
    echoes: u32,
}

/// Counts echoes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tracker {
    newest: u64,
    echoed: u64,
    run: Option<Run>,
    said: bool,
}

impl Tracker {
    /// A new beat of the peer echoes ours of the time `echo` (0: none); `sent` is when our newest one left.
    pub(super) fn heard(&mut self, now: Time, echo: u64, sent: u64, measure: Measure) {
        if echo <= self.newest || echo > sent {
            return;
        }
        self.newest = echo;
        self.echoed += 1;
        self.run = Some(match self.run {
            Some(run) if now.since(run.last) <= measure.limit => {
                Run { last: now, echoes: run.echoes.saturating_add(1), ..run }
            }
            _ => Run { since: now, last: now, echoes: 0 },
        });
    }

    /// One side suspects the other: what was proven is not so any more.
    pub(super) fn broken(&mut self) {
        self.run = None;
    }

    pub(super) fn echoed(&self) -> u64 {
        self.echoed
    }

    pub(super) fn proven(&self, now: Time, measure: Measure) -> bool {
        self.run.is_some_and(|run| {
            now.since(run.last) <= measure.limit
                && run.last.since(run.since) >= measure.span
                && run.echoes >= measure.echoes
        })
    }

    /// True once: the first time that it is proven.
    pub(super) fn news(&mut self, now: Time, measure: Measure) -> bool {
        !self.said && {
            self.said = self.proven(now, measure);
            self.said
        }
    }
}
