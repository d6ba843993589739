//! `rig demo`: runs a scenario once or many times, prints the timeline and the verdict.

use crate::{
    guest::{Accel, Guest, Images, Kind},
    hosts::{Place, Topology},
    lab,
    netns::{self, SHM, TEMPORARY},
    prerequisite::{self, Missing},
    scenario::{
        Scenario, Settings, fault,
        report::{Outcome, SCHEMA, head, merge},
        round::Round,
    },
    stats::Samples,
    sys,
    timeline::{Mark, Timeline, pass},
};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Options of `rig demo`. Times are written as 20ms or 2s.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// The fault
    #[arg(long, value_enum, default_value = "kill-primary")]
    pub scenario: Scenario,
    /// What the hosts are [default: lab inside of scripts/lab pair --lan, else netns]
    #[arg(long, value_enum)]
    pub hosts: Option<Hosts>,
    /// The guest
    #[arg(long, value_enum, default_value = "linux")]
    pub guest: Kind,
    /// KVM or TCG; by default KVM if it boots this guest here, else TCG
    #[arg(long, value_parser = parse_accel, default_value = "auto")]
    pub accel: AccelChoice,
    /// Number of runs, each with everything new but the hosts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Length of an epoch [default: 20ms; lab: 200ms]
    #[arg(long)]
    pub epoch: Option<String>,
    /// Time between beats [default: 10ms; lab: 100ms]
    #[arg(long)]
    pub beat_interval: Option<String>,
    /// Beats that may be missed before the peer is suspect [default: 5; lab: 15]
    #[arg(long)]
    pub detect_multiplier: Option<u32>,
    /// How checkpoints travel: rdma, tcp or auto [default: the program's]
    #[arg(long)]
    pub transport: Option<String>,
    /// How beats travel: ud, udp or both [default: the program's]
    #[arg(long)]
    pub keepalive: Option<String>,
    /// Cap of the staging memory of each side [default: the program's]
    #[arg(long)]
    pub staging: Option<String>,
    /// Requests that the client has under way at a time (Linux guest)
    #[arg(long, default_value_t = 1)]
    pub pipeline: usize,
    /// Pages that the Linux guest rewrites every 100 ms
    #[arg(long, default_value_t = 64)]
    pub pages: u32,
    /// How long the client runs before the fault [default: 3s; 500ms with --repeat]
    #[arg(long, value_parser = parse_time)]
    pub before: Option<Duration>,
    /// How long it runs after the fault was dealt with [default: 3s; 300ms with --repeat]
    #[arg(long, value_parser = parse_time)]
    pub after: Option<Duration>,
    /// How long to measure the unprotected VM first, for the added delay [default: 2s; 0s with --repeat, or in the lab]
    #[arg(long, value_parser = parse_time)]
    pub baseline: Option<Duration>,
    /// How long to measure what the sidecars cost while no client asks [default: 2s; 0s with --repeat, or in the lab]
    #[arg(long, value_parser = parse_time)]
    pub idle: Option<Duration>,
    /// The program under test [default: `afterimage` next to this one]
    #[arg(long)]
    pub afterimage: Option<PathBuf>,
    /// What scripts/guests built [default: guests/build of this checkout]
    #[arg(long)]
    pub guests: Option<PathBuf>,
    /// Keep logs and files of all runs; those of a failed run are always kept
    #[arg(long)]
    pub keep: bool,
}

/// What hosts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hosts {
    /// Network namespaces of this machine.
    Netns,
    /// The virtual machines of `scripts/lab pair --lan`, which have RDMA devices.
    Lab,
}

impl Hosts {
    /// What is wanted, or what is there.
    fn of(args: &DemoArgs) -> Self {
        args.hosts.unwrap_or(if lab::is_here() { Self::Lab } else { Self::Netns })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Lab => "lab",
        }
    }

    fn create(self) -> Result<Box<dyn Topology>> {
        Ok(match self {
            Self::Netns => Box::new(netns::Topology::create()?),
            Self::Lab => Box::new(lab::Pair::take()?),
        })
    }
}

/// Times that suit the hosts: emulated machines stall for half a second now and then, which is no death.
struct Pace {
    epoch: &'static str,
    beat_interval: &'static str,
    detect_multiplier: u32,
    repeat_after: Duration,
}

const PACE: Pace =
    Pace { epoch: "20ms", beat_interval: "10ms", detect_multiplier: 5, repeat_after: Duration::from_millis(20) };
const LAB_PACE: Pace =
    Pace { epoch: "200ms", beat_interval: "100ms", detect_multiplier: 15, repeat_after: Duration::from_millis(500) };

