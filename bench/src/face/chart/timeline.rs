//! Values over time: dots, or where there are too many of them, from the least to the most of each column.

use super::{LEFT, RIGHT, WIDTH, grid_below, grid_beside};
use crate::{
    face::{
        axis::{Axis, short, time},
        svg::{Anchor, Svg},
    },
    record::{Timeline, Unit},
};

const HEIGHT: f64 = 170.0;
const TOP: f64 = 18.0;
/// More points than these are drawn by column.
const DOTS: usize = 400;
/// Columns of the plot, about one for each unit.
const COLUMNS: usize = 330;
/// Where the most is so many times the median, the axis is logarithmic.
const WIDE: f64 = 20.0;

/// The chart; `None` without a point that can be drawn.
#[must_use]
pub fn timeline(id: usize, line: &Timeline, colour: usize) -> Option<String> {
    let points: Vec<(f64, f64)> = line.points.iter().copied().filter(|(t, v)| t.is_finite() && v.is_finite()).collect();
    let mut sorted: Vec<f64> = points.iter().map(|p| p.1).collect();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the points")]
    let at = |quantile: f64| sorted[((sorted.len() - 1) as f64 * quantile) as usize];
    let (median, p99) = (at(0.5), at(0.99));
    let bottom = TOP + HEIGHT;
    let mut svg = Svg::new(WIDTH, bottom + 34.0);
    let across = Axis::linear(points.iter().map(|p| p.0).fold(0.0, f64::max), LEFT, WIDTH - RIGHT);
    let up = if least > 0.0 && most > WIDE * median {
        Axis::log(least, most, bottom, TOP)
    } else {
        Axis::linear(most * 1.08, bottom, TOP)
    };
    let words = |value: f64| value_words(line.unit, value);
    grid_below(&mut svg, &across, (TOP, bottom), &|s| format!("{} s", short(s)));
    grid_beside(&mut svg, &up, (LEFT, WIDTH - RIGHT), &words);
    plot(&mut svg, &points, &across, &up, &super::colour(colour));
    let mut low = f64::MIN;
    for (name, value) in [("p99", p99), ("p50", median)] {
        let y = up.at(value);
        svg.line("level", (LEFT, y), (WIDTH - RIGHT, y));
        let place = (y - 4.0).max(low + 12.0);
        svg.text("value", (WIDTH - RIGHT, place), Anchor::End, &format!("{name} {}", words(value)));
        low = place;
    }
    let (count, median, p99, most) = (points.len(), words(median), words(p99), words(most));
    svg.text("axis", (WIDTH - RIGHT, bottom + 29.0), Anchor::End, "since the measurement began");
    let title = format!("{}, {} over time", line.name, line.case);
    Some(svg.finish(id, &title, &format!("{count} values; p50 {median}, p99 {p99}, max {most}")))
}

fn value_words(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Usec => time(value),
        Unit::Sec => time(value * 1e6),
        Unit::Percent => format!("{}%", short(value)),
        Unit::MbPerSec | Unit::Count | Unit::Ratio => short(value),
    }
}

fn plot(svg: &mut Svg, points: &[(f64, f64)], across: &Axis, up: &Axis, colour: &str) {
    if points.len() <= DOTS {
        for (t, value) in points {
            svg.dot(&format!("point {colour}"), (across.at(*t), up.at(*value)), 2.2);
        }
        return;
    }
    let mut columns: Vec<Option<(f64, f64)>> = vec![None; COLUMNS];
    for (t, value) in points {
        let (x, y) = (across.at(*t), up.at(*value));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the plot")]
        let column = ((x - LEFT).max(0.0) as usize).min(COLUMNS - 1);
        let (upper, lower) = columns[column].unwrap_or((y, y));
        columns[column] = Some((upper.min(y), lower.max(y)));
    }
    for (column, (upper, lower)) in columns.iter().enumerate().filter_map(|(at, c)| Some((at, (*c)?))) {
        let x = LEFT + column as f64 + 0.5;
        svg.line(&format!("stroke {colour}"), (x, upper - 0.6), (x, lower + 0.6));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Timeline {
        Timeline { name: "pauses".to_owned(), case: "idle".to_owned(), unit: Unit::Usec, points }
    }

    #[test]
    fn few_points_are_dots_and_many_are_columns() {
        let few = timeline(1, &line(vec![(0.0, 100.0), (1.0, 0.0), (2.0, f64::NAN)]), 0).unwrap();
        assert_eq!(few.matches("<circle").count(), 2);
        let many = (0..100_000).map(|n| (f64::from(n) / 1e3, f64::from(n % 7) * 1e3 + 1.0)).collect();
        let many = timeline(2, &line(many), 0).unwrap();
        assert!(!many.contains("<circle") && many.len() < 100_000 && many.contains("100000 values"), "{}", many.len());
        assert_eq!(timeline(3, &line(vec![]), 0), None);
    }

    #[test]
    fn values_are_written_in_their_unit() {
        let words = [(Unit::Usec, 1500.0), (Unit::Sec, 0.25), (Unit::Percent, 5.0), (Unit::Count, 3.0)];
        assert_eq!(words.map(|(unit, value)| value_words(unit, value)), ["1.5 ms", "250 ms", "5%", "3"]);
    }
}
