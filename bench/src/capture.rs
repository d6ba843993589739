//! `mc-bench capture` and `mc-bench register`: what the RDMA crate's own measurements say, beside perftest and the bare verb.

use crate::{
    cli::{CaptureArgs, RegisterArgs},
    link::Port,
    stats::Spread,
    table::{Table, spread},
    transport::SWEEP,
    units::{self, mib_per_s},
    verdict::{Frame, Report, Target, ratios},
    yard::{Yardsticks, perftest::Devices},
};
use anyhow::{Context, Result};
use mc_core::{
    capture::{CaptureEngine, memcpy::Memcpy},
    id::PAGE_SIZE,
};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use std::{fs::File, sync::Arc};
use transport_rdma::{
    ffi::Domain,
    local::{Figure, LocalCopy, Options, Pattern, measure, scratch},
    mr::{
        RegisterOptions,
        measure::{Cost, registration},
    },
};

/// Bytes of the slabs that are copied into.
const SLAB: usize = 1 << 20;

/// One engine on one pattern of dirty pages.
#[derive(Clone, Debug, Serialize)]
pub struct Copying {
    /// The engine's name.
    pub engine: &'static str,
    /// Which pages are dirty.
    pub pattern: Pattern,
    /// MB/sec (2^20) of the engine alone, in order.
    pub copy_mb_s: Vec<f64>,
    /// MB/sec (2^20) with layout and checksums, in order.
    pub capture_mb_s: Vec<f64>,
    /// The yardstick's MB/sec, each just before; none for memcpy.
    pub yardstick_mb_s: Vec<Option<f64>>,
    /// The engine alone by the yardstick, run by run.
    pub ratio: Option<Spread>,
}

/// Everything about capture.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureReport {
    /// Head, targets.
    #[serde(flatten)]
    pub frame: Frame,
    /// The device.
    pub port: Port,
    /// Bytes of dirty pages.
    pub bytes: usize,
    /// Pieces of guest RAM that a write gathers at most.
    pub gather: u32,
    /// Bytes of the yardstick's messages.
    pub yardstick_bytes: usize,
    /// Runs.
    pub runs: u32,
    /// Per engine and pattern.
    pub copying: Vec<Copying>,
}

/// Measures the local copy engine beside `ib_write_bw` from the device to itself.
///
/// # Errors
/// The device is not to be had, or the engine fails.
pub fn run(args: &CaptureArgs) -> Result<CaptureReport> {
    let effort = args.effort.settled();
    let port = Port::find(&args.device, args.gid_index)?;
    let mut frame = Frame::new("capture", &[&port.device]);
    let mut yardsticks = Yardsticks::new(Some(Devices { near: port.clone(), far: port.clone() }), effort.no_yardsticks);
    let yardstick_bytes = args.yardstick_size.unwrap_or_else(|| yardsticks.best_write_size(&SWEEP));
    let default = Options::default();
    let options = Options { gid_index: port.gid_index, gather: args.gather.unwrap_or(default.gather), ..default };
    let pages = u32::try_from(args.size / PAGE_SIZE)?;
    let blocks = scratch(pages)?;
    let mut by_device = LocalCopy::new(&port.open()?.context, &blocks, &options)?;
    let mut by_processor = Memcpy::new(Arc::clone(&blocks));
    let mut copying: Vec<Copying> = Vec::new();
    for round in 1..=effort.runs {
        for (index, pattern) in Pattern::ALL.into_iter().enumerate() {
            let beside = yardsticks.perftest(|d| d.write_bw(yardstick_bytes, effort.time)).map(|found| found.average);
            let engines: [(&mut dyn CaptureEngine, _); 2] = [(&mut by_device, beside), (&mut by_processor, None)];
            for (which, (engine, beside)) in engines.into_iter().enumerate() {
                let figure = measure(engine, &blocks, pattern, pages, SLAB, 1)?;
                if round == 1 {
                    copying.push(Copying::new(&figure));
                }
                copying[2 * index + which].add(&figure, beside);
            }
            eprintln!("mc-bench: run {round}: {pattern:?} done");
        }
    }
    copying.iter_mut().for_each(|c| c.ratio = ratios(&c.copy_mb_s, &c.yardstick_mb_s));
    frame.targets = copying.iter().filter_map(Copying::target).collect();
    frame.missing = yardsticks.into_missing();
    let (bytes, runs, gather) = (args.size, effort.runs, options.gather);
    Ok(CaptureReport { frame, port, bytes, gather, yardstick_bytes, runs, copying })
}

impl Copying {
    fn new(figure: &Figure) -> Self {
        let (engine, pattern) = (figure.engine, figure.pattern);
        Self { engine, pattern, copy_mb_s: vec![], capture_mb_s: vec![], yardstick_mb_s: vec![], ratio: None }
    }

