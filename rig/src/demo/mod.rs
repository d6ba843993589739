//! `rig demo`: runs a scenario once or many times, prints the timeline and the verdict.

mod args;
pub mod stage;

pub use args::{AccelChoice, DemoArgs, Hosts, parse_time};

use crate::{
    hosts::Place,
    prerequisite::Missing,
    scenario::{
        Settings,
        report::{Outcome, SCHEMA, head, merge},
    },
    stats::Samples,
};
use anyhow::Result;
use serde_json::{Value, json};
use stage::Stage;

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
    let mut stage = Stage::set(args)?;
    let (scenario, guest) = (args.scenario.name(), &stage.settings.guest);
    eprintln!("{scenario}, {} guest on {}, epochs of {}", guest.kind.name(), guest.accel.name(), stage.settings.epoch);
    let single = args.repeat == 1;
    let mut outcomes = Vec::new();
    for number in 1..=args.repeat {
        let outcome = stage.play(number, single)?;
        if single {
            print_single(&outcome);
        } else {
            println!("{}", round_line(number, &outcome));
        }
        outcomes.push(outcome);
    }
    let passed = outcomes.iter().all(Outcome::passed);
    println!("{}", final_json(&stage.settings, &outcomes));
    Ok(passed)
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
    println!("verdict: {}\n", if outcome.passed() { "pass" } else { "fail" });
}

/// A round among many, for people.
#[must_use]
pub fn round_line(number: u32, outcome: &Outcome) -> String {
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