/// Which accelerator is wanted; None: whichever works best.
pub type AccelChoice = Option<Accel>;

fn parse_accel(text: &str) -> Result<AccelChoice, String> {
    match text {
        "auto" => Ok(None),
        "kvm" => Ok(Some(Accel::Kvm)),
        "tcg" => Ok(Some(Accel::Tcg)),
        _ => Err("auto, kvm or tcg".to_owned()),
    }
}

/// A duration: a whole number and `us`, `ms` or `s`.
///
/// # Errors
/// Says what is expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let expected = || format!("'{text}' is no time; write 500us, 20ms or 2s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    match &text[digits..] {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(expected()),
    }
}

/// Runs it. True: passed. Whatever happens, the last line of output is JSON.
///
/// # Errors
/// The rig could not do its part, or something that it needs is missing.
pub fn run(args: &DemoArgs) -> Result<bool> {
    let result = try_run(args);
    if let Err(error) = &result {
        let verdict = if error.is::<Missing>() { "missing" } else { "fail" };
        let (scenario, guest) = (args.scenario.name(), args.guest.name());
        let reasons = [format!("{error:#}")];
        println!(
            "{}",
            json!({ "schema": SCHEMA, "scenario": scenario, "guest": guest, "verdict": verdict, "reasons": reasons })
        );
    }
    result
}

fn try_run(args: &DemoArgs) -> Result<bool> {
    prerequisite::check()?;
    sys::catch_signals();
    let mut work = temporary(&std::env::temp_dir())?;
    // The standby's RAM is memory, if this machine has a file system for that.
    let ram = temporary(if Path::new(SHM).is_dir() { Path::new(SHM) } else { work.path() })?;
    let settings = settings(args, work.path(), ram.path())?;
    let (scenario, guest) = (settings.scenario.name(), &settings.guest);
    eprintln!("{scenario}, {} guest on {}, epochs of {}", guest.kind.name(), guest.accel.name(), settings.epoch);
    let topology = Hosts::of(args).create()?;
    let outcomes = rounds(args, &settings, &*topology)?;
    let passed = outcomes.iter().all(Outcome::passed);
    if args.keep || !passed {
        work.disable_cleanup(true);
        eprintln!("logs and files are in {}", work.path().display());
    }
    println!("{}", final_json(&settings, &outcomes));
    Ok(passed)
}

fn temporary(parent: &Path) -> Result<tempfile::TempDir> {
    let prefix = format!("{TEMPORARY}{}-", std::process::id());
    let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
    dir.with_context(|| format!("temporary directory in {}", parent.display()))
}

fn settings(args: &DemoArgs, work: &Path, ram: &Path) -> Result<Settings> {
    let own = std::env::current_exe().context("own path")?;
    let afterimage = args.afterimage.clone().unwrap_or_else(|| own.with_file_name("afterimage"));
    prerequisite::file(&afterimage, "cargo build --release builds it")?;
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let guests = args.guests.clone().unwrap_or_else(|| checkout.join("guests/build"));
    let images = Images::find(&guests, args.guest)?;
    let lab = Hosts::of(args) == Hosts::Lab;
    if lab {
        lab::check_guest(args.guest)?;
    }
    let pace = if lab { LAB_PACE } else { PACE };
    let once = args.repeat == 1;
    // What costs extra is left out of many runs, and where it cannot be measured.
    let extra = if lab { 0 } else { 2000 };
    let or = |given: Option<Duration>, single: u64, many: u64| {
        given.unwrap_or(Duration::from_millis(if once { single } else { many }))
    };
    Ok(Settings {
        scenario: args.scenario,
        // (No KVM in the lab's VMs.)
        guest: Guest::new(args.guest, if lab { Some(Accel::Tcg) } else { args.accel }, args.pages, images)?,
        afterimage: afterimage.canonicalize().with_context(|| afterimage.display().to_string())?,
        epoch: args.epoch.clone().unwrap_or_else(|| pace.epoch.to_owned()),
        beat_interval: args.beat_interval.clone().unwrap_or_else(|| pace.beat_interval.to_owned()),
        detect_multiplier: args.detect_multiplier.unwrap_or(pace.detect_multiplier),
        transport: args.transport.clone(),
        keepalive: args.keepalive.clone(),
        staging: args.staging.clone(),
        pipeline: args.pipeline,
        repeat_after: pace.repeat_after,
        hosts: Hosts::of(args).name(),
        before: or(args.before, 3000, 500),
        after: or(args.after, 3000, 300),
        baseline: or(args.baseline, extra, 0),
        idle: or(args.idle, extra, 0),
        work_dir: work.to_owned(),
        ram_dir: ram.to_owned(),
    })
}

