//! The beats' numbers: what the thread records, and what a reader gets.

use super::{Negotiation, Verdict};
use crate::metrics::Buckets;
use mc_core::{
    detector,
    histogram::{Histogram, Percentiles},
    wire::beat::BeatState,
};
use std::time::Duration;

/// The beats of one session so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BeatStats {
    /// What we think of the peer.
    pub verdict: Verdict,
    /// Whether the peer's newest beat said that it suspects us.
    pub accused: bool,
    /// Beats that left.
    pub sent: u64,
    /// Beats that could not leave.
    pub send_errors: u64,
    /// New beats of the peer.
    pub received: u64,
    /// Failed receives and waits.
    pub receive_errors: u64,
    /// Datagrams that are no beat of this group: wrong key, length, version.
    pub rejected: u64,
    /// Duplicate, late or replayed beats.
    pub duplicates: u64,
    /// Of another incarnation or member.
    pub foreign: u64,
    /// Our own, come back.
    pub own: u64,
    /// The peer's, after it was suspected.
    pub after_suspicion: u64,
    /// Times a beat was overdue, own lateness discounted.
    pub missed: u64,
    /// Times the thread was late.
    pub self_late: u64,
    /// The worst of them, µs.
    pub max_self_late_us: u64,
    /// Between two beats of the peer, µs.
    pub gap_us: Percentiles,
    /// There and back, less what the peer waited, µs.
    pub rtt_us: Percentiles,
    /// Samples that found neither the lock free nor room to wait.
    pub unrecorded: u64,
    /// How long the peer may be silent, µs; before its first beat, the start-up limit.
    pub detection_time_us: u64,
    /// How often we send, before jitter, µs.
    pub transmit_interval_us: u64,
    /// Whether the peer has yet to confirm our newest parameters.
    pub polling: bool,
}

/// What the detector does not count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) send_errors: u64,
    pub(super) receive_errors: u64,
    pub(super) rejected: u64,
    pub(super) unrecorded: u64,
}

/// One beat heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) gap: Option<Duration>,
    pub(super) rtt: Option<Duration>,
}

/// What the thread leaves behind the lock. Fixed in size: recording allocates nothing.
#[derive(Debug)]
pub(super) struct Published {
    detector: detector::Stats,
    counts: Counts,
    accused: bool,
    polling: bool,
    detection_time: Duration,
    transmit_interval: Duration,
    gap: Histogram,
    rtt: Histogram,
    negotiation: Negotiation,
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

impl Published {
    pub(super) fn new() -> Self {
        Self {
            detector: detector::Stats::default(),
            counts: Counts::default(),
            accused: false,
            polling: false,
            detection_time: Duration::ZERO,
            transmit_interval: Duration::ZERO,
            gap: Histogram::new(),
            rtt: Histogram::new(),
            negotiation: Negotiation::default(),
        }
    }

    pub(super) fn negotiate(&mut self, negotiation: Negotiation) {
        self.negotiation = negotiation;
    }

    pub(super) fn negotiation(&self) -> Negotiation {
        self.negotiation
    }

    pub(super) fn update(&mut self, detector: &detector::Detector, counts: Counts, samples: &[Sample]) {
        self.detector = detector.stats();
        self.counts = counts;
        self.accused = detector.peer().is_some_and(|beat| beat.state == BeatState::Suspect);
        self.polling = detector.polling();
        self.detection_time = detector.detection_time();
        self.transmit_interval = detector.transmit_interval();
        for Sample { gap, rtt } in samples {
            if let Some(gap) = gap {
                self.gap.record(*gap);
            }
            if let Some(rtt) = rtt {
                self.rtt.record(*rtt);
            }
        }
    }

    pub(super) fn lateness(&self) -> (u64, Duration, u64) {
        (self.detector.self_late, self.detector.max_self_late, self.detector.received)
    }

    pub(super) fn buckets(&self) -> (Buckets, Buckets) {
        (Buckets::from(&self.gap), Buckets::from(&self.rtt))
    }

    pub(super) fn report(&self, verdict: Verdict) -> BeatStats {
        let Self { detector, counts, .. } = self;
        BeatStats {
            verdict,
            accused: self.accused,
            sent: detector.sent - counts.send_errors,
            send_errors: counts.send_errors,
            received: detector.received,
            receive_errors: counts.receive_errors,
            rejected: counts.rejected,
            duplicates: detector.duplicates,
            foreign: detector.foreign,
            own: detector.own,
            after_suspicion: detector.after_suspicion,
            missed: detector.missed,
            self_late: detector.self_late,
            max_self_late_us: micros(detector.max_self_late),
            gap_us: self.gap.percentiles(),
            rtt_us: self.rtt.percentiles(),
            unrecorded: counts.unrecorded,
            detection_time_us: micros(self.detection_time),
            transmit_interval_us: micros(self.transmit_interval),
            polling: self.polling,
        }
    }
}
