//! `rig demo`: runs a scenario once or many times, prints the timeline and the verdict.

mod args;
mod busy;
mod picture;
pub mod stage;
mod summary;

pub use args::{AccelChoice, DemoArgs, Hosts, parse_time};

use crate::{
    prerequisite::Missing,
    scenario::{
        evidence::Verdict,
        report::{Outcome, SCHEMA},
    },
};
use anyhow::{Context, Result};
use busy::Busy;
use serde_json::{Value, json};
use stage::Stage;
use std::path::Path;
use summary::Summary;

/// Runs it. True: passed. Whatever happens, the last line of output is JSON.
///
/// # Errors
/// The rig could not do its part, or something that it needs is missing.
pub fn run(args: &DemoArgs) -> Result<bool> {
    let result = try_run(args);
    if let Err(error) = &result {
        let verdict = if error.is::<Missing>() { "missing" } else { "fail" };
        let (scenario, guest) = (args.scenario_names(), args.guest.name());
        let reasons = [format!("{error:#}")];
        println!(
            "{}",
            json!({ "schema": SCHEMA, "scenario": scenario, "guest": guest, "verdict": verdict, "reasons": reasons })
        );
    }
    result
}

fn try_run(args: &DemoArgs) -> Result<bool> {
    let mut stage = Stage::set(args)?;
    let guest = &stage.settings.guest;
    let (kind, accel) = (guest.kind.name(), guest.accel.name());
    eprintln!("{}, {kind} guest on {accel}, epochs of {}", args.scenario_names(), stage.settings.epoch);
    let _busy = Busy::keep(args.busy, &stage.settings.rig)?;
    let scenarios = args.scenarios();
    let single = args.repeat == 1 && scenarios.len() == 1;
    let mut summary = Summary::default();
    for (number, scenario) in (1..=args.repeat).zip(scenarios.iter().cycle()) {
        stage.choose(*scenario);
        let (outcome, spoilt) = stage.play_fairly(number, single)?;
        if single {
            print_single(&outcome);
            draw(args.picture.as_deref(), &outcome)?;
        } else {
            println!("{}", round_line(number, &outcome));
        }
        summary.add(outcome, spoilt);
    }
    println!("{}", summary.json(&stage.settings, &args.scenario_names(), args.busy));
    Ok(summary.passed())
}

/// Draws the takeover, if there was one and a picture is wanted.
fn draw(file: Option<&Path>, outcome: &Outcome) -> Result<()> {
    if let Some((file, svg)) = file.zip(picture::takeover(&outcome.json)) {
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("the takeover as a picture: {}", file.display());
    }
    Ok(())
}

fn print_single(outcome: &Outcome) {
    if !outcome.events.is_empty() {
        println!("\nTimeline, from the fault:");
        outcome.events.iter().for_each(|e| println!("{}", e.line(outcome.fault_at_ms)));
        outcome.stories.iter().for_each(|story| print!("\n{story}"));
    }
    println!();
    for (name, value) in outcome.times.named() {
        let shown = value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        println!("{:<24} {shown:>9}", name.replace('_', " "));
    }
    if let Some(ms) = outcome.json.pointer("/rdma/gives_up_ms").and_then(Value::as_f64) {
        println!("{:<24} {ms:>9.1}", "RDMA alone gives up ms");
    }
    outcome.reasons.iter().for_each(|reason| println!("WRONG: {reason}"));
    println!("verdict: {}\n", outcome.verdict.name());
}

/// A round among many, for people.
#[must_use]
pub fn round_line(number: u32, outcome: &Outcome) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    let verdict = match outcome.verdict {
        Verdict::Pass => "pass".to_owned(),
        Verdict::Spoilt => format!("SPOILT: {}", outcome.reasons.join("; ")),
        Verdict::Fail => format!("FAIL: {}", outcome.reasons.join("; ")),
    };
    let t = outcome.times;
    format!(
        "{number:>5}  {:<22} declared after {}, running {} later, first reply after {}  {verdict}",
        outcome.scenario,
        shown(t.kill_to_declared),
        shown(t.declared_to_cas.zip(t.cas_to_running).map(|(a, b)| a + b)),
        shown(t.kill_to_first_reply),
    )
}
