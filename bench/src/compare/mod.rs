//! `mc-bench compare A.json B.json`: figure by figure, whether B is better than A, worse, or the same, or whether one cannot tell.
//!
//! Figures are paired by section, name and case. Where both records have the yardstick, ratios to it are compared: they bear that the
//! machine was slower or busier that day. Else the figures themselves are, and a note says so.
//!
//! ```text
//!   interval of (median of B by median of A) ── within 1 ± margin ──────────────> same
//!                                            ── all above 1, or all below ──────> better or worse, by which way is better
//!                                            ── else, or fewer than three runs ─> inconclusive
//! ```
//!
//! Where A has a 0, the difference of the medians is compared instead. Of a figure whose bound is on every run, medians say
//! nothing: B is worse if A met that bound and B does not.

pub mod bootstrap;
mod show;

use crate::{
    cli::CompareArgs,
    record::{Better, BoundOf, Measure, Record, Section, Unit},
    stats::Spread,
    stored,
};
use anyhow::Result;
use bootstrap::{Interval, interval};
use serde::Serialize;
use std::{collections::HashMap, io::Write};

/// Of the JSON: rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;
/// Fewer runs say nothing about how far runs spread.
const FEWEST_RUNS: usize = 3;

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// B is better.
    Better,
    /// B is worse.
    Worse,
    /// No difference that matters.
    Same,
    /// It differs, and neither way is better.
    Differs,
    /// The runs do not tell.
    Inconclusive,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Same => "same",
            Self::Differs => "differs",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// What was compared of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Ours by the yardstick's.
    Ratio,
    /// Ours: one of the records lacks the yardstick.
    Value,
}

/// One figure of both records.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The section's kind.
    pub section: String,
    /// The figure's name.
    pub name: String,
    /// Its case.
    pub case: String,
    /// Of the figures; ratios have none.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// What `a` and `b` are.
    pub basis: Basis,
    /// A's.
    pub a: Option<Spread>,
    /// B's.
    pub b: Option<Spread>,
    /// Median of B by median of A.
    pub change: Option<f64>,
    /// Of `change`.
    pub interval: Option<Interval>,
    /// What came out.
    pub verdict: Verdict,
}

/// What is known of a record beside its figures.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its file.
    pub file: String,
    /// Its command line.
    pub command: Vec<String>,
    /// Of the program that wrote it.
    pub commit: String,
    /// When it began.
    pub started: String,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The first record.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// What makes the two hard to compare.
    pub warnings: Vec<String>,
    /// Of a hundred, what intervals hold.
    pub confidence_percent: f64,
    /// Draws for each interval.
    pub resamples: usize,
    /// Of the draws.
    pub seed: u64,
    /// Differences up to this do not matter.
    pub margin_percent: f64,
    /// In A's order.
    pub pairs: Vec<Pair>,
    /// Figures that only A has.
    pub only_a: Vec<String>,
    /// Figures that only B has.
    pub only_b: Vec<String>,
}

impl Comparison {
    /// Whether anything became worse.
    #[must_use]
    pub fn worse(&self) -> bool {
        self.pairs.iter().any(|p| p.verdict == Verdict::Worse)
    }
}

/// How differences are judged.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Of the draws.
    pub seed: u64,
    /// Differences up to so many of a hundred do not matter.
    pub margin_percent: f64,
}

