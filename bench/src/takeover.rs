//! `mc-bench takeover`: real kills. Each is a whole story, played by the rig: witness, standby, VM and client are started
//! anew on hosts made of network namespaces, the VM is protected, the fault strikes, and who survives is observed.
//!
//! ```text
//!   fault ──> declared ──> swap won ──> running ──> first reply of the survivor
//!         K beats    arbiter    QEMU resumes       client
//! ```
//!
//! Every time is the difference of two events on one machine's clock. That nothing was lost or done twice, and that nobody
//! was stuck, is the client's word, not the product's.

use crate::{
    cli::Effort,
    interrupt,
    record::{Better, Bound, Measure, Section, Timeline, Unit},
};
use anyhow::Result;
use clap::{Args, ValueEnum};
use mc_core::histogram::Histogram;
use rig::{
    demo::{DemoArgs, Hosts, stage::Stage},
    guest::Kind,
    hosts::Place,
    scenario::{Scenario, report::Outcome},
};
use std::time::{Duration, Instant};

/// Kills of `--quick`.
const FEW: u32 = 3;

/// `mc-bench takeover`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("runs", |a| a.hide(true)), mut_arg("time", |a| a.hide(true)), mut_arg("no_yardsticks", |a| a.hide(true)),
          mut_arg("quick", |a| a.help("Three kills: to see that it works").conflicts_with("kills")))]
pub struct TakeoverArgs {
    /// The guest
    #[arg(long, value_enum, default_value = "tiny")]
    pub guest: Kind,
    /// What happens to the primary
    #[arg(long, value_enum, default_value = "kill-primary")]
    pub scenario: Fault,
    /// How often
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub kills: u32,
    /// Length of an epoch [default: the demo's, 20ms]
    #[arg(long, value_name = "TIME")]
    pub epoch: Option<String>,
    /// Time between beats [default: the demo's, 10ms]
    #[arg(long, value_name = "TIME")]
    pub beat_interval: Option<String>,
    /// Beats that may be missed before the primary is suspect [default: the demo's, 5]
    #[arg(long, value_name = "K")]
    pub detect_multiplier: Option<u32>,
    /// How much of it (`--runs` and `--for` have no meaning here)
    #[command(flatten)]
    pub effort: Effort,
}

/// Faults after which somebody must win the arbiter's swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Everything on the primary host dies at once
    KillPrimary,
    /// Everything on it stops, and goes on after the takeover
    FreezePrimary,
    /// The replication link falls silent; either side may win
    CutLink,
}

impl From<Fault> for Scenario {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::KillPrimary => Self::KillPrimary,
            Fault::FreezePrimary => Self::FreezePrimary,
            Fault::CutLink => Self::CutLink,
        }
    }
}

impl TakeoverArgs {
    fn demo(&self) -> DemoArgs {
        DemoArgs {
            scenario: vec![Scenario::from(self.scenario).into()],
            guest: self.guest,
            hosts: Some(Hosts::Netns),
            // Short rounds, without a baseline.
            repeat: self.kills().max(2),
            epoch: self.epoch.clone(),
            beat_interval: self.beat_interval.clone(),
            detect_multiplier: self.detect_multiplier,
            ..DemoArgs::default()
        }
    }

    fn kills(&self) -> u32 {
        if self.effort.quick { FEW } else { self.kills }
    }
}

/// Kills, and says what became of it.
///
/// # Errors
/// [`rig::prerequisite::Missing`]: root, QEMU, the guests or our own programs; or somebody interrupted it.
pub(crate) fn run(args: &TakeoverArgs) -> Result<Section> {
    let start = Instant::now();
    let mut stage = Stage::set(&args.demo())?;
    let (mut told, mut spoilt) = (Vec::new(), 0);
    for number in 1..=args.kills() {
        let (outcome, again) = match stage.play_fairly(number, false) {
            // What there is, is of use.
            Err(_) if interrupt::asked() && !told.is_empty() => break,
            played => played?,
        };
        spoilt += again.len();
        let at_s = start.elapsed().as_secs_f64();
        eprintln!("mc-bench: {number} of {}: {}", args.kills(), rig::demo::round_line(number, &outcome).trim_start());
        told.push((at_s, outcome));
    }
    let s = &stage.settings;
    let (guest, accel) = (s.guest.kind.name(), s.guest.accel.name());
    let title = format!("{} of a protected VM, {guest} guest on {accel}, {} times", s.scenario.name(), told.len());
    let mut section = Section::new("takeover", title)
        .setting("scenario", s.scenario.name())
        .setting("guest", format!("{guest} on {accel}"))
        .setting("hosts", "network namespaces, all on this machine")
        .setting("epoch", &s.epoch)
        .setting("beat interval", &s.beat_interval)
        .setting("detect multiplier", s.detect_multiplier)
        .setting("kills", told.len())
        .setting("spoilt by the machine's load, and repeated", spoilt);
    fill(&mut section, &format!("{guest} on {accel}, {}", s.scenario.name()), &told);
    section.took_s = start.elapsed().as_secs_f64();
    Ok(section)
}

