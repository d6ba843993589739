//! Tables as rows of words, for the terminal and for the page alike.

use crate::{
    record::{BoundOf, Measure, Section},
    stats::{Spread, Summary},
};

/// A table: the first column is a name, the others are figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid {
    /// Of its measures.
    pub name: String,
    /// What it is of.
    pub title: String,
    /// With units.
    pub headings: Vec<String>,
    /// In order.
    pub rows: Vec<Row>,
}

/// A row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// As many as there are headings.
    pub cells: Vec<String>,
    /// Whether the bound is met, if there is one.
    pub met: Option<bool>,
}

/// Where there is nothing to show.
const NONE: &str = "-";

/// The tables of a section: for each name its figures, then the times behind them.
#[must_use]
pub fn grids(section: &Section) -> Vec<Grid> {
    let of = |name: &str| {
        let measures: Vec<&Measure> = section.named(name).collect();
        [Some(figures(name, &measures)), times(name, &measures)]
    };
    section.names().into_iter().flat_map(of).flatten().collect()
}

/// The headings of the measures' own columns, each once, in order.
fn own_headings<'a>(measures: &[&'a Measure]) -> Vec<&'a str> {
    let mut headings: Vec<&str> = Vec::new();
    for column in measures.iter().flat_map(|m| &m.columns) {
        if !headings.contains(&column.heading.as_str()) {
            headings.push(&column.heading);
        }
    }
    headings
}

fn column(measure: &Measure, heading: &str) -> String {
    let found = measure.columns.iter().find(|c| c.heading == heading);
    found.map_or_else(|| NONE.to_owned(), |c| number(c.value))
}

fn figures(name: &str, measures: &[&Measure]) -> Grid {
    let own = own_headings(measures);
    let (beside, bounded) =
        (measures.iter().any(|m| m.yardstick.is_some()), measures.iter().any(|m| m.bound.is_some()));
    let mut units: Vec<&str> = measures.iter().map(|m| m.unit.as_str()).collect();
    units.dedup();
    let unit = if let [one] = units[..] { format!("[{one}]") } else { String::new() };
    let mut headings = vec!["case".to_owned()];
    headings.extend(own.iter().map(|&h| h.to_owned()));
    headings.push(format!("{}{unit}", if beside { "ours" } else { "median" }));
    headings.extend(beside.then(|| [format!("yardstick{unit}"), "ratio".to_owned()]).into_iter().flatten());
    headings.extend(bounded.then(|| "bound".to_owned()));
    let row = |m: &&Measure| {
        let mut cells = vec![m.case.clone()];
        cells.extend(own.iter().map(|heading| column(m, heading)));
        let ours = spread(m.spread());
        cells.push(if unit.is_empty() { format!("{ours} {}", m.unit.as_str()) } else { ours });
        if beside {
            cells.extend([spread(m.yardstick_spread()), ratio(m)]);
        }
        cells.extend(bounded.then(|| verdict(m)));
        Row { cells, met: m.met() }
    };
    Grid { name: name.to_owned(), title: title(name, measures), headings, rows: measures.iter().map(row).collect() }
}

/// "goodput, beside iperf3, one stream".
fn title(name: &str, measures: &[&Measure]) -> String {
    let mut beside: Vec<&str> = Vec::new();
    for yardstick in measures.iter().filter_map(|m| m.yardstick.as_ref()) {
        if !beside.contains(&yardstick.name.as_str()) {
            beside.push(&yardstick.name);
        }
    }
    if beside.is_empty() { name.to_owned() } else { format!("{name}, beside {}", beside.join("; ")) }
}

/// "\>= 0.95 x: met", "<= 0 in every run: MISSED by 1".
fn verdict(measure: &Measure) -> String {
    let Some(bound) = measure.bound else { return NONE.to_owned() };
    let words = bound.words();
    match (measure.met(), bound.of, measure.bounded()) {
        (Some(true), ..) => format!("{words}: met"),
        (Some(false), BoundOf::EveryRun, Some(s)) => format!("{words}: MISSED (up to {})", number(s.max)),
        (Some(false), ..) => format!("{words}: MISSED"),
        (None, ..) => format!("{words}: not measured"),
    }
}

