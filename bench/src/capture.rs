//! `mc-bench register`: registration of memory that is there already, beside the bare verb.

use crate::{
    cli::RegisterArgs,
    link::Port,
    stats::Spread,
    table::{Table, spread},
    units,
    verdict::{Frame, Report, Target},
};
use anyhow::{Context, Result};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use std::{fs::File, sync::Arc};
use transport_rdma::{
    ffi::Domain,
    mr::{
        RegisterOptions,
        measure::{Cost, registration},
    },
};

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
