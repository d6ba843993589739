//! What the phases of an epoch cost, as histograms that never allocate once made.

use hdrhistogram::Histogram;
use std::time::Duration;

/// Histograms of durations, in microseconds, up to a minute, to three digits.
#[derive(Clone, Debug)]
pub struct Timings(Histogram<u64>);

/// A histogram's summary, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Percentiles {
    /// How many were recorded.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 99 % are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Timings {
    const MAX_US: u64 = 60_000_000;

    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, Self::MAX_US, 3).expect("the bounds are valid constants"))
    }

    /// Adds one duration; more than a minute counts as a minute.
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(us.max(1));
    }

    /// The summary.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.0.len(),
            p50: self.0.value_at_quantile(0.5),
            p90: self.0.value_at_quantile(0.9),
            p99: self.0.value_at_quantile(0.99),
            max: self.0.max(),
        }
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self::new()
    }
}
