//! The engine: slabs come in with places reserved, wait for their turn, are written, and go out in order.
//!
//! ```text
//! submit ──> jobs: [ landing │ landing │ posting │ waiting … ] ──poll──> landed
//!                    all posted           the cursor's
//! ```

use super::{
    LocalError, Options,
    pair::{Pair, Planned},
    plan::{Cursor, Locate, Shape, Write, next_write},
};
use crate::memcpy;
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run},
    ram::SharedRam,
    slab::{Attachment, FreeSlab, Place, SlabWriter},
};
use std::{collections::VecDeque, io, sync::Arc, time::Instant};
use transport_rdma::{
    ffi::{CHAIN, Context, Region},
    memlock,
    mr::{MrError, RegisteredMemory},
    types::{Access, Piece},
};

/// The name in messages, figures and flags.
pub(super) const NAME: &str = "local-rdma";

/// Copies by RDMA writes of one device to itself.
#[derive(Debug)]
pub struct LocalCopy {
    // Dropped in this order: when the queue pairs are gone, nothing reads guest RAM, and nothing writes into slabs.
    pair: Pair,
    jobs: VecDeque<Job>,
    memory: Vec<RegisteredMemory>,
    blocks: Arc<[SharedRam]>,
    /// Of the chain that is being planned.
    pieces: Vec<Piece>,
    broken: bool,
}

/// A slab that was submitted. Its registration is its attachment: it pins what the device writes to.
#[derive(Debug)]
struct Job {
    slab: SlabWriter,
    target: Target,
    cursor: Cursor,
    /// The number of its last write, once all are posted.
    last: Option<u64>,
    submitted: Instant,
}

/// A slab's region.
#[derive(Clone, Copy, Debug)]
struct Target {
    addr: u64,
    lkey: u32,
    rkey: u32,
}

impl Target {
    fn of(region: &Region) -> Self {
        Self { addr: region.addr(), lkey: region.lkey(), rkey: region.rkey() }
    }
}

impl LocalCopy {
    /// Registers guest RAM (shared mappings, in the order of the profile) with the device, for reading.
    ///
    /// # Errors
    /// Says what the device, or the limit on locked memory, refused.
    pub fn new(context: &Arc<Context>, blocks: &Arc<[SharedRam]>, options: &Options) -> Result<Self, LocalError> {
        let pair = Pair::connect(context, options)?;
        let register =
            |ram: &SharedRam| RegisteredMemory::register(pair.domain(), ram.mapping(), Access::Read, &options.register);
        let memory = blocks.iter().map(register).collect::<Result<_, _>>()?;
        let pieces = Vec::with_capacity(CHAIN * pair.options().gather as usize);
        let jobs = VecDeque::with_capacity(16);
        Ok(Self { pair, jobs, memory, blocks: Arc::clone(blocks), pieces, broken: false })
    }

