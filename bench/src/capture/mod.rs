//! `mc-bench capture`: how long dirty pages take into slabs, by engine and pattern, beside a plain memcpy of the same pages.
//!
//! Two times of each: the *copy* alone (slabs laid out before, sealed after), and the whole *capture* (layout, copy,
//! checksums), which is what a pause pays for. Before each, the caches are filled with something else: in the product the
//! guest and the transport have done that. Every capture's bytes are compared with guest RAM.
//!
//! | file | what |
//! |---|---|
//! | [`pattern`] | which pages are dirty |
//! | [`stand`] | guest RAM, slabs, and one engine timed once |

pub(crate) mod pattern;
pub(crate) mod stand;

use crate::{
    cli::CaptureArgs,
    interrupt,
    link::Port,
    record::{Better, Bound, Measure, Missing, Section, Unit},
    stats::Spread,
    transport::SWEEP,
    units::{self, mib_per_s, us},
    yard::{Yardsticks, perftest::Devices},
};
use anyhow::{Context, Result};
use capture::{
    Memcpy,
    parallel::{Options, Parallel, Stores},
    rdma::{self, LocalCopy},
    threads::{self, Threads},
};
use mc_core::{
    capture::{CaptureEngine, Run},
    histogram::Histogram,
    id::PAGE_SIZE,
};
use pattern::Pattern;
use stand::Stand;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use transport_rdma::device::DeviceError;

/// Of memcpy's time, for scattered pages.
const BOUND: f64 = 0.65;
/// Of `ib_write_bw`'s bandwidth, for the device.
const DEVICE_BOUND: f64 = 0.95;
const YARDSTICK: &str = "memcpy, 1 thread";

/// What an engine did on one pattern.
#[derive(Debug, Default)]
struct Times {
    copy: Kind,
    capture: Kind,
    /// MB/sec of `ib_write_bw`, just before.
    device: Vec<Option<f64>>,
}

/// One of the two times.
#[derive(Debug, Default)]
struct Kind {
    /// Medians, run by run: usec.
    runs: Vec<f64>,
    all: Histogram,
}

impl Kind {
    fn add(&mut self, turns: &[Duration]) {
        turns.iter().for_each(|turn| self.all.record(*turn));
        let median = Spread::of(&turns.iter().copied().map(us).collect::<Vec<_>>());
        self.runs.push(median.map_or(0.0, |s| s.median));
    }
}

/// An engine that is measured.
struct Entry {
    name: String,
    engine: Box<dyn CaptureEngine>,
    /// For the copy alone, if that is another: one that computes no checksums.
    copier: Option<Box<dyn CaptureEngine>>,
    /// It is the one that the bound is for.
    bounded: bool,
    /// It is the device.
    device: bool,
}

impl Entry {
    fn new(name: impl Into<String>, engine: Box<dyn CaptureEngine>) -> Self {
        Self { name: name.into(), engine, copier: None, bounded: false, device: false }
    }

    /// The copy alone, and the capture.
    fn time(&mut self, stand: &mut Stand, runs: &[Run]) -> Result<(Duration, Duration)> {
        let copier = self.copier.as_mut().unwrap_or(&mut self.engine);
        let copy = stand.time_copy(copier.as_mut(), runs).with_context(|| self.name.clone())?;
        let capture = stand.time_capture(self.engine.as_mut(), runs).with_context(|| self.name.clone())?;
        Ok((copy, capture))
    }
}

