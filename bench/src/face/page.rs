//! report.html: one file that needs nothing else. Nothing is fetched and no script runs; it is well-formed XML, too.
//!
//! ```text
//!   head: command line, verdict in numbers, machine, caveats
//!   bounds: what was to be reached, and what was found
//!   section ── settings, notes
//!      └─ name ── bars │ shapes and tails of distributions │ tables       time lines        what is missing
//! ```

use super::{
    chart::{
        COLOURS, Series,
        bars::{self, Of},
        shapes, tails, timeline,
    },
    grid::{self, Grid},
    svg::escape,
};
use crate::record::{Measure, Record, Section};
use std::fmt::{Display, Write};

/// The page's looks.
const STYLE: &str = include_str!("style.css");
/// Distributions in one figure of shapes.
const SHAPES: usize = 8;

/// All of it.
#[must_use]
pub fn html(record: &Record) -> String {
    let mut page = Page::default();
    let title = format!("mc-bench {}", record.command.join(" "));
    page.put(format_args!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&title)
    ));
    page.head(record);
    page.put("<main>\n");
    page.bounds(record);
    for (at, section) in record.sections.iter().enumerate() {
        page.section(at, section);
    }
    page.put("</main>\n<footer>MB/sec are 2^20 bytes a second, as in perftest. A figure is the median over runs, with the least ");
    page.put(
        "and the most; ours and the yardstick's are taken in turns, and a ratio is made of neighbours.</footer>\n",
    );
    page.put("</body>\n</html>\n");
    page.text
}

/// The page under way.
#[derive(Debug, Default)]
struct Page {
    text: String,
    /// So many so far: each has its number.
    figures: usize,
}

impl Page {
    fn put(&mut self, markup: impl Display) {
        let _ = write!(self.text, "{markup}");
    }

    fn head(&mut self, record: &Record) {
        let machine = &record.machine;
        self.put("<header>\n");
        let (started, commit) = (record.started(), escape(&machine.commit));
        self.put(format_args!("<p class=\"over\">{started}, commit {commit}</p>\n"));
        let words: String =
            record.command.iter().map(|word| format!(" <span class=\"word\">{}</span>", escape(word))).collect();
        self.put(format_args!("<h1>mc-bench<code>{words}</code></h1>\n"));
        self.tiles(record);
        let mut facts =
            vec![("machine", machine.words()), ("kernel", machine.kernel.clone()), ("program", machine.program())];
        facts.extend(record.devices.iter().map(|device| ("device", device.line())));
        self.facts(&facts);
        self.notes(record.caveats.iter().map(|note| ("warn", format!("Note: {note}"))));
        if record.sections.len() > 1 {
            self.put("<nav aria-label=\"sections\">");
            for (at, section) in record.sections.iter().enumerate() {
                self.put(format_args!("<a href=\"#section-{at}\">{}</a>", escape(&section.kind)));
            }
            self.put("</nav>\n");
        }
        self.put("</header>\n");
    }

    fn tiles(&mut self, record: &Record) {
        let bounds: Vec<bool> = record.measures().filter_map(|(_, m)| m.met()).collect();
        let (met, all) = (bounds.iter().filter(|met| **met).count(), bounds.len());
        let missing: usize = record.sections.iter().map(|s| s.missing.len()).sum();
        let failures: usize = record.sections.iter().map(|s| s.failures.len()).sum();
        let class = if all == 0 {
            ""
        } else if met == all {
            "met"
        } else {
            "missed"
        };
        self.put("<div class=\"tiles\">");
        self.put(format_args!(
            "<div class=\"tile\"><b class=\"{class}\">{met} of {all}</b><span>bounds met</span></div>"
        ));
        let tile = |value: String, what: &str| format!("<div class=\"tile\"><b>{value}</b><span>{what}</span></div>");
        self.put(tile(record.measures().count().to_string(), "figures"));
        self.put(tile(took(record.took_s), "taken in"));
        self.put(tile(missing.to_string(), "not to be had"));
        self.put(tile(failures.to_string(), "failed, or taken again"));
        self.put("</div>\n");
    }

