//! A section as text: a table for each figure.

use crate::{
    record::{BoundOf, BoundSide, Measure, Section},
    table::{Table, spread},
};

/// The lines.
#[must_use]
pub fn lines(section: &Section) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", section.kind, section.title)];
    lines.extend(section.settings.iter().map(|s| format!("setting  {}: {}", s.name, s.value)));
    lines.extend(section.seed.map(|seed| format!("seed     {seed}")));
    lines.extend(section.notes.iter().map(|note| format!("note     {note}")));
    let mut names: Vec<&str> = section.measures.iter().map(|m| m.name.as_str()).collect();
    names.dedup();
    for name in names {
        lines.push(String::new());
        lines.extend(table(section.measures.iter().filter(|m| m.name == name)));
    }
    lines.push(String::new());
    lines.extend(section.missing.iter().map(|m| format!("missing  {}: {}", m.what, m.why)));
    lines.extend(section.failures.iter().map(|why| format!("failed   {why}")));
    lines
}

fn table<'a>(measures: impl Iterator<Item = &'a Measure> + Clone) -> Vec<String> {
    let Some(first) = measures.clone().next() else { return vec![] };
    let unit = first.unit.as_str();
    let beside = measures.clone().find_map(|m| m.yardstick.as_ref()).map_or("-", |y| &y.name);
    let heads = [&first.name, &format!("ours[{unit}]"), &format!("{beside}[{unit}]"), "ratio", "bound"];
    let mut table = Table::new(&[&heads[..], &["99%[usec]"]].concat());
    for m in measures {
        let bound = m.bound.map_or_else(String::new, |b| {
            let sign = if b.side == BoundSide::AtLeast { ">=" } else { "<=" };
            let of = if b.of == BoundOf::Ratio { "ratio " } else { "" };
            let met = m.met().map_or("?", |met| if met { "met" } else { "MISSED" });
            format!("{of}{sign} {} {met}", b.limit)
        });
        let p99 = m.times.as_ref().map_or_else(String::new, |t| format!("{:.1}", t.at(0.99).as_secs_f64() * 1e6));
        let ours = spread(m.spread(), 3);
        table.row(vec![m.case.clone(), ours, spread(m.yardstick_spread(), 3), spread(m.ratio(), 3), bound, p99]);
    }
    table.lines()
}
