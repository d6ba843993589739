//! Charts as inline SVG, narrow enough for a phone and sharp on a desktop: [`bars`], [`shapes`] and [`tails`] of
//! distributions, [`timeline`].

pub mod bars;
pub mod shapes;
pub mod tails;
pub mod timeline;

use super::{
    axis::Axis,
    svg::{Anchor, Svg},
};
use mc_core::histogram::Histogram;

/// Of every chart, in the units of its picture.
pub const WIDTH: f64 = 400.0;
/// Colours there are for series, and so the most curves of one chart.
pub const COLOURS: usize = 6;
/// From a chart's left edge to the plot, where values stand beside it.
const LEFT: f64 = 56.0;
/// From the plot to the right edge.
const RIGHT: f64 = 14.0;

/// Times under a name.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// Of the case.
    pub label: &'a str,
    /// At least one.
    pub times: &'a Histogram,
}

/// The class that gives series number `at` its colour.
fn colour(at: usize) -> String {
    format!("s{}", at % COLOURS)
}

/// "p50 13.2 µs, p99 52.7 µs, p99.9 1.2 ms, max 3 ms, n 1000".
fn words(times: &Histogram) -> String {
    let at = |quantile| super::axis::time(us(times.at(quantile)));
    let max = super::axis::time(us(times.max()));
    format!("p50 {}, p99 {}, p99.9 {}, max {max}, n {}", at(0.5), at(0.99), at(0.999), times.count())
}

fn us(time: std::time::Duration) -> f64 {
    crate::units::us(time)
}

/// The longest label that fits, with an ellipsis if it had to be cut.
fn fitting(label: &str, longest: usize) -> String {
    if label.chars().count() <= longest {
        return label.to_owned();
    }
    label.chars().take(longest - 1).chain(std::iter::once('…')).collect()
}

/// Lines and values of a horizontal axis, between `top` and `bottom`.
fn grid_below(svg: &mut Svg, axis: &Axis, (top, bottom): (f64, f64), words: &dyn Fn(f64) -> String) {
    let mut free = f64::MIN;
    for value in axis.ticks() {
        let x = axis.at(value);
        svg.line("grid", (x, top), (x, bottom));
        let text = words(value);
        // (About 6 units a character at this size.)
        let half = text.chars().count() as f64 * 3.1;
        let place = x.clamp(half, WIDTH - half);
        if place - half > free {
            svg.text("tick", (place, bottom + 14.0), Anchor::Middle, &text);
            free = place + half + 4.0;
        }
    }
}

/// Lines and values of a vertical axis, between `left` and `right`.
fn grid_beside(svg: &mut Svg, axis: &Axis, (left, right): (f64, f64), words: &dyn Fn(f64) -> String) {
    for value in axis.ticks() {
        let y = axis.at(value);
        svg.line("grid", (left, y), (right, y));
        svg.text("tick", (left - 6.0, y + 3.5), Anchor::End, &words(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cut_at_characters() {
        assert_eq!(fitting("µµµµ", 4), "µµµµ");
        assert_eq!(fitting("µµµµµ", 4), "µµµ…");
    }
}
