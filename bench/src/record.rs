//! What any command of `mc-bench` leaves behind: one record, of which every output is a face.
//!
//! ```text
//! Record ── machine, program, command line
//!   └─ Section ── one command: settings, seed, what failed, yardsticks that were not there
//!        ├─ Measure ── one figure of one case, run by run: ours, the yardstick's beside it, a bound on their ratio
//!        │    └─ Histogram of the times behind it, if it is made of times
//!        └─ Timeline ── values over time: pauses, silences
//! ```
//!
//! Ours and the yardstick's are taken in turns, and a ratio is made of neighbours: whatever else the machine did hit both.
//! A figure is the median over runs; its spread is the least and the most.

use crate::{machine::Machine, stats::Spread};
use mc_core::histogram::Histogram;
use serde::{Deserialize, Serialize};

/// Of the JSON: rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 2;

/// Everything that one invocation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The command line, without the program's path.
    pub command: Vec<String>,
    /// When it began: seconds since 1970.
    pub started_unix_s: f64,
    /// How long it took.
    pub took_s: f64,
    /// Where, and by which program.
    pub machine: Machine,
    /// What must be known beside the figures.
    pub caveats: Vec<String>,
    /// A section for each command.
    pub sections: Vec<Section>,
}

/// What one command found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Section {
    /// The command: "transport", "capture".
    pub kind: String,
    /// For people: what was measured over what.
    pub title: String,
    /// How, in the order in which they are shown.
    pub settings: Vec<Setting>,
    /// Of the workload's random numbers, if it has any.
    pub seed: Option<u64>,
    /// How long it took.
    pub took_s: f64,
    /// Figures; those of one name form a table.
    pub measures: Vec<Measure>,
    /// Values over time.
    pub timelines: Vec<Timeline>,
    /// Yardsticks and measurements that could not be had, each once.
    pub missing: Vec<Missing>,
    /// Measurements of ours that failed and were taken again, or were given up.
    pub failures: Vec<String>,
    /// What must be known beside these figures.
    pub notes: Vec<String>,
}

/// How something was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// What.
    pub name: String,
    /// With its unit.
    pub value: String,
}

/// What could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// "iperf3".
    pub what: String,
    /// Why.
    pub why: String,
    /// The Debian package that has it, if that is all that is missing.
    pub package: Option<String>,
}

/// One figure of one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measure {
    /// What: "goodput", "pause". One table for each.
    pub name: String,
    /// Of what: "1 MiB, depth 4". Name and case together are the figure's identity, for `compare`.
    pub case: String,
    /// Of `runs` and of the yardstick's.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// Ours, run by run.
    pub runs: Vec<f64>,
    /// Theirs, if there is one.
    pub yardstick: Option<Yardstick>,
    /// What is to be reached.
    pub bound: Option<Bound>,
    /// The times behind it, of all runs.
    pub times: Option<Histogram>,
    /// More columns of its table, in order: perftest's, or what the case is made of.
    pub columns: Vec<Column>,
}

/// The other tool's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yardstick {
    /// Its name and options.
    pub name: String,
    /// In the same unit, each taken just before ours; none where it gave no figure.
    pub runs: Vec<Option<f64>>,
}

/// One more column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its heading, with the unit.
    pub heading: String,
    /// The median run's value, or the case's.
    pub value: f64,
}

/// Units, as perftest writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// 2^20 bytes a second.
    #[serde(rename = "MB/sec")]
    MbPerSec,
    /// Microseconds.
    #[serde(rename = "usec")]
    Usec,
    /// Seconds.
    #[serde(rename = "sec")]
    Sec,
    /// Of a hundred.
    #[serde(rename = "%")]
    Percent,
    /// How many.
    #[serde(rename = "count")]
    Count,
    /// One by another, in the same unit.
    #[serde(rename = "ratio")]
    Ratio,
}

impl Unit {
    /// As in a heading.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MbPerSec => "MB/sec",
            Self::Usec => "usec",
            Self::Sec => "sec",
            Self::Percent => "%",
            Self::Count => "count",
            Self::Ratio => "ratio",
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Goodput.
    Higher,
    /// Times.
    Lower,
    /// It only describes.
    Neither,
}

/// What is to be reached, by the median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// What the limit is of.
    pub of: BoundOf,
    /// At least or at most?
    pub side: BoundSide,
    /// The limit.
    pub limit: f64,
}

/// What a bound is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundOf {
    /// Ours by the yardstick's.
    Ratio,
    /// Ours.
    Value,
}

/// Which side of the limit is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundSide {
    /// The limit or more.
    AtLeast,
    /// The limit or less.
    AtMost,
}

/// Values over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// "pauses".
    pub name: String,
    /// Whose, and under what.
    pub case: String,
    /// Of the values.
    pub unit: Unit,
    /// Seconds since the measurement began, and the value; in order of time.
    pub points: Vec<(f64, f64)>,
}

impl Bound {
    /// Ours by the yardstick's must not be less.
    #[must_use]
    pub fn ratio_at_least(limit: f64) -> Self {
        Self { of: BoundOf::Ratio, side: BoundSide::AtLeast, limit }
    }

