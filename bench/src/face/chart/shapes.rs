//! Shapes of distributions: how often each time was seen, a row for each series, on one axis of times.

use super::{Series, WIDTH, colour, fitting, grid_below, us, words};
use crate::face::{
    axis::{Axis, time},
    svg::{Anchor, Svg},
};

/// Columns that times are gathered in.
const BINS: usize = 96;
const ROW: f64 = 74.0;
const TOP: f64 = 6.0;
/// Of a shape, at its highest.
const TALL: f64 = 32.0;

/// The chart; `None` without series.
#[must_use]
pub fn shapes(id: usize, name: &str, series: &[Series<'_>]) -> Option<String> {
    let low = series.iter().map(|s| us(s.times.min())).fold(f64::INFINITY, f64::min);
    let high = series.iter().map(|s| us(s.times.max())).fold(0.0, f64::max);
    if series.is_empty() {
        return None;
    }
    let bottom = TOP + ROW * series.len() as f64;
    let mut svg = Svg::new(WIDTH, bottom + 22.0);
    let axis = Axis::log(low, high, 4.0, WIDTH - 14.0);
    grid_below(&mut svg, &axis, (TOP, bottom), &time);
    for (at, one) in series.iter().enumerate() {
        draw(&mut svg, &axis, one, &colour(at), TOP + ROW * at as f64);
    }
    let lines: Vec<String> = series.iter().map(|s| format!("{}: {}", s.label, words(s.times))).collect();
    Some(svg.finish(id, &format!("{name}: how often each time was seen"), &lines.join("; ")))
}

fn draw(svg: &mut Svg, axis: &Axis, series: &Series<'_>, colour: &str, top: f64) {
    svg.text("label", (4.0, top + 16.0), Anchor::Start, &fitting(series.label, 58));
    svg.text("note", (4.0, top + 30.0), Anchor::Start, &words(series.times));
    let base = top + ROW - 4.0;
    let counts = binned(axis, series);
    let most = counts.iter().copied().fold(1.0, f64::max);
    let x = |bin: usize| axis.at(axis.value(bin as f64 / BINS as f64));
    let mut points = vec![(x(0), base)];
    for (bin, count) in counts.iter().enumerate() {
        // The root shows what is rare, too; what is there is never too small to be seen.
        let height = if *count > 0.0 { ((count / most).sqrt() * TALL).max(1.2) } else { 0.0 };
        points.extend([(x(bin), base - height), (x(bin + 1), base - height)]);
    }
    points.push((x(BINS), base));
    svg.path(&format!("shape {colour}"), &points, "Z");
    for (quantile, tall) in [(0.5, TALL), (0.99, TALL * 0.6)] {
        let at = axis.at(us(series.times.at(quantile)));
        svg.line(&format!("mark {colour}"), (at, base), (at, base - tall));
    }
}

/// How many times fall into each bin.
fn binned(axis: &Axis, series: &Series<'_>) -> Vec<f64> {
    let mut counts = vec![0.0; BINS];
    let (from, to) = (axis.at(axis.value(0.0)), axis.at(axis.value(1.0)));
    for (time, count) in series.times.buckets() {
        let share = (axis.at(us(time)) - from) / (to - from);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is 0 to 1")]
        let bin = ((share * BINS as f64) as usize).min(BINS - 1);
        counts[bin] += count as f64;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::histogram::Histogram;
    use std::time::Duration;

    #[test]
    fn no_time_is_lost_in_bins() {
        let mut times = Histogram::new();
        (1..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let series = Series { label: "a", times: &times };
        let axis = Axis::log(1.0, 1000.0, 4.0, 400.0);
        assert_eq!(binned(&axis, &series).iter().sum::<f64>(), 1000.0);
        let chart = shapes(1, "pause", &[series]).unwrap();
        assert!(chart.contains("p50 500 µs") && chart.contains("n 1000"), "{chart}");
    }
}
