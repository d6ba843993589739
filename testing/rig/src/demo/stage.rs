//! Where scenarios are played: hosts, directories and settings, for one round after the other.

use super::{DemoArgs, Hosts};
use crate::{
    guest::{Accel, Guest, Images},
    hosts::Topology,
    lab, metronome,
    netns::{SHM, TEMPORARY},
    prerequisite::{self, Missing},
    scenario::{Programs, Scenario, Settings, evidence::Verdict, fault, report::Outcome, round::Round},
    sys,
    timeline::{Mark, Timeline},
};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// Times that a round may be spoilt before the machine is called too busy for it.
const ATTEMPTS: usize = 5;

/// Everything that rounds share. Dropped: the hosts are gone, and the files of rounds that passed.
#[derive(Debug)]
pub struct Stage {
    /// What a round needs to know.
    pub settings: Settings,
    /// The hosts.
    pub topology: Box<dyn Topology>,
    args: DemoArgs,
    work: TempDir,
    _ram: TempDir,
    keep: bool,
    plays: u32,
    // The last one, for the others have to be cleaned up.
    _signals: sys::Caught,
}

impl Stage {
    /// Sets it up.
    ///
    /// # Errors
    /// [`Missing`], or the hosts cannot be made.
    pub fn set(args: &DemoArgs) -> Result<Self> {
        prerequisite::check()?;
        if args.hosts() == Hosts::Netns {
            metronome::start()?;
        }
        let signals = sys::catch_signals();
        let work = temporary(&std::env::temp_dir())?;
        // The standby's RAM is memory, if this machine has a file system for that.
        let ram = temporary(if Path::new(SHM).is_dir() { Path::new(SHM) } else { work.path() })?;
        let settings = settings(args, work.path(), ram.path())?;
        let (topology, args) = (args.hosts().create()?, args.clone());
        let keep = args.keep;
        let mut stage = Self { settings, topology, args, work, _ram: ram, keep: false, plays: 0, _signals: signals };
        if keep {
            stage.keep_files();
        }
        Ok(stage)
    }

    /// From here on everything that is written stays there.
    pub fn keep_files(&mut self) {
        if !std::mem::replace(&mut self.keep, true) {
            self.work.disable_cleanup(true);
            eprintln!("logs and files are in {}", self.work.path().display());
        }
    }

    /// The scenario of the coming rounds.
    pub fn choose(&mut self, scenario: Scenario) {
        self.settings.flags = self.args.flags(self.args.hosts(), scenario);
        self.settings.scenario = scenario;
    }

    /// Plays the scenario until a round is not spoilt, a few times at most: the last outcome, and what spoilt those
    /// before it. `live` as in [`Stage::play`].
    ///
    /// # Errors
    /// As [`Stage::play`].
    pub fn play_fairly(&mut self, number: u32, live: bool) -> Result<(Outcome, Vec<String>)> {
        let mut spoilt = Vec::new();
        loop {
            let outcome = self.play(number, live)?;
            if outcome.verdict != Verdict::Spoilt || spoilt.len() + 1 == ATTEMPTS {
                return Ok((outcome, spoilt));
            }
            eprintln!("round {number}, {}: spoilt, and played again: {}", outcome.scenario, outcome.reasons.join("; "));
            spoilt.push(format!("{}: {}", outcome.scenario, outcome.reasons.join("; ")));
        }
    }

    /// Plays the scenario once, with everything new but the hosts. A round that breaks is an outcome too. `live`:
    /// events are narrated as they come; else only those of a round that did not pass are, at its end.
    ///
    /// # Errors
    /// Somebody interrupted the rig, or the hosts cannot be made ready for another round.
    pub fn play(&mut self, number: u32, live: bool) -> Result<Outcome> {
        // (A round that was played before may have left its files.)
        self.plays += 1;
        let dir = self.settings.work_dir.join(format!("{number}.{}", self.plays));
        let outcome = one_round(&self.settings, &*self.topology, &dir, live);
        if sys::interrupted() {
            bail!("interrupted");
        }
        self.topology.reset()?;
        let outcome = outcome.unwrap_or_else(|error| Outcome::broken(&self.settings, &error));
        if !outcome.passed() {
            self.keep_files();
        } else if !self.keep {
            let _ = std::fs::remove_dir_all(&dir);
        }
        Ok(outcome)
    }
}

