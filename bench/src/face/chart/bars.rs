//! Bars: a median each, the runs as dots, the least and the most as whiskers, and what is to be reached drawn in.

use super::{WIDTH, fitting, grid_below};
use crate::{
    face::{
        axis::{Axis, short},
        grid,
        svg::{Anchor, Svg},
    },
    record::{BoundOf, Measure},
    stats::Spread,
};

/// What bars are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Ours by the yardstick's.
    Ratio,
    /// Ours.
    Value,
}

const ROW: f64 = 40.0;
const TOP: f64 = 8.0;
/// An axis ends at so many times the largest median; what lies beyond is drawn at its end.
const BEYOND: f64 = 2.5;

struct Bar<'a> {
    measure: &'a Measure,
    spread: Spread,
    runs: Vec<f64>,
    limit: Option<f64>,
}

impl<'a> Bar<'a> {
    fn new(measure: &'a Measure, of: Of) -> Option<Self> {
        let (spread, runs) = match of {
            Of::Ratio => (measure.ratio()?, measure.ratios()),
            Of::Value => (measure.spread()?, measure.runs.clone()),
        };
        let ours = |bound: BoundOf| (bound == BoundOf::Ratio) == (of == Of::Ratio);
        let limit = measure.bound.filter(|b| ours(b.of)).map(|b| b.limit);
        Some(Self { measure, spread, runs, limit })
    }

    fn class(&self) -> &'static str {
        match self.limit.and(self.measure.met()) {
            Some(true) => "good",
            Some(false) => "bad",
            None => "plain",
        }
    }

    fn words(&self) -> String {
        let mark = match self.limit.and(self.measure.met()) {
            Some(true) => " ✓",
            Some(false) => " ✗ missed",
            None => "",
        };
        format!("{}{mark}", grid::spread(Some(self.spread)))
    }
}

/// The chart; `None` if none of the measures has such a figure, or if there is nothing to see in it.
#[must_use]
pub fn bars(id: usize, name: &str, measures: &[&Measure], of: Of) -> Option<String> {
    let bars: Vec<Bar<'_>> = measures.iter().filter_map(|m| Bar::new(m, of)).collect();
    let first = bars.first()?;
    // One bar alone, or bars without length, say less than the table does.
    let dull = bars.len() == 1 || bars.iter().all(|b| b.spread.max == 0.0);
    if of == Of::Value && dull {
        return None;
    }
    let (unit, one) = match of {
        Of::Ratio => ("ours by the yardstick's", 1.0),
        Of::Value => (first.measure.unit.as_str(), 0.0),
    };
    let most = |value: &dyn Fn(&Bar<'_>) -> f64| bars.iter().map(value).fold(one, f64::max);
    let medians = most(&|b| b.spread.median.max(b.limit.unwrap_or(0.0)));
    let high = most(&|b| b.spread.max.max(b.limit.unwrap_or(0.0))).min(BEYOND * medians) * 1.06;
    let bottom = TOP + ROW * bars.len() as f64;
    let mut svg = Svg::new(WIDTH, bottom + 34.0);
    let axis = Axis::linear(high, 4.0, WIDTH - 14.0);
    grid_below(&mut svg, &axis, (TOP, bottom), &short);
    for (at, bar) in bars.iter().enumerate() {
        draw(&mut svg, &axis, bar, TOP + ROW * at as f64);
        if of == Of::Ratio {
            let row = TOP + ROW * at as f64;
            svg.line("reference", (axis.at(1.0), row + 16.0), (axis.at(1.0), row + 36.0));
        }
    }
    svg.text("axis", (WIDTH - 14.0, bottom + 29.0), Anchor::End, unit);
    let lines = bars.iter().map(|b| format!("{}: {}", b.measure.case, b.words()));
    let title = format!("{name}: {unit}");
    Some(svg.finish(id, &title, &lines.collect::<Vec<_>>().join("; ")))
}

fn draw(svg: &mut Svg, axis: &Axis, bar: &Bar<'_>, top: f64) {
    let (from, to, class) = (axis.at(0.0), axis.at(bar.spread.median), bar.class());
    let (upper, lower) = (top + 18.0, top + 32.0);
    let middle = f64::midpoint(upper, lower);
    let words = bar.words();
    let room = 58_usize.saturating_sub(words.chars().count()).max(12);
    svg.text("label", (4.0, top + 12.0), Anchor::Start, &fitting(&bar.measure.case, room));
    svg.text(&format!("value {class}-ink"), (WIDTH - 14.0, top + 12.0), Anchor::End, &words);
    svg.rect(&format!("bar {class}"), (from, upper), (to - from, lower - upper));
    let (least, most) = (axis.at(bar.spread.min), axis.at(bar.spread.max));
    svg.line("whisker", (least, middle), (most, middle));
    for end in [least, most] {
        svg.line("whisker", (end, middle - 4.0), (end, middle + 4.0));
    }
    for run in &bar.runs {
        svg.dot("run", (axis.at(*run), middle), 2.0);
    }
    if let Some(limit) = bar.limit {
        let x = axis.at(limit);
        svg.line("limit", (x, upper - 3.0), (x, lower + 3.0));
    }
}

/// For captions: how to read it.
#[must_use]
pub fn caption(of: Of) -> &'static str {
    match of {
        Of::Ratio => {
            "Bar: median of ours by the yardstick's. Whiskers: least and most; dots: runs. Dashed: the yardstick. Heavy mark: \
             the bound."
        }
        Of::Value => "Bar: median. Whiskers: least and most; dots: runs. Heavy mark: the bound.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Better, Bound, Unit};

    #[test]
    fn a_bar_shows_its_bound_and_whether_it_is_met() {
        let measure = Measure::new("goodput", "1 <MiB>", Unit::MbPerSec, Better::Higher, vec![90.0, 91.0])
            .beside("iperf3", vec![Some(100.0), Some(100.0)])
            .bound(Bound::ratio_at_least(0.95));
        let ratio = bars(1, "goodput", &[&measure], Of::Ratio).unwrap();
        assert!(
            ratio.contains("✗ missed") && ratio.contains(r#"class="limit""#) && ratio.contains("reference"),
            "{ratio}"
        );
        assert!(ratio.contains("1 &lt;MiB&gt;") && !ratio.contains("<MiB>"), "{ratio}");
        assert_eq!(bars(4, "goodput", &[&measure], Of::Value), None, "one alone");
        let value = bars(2, "goodput", &[&measure, &measure], Of::Value).unwrap();
        assert!(!value.contains(r#"class="limit""#), "the bound is on the ratio: {value}");
        assert_eq!(bars(3, "goodput", &[], Of::Ratio), None);
    }
}
