//! How far two medians may be apart: the percentile bootstrap.
//!
//! The runs of each side are drawn again, with repetition, as many as there were; the medians of the two draws are compared, and
//! that ten thousand times. The interval holds the middle 95 % of what came out. Draws are seeded, so that the same two records
//! give the same interval every time.
//!
//! It assumes that runs are independent of each other and nothing about how they are spread. Of few runs it is rough: an interval of
//! medians never leaves the range of the runs, and with five a side it holds the truth less often than 95 times in a hundred.

use crate::stats::Spread;

/// Draws.
pub const RESAMPLES: usize = 10_000;
/// Of a hundred, what an interval holds.
pub const CONFIDENCE: f64 = 95.0;

/// From the low to the high end of what is plausible.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    /// 2.5 % of the draws were below.
    pub low: f64,
    /// 2.5 % of the draws were above.
    pub high: f64,
}

impl Interval {
    /// Whether it lies within these ends.
    #[must_use]
    pub fn within(&self, low: f64, high: f64) -> bool {
        self.low >= low && self.high <= high
    }
}

/// The interval of `compare(median of a, median of b)`; `None` if either has no runs, or if a draw gives no number.
#[must_use]
pub fn interval(a: &[f64], b: &[f64], seed: u64, compare: fn(f64, f64) -> f64) -> Option<Interval> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut draw = |from: &[f64]| {
        let again: Vec<f64> = from.iter().map(|_| from[random.usize(..from.len())]).collect();
        Spread::of(&again).map(|s| s.median)
    };
    let mut found = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        found.push(compare(draw(a)?, draw(b)?));
    }
    found.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE / 100.0) / 2.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the draws")]
    let rank = |share: f64| found[((RESAMPLES - 1) as f64 * share).round() as usize];
    let interval = Interval { low: rank(tail), high: rank(1.0 - tail) };
    (interval.low.is_finite() && interval.high.is_finite()).then_some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO: fn(f64, f64) -> f64 = |a, b| b / a;

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let (a, b) = ([10.0, 11.0, 9.0, 10.5, 9.5], [20.0, 22.0, 18.0, 21.0, 19.0]);
        let first = interval(&a, &b, 7, RATIO).unwrap();
        assert_eq!(Some(first), interval(&a, &b, 7, RATIO));
        assert!(first.low > 1.6 && first.high < 2.5 && first.low < 2.0 && first.high > 2.0, "{first:?}");
    }

    #[test]
    fn runs_that_do_not_differ_have_no_spread_and_none_have_no_interval() {
        assert_eq!(interval(&[2.0; 5], &[3.0; 5], 1, RATIO), Some(Interval { low: 1.5, high: 1.5 }));
        assert_eq!(interval(&[], &[1.0], 1, RATIO), None);
        assert_eq!(interval(&[0.0; 3], &[0.0; 3], 1, RATIO), None);
    }

    /// Truth known: both sides are drawn from one distribution, so that the ratio of medians is 1. Of 25 runs a side the
    /// interval holds it about as often as it claims to.
    #[test]
    fn the_interval_holds_the_truth_about_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(4);
        let mut runs = || (0..25).map(|_| 90.0 + 20.0 * f64::from(random.u32(0..1000)) / 1000.0).collect::<Vec<_>>();
        let trials = 60;
        let held = (0..trials).filter(|&seed| {
            let found = interval(&runs(), &runs(), seed, RATIO).unwrap();
            found.low <= 1.0 && 1.0 <= found.high
        });
        let held = held.count();
        assert!(held >= 53, "{held} of {trials}");
    }
}