/// Measures it all.
///
/// # Errors
/// There is no memory, or an engine fails or copies wrongly. No device, or no yardstick, is no error.
pub(crate) fn run(args: &CaptureArgs) -> Result<Section> {
    let (began, effort) = (Instant::now(), args.effort.settled());
    let turns = if effort.quick { 3 } else { 7 };
    let mut stand = Stand::new(args.ram, args.slab, args.pages).context("memory to measure with")?;
    let port = Port::find(&args.device, args.gid_index);
    let (mut entries, mut section) = entries(args, &stand, &port)?;
    let devices = port.ok().map(|port| Devices { near: port.clone(), far: port });
    let has_device = devices.is_some();
    let mut yardsticks = Yardsticks::new(devices, effort.no_yardsticks);
    let message = match args.yardstick_size {
        Some(bytes) => bytes,
        None if has_device => yardsticks.best_write_size(&SWEEP),
        None => SWEEP[0],
    };
    let mut found: Vec<Vec<Times>> = Vec::new();
    for pattern in Pattern::ALL {
        let runs = pattern.runs(args.pages, stand.ram_pages(), args.seed);
        let mut times: Vec<Times> = entries.iter().map(|_| Times::default()).collect();
        for round in interrupt::rounds(effort.runs) {
            if has_device && pattern != Pattern::Idle {
                let beside = yardsticks.perftest(|d| d.write_bw(message, effort.time)).map(|found| found.average);
                times.iter_mut().for_each(|t| t.device.push(beside));
            }
            let (mut copies, mut captures) = (vec![vec![]; entries.len()], vec![vec![]; entries.len()]);
            // In turns: whatever else the machine does hits all of them. The first turn warms up.
            for turn in 0..=turns {
                for (index, entry) in entries.iter_mut().enumerate() {
                    let (copy, capture) = entry.time(&mut stand, &runs)?;
                    if turn > 0 {
                        copies[index].push(copy);
                        captures[index].push(capture);
                    }
                }
            }
            for ((times, copies), captures) in times.iter_mut().zip(&copies).zip(&captures) {
                times.copy.add(copies);
                times.capture.add(captures);
            }
            tell(round, pattern, &entries, &times);
        }
        found.push(times);
    }
    section.measures = measures(args, &entries, &found, message);
    section.missing.extend(yardsticks.into_missing());
    section.took_s = began.elapsed().as_secs_f64();
    Ok(section)
}

fn tell(round: u32, pattern: Pattern, entries: &[Entry], times: &[Times]) {
    let last = |kind: &Kind| kind.runs.last().copied().unwrap_or(0.0);
    let each =
        entries.iter().zip(times).map(|(e, t)| format!("{} {:.0}/{:.0}", e.name, last(&t.copy), last(&t.capture)));
    let each: Vec<_> = each.collect();
    eprintln!("mc-bench: run {round}: {}: copy/capture usec: {}", pattern.name(), each.join("; "));
}

/// The engines, memcpy first, and the section's head.
fn entries(args: &CaptureArgs, stand: &Stand, port: &Result<Port>) -> Result<(Vec<Entry>, Section)> {
    let blocks = || Arc::clone(stand.blocks());
    let mut entries = vec![Entry::new(YARDSTICK, Box::new(Memcpy::new(blocks())))];
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let most = args.threads.unwrap_or(processors.min(threads::MOST));
    let parallel = |threads: usize, stores, checksum| -> Result<Box<dyn CaptureEngine>> {
        Ok(Box::new(Parallel::new(blocks(), Threads::new(threads - 1)?, Options { stores, checksum })))
    };
    for (threads, stores) in (1..=most).map(|threads| (threads, Stores::Streaming)).chain([(most, Stores::Cached)]) {
        let name = match (threads, stores) {
            (1, Stores::Streaming) => "parallel, 1 thread".to_owned(),
            (_, Stores::Streaming) => format!("parallel, {threads} threads"),
            (_, Stores::Cached) => format!("parallel, {threads} threads, through the caches"),
        };
        let mut entry = Entry::new(name, parallel(threads, stores, true)?);
        entry.copier = Some(parallel(threads, stores, false)?);
        entry.bounded = threads == most && most > 1 && stores == Stores::Streaming;
        entries.push(entry);
    }
    let mut section = head(args);
    match port.as_ref().map_err(remedy).and_then(|port| by_device(args, port, stand).map_err(|e| format!("{e:#}"))) {
        Ok(engine) => entries.push(Entry { device: true, ..Entry::new("local RDMA", engine) }),
        Err(why) => section.missing.push(Missing { what: "local RDMA copies".to_owned(), why, package: None }),
    }
    Ok((entries, section))
}