/// The outcomes, each with the seconds since the beginning, as figures.
fn fill(section: &mut Section, case: &str, told: &[(f64, Outcome)]) {
    let phases = [
        "fault to declared",
        "declared to swap won",
        "swap won to running",
        "decided to running",
        "fault to first reply",
    ];
    for (index, phase) in phases.into_iter().enumerate() {
        let ms: Vec<f64> = told.iter().filter_map(|(_, o)| o.times.named()[index].1).collect();
        section.measures.extend(phase_of(&format!("{phase}; {case}"), &ms));
    }
    let failed = told.iter().filter(|(_, o)| !o.passed()).count();
    let sums = [
        ("lost", told.iter().map(|(_, o)| o.lost).sum()),
        ("duplicated", told.iter().map(|(_, o)| o.duplicated).sum()),
        ("stuck", told.iter().filter(|(_, o)| o.stuck).count() as u64),
        ("failed kills", failed as u64),
    ];
    section.measures.extend(sums.map(|(name, sum)| none_allowed(name, case, sum)));
    let survived = told.iter().filter(|(_, o)| o.survivor == Some(Place::Standby)).count();
    let by_standby = Measure::new("taken over", case, Unit::Count, Better::Neither, vec![survived as f64]);
    section.measures.push(by_standby);
    let declared = told.iter().filter_map(|(at, o)| Some((*at, o.times.kill_to_declared? * 1e3)));
    let points = declared.collect();
    section.timelines.push(Timeline { name: "detection".into(), case: case.into(), unit: Unit::Usec, points });
    for (number, (_, outcome)) in told.iter().enumerate() {
        let reason = |why: &String| format!("kill {}: {why}", number + 1);
        section.failures.extend(outcome.reasons.iter().map(reason));
    }
}

/// One phase, a value for each kill; none if it never happened.
fn phase_of(case: &str, ms: &[f64]) -> Option<Measure> {
    let mut times = Histogram::new();
    ms.iter().for_each(|ms| times.record(Duration::from_secs_f64((ms / 1e3).max(0.0))));
    let us: Vec<f64> = ms.iter().map(|ms| ms * 1e3).collect();
    let column = |quantile| times.at(quantile).as_secs_f64() * 1e6;
    let (p90, p99) = (column(0.9), column(0.99));
    let measure = Measure::new("takeover", case, Unit::Usec, Better::Lower, us);
    (!ms.is_empty()).then(|| measure.column("90%[usec]", p90).column("99%[usec]", p99).times(times))
}

/// A sum over all kills that must be 0. (One value, not one for each kill: a bound is on the median.)
fn none_allowed(name: &str, case: &str, sum: u64) -> Measure {
    Measure::new(name, case, Unit::Count, Better::Lower, vec![sum as f64]).bound(Bound::at_most(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use rig::scenario::{evidence::Verdict, report::Times};

    fn outcome(declared: Option<f64>, lost: u64) -> Outcome {
        Outcome {
            verdict: if lost > 0 { Verdict::Fail } else { Verdict::Pass },
            scenario: "kill-primary",
            acknowledged: 10,
            reasons: if lost > 0 { vec![format!("{lost} lost")] } else { vec![] },
            times: Times { kill_to_declared: declared, ..Times::default() },
            survivor: Some(Place::Standby),
            lost,
            duplicated: 0,
            stuck: false,
            fault_at_ms: 0.0,
            stories: vec![],
            events: vec![],
            json: serde_json::Value::Null,
        }
    }

    #[test]
    fn one_lost_request_in_many_kills_misses_the_bound() {
        let mut section = Section::new("takeover", "");
        let told = [(1.0, outcome(Some(50.0), 0)), (2.0, outcome(Some(51.5), 0)), (3.0, outcome(None, 1))];
        fill(&mut section, "tiny", &told);
        assert!(section.missed());
        let of = |name: &str| section.measures.iter().find(|m| m.name == name).unwrap();
        assert_eq!(
            (of("lost").met(), of("duplicated").met(), of("stuck").met()),
            (Some(false), Some(true), Some(true))
        );
        assert_eq!((of("taken over").runs[0], of("takeover").runs.clone()), (3.0, vec![50_000.0, 51_500.0]));
        assert_eq!(section.timelines[0].points, [(1.0, 50_000.0), (2.0, 51_500.0)]);
        assert_eq!(section.failures, ["kill 3: 1 lost"]);
    }

    #[test]
    fn the_default_is_twenty_kills_of_the_tiny_guests_host() {
        let args = |words: &str| match Cli::try_parse_from(words.split(' ')).map_err(|e| e.to_string())?.command {
            Command::Takeover(args) => Ok(args),
            _ => Err("not asked for".to_owned()),
        };
        let plain = args("mc-bench takeover").unwrap();
        assert_eq!((plain.kills(), plain.guest, plain.scenario), (20, Kind::Tiny, Fault::KillPrimary));
        assert_eq!(args("mc-bench takeover --quick").unwrap().kills(), FEW);
        assert!(args("mc-bench takeover --quick --kills 9").unwrap_err().contains("cannot be used with"));
        assert!(args("mc-bench takeover --kills 0").unwrap_err().contains("1..=100000"));
        assert!(args("mc-bench takeover --scenario kill-witness").unwrap_err().contains("freeze-primary"));
    }
}
