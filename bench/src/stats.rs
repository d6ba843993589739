//! Medians and spreads over runs; latencies within one.

use crate::{record::Measure, units::us};
use mc_core::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// What several runs of one measurement gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub runs: usize,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these values; `None` without any, or if one is no number.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        (min.is_finite() && max.is_finite()).then_some(Self { runs: sorted.len(), median, min, max })
    }
}

/// What perftest's latency columns say, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How many were measured.
    pub iterations: u64,
    /// The least.
    pub t_min: f64,
    /// The most.
    pub t_max: f64,
    /// The median.
    pub t_typical: f64,
    /// The mean.
    pub t_avg: f64,
    /// Standard deviation.
    pub t_stdev: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
}

impl From<&Histogram> for Summary {
    fn from(latencies: &Histogram) -> Self {
        Self {
            iterations: latencies.count(),
            t_min: us(latencies.min()),
            t_max: us(latencies.max()),
            t_typical: us(latencies.at(0.5)),
            t_avg: us(latencies.mean()),
            t_stdev: us(latencies.stdev()),
            p99: us(latencies.at(0.99)),
            p999: us(latencies.at(0.999)),
        }
    }
}

impl Summary {
    /// perftest's headings of latencies, in its order.
    pub(crate) const HEADINGS: [&str; 8] = [
        "#iterations",
        "t_min[usec]",
        "t_max[usec]",
        "t_typical[usec]",
        "t_avg[usec]",
        "t_stdev[usec]",
        "99% percentile[usec]",
        "99.9% percentile[usec]",
    ];

    /// Under those.
    #[must_use]
    pub(crate) fn values(&self) -> [f64; 8] {
        let Self { iterations, t_min, t_max, t_typical, t_avg, t_stdev, p99, p999 } = *self;
        [iterations as f64, t_min, t_max, t_typical, t_avg, t_stdev, p99, p999]
    }

    /// A measure with these as its columns, where there is no histogram that they could be read from.
    #[must_use]
    pub(crate) fn columns(&self, measure: Measure) -> Measure {
        Self::HEADINGS
            .iter()
            .zip(self.values())
            .fold(measure, |measure, (heading, value)| measure.column(*heading, value))
    }

    /// The run whose `t_typical` is the median one of several.
    #[must_use]
    pub(crate) fn middle(runs: &[Self]) -> Option<Self> {
        let mut sorted = runs.to_vec();
        sorted.sort_by(|a, b| a.t_typical.total_cmp(&b.t_typical));
        sorted.get(sorted.len() / 2).copied()
    }
}

/// Bytes per second of the best stretch, as perftest finds its peak: from a start to any later end, but only over stretches of
/// 1, 2, 4, ... messages. `starts` and `ends` are seconds.
#[must_use]
pub(crate) fn peak(starts: &[f64], ends: &[f64], bytes: u64) -> f64 {
    let mut best = 0.0_f64;
    let mut length = 1;
    while length <= ends.len() {
        for (start, end) in starts.iter().zip(&ends[length - 1..]) {
            let took = end - start;
            if took > 0.0 {
                best = best.max((bytes * length as u64) as f64 / took);
            }
        }
        length *= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_median_of_an_odd_and_an_even_number() {
        let odd = Spread::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((odd.runs, odd.median, odd.min, odd.max), (3, 3.0, 1.0, 5.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn columns_are_microseconds() {
        let mut latencies = Histogram::new();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let s = Summary::from(&latencies);
        assert_eq!(s.iterations, 1000);
        assert!((s.t_typical - 500.0).abs() < 1.0 && (s.p99 - 990.0).abs() < 1.0, "{s:?}");
        assert!((s.t_min - 1.0).abs() < 0.01 && (s.t_max - 1000.0).abs() < 1.0, "{s:?}");
    }

    #[test]
    fn the_middle_run_is_a_run() {
        let run = |t_typical| Summary { t_typical, ..Summary::default() };
        assert_eq!(Summary::middle(&[run(3.0), run(1.0), run(2.0)]).unwrap().t_typical, 2.0);
        assert_eq!(Summary::middle(&[]), None);
    }

    #[test]
    fn the_peak_is_the_best_stretch() {
        // Alone each takes 1 s; two that overlap take 1.25 s.
        assert_eq!(peak(&[0.0, 0.25], &[1.0, 1.25], 1000), 1600.0);
        assert_eq!(peak(&[], &[], 1000), 0.0);
    }
}
