//! A comparison for people.

use super::{Basis, Comparison, Pair, Side, Verdict};
use crate::face::{
    grid::{self, Grid, Row},
    text,
};

/// All of it.
pub(super) fn lines(found: &Comparison) -> Vec<String> {
    let mut lines = vec![side("A", &found.a), side("B", &found.b)];
    lines.extend(found.warnings.iter().map(|w| format!("warning  {w}")));
    lines.push(format!(
        "method   change: median of B by median of A, with the {} % interval of {} draws (percentile bootstrap over runs, seed \
         {}); within {} % is the same",
        found.confidence_percent, found.resamples, found.seed, found.margin_percent
    ));
    lines.push(String::new());
    lines.extend(text::table(&table(found)));
    lines.extend(found.only_a.iter().map(|figure| format!(" only in A: {figure}")));
    lines.extend(found.only_b.iter().map(|figure| format!(" only in B: {figure}")));
    lines.push(String::new());
    lines.push(counts(found));
    lines.into_iter().map(|line| text::plain(&line)).collect()
}

fn side(name: &str, side: &Side) -> String {
    let Side { file, command, commit, started } = side;
    format!("{name}        {file}: {started}, commit {commit}: mc-bench {}", command.join(" "))
}

fn table(found: &Comparison) -> Grid {
    let headings = ["figure", "of", "A", "B", "change", "interval", "verdict"].map(str::to_owned).to_vec();
    let rows = found.pairs.iter().map(|pair| Row { cells: cells(pair), met: None });
    Grid { name: String::new(), title: "B beside A".to_owned(), headings, rows: rows.collect() }
}

fn cells(pair: &Pair) -> Vec<String> {
    let of = match pair.basis {
        Basis::Ratio => "ratio to yardstick",
        Basis::Value => pair.unit.as_str(),
    };
    let change = pair.change.map_or_else(|| "-".to_owned(), |c| format!("{c:.3}"));
    let interval = pair.interval.map_or_else(|| "-".to_owned(), |i| format!("{:.3}..{:.3}", i.low, i.high));
    vec![
        format!("{}: {}, {}", pair.section, pair.name, pair.case),
        of.to_owned(),
        grid::spread(pair.a),
        grid::spread(pair.b),
        change,
        interval,
        pair.verdict.as_str().to_owned(),
    ]
}

fn counts(found: &Comparison) -> String {
    let of = |verdict| found.pairs.iter().filter(|p| p.verdict == verdict).count();
    format!(
        "verdict  {} worse, {} better, {} the same, {} different, {} inconclusive",
        of(Verdict::Worse),
        of(Verdict::Better),
        of(Verdict::Same),
        of(Verdict::Differs),
        of(Verdict::Inconclusive)
    )
}
