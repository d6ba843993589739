//! Distributions: of a client's latencies, and of a hundred takeovers.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies in microseconds, three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("3 is a valid number of significant digits"))
    }
}

impl Latencies {
    /// Adds one, in microseconds. The histogram grows as needed.
    pub fn record(&mut self, us: u64) {
        // `saturating_record` would not grow it.
        self.0.record(us).expect("an auto-resizing histogram takes any u64");
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In microseconds; `percent` from 0 to 100.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u64 {
        self.0.value_at_percentile(percent)
    }

    /// `{"count", "p50", "p99", "max"}` in microseconds, or null without any.
    #[must_use]
    pub fn to_json(&self) -> Value {
        if self.is_empty() {
            return Value::Null;
        }
        json!({ "count": self.len(), "p50": self.percentile(50.0), "p99": self.percentile(99.0), "max": self.0.max() })
    }
}

/// What `protected` has more than `baseline`, percentile by percentile, in microseconds. Null if either is empty.
#[must_use]
pub fn added(protected: &Latencies, baseline: &Latencies) -> Value {
    if protected.is_empty() || baseline.is_empty() {
        return Value::Null;
    }
    let more = |percent| protected.percentile(percent).saturating_sub(baseline.percentile(percent));
    json!({ "p50": more(50.0), "p99": more(99.0) })
}

/// Few values, kept all: exact percentiles (nearest rank).
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one, if there is one.
    pub fn add(&mut self, value: Option<f64>) {
        self.0.extend(value.filter(|v| v.is_finite()));
    }

    /// Nearest rank; `percent` from 0 to 100. None without samples.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied()
    }

    /// `{"count", "min", "p50", "p90", "p99", "max"}`, or null without any.
    #[must_use]
    pub fn to_json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let at = |percent| self.percentile(percent).map(round);
        json!({ "count": self.0.len(), "min": at(0), "p50": at(50), "p90": at(90), "p99": at(99), "max": at(100) })
    }
}

/// To a thousandth: clocks here are not better than that.
#[must_use]
pub fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_samples_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.to_json(), Value::Null);
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.add(Some(value));
        }
        samples.add(None);
        samples.add(Some(f64::NAN));
        let expected = json!({ "count": 5, "min": 1.0, "p50": 3.0, "p90": 5.0, "p99": 5.0, "max": 5.0 });
        assert_eq!(samples.to_json(), expected);
    }

    #[test]
    fn added_delay_is_the_difference_and_never_negative() {
        let (mut fast, mut slow) = (Latencies::default(), Latencies::default());
        assert_eq!(added(&fast, &slow), Value::Null);
        fast.record(100);
        slow.record(900);
        assert_eq!(added(&slow, &fast), json!({ "p50": 800, "p99": 800 }));
        assert_eq!(added(&fast, &slow), json!({ "p50": 0, "p99": 0 }));
    }
}
