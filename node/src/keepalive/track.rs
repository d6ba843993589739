//! Statistics of received beats: gaps, losses, and extra delay beyond the fastest beat.
//!
//! Clocks of two hosts have nothing in common but, nearly, their rate. So a one-way time is told relative to the fastest beat: what
//! a beat took by both clocks, less the least that any took. That least may rise by [`DRIFT`] (50 ppm, more than crystals differ by)
//! of the time since, or else a clock that runs faster would make every later beat look late.

use mc_core::{
    detector::jittered,
    histogram::Histogram,
    id::{Time, nanos},
    wire::beat::Beat,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::time::Duration;

/// Parts in a million that the two clocks' rates may differ by.
const DRIFT: i64 = 50;
/// Runs longer than this are counted as this long: no detect multiplier is larger.
pub const LONGEST_RUN: usize = 256;
/// In what is read: 2^53, which a lifetime of beats does not reach.
const MOST_RUNS: u64 = 1 << 53;
/// Lost beats whose due times are added up one by one; beyond, the mean.
const EXACT: u64 = 256;

/// Beats lost one after the other, as runs: ten single losses and one outage of ten beats have the same sum, and only one of
/// them makes a peer suspect. A beat that a newer one overtook counts as lost: the detector has no use for it.
///
/// As JSON: `{"lost":N,"runs":[[length,count],…]}`, lengths rising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossRuns {
    lost: u64,
    counts: Box<[u64; LONGEST_RUN]>,
}

impl Default for LossRuns {
    fn default() -> Self {
        Self { lost: 0, counts: Box::new([0; LONGEST_RUN]) }
    }
}

impl LossRuns {
    /// Notes a run; of length 0 it is none.
    pub fn record(&mut self, length: u64) {
        self.record_many(length, 1);
    }

    fn record_many(&mut self, length: u64, times: u64) {
        let at = usize::try_from(length).unwrap_or(LONGEST_RUN).min(LONGEST_RUN);
        if at > 0 {
            self.counts[at - 1] = self.counts[at - 1].saturating_add(times);
            self.lost = self.lost.saturating_add(length.saturating_mul(times));
        }
    }

    /// Beats lost in all.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The runs: length, and how many of it; rising.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (1..).zip(self.counts.iter().copied()).filter(|(_, count)| *count > 0)
    }

    /// How many runs are at least so long.
    #[must_use]
    pub fn at_least(&self, length: u32) -> u64 {
        self.runs().filter(|(l, _)| *l >= length).map(|(_, count)| count).sum()
    }

    /// The longest one; 0 without any.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.runs().last().map_or(0, |(length, _)| length)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    lost: u64,
    runs: Vec<(u64, u64)>,
}

impl Serialize for LossRuns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let runs = self.runs().map(|(length, count)| (length.into(), count)).collect();
        Written { lost: self.lost, runs }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LossRuns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { lost, runs } = Written::deserialize(deserializer)?;
        let (mut all, mut before, mut total) = (Self::default(), 0, 0_u64);
        for (length, count) in runs {
            total = total.saturating_add(count);
            if length <= before || length > LONGEST_RUN as u64 || count == 0 || total > MOST_RUNS {
                return Err(D::Error::custom(format!(
                    "a run of losses [{length},{count}] after {before}: lengths rise, to {LONGEST_RUN}, and counts are not 0"
                )));
            }
            all.record_many(length, count);
            before = length;
        }
        if lost < all.lost {
            return Err(D::Error::custom(format!("{lost} beats lost, but the runs have {}", all.lost)));
        }
        all.lost = lost;
        Ok(all)
    }
}

/// One beat's arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Since the one before.
    pub(super) gap: Option<Duration>,
    /// Longer than the fastest.
    pub(super) one_way: Duration,
    /// Beats between the one before and this that did not come.
    pub(super) missing: u64,
}

/// The newest beat of one way.
#[derive(Debug, Default)]
pub(super) struct Track {
    newest: Option<(u64, Time)>,
    /// By both clocks, ns, and when that was.
    fastest: Option<(i64, Time)>,
}

/// The difference of two clocks' readings; it wraps as they do.
fn difference(here: Time, there: u64) -> i64 {
    here.0.wrapping_sub(there).cast_signed()
}

impl Track {
    /// A beat that is newer than all before has come.
    pub(super) fn arrived(&mut self, beat: &Beat, now: Time) -> Arrival {
        let took = difference(now, beat.sent_at);
        let least = self.fastest.map_or(took, |(least, at)| least.saturating_add(drift(now.since(at))));
        self.fastest = Some((took.min(least), now));
        let one_way = Duration::from_nanos(took.saturating_sub(least).max(0).unsigned_abs());
        let before = self.newest.replace((beat.sequence, now));
        let missing = before.map_or(0, |(sequence, _)| beat.sequence.saturating_sub(sequence).saturating_sub(1));
        Arrival { gap: before.map(|(_, at)| now.since(at)), one_way, missing }
    }
}

/// How much two clocks may drift apart in that time, ns.
fn drift(time: Duration) -> i64 {
    i64::try_from(nanos(time)).unwrap_or(i64::MAX) / (1_000_000 / DRIFT)
}

