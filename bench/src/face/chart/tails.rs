//! Tails of distributions: the time that each percentile takes, the percentiles spread by their nines.

use super::{COLOURS, LEFT, RIGHT, Series, WIDTH, colour, fitting, grid_beside, us, words};
use crate::face::{
    axis::{Axis, time},
    svg::{Anchor, Svg},
};

const HEIGHT: f64 = 210.0;
const TOP: f64 = 10.0;
/// Percentiles beyond this have no place.
const MOST_NINES: f64 = 6.0;

/// The chart of at most [`COLOURS`] series; `None` without any.
#[must_use]
pub fn tails(id: usize, name: &str, series: &[Series<'_>]) -> Option<String> {
    let series = &series[..series.len().min(COLOURS)];
    let most = series.iter().map(|s| s.times.count()).max()?;
    let nines = (most as f64).log10().clamp(1.0, MOST_NINES);
    let low = series.iter().map(|s| us(s.times.min())).fold(f64::INFINITY, f64::min);
    let high = series.iter().map(|s| us(s.times.max())).fold(0.0, f64::max);
    let bottom = TOP + HEIGHT;
    let key = bottom + 38.0;
    let mut svg = Svg::new(WIDTH, key + 16.0 * series.len() as f64);
    let across = Axis::linear(nines, LEFT, WIDTH - RIGHT);
    let up = Axis::log(low, high, bottom, TOP);
    grid_beside(&mut svg, &up, (LEFT, WIDTH - RIGHT), &time);
    percentiles(&mut svg, &across, nines, (TOP, bottom));
    for (at, one) in series.iter().enumerate() {
        let class = format!("curve {} d{at}", colour(at));
        svg.path(&class, &curve(one, &across, &up), "");
        let y = key + 16.0 * at as f64;
        svg.line(&class, (LEFT, y - 4.0), (LEFT + 24.0, y - 4.0));
        svg.text("label", (LEFT + 32.0, y), Anchor::Start, &fitting(one.label, 46));
    }
    let lines: Vec<String> = series.iter().map(|s| format!("{}: {}", s.label, words(s.times))).collect();
    Some(svg.finish(id, &format!("{name}: time at each percentile"), &lines.join("; ")))
}

fn percentiles(svg: &mut Svg, across: &Axis, nines: f64, (top, bottom): (f64, f64)) {
    let marks =
        [(0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99"), (0.99999, "99.999")];
    for (quantile, words) in marks {
        let x = place(quantile);
        if x <= nines {
            svg.line("grid", (across.at(x), top), (across.at(x), bottom));
            svg.text("tick", (across.at(x), bottom + 14.0), Anchor::Middle, &format!("{words}%"));
        }
    }
}

/// How many nines a quantile has.
fn place(quantile: f64) -> f64 {
    -(1.0 - quantile).max(1e-9).log10()
}

/// A step for each bucket, but for those that nobody could tell from the one before.
fn curve(series: &Series<'_>, across: &Axis, up: &Axis) -> Vec<(f64, f64)> {
    let total = series.times.count() as f64;
    let mut points: Vec<(f64, f64)> = Vec::new();
    let (mut so_far, mut x) = (0.0, across.at(0.0));
    for (time, count) in series.times.buckets() {
        so_far += count as f64;
        let y = up.at(us(time));
        // The last one ends where its rank does: 1000 times have three nines.
        let next = across.at(place(so_far / total).min(total.log10()));
        let alike = points.last().is_some_and(|(x, last)| (next - x).abs() < 0.4 && (y - last).abs() < 0.4);
        if !alike {
            points.extend([(x, y), (next, y)]);
        }
        x = next;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::histogram::Histogram;
    use std::time::Duration;

    #[test]
    fn percentiles_stand_by_their_nines_and_a_curve_rises() {
        assert!((place(0.99) - 2.0).abs() < 1e-9 && place(1.0) <= 9.0);
        let mut times = Histogram::new();
        (1..=10_000).for_each(|us| times.record(Duration::from_micros(us)));
        let series = Series { label: "a", times: &times };
        let (across, up) = (Axis::linear(4.0, 0.0, 400.0), Axis::log(1.0, 10_000.0, 200.0, 0.0));
        let points = curve(&series, &across, &up);
        assert!(points.windows(2).all(|p| p[0].0 <= p[1].0 && p[0].1 >= p[1].1), "{points:?}");
        assert!(points.len() < 2000 && points.last().unwrap().0 > 390.0, "{}", points.len());
        assert!(tails(1, "pause", &[series]).unwrap().contains("99.9%"));
        assert_eq!(tails(1, "pause", &[]), None);
    }
}
