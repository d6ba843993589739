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
//!
//! [`Bound`] is what is to be reached, [`Begun`] a record under way. [`crate::face`] shows records, [`crate::stored`] reads them,
//! [`crate::compare`] compares two of them.

mod begun;
mod bound;

pub use begun::Begun;
pub use bound::{Bound, BoundOf, BoundSide};

use crate::{
    machine::{Device, Machine},
    stats::Spread,
};
use mc_core::histogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// The last moment that RFC 3339 can write, about.
const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);

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
    /// The devices that its sections used, each once.
    #[serde(default)]
    pub devices: Vec<Device>,
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
    /// The command line that gives this section, if it was one of several.
    #[serde(default)]
    pub command: Vec<String>,
    /// RDMA devices that were used, by name.
    #[serde(default)]
    pub devices: Vec<String>,
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
        Spread::of(&self.ratios())
    }

    /// The same, each of them.
    #[must_use]
    pub fn ratios(&self) -> Vec<f64> {
        let theirs = self.yardstick.iter().flat_map(|y| &y.runs);
        self.runs.iter().zip(theirs).filter_map(|(o, t)| t.filter(|t| *t > 0.0).map(|t| o / t)).collect()
    }

    /// What the bound is on; none without a bound, or without the figure that it is on.
    #[must_use]
    pub fn bounded(&self) -> Option<Spread> {
        match self.bound?.of {
            BoundOf::Ratio => self.ratio(),
            BoundOf::Value | BoundOf::EveryRun => self.spread(),
        }
    }

    /// Whether the bound is met.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let (bound, found) = (self.bound?, self.bounded()?);
        Some(match bound.of {
            BoundOf::Ratio | BoundOf::Value => bound.is_met_by(found.median),
            BoundOf::EveryRun => bound.is_met_by(found.min) && bound.is_met_by(found.max),
        })
    }

    /// JSON has no word for what is not finite: such runs go, each with its neighbour, and such columns.
    fn keep_finite(&mut self) {
        let keep: Vec<bool> = self.runs.iter().map(|v| v.is_finite()).collect();
        let kept = |at: &mut dyn Iterator<Item = &bool>| at.next().copied().unwrap_or(true);
        let mut flags = keep.iter();
        self.runs.retain(|_| kept(&mut flags));
        if let Some(yardstick) = &mut self.yardstick {
            let mut flags = keep.iter();
            yardstick.runs.retain(|_| kept(&mut flags));
            yardstick.runs.iter_mut().for_each(|v| *v = v.filter(|v| v.is_finite()));
        }
        self.columns.retain(|c| c.value.is_finite());
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

    /// Names an RDMA device that was used.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.devices.push(name.into());
        self
    }

    /// Adds something that must be known beside these figures.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds a figure.
    #[must_use]
    pub fn measure(mut self, measure: Measure) -> Self {
        self.measures.push(measure);
        self
    }

    /// The figures' names, each once, in order: one table each.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for measure in &self.measures {
            if !names.contains(&measure.name.as_str()) {
                names.push(&measure.name);
            }
        }
        names
    }

    /// The figures of that name, in order.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Measure> + Clone {
        self.measures.iter().filter(move |m| m.name == name)
    }

    /// Whether a bound was missed.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.measures.iter().any(|m| m.met() == Some(false))
    }
}

impl Record {
    /// When it began, as RFC 3339 writes it, to the second.
    #[must_use]
    pub fn started(&self) -> String {
        let since = Duration::try_from_secs_f64(self.started_unix_s).unwrap_or_default();
        let time = SystemTime::UNIX_EPOCH.checked_add(since.min(YEAR_9999)).unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_seconds(time).to_string()
    }

    /// All figures, each with its section.
    pub fn measures(&self) -> impl Iterator<Item = (&Section, &Measure)> {
        self.sections.iter().flat_map(|s| s.measures.iter().map(move |m| (s, m)))
    }

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
    fn a_bound_on_every_run_sees_the_one_that_the_median_hides() {
        let lost =
            |runs| Measure::new("lost", "", Unit::Count, Better::Lower, runs).bound(Bound::every_run_at_most(0.0));
        assert_eq!(lost(vec![0.0, 0.0, 1.0]).met(), Some(false));
        assert_eq!(lost(vec![0.0; 3]).met(), Some(true));
        assert_eq!(lost(vec![]).bound.unwrap().words(), "<= 0 in every run");
    }

    #[test]
    fn what_json_cannot_say_goes_with_its_neighbour() {
        let mut odd = goodput(vec![Some(1.0), Some(2.0), Some(f64::NAN)]).column("a", f64::INFINITY).column("b", 1.0);
        odd.runs[0] = f64::NAN;
        let record = Begun::now().done(vec![Section::new("transport", "").measure(odd)]);
        let kept = &record.sections[0].measures[0];
        assert_eq!((kept.runs.as_slice(), kept.columns.len()), ([110.0, 100.0].as_slice(), 1));
        assert_eq!(kept.yardstick.as_ref().unwrap().runs, [Some(2.0), None]);
        assert!(record.started().starts_with("20") && record.started().ends_with('Z'), "{}", record.started());
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