    fn add(&mut self, figure: &Figure, beside: Option<f64>) {
        self.copy_mb_s.push(mib_per_s(figure.bytes(), figure.copy.as_secs_f64()));
        self.capture_mb_s.push(mib_per_s(figure.bytes(), figure.capture.as_secs_f64()));
        self.yardstick_mb_s.push(beside);
    }

    fn target(&self) -> Option<Target> {
        let name = format!("{} of {:?} pages by ib_write_bw to itself", self.engine, self.pattern);
        self.ratio.map(|r| Target::at_least(name, r.median, 0.95))
    }
}

impl Report for CaptureReport {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn lines(&self) -> Vec<String> {
        let Self { port, bytes, gather, yardstick_bytes, runs, .. } = self;
        let mut lines = self.frame.head(vec![
            format!("device   {} (GID {}), to itself", port.device, port.gid_index),
            format!("settings {} of dirty pages, slabs of 1 MiB, gather {gather}, {runs} runs", units::size(*bytes)),
        ]);
        let yardstick = format!("ib_write_bw -s {yardstick_bytes}[MB/sec]");
        let mut table = Table::new(&["engine", "pages", "copy[MB/sec]", "capture[MB/sec]", &yardstick, "copy ratio"]);
        for c in &self.copying {
            let beside: Vec<f64> = c.yardstick_mb_s.iter().flatten().copied().collect();
            table.row(vec![
                c.engine.to_owned(),
                format!("{:?}", c.pattern),
                spread(Spread::of(&c.copy_mb_s), 2),
                spread(Spread::of(&c.capture_mb_s), 2),
                spread(Spread::of(&beside), 2),
                spread(c.ratio, 3),
            ]);
        }
        lines.push("copy: the engine alone; capture: with layout and checksums; contents checked".to_owned());
        lines.extend(table.lines());
        lines.push(String::new());
        lines.extend(self.frame.tail());
        lines
    }
}

/// Everything about registration.
#[derive(Clone, Debug, Serialize)]
pub struct RegisterReport {
    /// Head, targets.
    #[serde(flatten)]
    pub frame: Frame,
    /// The device.
    pub device: String,
    /// In order.
    pub runs: Vec<Cost>,
    /// Ours by the bare verb's, run by run.
    pub ratio: Option<Spread>,
}

/// Registers memory that is there already, with the bare verb and with us, in turns.
///
/// # Errors
/// The device is not to be had, or refuses; there is no memory.
pub fn register(args: &RegisterArgs) -> Result<RegisterReport> {
    let effort = args.effort.settled();
    let port = Port::find(&args.device, None)?;
    let mut frame = Frame::new("register", &[&port.device]);
    let domain = Domain::new(&port.open()?.context).context("making a protection domain")?;
    let map = memory(args.size).with_context(|| format!("{} of memory", units::size(args.size)))?;
    let mut runs = Vec::new();
    for round in 1..=effort.runs {
        let cost = registration(&domain, &map, &RegisterOptions::default(), 1)?;
        eprintln!("mc-bench: run {round}: {:.3} of the bare verb", cost.ratio());
        runs.push(cost);
    }
    let ratio = Spread::of(&runs.iter().map(Cost::ratio).collect::<Vec<_>>());
    let name = format!("registration of {} by the bare verb", units::size(args.size));
    frame.targets = ratio.map(|r| Target::at_most(name, r.median, 1.2)).into_iter().collect();
    Ok(RegisterReport { frame, device: port.device, runs, ratio })
}

/// Shared memory, as guest RAM is.
fn memory(bytes: usize) -> Result<Arc<MmapRaw>> {
    let file = File::from(memfd_create("mc-bench-register", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes as u64)?;
    Ok(Arc::new(MmapOptions::new().len(bytes).map_raw(&file)?))
}

impl Report for RegisterReport {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn lines(&self) -> Vec<String> {
        let bytes = self.runs.first().map_or(0, |r| r.bytes);
        let settings = format!("settings {} of shared memory, {} runs", units::size(bytes), self.runs.len());
        let mut lines = self.frame.head(vec![format!("device   {}", self.device), settings]);
        let ms = |of: fn(&Cost) -> std::time::Duration| {
            spread(Spread::of(&self.runs.iter().map(|r| of(r).as_secs_f64() * 1e3).collect::<Vec<_>>()), 2)
        };
        let mut table = Table::new(&["registration", "time[ms]"]);
        table.row(vec!["the bare verb".to_owned(), ms(|r| r.bare)]);
        table.row(vec!["ours, of it looking whether it is there".to_owned(), ms(|r| r.ours.touch)]);
        table.row(vec!["ours, of it the verb".to_owned(), ms(|r| r.ours.register)]);
        lines.extend(table.lines());
        let first = self.runs.first().map_or(0.0, |r| r.first_touch.as_secs_f64() * 1e3);
        lines.push(format!(" first touch, once: {first:.0} ms"));
        lines.push(format!(" ours by the bare verb: {}", spread(self.ratio, 3)));
        lines.push(String::new());
        lines.extend(self.frame.tail());
        lines
    }
}
