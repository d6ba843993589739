//! A histogram as Prometheus wants it: fixed bounds, counted in one pass over ours.

use mc_core::histogram::Histogram;

/// Upper bounds of the buckets, seconds: from a beat's round trip on a good wire to the longest epoch that anybody bears.
pub const BOUNDS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How many lie in each bucket, those beyond the last bound in one more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Buckets {
    /// Not cumulative.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Of all, seconds; exact.
    pub sum_seconds: f64,
}

impl Buckets {
    /// All of them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Bound and count of each, the last one's bound infinite, as prometheus-client takes them.
    #[must_use]
    pub fn bounded(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::MAX]).zip(self.counts).collect()
    }
}

impl From<&Histogram> for Buckets {
    /// A time within a thousandth of a bound may count on either side of it: that is how exact our histograms are.
    fn from(histogram: &Histogram) -> Self {
        let mut counts = [0; BOUNDS.len() + 1];
        for (value, count) in histogram.buckets() {
            let seconds = value.as_secs_f64() * (1.0 - 1e-3);
            counts[BOUNDS.partition_point(|bound| *bound < seconds)] += count;
        }
        Self { counts, sum_seconds: histogram.sum().as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_time_is_in_the_bucket_that_holds_it() {
        let mut histogram = Histogram::new();
        for (us, times) in [(1, 2), (50, 1), (700, 3), (1000, 1), (1100, 1), (60_000_000, 4)] {
            histogram.record_many(Duration::from_micros(us), times);
        }
        let buckets = Buckets::from(&histogram);
        assert_eq!(buckets.count(), histogram.count());
        assert_eq!((buckets.counts[0], buckets.counts[4], buckets.counts[5], buckets.counts[17]), (3, 4, 1, 4));
        assert!((buckets.sum_seconds - histogram.sum().as_secs_f64()).abs() < 1e-9);
        for (at, bound) in BOUNDS.into_iter().enumerate() {
            let cumulative: u64 = buckets.counts[..=at].iter().sum();
            assert_eq!(cumulative, histogram.count_at_most(Duration::from_secs_f64(bound)), "{bound}");
        }
    }
}
