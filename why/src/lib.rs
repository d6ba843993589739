//! The story of each role change of a VM: what led to it, who decided it, how long it took; from the events that its processes kept.
//! `afterimage why` tells it from the journals of a host ([`look`]); who has the events in memory gives them to [`Journals`].
//!
//! ```text
//! journal files ──read──> events ──incident──> incidents ──facts──> what was known ──story──> sentences
//!  (foreign bytes: bad lines are named and skipped)                                  └─text──> a time line, the evidence
//! ```
//!
//! Nothing is told that no event says: where an event is missing, so is its sentence.

#![forbid(unsafe_code)]

mod facts;
mod incident;
mod order;
mod story;
#[cfg(test)]
mod tests;
mod text;

pub use facts::Facts;
pub use incident::Kind;
pub use text::render;

use incident::{Incident, incidents};
use mc_core::id::Name;
use node::{
    events::{Record, Side},
    exit::{Code, ExitError},
    journal::{self, Skipped},
};
use order::Boots;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The version of the JSON. Fields may be added under the same number.
pub const SCHEMA: u32 = 1;

/// What is told.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Oldest first.
    pub incidents: Vec<Told>,
    /// Lines of the journals that are no events.
    pub skipped: Vec<Skipped>,
    /// How many more there are.
    pub more_skipped: usize,
}

/// An incident with its story.
#[derive(Debug, Serialize)]
pub struct Told {
    /// The VM.
    pub vm: String,
    /// "primary", "standby" or "keeper": what this host was when it began.
    pub side: String,
    /// This host.
    pub node: String,
    /// How it ended.
    pub kind: Kind,
    /// The first event, Unix ms.
    pub began_ms: f64,
    /// The event that ended it, Unix ms; none while it is open.
    pub ended_ms: Option<f64>,
    /// In sentences.
    pub story: Vec<String>,
    /// In numbers.
    pub facts: Facts,
    /// Its events, as the journal has them.
    pub evidence: Vec<serde_json::Value>,
}

/// Events of the sides of some VMs, to be told. The order in which they were is their boots', see [`order`].
#[derive(Debug, Default)]
pub struct Journals {
    boots: Boots,
    sides: Vec<(String, Side, Vec<Record>)>,
}

impl Journals {
    /// Adds what the processes of one side wrote. `roles`: what was kept of it longer than the rest; it may be among `all` too.
    pub fn add(&mut self, vm: &str, side: Side, roles: Vec<Record>, all: Vec<Record>) {
        // The new journal first: it has whole stretches, the other one what is left of older ones.
        self.boots.learn(&all);
        self.boots.learn(&roles);
        self.sides.push((vm.to_owned(), side, order::together(roles, all)));
    }

    /// The incidents since then, Unix ms, the last so many; oldest first.
    #[must_use]
    pub fn told(self, since_ms: Option<f64>, last: Option<usize>) -> Vec<Told> {
        let Self { boots, sides } = self;
        let mut found = Vec::new();
        for (vm, side, mut records) in sides {
            // Several processes write: their lines may be a little out of order.
            records.sort_by(|a, b| boots.compare(a, b));
            found.extend(incidents(&vm, side.as_str(), records));
        }
        found.retain(|incident| since_ms.is_none_or(|since| incident.last_ms() >= since));
        found.sort_by(|a, b| boots.compare(a.first(), b.first()));
        // The last change of a role is asked for: a keeper's work is none.
        found.retain(|incident| last.is_none() || incident.kind() != Kind::KeptNetwork);
        let first = last.map_or(0, |last| found.len().saturating_sub(last));
        found.drain(first..).map(tell).collect()
    }
}

/// Everything that the journals in `dir` tell of `vm` (`None`: all), since then, the last so many.
///
/// # Errors
/// There is no journal, or one cannot be read.
pub fn look(dir: &Path, vm: Option<Name>, since_ms: Option<f64>, last: Option<usize>) -> Result<Report, ExitError> {
    let mut report = Report { schema: SCHEMA, incidents: Vec::new(), skipped: Vec::new(), more_skipped: 0 };
    let mut journals = Journals::default();
    for (vm, side) in journals_in(dir, vm)? {
        let mut read = |path: PathBuf| -> Result<Vec<Record>, ExitError> {
            let read = journal::read(&path);
            let read = read.map_err(|e| ExitError::new(Code::Failed, format!("journal {}: {e}", path.display())))?;
            report.skipped.extend(read.skipped);
            report.more_skipped += read.more_skipped;
            Ok(read.records)
        };
        let all = read(journal::path(dir, vm, side.as_str()))?;
        let roles = read(journal::roles_path(dir, vm, side.as_str()))?;
        journals.add(vm.as_str(), side, roles, all);
    }
    report.incidents = journals.told(since_ms, last);
    Ok(report)
}

fn tell(incident: Incident) -> Told {
    let facts = Facts::of(&incident);
    Told {
        story: story::sentences(&incident, &facts),
        kind: incident.kind(),
        began_ms: incident.began_ms(),
        ended_ms: incident.ended_ms(),
        evidence: incident.records.iter().filter_map(|e| serde_json::from_str(&e.line).ok()).collect(),
        vm: incident.vm,
        side: incident.side,
        node: incident.node,
        facts,
    }
}

/// The VMs and sides that have a journal in `dir`.
fn journals_in(dir: &Path, vm: Option<Name>) -> Result<Vec<(Name, Side)>, ExitError> {
    let none = |why: String| {
        let remedy = "use the --state-dir of `afterimage protect` and `afterimage standby`; nothing was recorded \
             before they first ran";
        ExitError::new(Code::Failed, why).remedy(remedy)
    };
    let entries = std::fs::read_dir(dir).map_err(|e| none(format!("no journals: {}: {e}", dir.display())))?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut found: Vec<_> = names.filter_map(|name| named(&name)).filter(|(n, _)| vm.is_none_or(|v| v == *n)).collect();
    found.sort_by_key(|(vm, side)| (vm.to_string(), side.as_str()));
    found.dedup();
    if found.is_empty() {
        let what = vm.map_or_else(|| "no VM".to_owned(), |vm| format!("no journal of {vm}"));
        return Err(none(format!("{what} has a journal in {}", dir.display())));
    }
    Ok(found)
}

/// The VM and the side of a journal, by its file's name.
fn named(file_name: &str) -> Option<(Name, Side)> {
    let stem = file_name.strip_suffix(".journal").or_else(|| file_name.strip_suffix(".journal.1"))?;
    let stem = stem.strip_suffix(".roles").unwrap_or(stem);
    let (vm, side) = stem.rsplit_once('.')?;
    Some((Name::new(vm).ok()?, Side::named(side)?))
}