fn temporary(parent: &Path) -> Result<TempDir> {
    let prefix = format!("{TEMPORARY}{}-", std::process::id());
    let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
    dir.with_context(|| format!("temporary directory in {}", parent.display()))
}

/// A program of ours: the one that was asked for, else the one beside this program.
fn program(given: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("own path")?;
    let path = given.cloned().unwrap_or_else(|| own.with_file_name(name));
    prerequisite::file(&path, "cargo build --release -p afterimage -p rig builds it")?;
    path.canonicalize().with_context(|| path.display().to_string())
}

/// Where scripts/guests builds, below the checkout.
const GUESTS: &str = "testing/guests";

/// What scripts/guests built: of the checkout that this program lies in, else of the one that it runs in.
fn guests(args: &DemoArgs) -> Result<PathBuf> {
    if let Some(given) = &args.guests {
        return Ok(given.clone());
    }
    let own = std::env::current_exe().context("own path")?;
    let here = std::env::current_dir().context("current directory")?;
    let checkout = own.ancestors().chain(here.ancestors()).find(|dir| dir.join(GUESTS).is_dir());
    let build = checkout.map(|dir| dir.join(GUESTS).join("build"));
    build.ok_or_else(|| {
        let what = format!("no directory above {} or {} has {GUESTS}", own.display(), here.display());
        Missing::error(what, "Run it inside of a checkout, or say where the guests are: --guests DIR")
    })
}

fn settings(args: &DemoArgs, work: &Path, ram: &Path) -> Result<Settings> {
    let instead = args.afterimage_on.iter().map(|(place, path)| Ok((*place, program(Some(path), "afterimage")?)));
    let programs = Programs {
        afterimage: program(args.afterimage.as_ref(), "afterimage")?,
        instead: instead.collect::<Result<_>>()?,
    };
    let rig = program(None, "rig")?;
    let images = Images::find(&guests(args)?, args.guest)?;
    let (hosts, lab) = (args.hosts(), args.hosts() == Hosts::Lab);
    let scenarios = args.scenarios();
    let first = *scenarios.first().context("these hosts can play no scenario")?;
    if lab {
        lab::check_guest(args.guest)?;
        if let Some(local) = scenarios.iter().find(|s| s.needs_local_hosts()) {
            let what = format!("{} reaches into processes, and those of the lab are not this machine's", local.name());
            return Err(Missing::error(what, "Use --hosts netns"));
        }
    } else if scenarios.iter().any(|s| s.needs_rdma()) {
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
        scenario: first,
        // (No KVM in the lab's VMs.)
        guest: Guest::new(args.guest, if lab { Some(Accel::Tcg) } else { args.accel }, args.pages, images)?,
        programs,
        rig,
        epoch: args.epoch.clone().unwrap_or_else(|| pace.epoch.to_owned()),
        beat_interval: args.beat_interval.clone().unwrap_or_else(|| pace.beat_interval.to_owned()),
        detect_multiplier: args.detect_multiplier.unwrap_or(pace.detect_multiplier),
        flags: args.flags(hosts, first),
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

fn one_round(settings: &Settings, topology: &dyn Topology, dir: &Path, live: bool) -> Result<Outcome> {
    let timeline = Timeline::new(live);
    let outcome = whole_round(settings, topology, dir, &timeline);
    // Nobody has seen the events yet.
    if !live && !outcome.as_ref().is_ok_and(Outcome::passed) {
        let events = timeline.since(Mark::default());
        let origin_ms = events.first().map_or(0.0, |e| e.at_ms);
        events.iter().for_each(|e| eprintln!("{}", e.line(origin_ms)));
    }
    outcome
}

fn whole_round(settings: &Settings, topology: &dyn Topology, dir: &Path, timeline: &Timeline) -> Result<Outcome> {
    let mut round = Round::start(settings, topology, dir, timeline.clone())?;
    let baseline = round.boot()?;
    let (evidence, idle) = fault::run(&mut round)?;
    let outcome = Outcome::of(settings, &evidence, &baseline, idle);
    if !outcome.passed() {
        eprintln!("{}", round.logs());
    }
    Ok(outcome)
}
