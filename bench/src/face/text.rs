//! For a terminal: a head, then for each section its settings, tables, and what must be known beside them.

use super::grid::{Grid, grids};
use crate::record::{Missing, Record, Section};

/// All of it.
#[must_use]
pub fn lines(record: &Record) -> Vec<String> {
    let mut lines = vec![
        record.machine.program(),
        format!("command  mc-bench {}", record.command.join(" ")),
        format!("started  {}, took {:.1} s", record.started(), record.took_s),
        format!("machine  {}", record.machine.words()),
        format!("kernel   {}", record.machine.kernel),
    ];
    lines.extend(record.devices.iter().map(|device| format!("device   {}", device.line())));
    lines.extend(record.caveats.iter().map(|note| format!("note     {note}")));
    lines.extend(record.sections.iter().flat_map(section));
    lines.extend(verdict(record));
    lines.into_iter().map(|line| plain(&line)).collect()
}

/// Without control characters: a record may come from anywhere, and a terminal obeys them.
#[must_use]
pub fn plain(line: &str) -> String {
    line.replace(char::is_control, "\u{FFFD}")
}

fn section(section: &Section) -> Vec<String> {
    let mut lines = vec![String::new(), format!("== {}: {}", section.kind, section.title)];
    if !section.command.is_empty() {
        lines.push(format!(" command: mc-bench {}", section.command.join(" ")));
    }
    lines.extend(section.settings.iter().map(|s| format!(" {}: {}", s.name, s.value)));
    lines.extend(section.seed.map(|seed| format!(" seed: {seed}")));
    lines.extend(section.notes.iter().map(|note| format!(" note: {note}")));
    for grid in grids(section) {
        lines.push(String::new());
        lines.extend(table(&grid));
    }
    let over_time = |t: &crate::record::Timeline| {
        format!(" over time: {} of {}: {} points (in the record, and on the page)", t.name, t.case, t.points.len())
    };
    lines.extend(section.timelines.iter().map(over_time));
    lines.extend(section.missing.iter().map(missing));
    lines.extend(section.failures.iter().map(|why| format!(" failed: {why}")));
    lines
}

fn missing(missing: &Missing) -> String {
    if missing.why.contains(&missing.what) {
        format!(" missing: {}", missing.why)
    } else {
        format!(" missing: {}: {}", missing.what, missing.why)
    }
}

/// How many bounds were met, and which were not.
fn verdict(record: &Record) -> Vec<String> {
    let bounded: Vec<_> = record.measures().filter_map(|(s, m)| m.met().map(|met| (s, m, met))).collect();
    if bounded.is_empty() {
        return Vec::new();
    }
    let met = bounded.iter().filter(|(.., met)| *met).count();
    let missed = bounded.iter().filter(|(.., met)| !met).map(|(section, m, _)| {
        let bound = m.bound.map_or_else(String::new, |b| b.words());
        let found = super::grid::spread(m.bounded());
        format!("MISSED   {}: {}, {}: {found}, bound {bound}", section.kind, m.name, m.case)
    });
    let count = format!("bounds   {met} of {} met", bounded.len());
    [String::new(), count].into_iter().chain(missed).collect()
}

/// Right-aligned columns under their headings; the first is aligned left.
#[must_use]
pub fn table(grid: &Grid) -> Vec<String> {
    let rows: Vec<&Vec<String>> = std::iter::once(&grid.headings).chain(grid.rows.iter().map(|r| &r.cells)).collect();
    let wide = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..grid.headings.len()).map(wide).collect();
    let line = |row: &&Vec<String>| {
        let cell = |(at, (text, width)): (usize, (&String, &usize))| {
            if at == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") }
        };
        let cells: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
        format!("   {}", cells.join("  ")).trim_end().to_owned()
    };
    std::iter::once(format!(" {}", grid.title)).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        face::grid::Row,
        record::{Begun, Better, Bound, Measure, Unit},
    };

    #[test]
    fn columns_are_aligned() {
        let row = Row { cells: vec!["a long name".to_owned(), "1.00".to_owned()], met: None };
        let grid = Grid { headings: vec!["case".to_owned(), "MB/sec".to_owned()], rows: vec![row], ..Grid::default() };
        assert_eq!(table(&grid), [" ", "   case         MB/sec", "   a long name    1.00"]);
    }

    #[test]
    fn a_terminal_is_told_nothing_but_text() {
        let record = Begun::now().done(vec![Section::new("x", "\u{1b}]0;owned\u{7}")]);
        assert!(!lines(&record).iter().any(|l| l.contains(char::is_control)));
    }

    #[test]
    fn all_is_said_and_what_was_missed_is_said_last() {
        let lost = Measure::new("lost", "under load", Unit::Count, Better::Lower, vec![0.0, 2.0, 0.0]);
        let mut section = Section::new("beats", "Beats").device("rxe0").setting("slab", "1 MiB").note("careful");
        section.measures.push(lost.bound(Bound::every_run_at_most(0.0)));
        let why = "iperf3 is not installed: install the Debian package iperf3".to_owned();
        section.missing.push(Missing { what: "iperf3".to_owned(), why, package: Some("iperf3".to_owned()) });
        section.failures.push("4 KiB: the link went down".to_owned());
        let text = lines(&Begun::now().done(vec![section])).join("\n");
        for part in ["device   rxe0", "SoftRoCE", "== beats: Beats", " slab: 1 MiB", " note: careful"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains(" missing: iperf3 is not installed") && text.contains(" failed: 4 KiB"), "{text}");
        assert!(text.ends_with("MISSED   beats: lost, under load: 0 (0..2), bound <= 0 in every run"), "{text}");
    }
}
