//! `rig demo`: runs a scenario once or many times, prints the timeline and the verdict.

mod args;

pub use args::{AccelChoice, DemoArgs, Hosts, parse_time};

use crate::{
    guest::{Accel, Guest, Images},
    hosts::{Place, Topology},
    lab,
    netns::{SHM, TEMPORARY},
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
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

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
    let topology = args.hosts().create()?;
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
    let (hosts, lab) = (args.hosts(), args.hosts() == Hosts::Lab);
    if lab {
        lab::check_guest(args.guest)?;
    } else if args.scenario == Scenario::CutRdma {
        return Err(Missing::error("network namespaces have no RDMA to cut", "Use --hosts lab"));
    }
    let pace = hosts.pace();
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
        flags: args.flags(hosts),
        pipeline: args.pipeline,
        repeat_after: pace.repeat_after,
        hosts: hosts.name(),
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
        evidence.stories.iter().for_each(|story| print!("\n{story}"));
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
    if let Some(ms) = outcome.json.pointer("/rdma/gives_up_ms").and_then(Value::as_f64) {
        println!("{:<24} {ms:>9.1}", "RDMA alone gives up ms");
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