/// perftest's columns of latencies, of all runs together.
fn times(name: &str, measures: &[&Measure]) -> Option<Grid> {
    let timed: Vec<(&&Measure, Summary)> = measures
        .iter()
        .filter_map(|m| m.times.as_ref().filter(|t| !t.is_empty()).map(|t| (m, Summary::from(t))))
        .collect();
    if timed.is_empty() {
        return None;
    }
    let sized = timed.iter().any(|(m, _)| m.columns.iter().any(|c| c.heading == "#bytes"));
    let mut headings = vec!["case".to_owned()];
    headings.extend(sized.then(|| "#bytes".to_owned()));
    headings.extend(Summary::HEADINGS.map(str::to_owned));
    let row = |(m, summary): &(&&Measure, Summary)| {
        let mut cells = vec![m.case.clone()];
        cells.extend(sized.then(|| column(m, "#bytes")));
        let values = summary.values();
        cells.push(number(values[0]));
        cells.extend(values[1..].iter().map(|v| format!("{v:.2}")));
        Row { cells, met: None }
    };
    let title = format!("{name}: times, all runs");
    Some(Grid { name: name.to_owned(), title, headings, rows: timed.iter().map(row).collect() })
}

/// "0.970 (0.910..1.021)".
#[must_use]
pub fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(|| NONE.to_owned(), |s| format!("{} ({}..{})", number(s.median), number(s.min), number(s.max)))
}

/// The ratio; of how many runs, if the yardstick gave no figure beside some.
#[must_use]
pub fn ratio(measure: &Measure) -> String {
    let (ratio, runs) = (measure.ratio(), measure.runs.len());
    let few = ratio.filter(|r| r.runs < runs).map(|r| format!(", {} of {runs} runs", r.runs)).unwrap_or_default();
    format!("{}{few}", spread(ratio))
}

/// Whole numbers whole, others with as many digits as help: "1048576", "4270.77", "0.017", "0.000213".
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value.fract() == 0.0 && size < 1e15 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.2}")
    } else if size >= 0.01 {
        format!("{value:.3}")
    } else {
        format!("{value:.6}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Better, Bound, Unit};
    use mc_core::histogram::Histogram;
    use std::time::Duration;

    fn section() -> Section {
        let mut times = Histogram::new();
        times.record(Duration::from_micros(20));
        Section::new("transport", "")
            .measure(
                Measure::new("goodput", "4 KiB, depth 1", Unit::MbPerSec, Better::Higher, vec![7.0, 8.0, 9.0])
                    .column("#bytes", 4096.0)
                    .times(times),
            )
            .measure(
                Measure::new("goodput", "1 MiB, depth 4", Unit::MbPerSec, Better::Higher, vec![90.0, 91.0])
                    .beside("iperf3", vec![Some(100.0), None])
                    .bound(Bound::ratio_at_least(0.95)),
            )
    }

    #[test]
    fn figures_of_one_name_share_a_table_and_its_columns() {
        let [figures, times] = &grids(&section())[..] else { panic!("two tables") };
        assert_eq!(figures.title, "goodput, beside iperf3");
        assert_eq!(figures.headings, ["case", "#bytes", "ours[MB/sec]", "yardstick[MB/sec]", "ratio", "bound"]);
        assert_eq!(figures.rows[0].cells, ["4 KiB, depth 1", "4096", "8 (7..9)", "-", "-", "-"]);
        assert_eq!(
            figures.rows[1].cells[1..],
            ["-", "90.50 (90..91)", "100 (100..100)", "0.900 (0.900..0.900), 1 of 2 runs", ">= 0.95 x: MISSED"]
        );
        assert_eq!((figures.rows[0].met, figures.rows[1].met), (None, Some(false)));
        assert_eq!((times.rows.len(), times.headings[3].as_str()), (1, "t_min[usec]"));
    }

    #[test]
    fn numbers_have_the_digits_that_help() {
        let words = [1_048_576.0, 4270.774, 1.0266, 0.000_213_4, 0.0, -3.5].map(number);
        assert_eq!(words, ["1048576", "4270.77", "1.027", "0.000213", "0", "-3.500"]);
    }

    #[test]
    fn units_that_differ_stand_with_the_figures() {
        let odd = section().measure(Measure::new("goodput", "x", Unit::Percent, Better::Higher, vec![3.0]));
        let grid = &grids(&odd)[0];
        assert_eq!((grid.headings[2].as_str(), grid.rows[2].cells[2].as_str()), ("ours", "3 (3..3) %"));
    }
}
