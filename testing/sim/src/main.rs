//! `sim`: runs seeds, and tells what went wrong.

use anyhow::{Context, Result, bail};
use clap::Parser;
use mc_core::testing::Sabotage;
use sim::{
    hardship::{self, Hardships},
    run::{Outcome, Plan},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// The first line of a file of seeds.
const SEEDS: &str = "afterimage sim seeds 1";
/// Seeds in which a seeded bug is looked for.
const BUG_SEEDS: u64 = 10_000;

/// Runs the product's own loops in a virtual world, by seed.
#[derive(Debug, Parser)]
struct Args {
    /// One seed, with everything that happens.
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "bugs", "file"])]
    seed: Option<u64>,
    /// Seeds from the first to the one before the last: 0..1000.
    #[arg(long, value_name = "A..B")]
    seeds: Option<String>,
    /// Seeds for so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// The seeds of a file: after its first line, a seed a line, and its hardships after a space.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Only these; + composes them.
    #[arg(long)]
    hardship: Option<Hardships>,
    /// The hardships.
    #[arg(long)]
    list: bool,
    /// Looks for each seeded bug: a rule that is left out.
    #[arg(long)]
    bugs: bool,
    /// With this rule left out.
    #[arg(long)]
    bug: Option<String>,
}

/// All that can be left out.
const BUGS: [(&str, Sabotage); 15] = [
    ("release-unacked", Sabotage::ReleaseUnacked),
    ("ack-incomplete", Sabotage::AckIncomplete),
    ("ack-while-claiming", Sabotage::AckWhileClaiming),
    ("release-before-solo", Sabotage::ReleaseBeforeSolo),
    ("register-early", Sabotage::RegisterEarly),
    ("swap-unnamed", Sabotage::SwapUnnamed),
    ("mark-unheld", Sabotage::MarkUnheld),
    ("claim-unheld", Sabotage::ClaimUnheld),
    ("believe-less", Sabotage::BelieveLess),
    ("hand-back-open", Sabotage::HandBackOpen),
    ("renounce-held", Sabotage::RenounceHeld),
    ("renounce-unread", Sabotage::RenounceUnread),
    ("compare-hosts", Sabotage::CompareHosts),
    ("proven-by-any", Sabotage::ProvenByAny),
    ("decide-unheld", Sabotage::DecideUnheld),
];

fn main() -> ExitCode {
    let dir = room();
    let done = work(&Args::parse(), &dir);
    let _ = fs::remove_dir_all(&dir);
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// In memory, where there is such a place: what nodes keep is synced.
fn room() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    base.join(format!("afterimage-sim-{}", std::process::id()))
}

fn work(args: &Args, dir: &Path) -> Result<ExitCode> {
    if args.list {
        hardship::list().for_each(|(name, what)| println!("{name:<20} {what}"));
        return Ok(ExitCode::SUCCESS);
    }
    if args.bugs {
        return bugs(dir);
    }
    let bug = args.bug.as_deref().map(bug_of).transpose()?;
    let plan = |seed| Plan { bug, ..Plan::new(seed, args.hardship.as_ref()) };
    if let Some(seed) = args.seed {
        return one(&plan(seed), dir);
    }
    let plans: Box<dyn Iterator<Item = Plan>> = match (&args.file, &args.seeds, args.minutes) {
        (Some(file), ..) => Box::new(read(file)?.into_iter().map(|plan| Plan { bug, ..plan })),
        (None, Some(range), _) => {
            let (from, to) = range.split_once("..").context("--seeds takes A..B, such as 0..1000")?;
            let number = |text: &str| text.parse::<u64>().with_context(|| format!("--seeds: {text} is no number"));
            Box::new((number(from)?..number(to)?).map(plan))
        }
        (None, None, Some(minutes)) => {
            let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
            Box::new((0..).map(plan).take_while(move |_| Instant::now() < until))
        }
        (None, None, None) => bail!("say --seed, --seeds, --minutes, --file, --bugs or --list"),
    };
    many(plans, dir)
}

fn bug_of(name: &str) -> Result<Sabotage> {
    let known = || BUGS.map(|(known, _)| known).join(", ");
    let found = BUGS.iter().find(|(known, _)| *known == name);
    found.map(|(_, bug)| *bug).with_context(|| format!("there is no bug \"{name}\"; there are {}", known()))
}

