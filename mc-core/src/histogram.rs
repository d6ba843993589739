//! One kind of histogram for everything that takes time: pauses, commits, holds, gaps between beats, a benchmark's latencies.
//! `status`, metrics, `keepalive probe` and `mc-bench` read the same counts, so that no two of them can disagree.
//!
//! Nanoseconds from 1 to ten minutes, three significant digits (HdrHistogram); about 240 KiB each, all of it allocated at
//! once: recording never allocates. The sum is exact.
//!
//! As JSON: `{"unit":"ns","sum":S,"counts":[[value,count],…]}`, values rising, each the highest that its bucket holds.

use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt::Write, time::Duration};

/// The longest time told from longer ones.
pub const LONGEST: Duration = Duration::from_secs(600);
const LONGEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// Times, counted. See the module.
#[derive(Clone, PartialEq)]
pub struct Histogram {
    counts: Hdr<u64>,
    /// ns; exact, unlike what the buckets say.
    sum: u64,
}

/// A histogram's summary, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// How many were recorded.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90 % are at most this.
    pub p90: u64,
    /// 99 % are at most this.
    pub p99: u64,
    /// 99.9 % are at most this.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

/// Whole nanoseconds.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let counts = Hdr::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are valid constants");
        Self { counts, sum: 0 }
    }

    /// Adds one time; more than [`LONGEST`] counts as that.
    pub fn record(&mut self, duration: Duration) {
        self.record_many(duration, 1);
    }

    /// Adds the same time `times` times.
    pub fn record_many(&mut self, duration: Duration, times: u64) {
        let ns = nanos(duration);
        self.counts.saturating_record_n(ns.max(1), times);
        self.sum = self.sum.saturating_add(ns.saturating_mul(times));
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.counts.add(&other.counts).expect("all have the same bounds");
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.sum = 0;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Of all times; exact.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The mean; exact. Zero if there is none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.count()).unwrap_or(0))
    }

    /// The standard deviation.
    #[must_use]
    pub fn stdev(&self) -> Duration {
        Duration::from_secs_f64(self.counts.stdev().max(0.0) / 1e9)
    }

    /// The least; zero if there is none.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.is_empty() { 0 } else { self.counts.min() })
    }

    /// The most; zero if there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.counts.max())
    }

    /// At most this are `quantile` (0 to 1) of them.
    #[must_use]
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.counts.value_at_quantile(quantile))
    }

    /// How many are at most this long, to the buckets' precision.
    #[must_use]
    pub fn count_at_most(&self, duration: Duration) -> u64 {
        self.counts.count_between(0, nanos(duration).min(LONGEST_NS))
    }

    /// The buckets that are not empty: the highest time that each holds, and how many it does; rising.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.counts.iter_recorded().map(|v| (Duration::from_nanos(v.value_iterated_to()), v.count_at_value()))
    }

    /// The summary.
    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Percentiles {
            count: self.count(),
            p50: us(self.at(0.5)),
            p90: us(self.at(0.9)),
            p99: us(self.at(0.99)),
            p999: us(self.at(0.999)),
            max: us(self.max()),
        }
    }

    /// HdrHistogram's percentile distribution (the `.hgrm` that its plotters read), in µs.
    #[must_use]
    pub fn hgrm(&self) -> String {
        let us = |ns: f64| ns / 1e3;
        let mut text =
            format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
        let mut total = 0;
        for step in self.counts.iter_quantiles(5) {
            total += step.count_since_last_iteration();
            let (value, quantile) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
            let _ = write!(text, "{value:>12.3} {quantile:>14.12} {total:>10}");
            let _ = if quantile < 1.0 { writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)) } else { writeln!(text) };
        }
        let (mean, stdev, max) = (us(nanos(self.mean()) as f64), us(self.counts.stdev()), us(self.counts.max() as f64));
        let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {stdev:>12.3}]");
        let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {:>12}]", self.count());
        let (buckets, sub_buckets) = (self.counts.buckets(), 2048);
        let _ = writeln!(text, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]");
        text
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Histogram").field(&self.percentiles()).finish()
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    unit: String,
    sum: u64,
    counts: Vec<(u64, u64)>,
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.buckets().map(|(value, count)| (nanos(value), count)).collect();
        Written { unit: "ns".to_owned(), sum: self.sum, counts }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { unit, sum, counts } = Written::deserialize(deserializer)?;
        if unit != "ns" {
            return Err(D::Error::custom(format!("a histogram in {unit:?}; only \"ns\" is known")));
        }
        let mut histogram = Self::new();
        let (mut before, mut total) = (0, 0_u64);
        for (value, count) in counts {
            // The highest value of the last bucket may lie above the longest time.
            if value <= before || value > 2 * LONGEST_NS || count == 0 {
                return Err(D::Error::custom(format!(
                    "a histogram's bucket [{value},{count}] after {before}: values rise, to twice {LONGEST_NS}, and counts are not 0"
                )));
            }
            total = total.checked_add(count).ok_or_else(|| D::Error::custom("a histogram's counts overflow"))?;
            histogram.counts.saturating_record_n(value, count);
            before = value;
        }
        histogram.sum = sum;
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(us: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        us.into_iter().for_each(|us| histogram.record(Duration::from_micros(us)));
        histogram
    }

    #[test]
    fn the_summary_is_in_microseconds() {
        let p = of(1..=1000).percentiles();
        assert_eq!((p.count, p.p50, p.p90, p.p999), (1000, 500, 900, 999));
        assert!((990..=991).contains(&p.p99) && (1000..=1001).contains(&p.max), "{p:?}");
        assert_eq!(Histogram::new().percentiles(), Percentiles::default());
    }

    #[test]
    fn sum_and_mean_are_exact_and_the_rest_to_three_digits() {
        let h = of([1, 2, 999_983]);
        assert_eq!((h.sum(), h.mean()), (Duration::from_micros(999_986), Duration::from_nanos(333_328_666)));
        assert_eq!((h.count(), h.count_at_most(Duration::from_micros(2)), h.count_at_most(LONGEST * 9)), (3, 2, 3));
        assert!((h.max().as_secs_f64() / 0.999_983 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn what_is_out_of_bounds_is_counted_at_the_bound() {
        let mut h = of([0]);
        h.record(LONGEST * 5);
        assert_eq!(h.count(), 2);
        assert!(h.max() >= LONGEST && h.max() < LONGEST * 2);
    }

    #[test]
    fn json_keeps_every_bucket() {
        let mut h = of((1..5000).map(|n| n * n));
        h.record(LONGEST);
        let back: Histogram = serde_json::from_str(&serde_json::to_string(&h).unwrap()).unwrap();
        assert!(back == h);
        let mut twice = h.clone();
        twice.merge(&back);
        assert_eq!((twice.count(), twice.sum(), twice.at(0.5)), (2 * h.count(), 2 * h.sum(), h.at(0.5)));
    }

    #[test]
    fn json_that_is_no_histogram_says_why() {
        for (text, why) in [
            (r#"{"unit":"us","sum":1,"counts":[]}"#, "only \"ns\""),
            (r#"{"unit":"ns","sum":1,"counts":[[5,1],[5,1]]}"#, "values rise"),
            (r#"{"unit":"ns","sum":1,"counts":[[9000000000000,1]]}"#, "values rise"),
            (r#"{"unit":"ns","sum":1,"counts":[[5,0]]}"#, "not 0"),
            (r#"{"unit":"ns","sum":1,"counts":[[5,18446744073709551615],[6,1]]}"#, "overflow"),
            (r#"{"unit":"ns","sum":1,"counts":[],"x":1}"#, "unknown field"),
        ] {
            let error = serde_json::from_str::<Histogram>(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_distribution_has_the_columns_that_plotters_read() {
        let text = of(1..=100).hgrm();
        let rows: Vec<Vec<&str>> = text.lines().skip(2).map(|l| l.split_whitespace().collect()).collect();
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"), "{text}");
        assert_eq!(rows[0][2], "1");
        assert!(text.contains("Total count    =          100]"), "{text}");
    }
}
