//! What every command's report has: a head, targets, and how they are judged.

use crate::{machine::Machine, stats::Spread, yard::YardError};
use serde::Serialize;

/// Of the JSON records: rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// The frame of a report.
#[derive(Clone, Debug, Serialize)]
pub struct Frame {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The command.
    pub kind: &'static str,
    /// Where.
    pub machine: Machine,
    /// What must be known beside the figures.
    pub caveats: Vec<String>,
    /// Yardsticks that gave no figure, each named once.
    pub missing: Vec<YardError>,
    /// Measurements of ours that failed and were taken again.
    pub failures: Vec<String>,
    /// What was to be reached, and whether it was.
    pub targets: Vec<Target>,
}

impl Frame {
    /// Of a command that has measured nothing yet.
    #[must_use]
    pub fn new(kind: &'static str, devices: &[&str]) -> Self {
        let machine = Machine::here();
        let caveats = crate::machine::caveats(&machine, devices);
        Self { schema: SCHEMA, kind, machine, caveats, missing: vec![], failures: vec![], targets: vec![] }
    }

    /// Lines before the figures; `settings` are the command's own.
    #[must_use]
    pub fn head(&self, settings: Vec<String>) -> Vec<String> {
        let mut lines = self.machine.lines();
        lines.extend(settings);
        lines.extend(self.caveats.iter().map(|note| format!("note     {note}")));
        lines.push(String::new());
        lines
    }

    /// Lines after the figures.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        let missing = self.missing.iter().map(|error| format!("missing  {error}"));
        let failures = self.failures.iter().map(|why| format!("failed   {why}"));
        missing.chain(failures).chain(self.targets.iter().map(Target::line)).collect()
    }

    /// Whether any target was missed.
    #[must_use]
    pub fn missed(&self) -> bool {
        self.targets.iter().any(|t| !t.met)
    }
}

/// A command's findings, for people and for programs.
pub trait Report: Serialize {
    /// Its frame.
    fn frame(&self) -> &Frame;
    /// All of it, for people.
    fn lines(&self) -> Vec<String>;
}

/// Something to be reached.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What.
    pub name: String,
    /// The median.
    pub value: f64,
    /// The bound.
    pub bound: f64,
    /// Whether it was.
    pub met: bool,
}

impl Target {
    /// Something that must not be less.
    #[must_use]
    pub fn at_least(name: String, value: f64, bound: f64) -> Self {
        Self { met: value >= bound, name, value, bound }
    }

    /// Something that must not be more.
    #[must_use]
    pub fn at_most(name: String, value: f64, bound: f64) -> Self {
        Self { met: value <= bound, name, value, bound }
    }

    fn line(&self) -> String {
        let (word, Self { name, value, bound, .. }) = (if self.met { "met" } else { "MISSED" }, self);
        format!("target   {name}: {value:.3}, bound {bound}: {word}")
    }
}

/// Ours by theirs, run by run, where both are there.
#[must_use]
pub fn ratios(ours: &[f64], theirs: &[Option<f64>]) -> Option<Spread> {
    let pairs = ours.iter().zip(theirs).filter_map(|(o, t)| t.filter(|t| *t > 0.0).map(|t| o / t));
    Spread::of(&pairs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_whether_it_was_met() {
        assert!(Target::at_least("a".to_owned(), 0.95, 0.95).line().ends_with("a: 0.950, bound 0.95: met"));
        assert!(Target::at_most("b".to_owned(), 3.1, 3.0).line().ends_with("MISSED"));
    }

    #[test]
    fn ratios_need_both() {
        assert_eq!(ratios(&[1.0], &[None]), None);
        assert_eq!(ratios(&[1.0, 3.0], &[Some(0.0), Some(2.0)]).unwrap().median, 1.5);
    }
}
