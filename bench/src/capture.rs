//! `mc-bench capture`: what the RDMA crate's own measurement says of the local copy engine, beside perftest.

use crate::{
    cli::CaptureArgs,
    link::Port,
    progress::Progress,
    record::{Better, Bound, Measure, Section, Unit},
    transport::SWEEP,
    units::{self, mib_per_s},
    yard::{Yardsticks, perftest::Devices},
};
use anyhow::Result;
use mc_core::{
    capture::{CaptureEngine, memcpy::Memcpy},
    id::PAGE_SIZE,
};
use std::sync::Arc;
use transport_rdma::local::{Figure, LocalCopy, Options, Pattern, measure, scratch};

/// Bytes of the slabs that are copied into.
const SLAB: usize = 1 << 20;

/// One engine on one pattern of dirty pages.
#[derive(Debug)]
struct Copying {
    engine: &'static str,
    pattern: Pattern,
    /// MB/sec (2^20) of the engine alone, in order.
    copy_mb_s: Vec<f64>,
    /// MB/sec (2^20) with layout and checksums, in order.
    capture_mb_s: Vec<f64>,
    /// The yardstick's MB/sec, each just before; none for memcpy.
    yardstick_mb_s: Vec<Option<f64>>,
}

/// Measures the local copy engine beside `ib_write_bw` from the device to itself.
///
/// # Errors
/// The device is not to be had, or the engine fails.
pub fn run(args: &CaptureArgs) -> Result<Section> {
    let effort = args.effort.settled();
    let port = Port::find(&args.device, args.gid_index)?;
    let mut yardsticks = Yardsticks::new(Some(Devices { near: port.clone(), far: port.clone() }), effort.no_yardsticks);
    let yardstick_bytes = args.yardstick_size.unwrap_or_else(|| yardsticks.best_write_size(&SWEEP));
    let default = Options::default();
    let options = Options { gid_index: port.gid_index, gather: args.gather.unwrap_or(default.gather), ..default };
    let pages = u32::try_from(args.size / PAGE_SIZE)?;
    let blocks = scratch(pages)?;
    let mut by_device = LocalCopy::new(&port.open()?.context, &blocks, &options)?;
    let mut by_processor = Memcpy::new(Arc::clone(&blocks));
    let mut copying: Vec<Copying> = Vec::new();
    let progress = Progress::new("capture", u64::from(effort.runs) * Pattern::ALL.len() as u64);
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
            progress.step(format_args!("run {round}: {pattern:?} pages"));
        }
    }
    let mut section = Section::new("capture", format!("Local copies by {}", port.device))
        .device(&port.device)
        .setting("device", format!("{} (GID {}), to itself", port.device, port.gid_index))
        .setting("dirty pages", units::size(args.size))
        .setting("slabs", units::size(SLAB))
        .setting("gather", options.gather)
        .setting("runs", effort.runs)
        .note("copy: the engine alone; capture: with layout and checksums; contents are checked");
    let yardstick = format!("ib_write_bw -s {yardstick_bytes}, to itself");
    section.measures = copying.into_iter().flat_map(|c| c.measures(&yardstick)).collect();
    section.missing = yardsticks.into_missing();
    Ok(section)
}

impl Copying {
    fn new(figure: &Figure) -> Self {
        let (engine, pattern) = (figure.engine, figure.pattern);
        Self { engine, pattern, copy_mb_s: vec![], capture_mb_s: vec![], yardstick_mb_s: vec![] }
    }

    fn add(&mut self, figure: &Figure, beside: Option<f64>) {
        self.copy_mb_s.push(mib_per_s(figure.bytes(), figure.copy.as_secs_f64()));
        self.capture_mb_s.push(mib_per_s(figure.bytes(), figure.capture.as_secs_f64()));
        self.yardstick_mb_s.push(beside);
    }

    fn measures(self, yardstick: &str) -> [Measure; 2] {
        let case = format!("{}, {:?} pages", self.engine, self.pattern);
        let copy = Measure::new("copy", &case, Unit::MbPerSec, Better::Higher, self.copy_mb_s);
        let copy = if self.yardstick_mb_s.iter().any(Option::is_some) {
            copy.beside(yardstick, self.yardstick_mb_s).bound(Bound::ratio_at_least(0.95))
        } else {
            copy
        };
        [copy, Measure::new("capture", case, Unit::MbPerSec, Better::Higher, self.capture_mb_s)]
    }
}
