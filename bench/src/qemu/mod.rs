//! `mc-bench qemu`: a real VM under our protection, beside what QEMU does by itself on the same hosts in the same run.
//!
//! | file | what |
//! |---|---|
//! | [`watch`] | pauses as QEMU tells them: the one method for all |
//! | [`ours`] | a VM under our protection |
//! | [`colo`] | QEMU-to-QEMU COLO at the same period |
//! | [`alone`] | a QEMU whose checkpoints nobody keeps: the floor |
//! | [`stand`] | what those two share: a stock QEMU as a primary |
//! | [`streams`] | all of RAM once: QEMU's `migrate`, our full synchronisation |
//! | [`figures`] | from runs to measures |
//!
//! ```text
//!   run 1: for each guest: COLO, COLO without delayed ACKs, QEMU alone, ours      then the streams
//!   run 2: …
//! ```

pub(crate) mod alone;
pub(crate) mod colo;
pub(crate) mod figures;
pub(crate) mod ours;
pub(crate) mod stand;
pub(crate) mod streams;
pub(crate) mod watch;

use crate::{
    cli::{Effort, Where},
    interrupt,
    link::{Network, Poll},
    load::Plan,
    record::{Missing, Section},
    side::Side,
    units::{parse_size, parse_time},
};
use anyhow::{Result, bail, ensure};
use clap::Args;
use figures::{Case, Rival, Streams, fill_streams};
use rig::{
    demo::{DemoArgs, Hosts, stage::Stage},
    guest::{Accel, Guest, Kind},
    hosts::Place,
    scenario::Settings,
    sys::interrupted,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of pages in each checkpoint of our transport's goodput.
const LOAD: usize = 16 << 20;

/// `mc-bench qemu`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("time", |a| a.default_value("20s").help("Time of each measurement of a VM")),
          mut_arg("quick", |a| a.help("Two runs of 3 s of one guest: to see that it works")),
          mut_arg("no_yardsticks", |a| a.help("No COLO, no migrate")))]
pub struct QemuArgs {
    /// The guest
    #[arg(long, value_enum, default_value = "tiny")]
    pub guest: Kind,
    /// What executes it [default: KVM if it boots this guest here, else TCG]
    #[arg(long, value_enum)]
    pub accel: Option<Accel>,
    /// From one checkpoint to the next, ours and COLO's
    #[arg(long, value_name = "TIME", value_parser = period, default_value = "100ms")]
    pub epoch: Duration,
    /// Pages that the guest rewrites all the time: the tiny one 100 times a second, the Linux one 10 times
    /// [default: tiny 0,64,1024; Linux 64; --quick: 64]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub pages: Vec<u32>,
    /// RAM of the VM that migrates and is synchronised, all of it written; always a tiny one
    #[arg(long, value_name = "SIZE", value_parser = ram, default_value = "256MiB")]
    pub ram: usize,
    /// How much of it
    #[command(flatten)]
    pub effort: Effort,
}

fn period(text: &str) -> Result<Duration, String> {
    let time = parse_time(text)?;
    let whole = time.subsec_nanos().is_multiple_of(1_000_000) && time >= Duration::from_millis(5);
    whole.then_some(time).ok_or_else(|| format!("COLO counts whole milliseconds; {text} is none, or below 5ms"))
}

fn ram(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text)?;
    let fits = bytes >= 4 << 20 && bytes.is_multiple_of(1 << 20);
    fits.then_some(bytes).ok_or_else(|| format!("{text}: whole MiB, 4MiB or more"))
}

impl QemuArgs {
    /// With `--quick` and defaults applied: pages, runs, time.
    fn settled(&self) -> (Vec<u32>, u32, Duration) {
        let pages = match (self.pages.as_slice(), self.effort.quick, self.guest) {
            ([], false, Kind::Tiny) => vec![0, 64, 1024],
            ([], ..) => vec![64],
            (asked, ..) => asked.to_vec(),
        };
        let quick = self.effort.quick;
        (pages, if quick { 2 } else { self.effort.runs }, if quick { Duration::from_secs(3) } else { self.effort.time })
    }

    fn demo(&self, guest: Kind, time: Duration) -> DemoArgs {
        DemoArgs {
            guest,
            accel: self.accel,
            hosts: Some(Hosts::Netns),
            epoch: Some(format!("{}ms", self.epoch.as_millis())),
            baseline: Some((time / 4).max(Duration::from_millis(500))),
            idle: Some(Duration::ZERO),
            ..DemoArgs::default()
        }
    }
}