/// Reads, compares and shows. Whether anything became worse.
///
/// # Errors
/// A record cannot be read, or stdout cannot be written.
pub fn run(args: &CompareArgs) -> Result<bool> {
    let (a, b) = (stored::read(&args.a)?, stored::read(&args.b)?);
    let rules = Rules { seed: args.seed, margin_percent: args.margin };
    let files = [&args.a, &args.b].map(|path| path.display().to_string());
    let found = compare((&files[0], &a), (&files[1], &b), rules);
    let text = if args.json { serde_json::to_string(&found)? } else { show::lines(&found).join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(found.worse())
}

/// Compares two records, each with its file's name.
#[must_use]
pub fn compare(a: (&str, &Record), b: (&str, &Record), rules: Rules) -> Comparison {
    let side = |(file, record): (&str, &Record)| Side {
        file: file.to_owned(),
        command: record.command.clone(),
        commit: record.machine.commit.clone(),
        started: record.started(),
    };
    let (ours, mut theirs) = (keyed(a.1), keyed(b.1).into_iter().collect::<HashMap<_, _>>());
    let (mut pairs, mut only_a) = (Vec::new(), Vec::new());
    for (key, (section, measure)) in ours {
        match theirs.remove(&key) {
            Some((_, other)) => pairs.push(pair(section, measure, other, rules)),
            None => only_a.push(key.words()),
        }
    }
    let only_b = keyed(b.1).into_iter().filter(|(key, _)| theirs.contains_key(key)).map(|(key, _)| key.words());
    Comparison {
        schema: SCHEMA,
        a: side(a),
        b: side(b),
        warnings: warnings(a.1, b.1, &pairs),
        confidence_percent: bootstrap::CONFIDENCE,
        resamples: bootstrap::RESAMPLES,
        seed: rules.seed,
        margin_percent: rules.margin_percent,
        pairs,
        only_a,
        only_b: only_b.collect(),
    }
}

/// What makes figures of two records the same figure; the last is how often these words were there before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key(String, String, String, usize);

impl Key {
    fn words(&self) -> String {
        format!("{}: {}, {}", self.0, self.1, self.2)
    }
}

fn keyed(record: &Record) -> Vec<(Key, (&Section, &Measure))> {
    let mut seen: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let key = |(section, measure): (&Section, &Measure), nth| {
        Key(section.kind.clone(), measure.name.clone(), measure.case.clone(), nth)
    };
    let mut all = Vec::new();
    for (section, measure) in record.measures() {
        let nth = seen.entry((&section.kind, &measure.name, &measure.case)).or_insert(0);
        all.push((key((section, measure), *nth), (section, measure)));
        *nth += 1;
    }
    all
}

fn pair(section: &Section, a: &Measure, b: &Measure, rules: Rules) -> Pair {
    let ratios = (a.ratios(), b.ratios());
    let (basis, (of_a, of_b)) = if ratios.0.is_empty() || ratios.1.is_empty() {
        (Basis::Value, (a.runs.clone(), b.runs.clone()))
    } else {
        (Basis::Ratio, ratios)
    };
    let (medians, positive) = ((Spread::of(&of_a), Spread::of(&of_b)), of_a.iter().all(|v| *v > 0.0));
    let change = medians.0.zip(medians.1).filter(|_| positive).map(|(a, b)| b.median / a.median);
    let interval = if positive { interval(&of_a, &of_b, rules.seed, |a, b| b / a) } else { None };
    let verdict = if a.bound.is_some_and(|bound| bound.of == BoundOf::EveryRun) {
        on_every_run(a, b)
    } else if of_a.len().min(of_b.len()) < FEWEST_RUNS {
        Verdict::Inconclusive
    } else if let Some(interval) = interval {
        judge(interval, 1.0, rules.margin_percent / 100.0, a.better)
    } else {
        let apart = bootstrap::interval(&of_a, &of_b, rules.seed, |a, b| b - a);
        apart.map_or(Verdict::Inconclusive, |apart| judge(apart, 0.0, 0.0, a.better))
    };
    let (name, case) = (a.name.clone(), a.case.clone());
    let (kind, unit, better) = (section.kind.clone(), a.unit, a.better);
    Pair { section: kind, name, case, unit, better, basis, a: medians.0, b: medians.1, change, interval, verdict }
}

fn on_every_run(a: &Measure, b: &Measure) -> Verdict {
    let met = |m: &Measure| a.bound.and_then(|bound| m.clone().bound(bound).met());
    match (met(a), met(b)) {
        (Some(true), Some(false)) => Verdict::Worse,
        (Some(false), Some(true)) => Verdict::Better,
        (Some(true), Some(true)) => Verdict::Same,
        _ => Verdict::Inconclusive,
    }
}

/// By where the interval lies around `same`.
fn judge(interval: Interval, same: f64, margin: f64, better: Better) -> Verdict {
    if interval.within(same - margin, same + margin) {
        return Verdict::Same;
    }
    let (more, less) = (interval.low > same, interval.high < same);
    match better {
        _ if !more && !less => Verdict::Inconclusive,
        Better::Neither => Verdict::Differs,
        Better::Higher if more => Verdict::Better,
        Better::Lower if less => Verdict::Better,
        Better::Higher | Better::Lower => Verdict::Worse,
    }
}

fn warnings(a: &Record, b: &Record, pairs: &[Pair]) -> Vec<String> {
    let differ = |what: &str, a: &str, b: &str| (a != b).then(|| format!("another {what}: {a:?} in A, {b:?} in B"));
    let (m, n) = (&a.machine, &b.machine);
    let devices = |r: &Record| r.devices.iter().map(|d| d.line()).collect::<Vec<_>>().join(", ");
    let heads = [
        differ("machine", &m.host, &n.host),
        differ("processor", &format!("{} x {}", m.cpus, m.cpu), &format!("{} x {}", n.cpus, n.cpu)),
        differ("kernel", &m.kernel, &n.kernel),
        differ("devices", &devices(a), &devices(b)),
        differ("commit", &m.commit, &n.commit),
        (m.optimised != n.optimised).then(|| "only one of the programs is optimised".to_owned()),
    ];
    let raw = pairs.iter().filter(|p| p.basis == Basis::Value && p.verdict != Verdict::Inconclusive).count();
    let raw = (raw > 0).then(|| {
        format!(
            "{raw} figures have no yardstick in both records and are compared as they are: machines and moments may differ"
        )
    });
    heads.into_iter().flatten().chain(settings(a, b)).chain(raw).collect()
}

/// Settings that differ between sections of one kind.
fn settings(a: &Record, b: &Record) -> Vec<String> {
    let mut found = Vec::new();
    let mut others: Vec<&Section> = b.sections.iter().collect();
    for section in &a.sections {
        let Some(at) = others.iter().position(|s| s.kind == section.kind) else { continue };
        let other = others.remove(at);
        let value = |of: &Section, name: &str| of.settings.iter().find(|s| s.name == name).map(|s| s.value.clone());
        let mut names: Vec<&str> = Vec::new();
        for setting in section.settings.iter().chain(&other.settings) {
            if !names.contains(&setting.name.as_str()) {
                names.push(&setting.name);
            }
        }
        for name in names {
            let (a, b) = (value(section, name), value(other, name));
            if a != b {
                let words = |v: Option<String>| v.unwrap_or_else(|| "nothing".to_owned());
                found.push(format!("{}: another {name}: {:?} in A, {:?} in B", section.kind, words(a), words(b)));
            }
        }
        if section.seed != other.seed {
            found.push(format!("{}: another seed of the workload", section.kind));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begun, Bound};

    const RULES: Rules = Rules { seed: 1, margin_percent: 5.0 };

    fn record(measures: Vec<Measure>) -> Record {
        let mut section = Section::new("transport", "").setting("poll", "busy");
        section.measures = measures;
        Begun::now().done(vec![section])
    }

    fn figure(better: Better, runs: &[f64]) -> Measure {
        Measure::new("figure", "case", Unit::Usec, better, runs.to_vec())
    }

    fn verdict(a: Measure, b: Measure) -> Verdict {
        compare(("a", &record(vec![a])), ("b", &record(vec![b])), RULES).pairs[0].verdict
    }

    #[test]
    fn known_differences_get_their_verdict() {
        let base = [100.0, 101.0, 99.0, 100.5, 99.5];
        let times = |by: f64| base.map(|v| v * by);
        let of = |better, by| verdict(figure(better, &base), figure(better, &times(by)));
        assert_eq!([of(Better::Lower, 1.2), of(Better::Lower, 0.8)], [Verdict::Worse, Verdict::Better]);
        assert_eq!([of(Better::Higher, 1.2), of(Better::Higher, 0.8)], [Verdict::Better, Verdict::Worse]);
        assert_eq!([of(Better::Lower, 1.01), of(Better::Neither, 2.0)], [Verdict::Same, Verdict::Differs]);
        let wild = figure(Better::Lower, &[50.0, 200.0, 100.0, 90.0, 130.0]);
        assert_eq!(verdict(figure(Better::Lower, &base), wild), Verdict::Inconclusive);
        assert_eq!(
            verdict(figure(Better::Lower, &base[..2]), figure(Better::Lower, &times(9.0))),
            Verdict::Inconclusive
        );
    }

    #[test]
    fn a_slower_machine_is_no_difference_where_the_yardstick_is_slower_too() {
        let beside = |by: f64| {
            let (ours, theirs) = ([90.0, 92.0, 91.0].map(|v| v * by), [100.0, 102.0, 101.0].map(|v| Some(v * by)));
            figure(Better::Higher, &ours).beside("iperf3", theirs.to_vec())
        };
        let found = compare(("a", &record(vec![beside(1.0)])), ("b", &record(vec![beside(0.5)])), RULES);
        assert_eq!((found.pairs[0].basis, found.pairs[0].verdict), (Basis::Ratio, Verdict::Same));
        let alone = record(vec![figure(Better::Higher, &[45.0, 46.0, 45.5])]);
        let found = compare(("a", &record(vec![beside(1.0)])), ("b", &alone), RULES);
        assert_eq!((found.pairs[0].basis, found.pairs[0].verdict), (Basis::Value, Verdict::Worse));
        assert!(found.warnings.iter().any(|w| w.contains("compared as they are")), "{:?}", found.warnings);
    }

    #[test]
    fn zeros_are_compared_by_their_difference_and_losses_by_the_worst_run() {
        let count = |runs: &[f64]| figure(Better::Lower, runs);
        assert_eq!(verdict(count(&[0.0; 5]), count(&[0.0; 5])), Verdict::Same);
        assert_eq!(verdict(count(&[0.0; 5]), count(&[3.0; 5])), Verdict::Worse);
        let lost = |runs: &[f64]| count(runs).bound(Bound::every_run_at_most(0.0));
        assert_eq!(verdict(lost(&[0.0; 5]), lost(&[0.0, 0.0, 1.0, 0.0, 0.0])), Verdict::Worse);
    }

    #[test]
    fn figures_are_paired_by_name_and_turn_and_the_rest_is_named() {
        let case = |case: &str, value: f64| Measure::new("pause", case, Unit::Usec, Better::Lower, vec![value; 3]);
        let a = record(vec![case("idle", 1.0), case("idle", 2.0), case("zipf", 3.0)]);
        let mut b = record(vec![case("idle", 1.0), case("idle", 4.0), case("new", 3.0)]);
        (b.machine.kernel, b.sections[0].settings[0].value) = ("other".to_owned(), "event".to_owned());
        let found = compare(("a", &a), ("b", &b), RULES);
        assert_eq!(found.pairs.iter().map(|p| p.verdict).collect::<Vec<_>>(), [Verdict::Same, Verdict::Worse]);
        assert_eq!(
            (found.only_a, found.only_b),
            (vec!["transport: pause, zipf".into()], vec!["transport: pause, new".into()])
        );
        let warned = found.warnings.join("\n");
        assert!(warned.contains("another kernel") && warned.contains("transport: another poll: \"busy\""), "{warned}");
    }
}
