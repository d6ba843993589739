//! `mc-bench register`: registration of memory that is there already, beside the bare verb in the same chunks.

use crate::{
    cli::RegisterArgs,
    interrupt,
    link::Port,
    progress::Progress,
    record::{Better, Bound, Measure, Section, Unit},
    units,
};
use anyhow::{Context, Result};
use mc_core::ram::{Mapping, SharedRam};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{fs::File, sync::Arc, time::Duration};
use transport_rdma::{
    ffi::Domain,
    mr::{
        self, RegisterOptions,
        measure::{Cost, registration},
    },
};

/// Registers memory that is there already, with the bare verb and with us, in turns.
///
/// # Errors
/// The device is not to be had, or refuses; there is no memory.
pub(crate) fn run(args: &RegisterArgs) -> Result<Section> {
    let effort = args.effort.settled();
    let port = Port::find(&args.device, None)?;
    let domain = Domain::new(&port.open()?.context).context("making a protection domain")?;
    let size = units::size(args.size);
    let (map, page_size) = memory(args.size).with_context(|| format!("{size} of memory"))?;
    let options = RegisterOptions { page_size, ..RegisterOptions::default() };
    let mut runs = Vec::new();
    let progress = Progress::new("register", u64::from(effort.runs));
    for round in interrupt::rounds(effort.runs) {
        let cost = registration(&domain, &map, &options, 1)?;
        progress.step(format_args!("run {round}: {:.3} of the bare verb", cost.ratio()));
        runs.push(cost);
    }
    Ok(Section::new("register", format!("Registration of memory with {}", port.device))
        .device(&port.device)
        .setting("memory", format!("{size}, shared, present"))
        .setting("runs", effort.runs)
        .note("the verb alone and ours in turns, in the same chunks; ours looks first whether the memory is there")
        .measure(measure(&size, &runs)))
}

fn measure(size: &str, runs: &[Cost]) -> Measure {
    let us = |of: &dyn Fn(&Cost) -> Duration| runs.iter().map(|r| units::us(of(r))).collect::<Vec<_>>();
    let ours = us(&|r| r.ours.touch + r.ours.register);
    let bare = us(&|r| r.bare).into_iter().map(Some).collect();
    let median = |values: Vec<f64>| crate::stats::Spread::of(&values).map_or(0.0, |s| s.median);
    let first = runs.first().map_or(Duration::ZERO, |r| r.first_touch);
    Measure::new("registration", size, Unit::Usec, Better::Lower, ours)
        .beside("ibv_reg_mr alone", bare)
        .bound(Bound::ratio_at_most(1.2))
        .column("of it looking[usec]", median(us(&|r| r.ours.touch)))
        .column("of it the verb[usec]", median(us(&|r| r.ours.register)))
        .column("first touch, once[usec]", units::us(first))
}

/// Shared memory, as guest RAM is, and the size of its pages.
fn memory(bytes: usize) -> Result<(Arc<Mapping>, usize)> {
    let file = File::from(memfd_create("mc-bench-register", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes as u64)?;
    Ok((Arc::clone(SharedRam::map(&file, bytes)?.mapping()), mr::page_size_of(&file)?))
}