/// Seeds that are kept.
fn read(file: &Path) -> Result<Vec<Plan>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    anyhow::ensure!(first == SEEDS, "{}: begins with \"{first}\", and not with \"{SEEDS}\"", file.display());
    let mut plans = vec![];
    for (index, line) in lines.enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let place = || format!("{}, line {}", file.display(), index + 2);
        let (seed, hardships) = line.split_once(' ').unwrap_or((line, ""));
        let seed = seed.parse().with_context(|| format!("{}: \"{seed}\" is no seed", place()))?;
        let hardships = if hardships.is_empty() { None } else { Some(hardships.parse().with_context(place)?) };
        plans.push(Plan::new(seed, hardships.as_ref()));
    }
    Ok(plans)
}

/// Everything that happens; and if it goes wrong, the story of the shortest schedule.
fn one(plan: &Plan, dir: &Path) -> Result<ExitCode> {
    let outcome = plan.run(dir, true)?;
    outcome.trace.iter().for_each(|line| println!("{line}"));
    println!("{} ({})", told(plan, &outcome), plan.hardships);
    if outcome.wrong.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    let shrunk = plan.shrunk(dir)?;
    let outcome = shrunk.run(dir, true)?;
    println!("\nThe shortest of its schedules that goes wrong:");
    story(&outcome).for_each(|line| println!("{line}"));
    Ok(ExitCode::FAILURE)
}

/// The lines that a reader needs: event and moment, without their figures.
fn story(outcome: &Outcome) -> impl Iterator<Item = String> {
    outcome.trace.iter().map(|line| match line.split_once("{\"event\":\"") {
        Some((before, event)) => {
            let name = event.split('"').next().unwrap_or_default();
            let why = event.split_once("\"why\":\"").map_or("", |(_, why)| why.split('"').next().unwrap_or_default());
            let outcome =
                event.split_once("\"outcome\":\"").map_or("", |(_, said)| said.split('"').next().unwrap_or_default());
            format!("{before}{name} {outcome}{why}").trim_end().to_owned()
        }
        None => line.clone(),
    })
}

fn told(plan: &Plan, outcome: &Outcome) -> String {
    let (seed, seconds) = (plan.seed, outcome.lasted / 1_000_000_000);
    let wrong = outcome.wrong.as_deref().unwrap_or("nothing is wrong");
    format!("seed {seed}: {wrong}; {} words heard, {} takeovers, {seconds} s", outcome.words, outcome.takeovers)
}

fn many(plans: impl Iterator<Item = Plan>, dir: &Path) -> Result<ExitCode> {
    let (start, mut runs, mut wrong, mut takeovers, mut words, mut virtual_ns) =
        (Instant::now(), 0_u64, 0_u64, 0, 0, 0);
    for plan in plans {
        let outcome = plan.run(dir, false)?;
        runs += 1;
        (takeovers, words, virtual_ns) =
            (takeovers + outcome.takeovers, words + outcome.words, virtual_ns + outcome.lasted);
        if outcome.wrong.is_some() {
            wrong += 1;
            println!("{} ({})", told(&plan, &outcome), plan.hardships);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{runs} runs, {wrong} wrong; {takeovers} takeovers, {words} words heard, {} virtual seconds; {:.0} runs a second",
        virtual_ns / 1_000_000_000,
        runs as f64 / seconds.max(1e-9)
    );
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A table: bug, seeds that it took, what was seen.
fn bugs(dir: &Path) -> Result<ExitCode> {
    let mut found = BTreeMap::new();
    println!("| rule left out | seed that finds it | what is seen |\n|---|---|---|");
    for (name, bug) in BUGS {
        for seed in 0..BUG_SEEDS {
            let plan = Plan { bug: Some(bug), ..Plan::new(seed, None) };
            if let Some(wrong) = plan.run(dir, false)?.wrong {
                println!("| {name} | {seed} ({}) | {wrong} |", plan.hardships);
                found.insert(name, seed);
                break;
            }
        }
        if !found.contains_key(name) {
            println!("| {name} | not within {BUG_SEEDS} | |");
        }
    }
    Ok(ExitCode::SUCCESS)
}