/// One invocation.
struct Bench<'a> {
    args: &'a QemuArgs,
    stage: Stage,
    section: Section,
    time: Duration,
    /// Measurements so far; each has a directory of its own.
    count: u32,
}

/// Runs it all.
///
/// # Errors
/// [`rig::prerequisite::Missing`]: root, QEMU, guests or our own programs; or not one run of ours succeeded.
pub(crate) fn run(args: &QemuArgs) -> Result<Section> {
    let start = Instant::now();
    let (pages, runs, time) = args.settled();
    let stage = Stage::set(&args.demo(args.guest, time))?;
    let (kind, accel) = (args.guest.name(), stage.settings.guest.accel.name());
    let section = Section::new("qemu", format!("{kind} guest on {accel}, epochs of {} ms", args.epoch.as_millis()))
        .setting("guest", format!("{kind} on {accel}"))
        .setting("hosts", "network namespaces, all on this machine")
        .setting("epoch", format!("{} ms", args.epoch.as_millis()))
        .setting("time", format!("{} s", time.as_secs_f64()))
        .setting("runs", runs)
        .setting("QEMU", qemu_version());
    let mut bench = Bench { args, stage, section, time, count: 0 };
    let streaming = bench.streaming_guest()?;
    let mut cases: Vec<Case> = Vec::new();
    for pages in &pages {
        cases.push(Case { name: format!("{kind} on {accel}, {pages} pages"), runs: Vec::new() });
    }
    let mut streams = Vec::new();
    for number in interrupt::rounds(runs) {
        for (case, pages) in cases.iter_mut().zip(&pages) {
            bench.case(number, case, *pages)?;
        }
        streams.extend(bench.streams(number, &streaming)?);
    }
    ensure!(cases.iter().any(|c| !c.runs.is_empty()), "not one run succeeded: {}", bench.section.failures.join("; "));
    let mut section = bench.section;
    cases.iter().for_each(|case| case.fill(&mut section));
    fill_streams(&mut section, &format!("{} of RAM", crate::units::size(args.ram)), &streams);
    section.notes.push(
        "pauses: from STOP to RESUME as the primary's QEMU tells them, ours and COLO's alike; both VMs of COLO run"
            .into(),
    );
    section.took_s = start.elapsed().as_secs_f64();
    Ok(section)
}

fn qemu_version() -> String {
    let output = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").replace("QEMU emulator version ", "")
}

