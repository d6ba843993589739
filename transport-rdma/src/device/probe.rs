//! What a device can do, found out by doing it: limits that a driver reports are what it hopes for.

use super::DeviceError;
use crate::{
    ffi::{Context, Cq, Domain, Qp, Region},
    memlock,
    types::{Access, Limits, QpSizes},
};
use mc_core::ram::Mapping;
use memmap2::{MmapOptions, MmapRaw};
use serde::Serialize;
use std::{io, sync::Arc};

/// Inline messages are not looked for beyond: nothing here is larger.
const MAX_INLINE: u32 = 1024;
/// A huge page: 2^21 bytes.
const HUGE_BITS: u8 = 21;
/// An organisation-local group that nobody uses, to try: RFC 4291 2.7, transient.
const TRY_GROUP: [u8; 16] = [0xff, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0xaf, 0x7e, 0x71, 0x3a, 0x9e, 0];

/// A device's abilities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Bytes of the longest inline message of a reliable queue pair.
    pub inline_bytes: u32,
    /// Pieces that one write gathers.
    pub pieces: u32,
    /// Datagrams (UD) with inline payload of a beat's size.
    pub datagrams: Ability,
    /// Attaching to a multicast group.
    pub multicast: Ability,
    /// Atomic operations. Reported by the driver, not tried.
    pub atomics: bool,
    /// Registering a huge page.
    pub huge_pages: Ability,
    /// Bytes of the largest region, as the driver reports.
    pub max_region_bytes: u64,
    /// Bytes that this process may lock, and so register; `None`: no limit.
    pub memlock_bytes: Option<u64>,
    /// The driver's own figures.
    pub limits: Limits,
}

/// Whether something works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ability {
    /// It was tried.
    Works,
    /// Why it does not, or why nobody can know.
    No(String),
}

impl Ability {
    fn of(tried: io::Result<()>) -> Self {
        tried.map_or_else(|error| Self::No(error.to_string()), |()| Self::Works)
    }
}

/// Tries what the device can do. Takes some queue pairs and a huge page for a moment; sends nothing.
pub fn capabilities_of(context: &Arc<Context>) -> Result<Capabilities, DeviceError> {
    let failed = |doing| move |source| DeviceError::Verb { device: context.name().to_owned(), doing, source };
    let limits = context.limits().map_err(failed("asking for its limits"))?;
    let bench = Bench::new(context).map_err(failed("making a protection domain and a completion queue"))?;
    let max_pieces = u32::try_from(limits.max_sge).unwrap_or(0);
    Ok(Capabilities {
        inline_bytes: largest(MAX_INLINE, |inline| bench.takes(1, inline)),
        pieces: largest(max_pieces, |pieces| bench.takes(pieces, 0)),
        datagrams: Ability::of(bench.datagrams().map(drop)),
        multicast: multicast(&bench, &limits),
        atomics: limits.atomics,
        huge_pages: bench.huge_page(),
        max_region_bytes: limits.max_mr_size,
        memlock_bytes: memlock::limit(),
        limits,
    })
}

/// The largest of 0..=`most` that `works`, if whatever is less works too.
fn largest(most: u32, works: impl Fn(u32) -> bool) -> u32 {
    if works(most) {
        return most;
    }
    let (mut good, mut bad) = (0, most);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if works(middle) { good = middle } else { bad = middle }
    }
    good
}

struct Bench {
    domain: Arc<Domain>,
    cq: Arc<Cq>,
}

impl Bench {
    fn new(context: &Arc<Context>) -> io::Result<Self> {
        Ok(Self { domain: Domain::new(context)?, cq: Cq::new(context, 16, None)? })
    }

    fn takes(&self, pieces: u32, inline: u32) -> bool {
        let sizes = QpSizes { send: 4, receive: 1, pieces, inline };
        Qp::reliable(&self.domain, &self.cq, &self.cq, sizes).is_ok()
    }

    fn datagrams(&self) -> io::Result<Qp> {
        let inline = u32::try_from(mc_core::wire::beat::LEN).map_err(io::Error::other)?;
        let sizes = QpSizes { send: 4, receive: 1, pieces: 1, inline };
        let qp = Qp::datagram(&self.domain, &self.cq, &self.cq, sizes)?;
        qp.ready_datagram(1)?;
        Ok(qp)
    }

    fn huge_page(&self) -> Ability {
        let len = 1 << HUGE_BITS;
        let map = match MmapOptions::new().len(len).huge(Some(HUGE_BITS)).map_anon() {
            Ok(map) => Arc::new(Mapping::from(MmapRaw::from(map))),
            Err(error) => return Ability::No(format!("no huge page is free (vm.nr_hugepages): {error}")),
        };
        Ability::of(Region::of_mapping(&self.domain, &map, 0, len, Access::RemoteWrite).map(drop))
    }
}

fn multicast(bench: &Bench, limits: &Limits) -> Ability {
    if limits.max_mcast_grp == 0 {
        return Ability::No("the driver reports no groups".to_owned());
    }
    let tried = bench.datagrams().and_then(|qp| {
        qp.multicast(TRY_GROUP, true)?;
        qp.multicast(TRY_GROUP, false)
    });
    Ability::of(tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found() {
        for (most, limit) in [(1024, 512), (1024, 1024), (1024, 0), (1024, 220), (32, 1), (0, 0), (1, 0)] {
            assert_eq!(largest(most, |n| n <= limit), limit.min(most), "{most} {limit}");
        }
    }
}
