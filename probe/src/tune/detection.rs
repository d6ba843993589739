//! How long after a death the suspicion comes.

use node::keepalive::Measured;
use serde::Serialize;
use std::time::Duration;

/// From the peer's death at a random moment to the suspicion. Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Detection {
    /// Half of all deaths are detected within this.
    pub p50: f64,
    /// 99 % are.
    pub p99: f64,
    /// All are, at the worst lateness that was measured.
    pub most: f64,
}

/// Points of each distribution.
const POINTS: u32 = 200;
const LATE_POINTS: u32 = 40;

/// How much of the interval, in percent, may have passed since the last beat: intervals are 75 to 90 % of it, every whole percent alike.
const SHORTEST: u32 = 75;
const LONGEST: u32 = 90;

/// The age of the last beat at a random moment, as `POINTS` equally likely shares of the interval, rising.
fn ages() -> impl Iterator<Item = f64> {
    // P(a drawn interval > age): 1 up to 75 %, then falling in 16 steps.
    let steps = f64::from(LONGEST - SHORTEST + 1);
    let cells: Vec<(f64, f64)> = (0..LONGEST)
        .map(|percent| {
            let longer = f64::from(LONGEST.saturating_sub(percent.max(SHORTEST - 1))) / steps;
            (f64::from(percent) / 100.0, longer.min(1.0))
        })
        .collect();
    let total: f64 = cells.iter().map(|(_, w)| w).sum();
    (0..POINTS).map(move |i| {
        let mut left = (f64::from(i) + 0.5) / f64::from(POINTS) * total;
        let inside = cells.iter().find(|(_, w)| {
            let here = left <= *w;
            left -= if here { 0.0 } else { *w };
            here
        });
        inside.map_or(0.9, |(from, w)| from + 0.01 * left / w)
    })
}

impl Detection {
    /// With what was measured of this end's lateness, and half of the round trip for the way of the last beat.
    #[must_use]
    pub fn of(measured: &Measured, interval: Duration, multiplier: u8) -> Self {
        let interval = interval.as_secs_f64();
        let way = measured.rtt.at(0.5).as_secs_f64() / 2.0;
        let allowed = interval * f64::from(multiplier) + way;
        let late = |i: u32| measured.lateness.at((f64::from(i) + 0.5) / f64::from(LATE_POINTS)).as_secs_f64();
        let late: Vec<f64> = (0..LATE_POINTS).map(late).collect();
        let mut times: Vec<f64> =
            ages().flat_map(|age| late.iter().map(move |l| allowed - age * interval + l)).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        Self { p50: at(50), p99: at(99), most: allowed + measured.lateness.max().as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_at_a_random_moment_is_found_between_k_less_one_and_k_intervals() {
        let ages: Vec<f64> = ages().collect();
        let mean = ages.iter().sum::<f64>() / f64::from(POINTS);
        // Of a renewal process: E[J^2] / 2 E[J].
        let (first, second) = (75..=90).fold((0.0, 0.0), |(a, b), j| {
            let j = f64::from(j) / 100.0;
            (a + j / 16.0, b + j * j / 16.0)
        });
        assert!((mean - second / (2.0 * first)).abs() < 0.006, "{mean}");
        assert!(ages.is_sorted() && ages[0] > 0.0 && ages[199] < 0.9);
        let mut measured = Measured::default();
        measured.rtt.record(Duration::from_micros(200));
        measured.lateness.record(Duration::from_millis(1));
        let found = Detection::of(&measured, Duration::from_millis(10), 5);
        assert!((found.p50 - (0.0511 - 0.00415)).abs() < 2e-4, "{found:?}");
        assert!((0.0508..0.0512).contains(&found.p99) && found.p99 < found.most, "{found:?}");
    }
}