impl Bench<'_> {
    /// One measurement, in a directory of its own, with everything new but the hosts. What fails is noted; None then.
    fn attempt<T>(
        &mut self,
        what: &str,
        settings: &Settings,
        measure: impl FnOnce(&Settings, &Stage, &Path) -> Result<T>,
    ) -> Result<Option<T>> {
        self.count += 1;
        let dir = self.stage.settings.work_dir.join(self.count.to_string());
        std::fs::create_dir_all(&dir)?;
        let found = measure(settings, &self.stage, &dir);
        if interrupted() {
            bail!("interrupted");
        }
        self.stage.topology.reset()?;
        match found {
            Ok(found) => {
                let _ = std::fs::remove_dir_all(&dir);
                Ok(Some(found))
            }
            Err(error) => {
                eprintln!("mc-bench: failed: {what}: {error:#}");
                self.section.failures.push(format!("{what}: {error:#}"));
                self.stage.keep_files();
                Ok(None)
            }
        }
    }

    fn case(&mut self, number: u32, case: &mut Case, pages: u32) -> Result<()> {
        let guest = self.stage.settings.guest.rewriting(pages, &self.stage.settings.work_dir)?;
        let settings = Settings { guest, ..self.stage.settings.clone() };
        let (times, time) = ((self.args.epoch, self.time), self.time);
        let mut theirs = [None, None, None];
        for (rival, seen) in Rival::ALL.into_iter().zip(&mut theirs) {
            if self.args.effort.no_yardsticks {
                continue;
            }
            let what = format!("{}, run {number}, {}", case.name, rival.name());
            *seen = self.attempt(&what, &settings, |s, stage, dir| match rival {
                Rival::Colo => colo::run(s, &*stage.topology, dir, times, false),
                Rival::QuickColo => colo::run(s, &*stage.topology, dir, times, true),
                Rival::Alone => alone::run(s, &*stage.topology, dir, times),
            })?;
            match seen {
                Some(seen) => eprintln!("mc-bench: {what}: pauses {}", told(&seen.times())),
                None => self.note_missing(rival.name()),
            }
        }
        let what = format!("{}, run {number}, ours", case.name);
        let ours = self.attempt(&what, &settings, |s, stage, dir| ours::run(s, &*stage.topology, dir, time))?;
        if let Some(ours) = ours {
            eprintln!("mc-bench: {what}: pauses {}", told(&ours.watched.times()));
            case.runs.push((ours, theirs));
        }
        Ok(())
    }

    /// A yardstick that failed, once.
    fn note_missing(&mut self, what: &str) {
        let why = self.section.failures.last().cloned().unwrap_or_default();
        if !self.section.missing.iter().any(|m| m.what == what) {
            self.section.missing.push(Missing { what: what.to_owned(), why, package: None });
        }
    }

    /// The VM whose RAM is all in use.
    fn streaming_guest(&self) -> Result<Guest> {
        let settings = &self.stage.settings;
        let tiny = match self.args.guest {
            Kind::Tiny => settings.guest.clone(),
            Kind::Linux | Kind::Redis => settings.guest.as_tiny()?,
        };
        tiny.filled(u32::try_from(self.args.ram >> 20)?, &settings.work_dir)
    }

    fn streams(&mut self, number: u32, guest: &Guest) -> Result<Option<Streams>> {
        let settings = Settings { guest: guest.clone(), baseline: Duration::ZERO, ..self.stage.settings.clone() };
        let loopback = self.migrate(number, &settings, (Place::Client, Place::Client), "127.0.0.1")?;
        let goodput = goodput(self.time.min(Duration::from_secs(2)))?;
        let standby = rig::hosts::STANDBY_REP_IP;
        let link = self.migrate(number, &settings, (Place::Primary, Place::Standby), standby)?;
        let what = format!("run {number}, full synchronisation");
        let sync = self.attempt(&what, &settings, |s, stage, dir| streams::full_sync(s, &*stage.topology, dir))?;
        let shown = |mb_s: Option<f64>| mb_s.map_or("-".to_owned(), |mb_s| format!("{mb_s:.0}"));
        eprintln!(
            "mc-bench: run {number}: MB/sec over loopback: migrate {}, ours {goodput:.0}; between hosts: migrate {}, ours {}",
            shown(loopback),
            shown(link),
            shown(sync)
        );
        Ok(sync.map(|sync| Streams { loopback: (goodput, loopback), link: (sync, link) }))
    }

    fn migrate(&mut self, number: u32, s: &Settings, way: (Place, Place), address: &str) -> Result<Option<f64>> {
        if self.args.effort.no_yardsticks {
            return Ok(None);
        }
        let what = format!("run {number}, QEMU's migrate to {address}");
        let found = self.attempt(&what, s, |s, stage, dir| streams::migrate(s, &*stage.topology, dir, way, address))?;
        if found.is_none() {
            self.note_missing("QEMU's migrate");
        }
        Ok(found)
    }
}

fn told(times: &mc_core::histogram::Histogram) -> String {
    let p = times.percentiles();
    format!("p50 {} us, p99 {} us ({} of them)", p.p50, p.p99, p.count)
}

/// Our transport over loopback, between two processes that sleep while they have nothing to do. MB/sec of pages.
fn goodput(time: Duration) -> Result<f64> {
    let place = Where {
        transport: Network::Tcp,
        device: String::new(),
        peer_device: String::new(),
        gid_index: None,
        slab: 1 << 20,
        slice: None,
        queues: None,
        signal_every: None,
        send_depth: None,
        ack_timeout: None,
    };
    let plan = Plan { bytes: LOAD, depth: 4, every: None, time, poll: Poll::Event };
    Ok(Side::new(&place)?.checkpoints(&plan)?.average)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(words: &str) -> Result<QemuArgs, String> {
        let words = ["mc-bench", "qemu"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Command::Qemu(args) => Ok(args),
            _ => unreachable!("not asked for"),
        }
    }

    #[test]
    fn defaults_and_quick() {
        assert_eq!(args("").unwrap().settled(), (vec![0, 64, 1024], 5, Duration::from_secs(20)));
        assert_eq!(args("--quick").unwrap().settled(), (vec![64], 2, Duration::from_secs(3)));
        let linux = args("--guest linux --runs 7 --for 9s").unwrap().settled();
        assert_eq!(linux, (vec![64], 7, Duration::from_secs(9)));
        assert_eq!(args("--pages 1,2 --quick").unwrap().settled().0, [1, 2]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (wrong, words) in [
            ("--epoch 1500us", "whole milliseconds"),
            ("--epoch 1ms", "5ms"),
            ("--ram 1MiB", "4MiB or more"),
            ("--quick --for 1s", "cannot be used"),
        ] {
            let error = args(wrong).unwrap_err();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }
}
