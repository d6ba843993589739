//! What our layer costs over the bare verb.

use super::{MrError, RegisterOptions, RegisteredMemory, Timings};
use crate::{
    ffi::{Domain, Region},
    types::Access,
};
use mc_core::ram::Mapping;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Registering the same memory, with and without us.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Bytes.
    pub bytes: usize,
    /// Bytes of its pages.
    pub page_size: usize,
    /// Until every page was there, the first time.
    pub first_touch: Duration,
    /// The best time of the verb alone, a region per chunk, on memory that is there.
    pub bare: Duration,
    /// The best time of ours, all of it, on the same.
    pub ours: Timings,
}

impl Cost {
    /// Ours, in all, over the bare verb.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        (self.ours.touch + self.ours.register).as_secs_f64() / self.bare.as_secs_f64()
    }
}

/// Registers `map` `rounds` times each way, in turns.
pub fn registration(
    domain: &Arc<Domain>,
    map: &Arc<Mapping>,
    options: &RegisterOptions,
    rounds: usize,
) -> Result<Cost, MrError> {
    let first = RegisteredMemory::register(domain, map, Access::Read, options)?;
    let (chunks, first_touch) = (first.chunks, first.timings().touch);
    drop(first);
    let (mut bare, mut ours) = (Duration::MAX, Timings { touch: Duration::MAX, register: Duration::ZERO });
    for _ in 0..rounds {
        let began = Instant::now();
        let regions: Result<Vec<_>, _> =
            chunks.all().map(|s| Region::of_mapping(domain, map, s.offset, s.len, Access::Read)).collect();
        let took = began.elapsed();
        let total = map.len();
        let device = domain.context().name().to_owned();
        drop(regions.map_err(|source| MrError::Register { device, offset: 0, bytes: total, total, source })?);
        bare = bare.min(took);
        let again = RegisteredMemory::register(domain, map, Access::Read, options)?.timings();
        if again.touch + again.register < ours.touch.saturating_add(ours.register) {
            ours = again;
        }
    }
    Ok(Cost { bytes: map.len(), page_size: options.page_size, first_touch, bare, ours })
}