fn rounds(args: &DemoArgs, settings: &Settings, topology: &dyn Topology) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for number in 1..=args.repeat {
        let dir = settings.work_dir.join(number.to_string());
        let outcome = one_round(settings, topology, &dir, args.repeat == 1);
        if sys::interrupted() {
            anyhow::bail!("interrupted");
        }
        topology.reset()?;
        let outcome = outcome.unwrap_or_else(|error| Outcome::broken(settings, &error));
        if args.repeat > 1 {
            println!("{}", round_line(number, &outcome));
        }
        if outcome.passed() && !args.keep {
            let _ = std::fs::remove_dir_all(&dir);
        }
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn one_round(settings: &Settings, topology: &dyn Topology, dir: &Path, single: bool) -> Result<Outcome> {
    let timeline = Timeline::new(single);
    let outcome = protected_round(settings, topology, dir, &timeline, single);
    // Of a run that is one of many, nobody has seen the events yet.
    if !single && !outcome.as_ref().is_ok_and(Outcome::passed) {
        let events = timeline.since(Mark::default());
        let origin_ms = events.first().map_or(0.0, |e| e.at_ms);
        events.iter().for_each(|e| eprintln!("{}", e.line(origin_ms)));
    }
    outcome
}

fn protected_round(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    timeline: &Timeline,
    single: bool,
) -> Result<Outcome> {
    let mut round = Round::start(settings, topology, dir, timeline.clone())?;
    let baseline = round.boot()?;
    round.protect()?;
    let idle = round.idle_cpu_percent()?;
    let replies_from = round.reply_mark();
    round.start_client()?;
    pass(settings.before)?;
    let evidence = fault::run(&mut round, replies_from)?;
    let outcome = Outcome::of(settings, &evidence, &baseline, idle);
    if single {
        println!("\nTimeline, from the fault:");
        evidence.events.iter().for_each(|e| println!("{}", e.line(evidence.fault_at_ms)));
        print_summary(&outcome);
    }
    if !outcome.passed() {
        eprintln!("{}", round.logs());
    }
    Ok(outcome)
}

fn print_summary(outcome: &Outcome) {
    println!();
    for (name, value) in outcome.times.named() {
        let shown = value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        println!("{:<24} {shown:>9}", name.replace('_', " "));
    }
    outcome.reasons.iter().for_each(|reason| println!("WRONG: {reason}"));
    println!("verdict: {}\n", if outcome.passed() { "pass" } else { "fail" });
}

fn round_line(number: u32, outcome: &Outcome) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    let verdict = if outcome.passed() { "pass".to_owned() } else { format!("FAIL: {}", outcome.reasons.join("; ")) };
    let t = outcome.times;
    format!(
        "{number:>5}  declared after {}, running {} later, first reply after {}  {verdict}",
        shown(t.kill_to_declared),
        shown(t.declared_to_cas.zip(t.cas_to_running).map(|(a, b)| a + b)),
        shown(t.kill_to_first_reply),
    )
}

/// The last line: of a single run all of it, of many the counts and the distribution of times.
fn final_json(settings: &Settings, outcomes: &[Outcome]) -> Value {
    if let [only] = outcomes {
        return only.json.clone();
    }
    let mut reasons: Vec<String> = Vec::new();
    for reason in outcomes.iter().flat_map(|o| &o.reasons) {
        if !reasons.contains(reason) && reasons.len() < 20 {
            reasons.push(reason.clone());
        }
    }
    let mut json = head(settings, &reasons);
    let count = |wanted: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| wanted(o)).count();
    merge(
        &mut json,
        json!({
            "rounds": outcomes.len(),
            "passed": count(&Outcome::passed),
            "takeovers": count(&|o| o.survivor == Some(Place::Standby)),
            "lost": outcomes.iter().map(|o| o.lost).sum::<u64>(),
            "duplicated": outcomes.iter().map(|o| o.duplicated).sum::<u64>(),
            "stuck": count(&|o| o.stuck),
        }),
    );
    for (index, (name, _)) in outcomes[0].times.named().iter().enumerate() {
        let mut samples = Samples::default();
        outcomes.iter().for_each(|o| samples.add(o.times.named()[index].1));
        json[*name] = samples.to_json();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(parse_time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_time("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("500us"), Ok(Duration::from_micros(500)));
        for wrong in ["", "20", "ms", "-1s", "1.5s", "20 ms", "99999999999999999999s", "2m"] {
            assert!(parse_time(wrong).unwrap_err().contains("20ms"), "{wrong}");
        }
    }
}
