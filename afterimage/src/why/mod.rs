//! `afterimage why`: the decision trail of each role change, from the journals of this host's VMs.
//!
//! ```text
//! journal files ──read──> events ──incident──> incidents ──facts──> what was known ──story──> sentences
//!  (foreign bytes: bad lines are named and skipped)                                  └─text──> a time line, the evidence
//! ```
//!
//! Nothing is told that no event says: where an event is missing, so is its sentence.

mod facts;
mod incident;
mod order;
mod story;
#[cfg(test)]
mod tests;
mod text;

pub use facts::Facts;
pub use incident::{Incident, Kind, incidents};

use crate::{cli::WhyArgs, config::parse_ago};
use api::Side;
use mc_core::id::Name;
use node::{
    events::Record,
    exit::{Code, ExitError},
    journal::{self, Skipped},
};
use order::Boots;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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

/// The command.
pub fn run(args: &WhyArgs) -> anyhow::Result<Code> {
    let since_ms = args.since.as_deref().map(|text| since(text, SystemTime::now())).transpose()?;
    let report = look(&args.state_dir, args.vm, since_ms, args.last)?;
    let out = if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { text::render(&report) };
    match io::stdout().write_all(out.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Code::Done),
    }
}

/// Reads `--since`: how long ago, or when.
fn since(text: &str, now: SystemTime) -> Result<f64, ExitError> {
    let ago = parse_ago(text).ok().and_then(|ago| now.checked_sub(ago));
    let at = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok()).ok_or_else(|| {
        ExitError::usage(format!("invalid --since {text:?}: not a duration or a time"))
            .remedy("write how long ago, such as 10m, 2h or 3d, or a time in UTC, such as \"2026-11-25 22:31:00\"")
    })?;
    Ok(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64() * 1e3)
}

/// Everything that the journals in `dir` tell of `vm` (`None`: all), since then, the last so many.
pub fn look(dir: &Path, vm: Option<Name>, since_ms: Option<f64>, last: Option<usize>) -> Result<Report, ExitError> {
    let mut report = Report { schema: SCHEMA, incidents: Vec::new(), skipped: Vec::new(), more_skipped: 0 };
    let (mut sides, mut boots) = (Vec::new(), Boots::default());
    for (vm, side) in journals(dir, vm)? {
        let mut read = |path: PathBuf| -> Result<Vec<Record>, ExitError> {
            let read = journal::read(&path);
            let read = read.map_err(|e| ExitError::new(Code::Failed, format!("journal {}: {e}", path.display())))?;
            report.skipped.extend(read.skipped);
            report.more_skipped += read.more_skipped;
            Ok(read.records)
        };
        let all = read(journal::path(dir, vm, side))?;
        let roles = read(journal::roles_path(dir, vm, side))?;
        // The new journal first: it has whole stretches, the other one what is left of older ones.
        boots.learn(&all);
        boots.learn(&roles);
        sides.push((vm, side, order::together(roles, all)));
    }
    let mut found = Vec::new();
    for (vm, side, mut records) in sides {
        // Several processes write: their lines may be a little out of order.
        records.sort_by(|a, b| boots.compare(a, b));
        found.extend(incidents(&vm.to_string(), side, records));
    }
    found.retain(|incident| since_ms.is_none_or(|since| incident.last_ms() >= since));
    found.sort_by(|a, b| boots.compare(a.first(), b.first()));
    // The last change of a role is asked for: a keeper's work is none.
    found.retain(|incident| last.is_none() || incident.kind() != Kind::KeptNetwork);
    let first = last.map_or(0, |last| found.len().saturating_sub(last));
    report.incidents = found.drain(first..).map(tell).collect();
    Ok(report)
}

/// The text that one journal comes to, by itself: for the fuzz target.
#[cfg(feature = "testing")]
#[must_use]
pub fn told(journal: journal::Journal, vm: &str, side: &str) -> String {
    let journal::Journal { mut records, skipped, more_skipped } = journal;
    let mut boots = Boots::default();
    boots.learn(&records);
    records.sort_by(|a, b| boots.compare(a, b));
    let incidents = incidents(vm, side, records).into_iter().map(tell).collect();
    text::render(&Report { schema: SCHEMA, incidents, skipped, more_skipped })
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
fn journals(dir: &Path, vm: Option<Name>) -> Result<Vec<(Name, &'static str)>, ExitError> {
    let none = |why: String| {
        let remedy = "use the --state-dir of `afterimage protect` and `afterimage standby`; nothing was recorded \
             before they first ran";
        ExitError::new(Code::Failed, why).remedy(remedy)
    };
    let entries = std::fs::read_dir(dir).map_err(|e| none(format!("no journals: {}: {e}", dir.display())))?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut found: Vec<_> = names.filter_map(|name| named(&name)).filter(|(n, _)| vm.is_none_or(|v| v == *n)).collect();
    found.sort_by_key(|(vm, side)| (vm.to_string(), *side));
    found.dedup();
    if found.is_empty() {
        let what = vm.map_or_else(|| "no VM".to_owned(), |vm| format!("no journal of {vm}"));
        return Err(none(format!("{what} has a journal in {}", dir.display())));
    }
    Ok(found)
}

/// The VM and the side of a journal, by its file's name.
fn named(file_name: &str) -> Option<(Name, &'static str)> {
    let stem = file_name.strip_suffix(".journal").or_else(|| file_name.strip_suffix(".journal.1"))?;
    let stem = stem.strip_suffix(".roles").unwrap_or(stem);
    let (vm, side) = stem.rsplit_once('.')?;
    let side = [Side::Primary, Side::Standby, Side::Keeper].into_iter().map(Side::as_str).find(|s| *s == side)?;
    Some((Name::new(vm).ok()?, side))
}