/// How long after the beat `missing + 1` numbers earlier this one was due, if its sender's interval is `interval`.
pub(super) fn due(beat: &Beat, missing: u64, interval: Duration) -> Duration {
    let first = beat.sequence.saturating_sub(missing + 1);
    let exact = first..beat.sequence.min(first.saturating_add(EXACT));
    let rest = beat.sequence.saturating_sub(exact.end);
    let sum: Duration = exact.map(|sequence| jittered(interval, beat.incarnation.0, beat.member, sequence)).sum();
    let mean = interval * 33 / 40;
    sum.saturating_add(mean.saturating_mul(u32::try_from(rest).unwrap_or(u32::MAX)))
}

/// Beats that did not come in a silence that goes on: as many as were due in any case. One that is merely late, by what may
/// be seen of a live peer, is none.
pub(super) fn outage(silence: Duration, interval: Duration) -> u64 {
    let due = silence.as_nanos() / interval.as_nanos().max(1);
    if due < 2 || interval.is_zero() { 0 } else { u64::try_from(due).unwrap_or(u64::MAX) }
}

/// What one way's arrivals add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) gap: Histogram,
    pub(super) one_way: Histogram,
    pub(super) losses: LossRuns,
}

impl Recorded {
    pub(super) fn record(&mut self, arrival: &Arrival) {
        if let Some(gap) = arrival.gap {
            self.gap.record(gap);
        }
        self.one_way.record(arrival.one_way);
        self.losses.record(arrival.missing);
    }

    /// All of it, and the silence that goes on, if that is an outage: nothing has come to record it.
    pub(super) fn and_outage(&self, silence: Duration, interval: Duration) -> Self {
        let mut all = self.clone();
        let missing = outage(silence, interval);
        if missing > 0 {
            all.gap.record(silence);
            all.losses.record(missing);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Epoch, Generation, Incarnation},
        wire::beat::BeatState,
    };

    fn beat(sequence: u64, sent_at: u64) -> Beat {
        Beat {
            incarnation: Incarnation(7),
            generation: Generation(0),
            committed: Epoch(0),
            sequence,
            sent_at,
            echo: 0,
            echo_delay: 0,
            desired_tx_us: 10_000,
            required_rx_us: 10_000,
            detect_multiplier: 5,
            state: BeatState::Up,
            member: 1,
            meant_for: 0,
            poll: false,
            is_final: false,
            for_both: false,
        }
    }

    #[test]
    fn runs_are_told_apart_from_their_sum() {
        let mut track = Track::default();
        let mut recorded = Recorded::default();
        for (sequence, at) in [(1, 10), (2, 20), (5, 50), (6, 60), (8, 80), (900, 9000)] {
            recorded.record(&track.arrived(&beat(sequence, at), Time(at + 1_000_000)));
        }
        assert_eq!(recorded.losses.runs().collect::<Vec<_>>(), [(1, 1), (2, 1), (256, 1)]);
        assert_eq!((recorded.losses.lost(), recorded.losses.at_least(2), recorded.gap.count()), (894, 2, 5));
        let text = serde_json::to_string(&recorded.losses).unwrap();
        assert_eq!(text, r#"{"lost":894,"runs":[[1,1],[2,1],[256,1]]}"#);
        assert_eq!(serde_json::from_str::<LossRuns>(&text).unwrap(), recorded.losses);
        for wrong in
            [r#"{"lost":9,"runs":[[2,1],[1,1]]}"#, r#"{"lost":9,"runs":[[257,1]]}"#, r#"{"lost":1,"runs":[[2,1]]}"#]
        {
            assert!(serde_json::from_str::<LossRuns>(wrong).is_err(), "{wrong}");
        }
    }

    /// A clock that is far off, and faster by 40 ppm, or slower: a beat that takes 3 ms longer is seen to, any time.
    #[test]
    fn neither_offset_nor_drift_makes_a_beat_late() {
        for ppm in [-40_i64, 0, 40] {
            let mut track = Track::default();
            for n in 1..100_000_u64 {
                let sent = n * 10_000_000;
                let late = if n % 1000 == 0 { 3_000_000 } else { 0 };
                let here = (sent + late).cast_signed() * (1_000_000 + ppm) / 1_000_000;
                let arrival = track.arrived(&beat(n, sent.wrapping_sub(1 << 60)), Time(here.unsigned_abs() + 5));
                let us = arrival.one_way.as_micros();
                assert!(if late > 0 { (2_980..3_020).contains(&us) } else { us < 20 }, "{ppm} ppm, beat {n}: {us} us");
            }
        }
    }

    #[test]
    fn a_silence_that_goes_on_is_an_outage_once_beats_were_due() {
        let interval = Duration::from_millis(10);
        let ms = Duration::from_millis;
        assert_eq!([0, 9, 19, 20, 125, 5_000].map(|silence| outage(ms(silence), interval)), [0, 0, 0, 2, 12, 500]);
        assert_eq!(outage(ms(5), Duration::ZERO), 0, "nothing was heard yet");
        let all = Recorded::default().and_outage(ms(125), interval);
        assert_eq!((all.gap.count(), all.losses.lost(), all.losses.longest()), (1, 12, 12));
        assert_eq!(Recorded::default().and_outage(ms(15), interval).gap.count(), 0);
    }

    #[test]
    fn what_was_due_is_what_the_sender_drew() {
        let interval = Duration::from_millis(10);
        let one = due(&beat(2, 0), 0, interval);
        assert_eq!(one, jittered(interval, 7, 1, 1));
        assert_eq!(due(&beat(4, 0), 2, interval), (1..4).map(|n| jittered(interval, 7, 1, n)).sum());
        let far = due(&beat(1_000_000, 0), 999_998, interval);
        assert!((far.as_secs_f64() / 8250.0 - 1.0).abs() < 1e-3, "{far:?}");
    }
}