fn remedy(error: &anyhow::Error) -> String {
    let remedy = error.downcast_ref::<DeviceError>().map(|e| format!("; {}", e.remedy()));
    format!("{error:#}{}", remedy.unwrap_or_default())
}

fn by_device(args: &CaptureArgs, port: &Port, stand: &Stand) -> Result<Box<dyn CaptureEngine>> {
    let default = rdma::Options::default();
    let gather = args.gather.unwrap_or(default.gather);
    let options = rdma::Options { gid_index: port.gid_index, gather, ..default };
    Ok(Box::new(LocalCopy::new(&port.open()?.context, stand.blocks(), &options)?))
}

fn head(args: &CaptureArgs) -> Section {
    let title = format!("{} dirty pages into staging slabs, the VM paused", args.pages);
    let mut section = Section::new("capture", title)
        .setting("dirty pages", format!("{} of 4 KiB", args.pages))
        .setting("guest RAM", format!("{}, shared memory, every page different", units::size(args.ram)))
        .setting("slabs", units::size(args.slab))
        .setting("caches", format!("filled with {} of something else before each time", units::size(stand::EVICT)))
        .setting("device", &args.device);
    section.seed = Some(args.seed);
    section.notes = vec![
        "copy: the engine alone; slabs are laid out before, checksums computed after".to_owned(),
        "capture: layout, copy and checksums, which is what a pause pays for; every byte was compared".to_owned(),
    ];
    section
}

fn measures(args: &CaptureArgs, entries: &[Entry], found: &[Vec<Times>], message: usize) -> Vec<Measure> {
    let mut measures = Vec::new();
    for (name, kind) in [("copy", (|t| &t.copy) as fn(&Times) -> &Kind), ("capture", |t| &t.capture)] {
        for (pattern, times) in Pattern::ALL.into_iter().zip(found) {
            if name == "copy" && pattern == Pattern::Idle {
                continue;
            }
            let theirs: Vec<Option<f64>> = kind(&times[0]).runs.iter().copied().map(Some).collect();
            for (entry, times) in entries.iter().zip(times) {
                let case = format!("{}, {}", pattern.name(), entry.name);
                let kind = kind(times);
                let mut m = Measure::new(name, case, Unit::Usec, Better::Lower, kind.runs.clone());
                if entry.name != YARDSTICK {
                    m = m.beside(YARDSTICK, theirs.clone());
                }
                if entry.bounded && name == "copy" && pattern == Pattern::Scattered {
                    m = m.bound(Bound::ratio_at_most(BOUND));
                }
                if pattern != Pattern::Idle {
                    let median = m.spread().map_or(0.0, |s| s.median);
                    m = m.column("MB/sec", rate(args.pages, median));
                }
                measures.push(m.times(kind.all.clone()));
            }
        }
    }
    measures.extend(device_measures(args, entries, found, message));
    measures
}

/// The device's copies beside its own bandwidth.
fn device_measures(args: &CaptureArgs, entries: &[Entry], found: &[Vec<Times>], message: usize) -> Vec<Measure> {
    let Some(index) = entries.iter().position(|e| e.device) else { return vec![] };
    let patterns = Pattern::ALL.into_iter().zip(found).filter(|(pattern, _)| *pattern != Pattern::Idle);
    let measure = |(pattern, times): (Pattern, &Vec<Times>)| {
        let times = &times[index];
        let rates = times.copy.runs.iter().map(|us| rate(args.pages, *us)).collect();
        Measure::new("copies by the device", pattern.name(), Unit::MbPerSec, Better::Higher, rates)
            .beside(format!("ib_write_bw -s {message}, to itself"), times.device.clone())
            .bound(Bound::ratio_at_least(DEVICE_BOUND))
    };
    patterns.map(measure).collect()
}

/// MB/sec.
fn rate(pages: u32, us: f64) -> f64 {
    mib_per_s(u64::from(pages) * PAGE_SIZE as u64, us / 1e6)
}