    /// Guest RAM, as it is registered.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn memory(&self) -> &[RegisteredMemory] {
        &self.memory
    }

    /// The slab's region, made if it has none of this domain. `make` is handed the slab.
    fn target<S>(
        &self,
        slab: &mut S,
        attachment: fn(&mut S) -> &mut Attachment,
        make: impl FnOnce(&mut S) -> io::Result<Region>,
        len: usize,
    ) -> Result<Target, LocalError> {
        let known = attachment(slab).as_ref().and_then(|kept| kept.downcast_ref::<Region>());
        if let Some(region) = known.filter(|region| region.serves(self.pair.domain(), Access::RemoteWrite)) {
            return Ok(Target::of(region));
        }
        // The old registration goes first: both count.
        *attachment(slab) = None;
        memlock::check(len).map_err(MrError::from)?;
        let device = self.pair.domain().context().name().to_owned();
        let region =
            make(slab).map_err(|source| MrError::Register { device, offset: 0, bytes: len, total: len, source })?;
        let target = Target::of(&region);
        *attachment(slab) = Some(Box::new(region));
        Ok(target)
    }

    /// Posts as much as there are credits for.
    fn pump(&mut self) -> Result<(), LocalError> {
        while self.pair.room() > 0 {
            let Some(job) = self.jobs.iter_mut().find(|job| job.last.is_none()) else { return Ok(()) };
            post_chain(&mut self.pair, job, &self.memory, &mut self.pieces)?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<SlabWriter>, LocalError> {
        if self.broken {
            return Err(LocalError::Broken { device: self.pair.domain().context().name().to_owned() });
        }
        self.pair.drain(self.jobs.front().map(|job| job.submitted))?;
        self.pump()?;
        let landed = |job: &Job| job.last.is_some_and(|last| self.pair.has_landed(last));
        if !self.jobs.front().is_some_and(landed) {
            return Ok(None);
        }
        let mut slab = self.jobs.pop_front().expect("looked at").slab;
        slab.landed();
        Ok(Some(slab))
    }

    fn fail(&mut self, error: LocalError) -> CaptureError {
        self.broken = true;
        CaptureError::Engine { engine: NAME, source: Box::new(error) }
    }
}

/// Plans and posts one chain of a slab's writes.
fn post_chain(
    pair: &mut Pair,
    job: &mut Job,
    memory: &[RegisteredMemory],
    pieces: &mut Vec<Piece>,
) -> Result<(), LocalError> {
    let options = pair.options();
    let shape = Shape { gather: options.gather as usize, bytes: options.write_bytes as usize };
    let places = job.slab.places();
    let whereabouts = Whereabouts { memory, target: job.target };
    pieces.clear();
    let mut chain = [(0, 0, Write { at: 0, bytes: 0 }); CHAIN];
    let mut count = 0;
    for entry in &mut chain[..pair.room()] {
        let from = pieces.len();
        let Some(write) = next_write(places, &mut job.cursor, shape, &whereabouts, pieces) else { break };
        *entry = (from, pieces.len(), write);
        count += 1;
    }
    let done = job.cursor.is_at_end(places);
    let planned: [Planned<'_>; CHAIN] = std::array::from_fn(|index| {
        let (from, to, write) = chain[index];
        (&pieces[from..to], job.target.addr + write.at as u64, job.target.rkey)
    });
    pair.post(&planned[..count], done)?;
    if done {
        job.last = Some(pair.last());
    }
    Ok(())
}

struct Whereabouts<'a> {
    memory: &'a [RegisteredMemory],
    target: Target,
}

impl Locate for Whereabouts<'_> {
    fn guest(&self, place: &Place, offset: usize, len: usize) -> Piece {
        let at = usize::try_from(place.offset).expect("inside a mapping, so it fits") + offset;
        let first = self.memory[usize::from(place.block.0)].locate(at, len).next().expect("places are not empty");
        Piece { addr: first.addr, length: bytes(first.len), lkey: first.lkey }
    }

    fn slab(&self, at: usize, len: usize) -> Piece {
        Piece { addr: self.target.addr + at as u64, length: bytes(len), lkey: self.target.lkey }
    }
}

fn bytes(len: usize) -> u32 {
    u32::try_from(len).expect("within a write")
}

impl CaptureEngine for LocalCopy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn covers(&self, run: &Run) -> bool {
        memcpy::covers(&self.blocks, run)
    }

    fn prepare(&mut self, slab: &mut FreeSlab) -> Result<(), CaptureError> {
        let (domain, len) = (Arc::clone(self.pair.domain()), slab.len());
        let make = |slab: &mut FreeSlab| Region::of_slab(&domain, slab, Access::RemoteWrite);
        self.target(slab, FreeSlab::capture_attachment, make, len).map(drop).map_err(|error| self.fail(error))
    }

    fn submit(&mut self, mut slab: SlabWriter) -> Result<(), CaptureError> {
        let (domain, len) = (Arc::clone(self.pair.domain()), slab.memory().len());
        let make = |slab: &mut SlabWriter| Region::of_writer(&domain, slab, Access::RemoteWrite);
        let target = self.target(&mut slab, SlabWriter::capture_attachment, make, len);
        let nowhere = Target { addr: 0, lkey: 0, rkey: 0 };
        let (target, error) = target.map_or_else(|error| (nowhere, Some(error)), |target| (target, None));
        self.jobs.push_back(Job { slab, target, cursor: Cursor::default(), last: None, submitted: Instant::now() });
        let begun = error.map_or_else(|| self.pump(), Err);
        begun.map_err(|error| self.fail(error))
    }

    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
        self.advance().map_err(|error| self.fail(error))
    }

    fn pending(&self) -> usize {
        self.jobs.len()
    }

    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
        self.broken = true;
        let jobs = std::mem::take(&mut self.jobs);
        match self.pair.stop() {
            Ok(()) => Ok(jobs.into_iter().map(|job| job.slab).collect()),
            Err(error) => {
                // The device may still write into them: nobody else gets their memory.
                std::mem::forget(jobs);
                Err(self.fail(error))
            }
        }
    }
}
