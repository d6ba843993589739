//! The beats' numbers: what the thread records, and what a reader gets.

use super::Buckets;
use super::{
    Measured, Negotiation, Proof, Verdict,
    measured::PathMeasured,
    track::{Arrival, Recorded, outage},
};
use mc_core::{
    detector,
    histogram::{Histogram, Percentiles},
    id::Time,
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
    /// Beats that were due, and did not leave: the loop that they speak for made no progress, or its VM does not run.
    pub withheld: u64,
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
    pub(super) withheld: u64,
    pub(super) receive_errors: u64,
    pub(super) rejected: u64,
    pub(super) unrecorded: u64,
}

/// One thing measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sample {
    /// A beat was heard.
    Heard {
        arrival: Arrival,
        rtt: Option<Duration>,
        /// Of the silence before it, what was not due.
        excess: Duration,
    },
    /// The thread woke for something that had been due for so long.
    Woke(Duration),
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
    /// How often the peer sends, before jitter, and its K.
    peer: (Duration, u8),
    arrivals: Recorded,
    rtt: Histogram,
    negotiation: Negotiation,
    proof: Proof,
    excess: Histogram,
    lateness: Histogram,
    /// Since the newest beat, when everything that had arrived was last read.
    silence: Duration,
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
            peer: (Duration::ZERO, 0),
            arrivals: Recorded::default(),
            rtt: Histogram::new(),
            negotiation: Negotiation::default(),
            proof: Proof::default(),
            excess: Histogram::new(),
            lateness: Histogram::new(),
            silence: Duration::ZERO,
        }
    }

    pub(super) fn negotiate(&mut self, negotiation: Negotiation) {
        self.negotiation = negotiation;
    }

    pub(super) fn negotiation(&self) -> Negotiation {
        self.negotiation
    }

    pub(super) fn prove(&mut self, proof: Proof) {
        self.proof = proof;
    }

    pub(super) fn proof(&self) -> Proof {
        self.proof
    }

    pub(super) fn update(&mut self, detector: &detector::Detector, now: Time, counts: Counts, samples: &[Sample]) {
        self.detector = detector.stats();
        self.silence = now.since(detector.last_heard());
        self.counts = counts;
        self.accused = detector.peer().is_some_and(|beat| beat.state == BeatState::Suspect);
        self.polling = detector.polling();
        self.detection_time = detector.detection_time();
        self.transmit_interval = detector.transmit_interval();
        self.peer = receiving(detector);
        samples.iter().for_each(|sample| self.record(sample));
    }

    fn record(&mut self, sample: &Sample) {
        match sample {
            Sample::Heard { arrival, rtt, excess } => {
                self.arrivals.record(arrival);
                if arrival.gap.is_some() {
                    self.excess.record(*excess);
                }
                if let Some(rtt) = rtt {
                    self.rtt.record(*rtt);
                }
            }
            Sample::Woke(late) => self.lateness.record(*late),
        }
    }

    pub(super) fn lateness(&self) -> (u64, Duration, u64) {
        (self.detector.self_late, self.detector.max_self_late, self.detector.received)
    }

    pub(super) fn buckets(&self) -> [Buckets; 3] {
        [&self.arrivals.gap, &self.rtt, &self.lateness].map(Buckets::from)
    }

    pub(super) fn report(&self, verdict: Verdict) -> BeatStats {
        let Self { detector, counts, .. } = self;
        BeatStats {
            verdict,
            accused: self.accused,
            sent: detector.sent - counts.send_errors - counts.withheld,
            send_errors: counts.send_errors,
            withheld: counts.withheld,
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
            gap_us: self.arrivals.gap.percentiles(),
            rtt_us: self.rtt.percentiles(),
            unrecorded: counts.unrecorded,
            detection_time_us: micros(self.detection_time),
            transmit_interval_us: micros(self.transmit_interval),
            polling: self.polling,
        }
    }

    /// Everything; `paths` where there are several, else the one way's name. `None` before the first beat. The silence that
    /// goes on counts if `to_now`.
    pub(super) fn measured(&self, name: &str, paths: Option<Vec<PathMeasured>>, to_now: bool) -> Option<Measured> {
        let Self { detector, counts, peer: (interval, detect_multiplier), .. } = self;
        let silence = if to_now { self.silence } else { Duration::ZERO };
        let (arrivals, mut excess) = (&self.arrivals.and_outage(silence, *interval), self.excess.clone());
        if outage(silence, *interval) > 0 {
            // All of it is beats that did not come.
            excess.record(Duration::ZERO);
        }
        let sent = detector.sent - counts.send_errors - counts.withheld;
        let only = || PathMeasured {
            name: name.to_owned(),
            sent,
            heard: detector.received,
            first: detector.received,
            gap: arrivals.gap.clone(),
            one_way: arrivals.one_way.clone(),
            losses: arrivals.losses.clone(),
        };
        (detector.received > 0).then(|| Measured {
            interval_us: u32::try_from(interval.as_micros()).unwrap_or(u32::MAX),
            detect_multiplier: *detect_multiplier,
            sent,
            received: detector.received,
            self_late: detector.self_late,
            unrecorded: counts.unrecorded,
            gap: arrivals.gap.clone(),
            rtt: self.rtt.clone(),
            excess,
            lateness: self.lateness.clone(),
            losses: arrivals.losses.clone(),
            paths: paths.unwrap_or_else(|| vec![only()]),
        })
    }
}

/// How often the peer sends, before jitter, and its K; zero before it was heard.
pub(super) fn receiving(detector: &detector::Detector) -> (Duration, u8) {
    let multiplier = detector.peer().map_or(0, |peer| peer.detect_multiplier);
    (detector.receive_interval().unwrap_or_default(), multiplier)
}