    fn facts(&mut self, facts: &[(&str, String)]) {
        self.put("<dl>");
        for (name, value) in facts {
            self.put(format_args!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value)));
        }
        self.put("</dl>\n");
    }

    /// A list of notes, each with its class.
    fn notes(&mut self, notes: impl Iterator<Item = (&'static str, String)>) {
        let items: String =
            notes.map(|(class, note)| format!("<li class=\"{class}\">{}</li>", escape(&note))).collect();
        if !items.is_empty() {
            self.put(format_args!("<ul class=\"notes\">{items}</ul>\n"));
        }
    }

    fn bounds(&mut self, record: &Record) {
        let bounded: Vec<(&Section, &Measure)> = record.measures().filter(|(_, m)| m.bound.is_some()).collect();
        if bounded.is_empty() {
            return;
        }
        self.put("<section class=\"card\"><h2>What was to be reached</h2>\n");
        let headings = ["what", "", "found", "bound"].map(str::to_owned).to_vec();
        let rows = bounded.into_iter().map(|(section, m)| {
            let word = match m.met() {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            let bound = m.bound.map_or_else(String::new, |b| b.words());
            let what = format!("{}: {}, {}", section.kind, m.name, m.case);
            grid::Row { cells: vec![what, word.to_owned(), grid::spread(m.bounded()), bound], met: m.met() }
        });
        let (name, title) = (String::new(), "bounds, by the median over runs".to_owned());
        self.table(&Grid { name, title, headings, rows: rows.collect() });
        self.put("</section>\n");
    }

    fn section(&mut self, at: usize, section: &Section) {
        self.put(format_args!("<section class=\"card\" id=\"section-{at}\">\n"));
        let (kind, title) = (escape(&section.kind), escape(&section.title));
        self.put(format_args!("<p class=\"over\">{kind}, {}</p>\n<h2>{title}</h2>\n", took(section.took_s)));
        let mut facts: Vec<(&str, String)> = Vec::new();
        if !section.command.is_empty() {
            facts.push(("command", format!("mc-bench {}", section.command.join(" "))));
        }
        facts.extend(section.settings.iter().map(|s| (s.name.as_str(), s.value.clone())));
        facts.extend(section.seed.map(|seed| ("seed", seed.to_string())));
        self.facts(&facts);
        self.notes(section.notes.iter().map(|note| ("", note.clone())));
        self.notes(section.missing.iter().map(|m| ("warn", format!("Not to be had: {}: {}", m.what, m.why))));
        self.notes(section.failures.iter().map(|why| ("fail", format!("Failed: {why}"))));
        let grids = grid::grids(section);
        for name in section.names() {
            let measures: Vec<&Measure> = section.named(name).collect();
            self.put(format_args!("<h3>{}</h3>\n", escape(name)));
            self.charts(name, &measures);
            grids.iter().filter(|g| g.name == name).for_each(|grid| self.table(grid));
        }
        self.timelines(section);
        self.put("</section>\n");
    }

    fn charts(&mut self, name: &str, measures: &[&Measure]) {
        let timed = measures.iter().filter_map(|m| {
            let times = m.times.as_ref().filter(|t| !t.is_empty())?;
            Some(Series { label: &m.case, times })
        });
        let series: Vec<Series<'_>> = timed.collect();
        self.put("<div class=\"charts\">\n<div class=\"stack\">");
        self.bars(name, measures);
        for some in series.chunks(COLOURS) {
            let chart = tails::tails(self.figures, name, some);
            self.figure("Tail", "The time that so many per cent do not exceed. All runs.", chart);
        }
        self.put("</div>\n<div class=\"stack\">");
        for some in series.chunks(SHAPES) {
            let chart = shapes::shapes(self.figures, name, some);
            self.figure("Distribution", "Height: root of how often. Tall mark: p50; short mark: p99. All runs.", chart);
        }
        self.put("</div>\n</div>\n");
    }

    /// Ratios where there are any, else the figures themselves if they have one unit.
    fn bars(&mut self, name: &str, measures: &[&Measure]) {
        let of = if measures.iter().any(|m| m.ratio().is_some()) { Of::Ratio } else { Of::Value };
        let alike = measures.windows(2).all(|pair| pair[0].unit == pair[1].unit);
        let chart = if of == Of::Ratio || alike { bars::bars(self.figures, name, measures, of) } else { None };
        let heading = if of == Of::Ratio { "Beside the yardstick" } else { "Run by run" };
        self.figure(heading, bars::caption(of), chart);
    }

    fn timelines(&mut self, section: &Section) {
        if section.timelines.is_empty() {
            return;
        }
        self.put("<h3>Over time</h3>\n<div class=\"charts\">\n");
        for (at, line) in section.timelines.iter().enumerate() {
            let caption = format!("{}, [{}]", line.case, line.unit.as_str());
            let chart = timeline::timeline(self.figures, line, at);
            self.figure(&line.name, &caption, chart);
        }
        self.put("</div>\n");
    }

    fn figure(&mut self, heading: &str, caption: &str, chart: Option<String>) {
        let Some(chart) = chart else { return };
        let (heading, caption) = (escape(heading), escape(caption));
        self.put(format_args!("<figure><figcaption>{heading}<small>{caption}</small></figcaption>{chart}</figure>\n"));
        self.figures += 1;
    }

    fn table(&mut self, grid: &Grid) {
        let title = escape(&grid.title);
        self.put(format_args!("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\">"));
        self.put(format_args!("<table><caption>{title}</caption>\n<thead><tr>"));
        for heading in &grid.headings {
            self.put(format_args!("<th scope=\"col\">{}</th>", escape(heading)));
        }
        self.put("</tr></thead>\n<tbody>\n");
        for row in &grid.rows {
            self.row(row);
        }
        self.put("</tbody></table></div>\n");
    }

    fn row(&mut self, row: &grid::Row) {
        self.put("<tr>");
        for (at, cell) in row.cells.iter().enumerate() {
            let cell = escape(cell);
            let class = match row.met {
                Some(true) if cell.ends_with("met") => " class=\"met\"",
                Some(false) if cell.contains("MISSED") => " class=\"missed\"",
                _ => "",
            };
            if at == 0 {
                self.put(format_args!("<th scope=\"row\">{cell}</th>"));
            } else {
                self.put(format_args!("<td{class}>{cell}</td>"));
            }
        }
        self.put("</tr>\n");
    }
}

/// "12.3 s", "4.2 min".
fn took(seconds: f64) -> String {
    if seconds < 100.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}