    /// Ours by the yardstick's must not be more.
    #[must_use]
    pub fn ratio_at_most(limit: f64) -> Self {
        Self { of: BoundOf::Ratio, side: BoundSide::AtMost, limit }
    }

    /// Ours must not be less.
    #[must_use]
    pub fn at_least(limit: f64) -> Self {
        Self { of: BoundOf::Value, side: BoundSide::AtLeast, limit }
    }

    /// Ours must not be more.
    #[must_use]
    pub fn at_most(limit: f64) -> Self {
        Self { of: BoundOf::Value, side: BoundSide::AtMost, limit }
    }

    fn is_met_by(&self, value: f64) -> bool {
        match self.side {
            BoundSide::AtLeast => value >= self.limit,
            BoundSide::AtMost => value <= self.limit,
        }
    }
}

impl Measure {
    /// A figure, run by run, without a yardstick.
    pub fn new(name: impl Into<String>, case: impl Into<String>, unit: Unit, better: Better, runs: Vec<f64>) -> Self {
        let (name, case) = (name.into(), case.into());
        Self { name, case, unit, better, runs, yardstick: None, bound: None, times: None, columns: vec![] }
    }

    /// With the yardstick's figures, each taken just before ours.
    #[must_use]
    pub fn beside(mut self, name: impl Into<String>, runs: Vec<Option<f64>>) -> Self {
        self.yardstick = Some(Yardstick { name: name.into(), runs });
        self
    }

    /// With something to reach.
    #[must_use]
    pub fn bound(mut self, bound: Bound) -> Self {
        self.bound = Some(bound);
        self
    }

    /// With the times behind it.
    #[must_use]
    pub fn times(mut self, times: Histogram) -> Self {
        self.times = Some(times);
        self
    }

    /// With one more column.
    #[must_use]
    pub fn column(mut self, heading: impl Into<String>, value: f64) -> Self {
        self.columns.push(Column { heading: heading.into(), value });
        self
    }

    /// Ours.
    #[must_use]
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.runs)
    }

    /// Theirs.
    #[must_use]
    pub fn yardstick_spread(&self) -> Option<Spread> {
        let yardstick = self.yardstick.as_ref()?;
        Spread::of(&yardstick.runs.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// Ours by theirs, run by run, where both are there.
    #[must_use]
    pub fn ratio(&self) -> Option<Spread> {
        let theirs = &self.yardstick.as_ref()?.runs;
        let pairs = self.runs.iter().zip(theirs).filter_map(|(o, t)| t.filter(|t| *t > 0.0).map(|t| o / t));
        Spread::of(&pairs.collect::<Vec<_>>())
    }

    /// What the bound is on; none without a bound, or without the figure that it is on.
    #[must_use]
    pub fn bounded(&self) -> Option<Spread> {
        match self.bound?.of {
            BoundOf::Ratio => self.ratio(),
            BoundOf::Value => self.spread(),
        }
    }

    /// Whether the bound is met.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        Some(self.bound?.is_met_by(self.bounded()?.median))
    }
}

impl Section {
    /// One without figures.
    pub fn new(kind: impl Into<String>, title: impl Into<String>) -> Self {
        Self { kind: kind.into(), title: title.into(), ..Self::default() }
    }

    /// Adds a setting.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl std::fmt::Display) -> Self {
        self.settings.push(Setting { name: name.into(), value: value.to_string() });
        self
    }

    /// Whether a bound was missed.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.measures.iter().any(|m| m.met() == Some(false))
    }
}

impl Record {
    /// Whether a bound was missed.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.sections.iter().any(Section::missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goodput(theirs: Vec<Option<f64>>) -> Measure {
        Measure::new("goodput", "1 MiB, depth 4", Unit::MbPerSec, Better::Higher, vec![90.0, 110.0, 100.0])
            .beside("ib_write_bw", theirs)
            .bound(Bound::ratio_at_least(0.95))
    }

    #[test]
    fn ratios_are_made_of_neighbours() {
        let m = goodput(vec![Some(100.0), Some(100.0), Some(50.0)]);
        assert_eq!((m.ratio().unwrap().median, m.met()), (1.1, Some(true)));
        assert_eq!(goodput(vec![None, Some(0.0), Some(200.0)]).met(), Some(false));
    }

    #[test]
    fn without_a_yardstick_a_bound_on_the_ratio_says_nothing() {
        assert_eq!((goodput(vec![None; 3]).ratio(), goodput(vec![]).met()), (None, None));
        let bare =
            Measure::new("false suspicions", "", Unit::Count, Better::Lower, vec![0.0]).bound(Bound::at_most(0.0));
        assert_eq!(bare.met(), Some(true));
    }

    #[test]
    fn a_section_is_read_as_it_was_written() {
        let mut section = Section::new("transport", "rdma").setting("slab", "1 MiB");
        section.measures.push(goodput(vec![Some(1.0), None, Some(2.0)]).times(Histogram::new()).column("#bytes", 5.0));
        let text = serde_json::to_string(&section).unwrap();
        let back: Section = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert!(text.contains(r#""unit":"MB/sec""#) && text.contains(r#""side":"at-least""#), "{text}");
    }
}
