//! The engine for scattered pages: several threads, each with a slab of its own, copying past the caches.
//!
//! ```text
//!                    ┌──────────── workers: threads that somebody lends ────────────┐
//! submit ──give──> waiting ──(a thread is free)──> Job::run: copy, checksum ──> done ──poll──> in order
//!                    └──steal──> Job::run on the caller's thread, while it waits ───^
//! ```
//!
//! The core knows no threads. It says what a [`Job`] is, which owns its slab and can be run by whoever has it, and what
//! [`Workers`] do with one; the crate `workers` has the threads. A job is a whole slab: a piece of work that needs no lock, and
//! whose checksum can be had where its bytes are. The caller works too, so that an epoch of one slab wakes nobody.
//!
//! A job that fails (it panicked) comes back with its places unfilled, which makes the engine fail; no slab is lost.

use crate::memcpy;
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run},
    ram::SharedRam,
    slab::SlabWriter,
};
use std::{collections::VecDeque, fmt::Debug, sync::Arc};

/// In messages and figures.
pub const NAME: &str = "parallel";

/// How pages are written into slabs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stores {
    /// Past the caches: nothing is fetched only to be overwritten, and the guest finds its own data still in the cache.
    #[default]
    Streaming,
    /// Through the caches, as memcpy does.
    Cached,
}

/// What jobs are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How pages are written.
    pub stores: Stores,
    /// Whether whoever has copied a slab computes its checksum; otherwise sealing it does.
    pub checksum: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { stores: Stores::default(), checksum: true }
    }
}

/// A slab whose places are to be filled.
#[derive(Debug)]
pub struct Job {
    number: u64,
    slab: SlabWriter,
    blocks: Arc<[SharedRam]>,
    options: Options,
}

impl Job {
    /// Does it.
    ///
    /// # Panics
    /// When guest RAM does not have one of the places. The job is then as it was, but for what was copied.
    pub fn run(&mut self) {
        match self.options.stores {
            Stores::Streaming => self.slab.stream(&self.blocks),
            Stores::Cached => self.slab.fill(|place, to| memcpy::copy(&self.blocks, place, to)),
        }
        if self.options.checksum {
            self.slab.checksum();
        }
    }
}

/// Threads that somebody lends. Jobs may be run in any order. Warm, nothing here may allocate.
pub trait Workers: Debug + Send {
    /// How many there are, the caller's own thread not counted.
    fn count(&self) -> usize;

    /// Takes a job. The last one that nobody has begun may stay so until it is taken back, or somebody [waits](Workers::wait).
    fn give(&mut self, job: Job);

    /// Gives back a job that nobody has begun, the oldest one, for the caller to run.
    fn steal(&mut self) -> Option<Job>;

    /// Gives back a job that was run, or whose run panicked. Cheap when there is none: it is called for every dirty page.
    fn done(&mut self) -> Option<Job>;

    /// Waits a very little: somebody is at work, and the VM is stopped.
    fn wait(&mut self);
}

impl<H: Workers + ?Sized> Workers for Box<H> {
    fn count(&self) -> usize {
        (**self).count()
    }

    fn give(&mut self, job: Job) {
        (**self).give(job);
    }

    fn steal(&mut self) -> Option<Job> {
        (**self).steal()
    }

    fn done(&mut self) -> Option<Job> {
        (**self).done()
    }

    fn wait(&mut self) {
        (**self).wait();
    }
}

/// No workers but the caller's own: for tests.
#[cfg(feature = "testing")]
#[derive(Debug, Default)]
pub struct CallerOnly {
    waiting: VecDeque<Job>,
}

#[cfg(feature = "testing")]
impl Workers for CallerOnly {
    fn count(&self) -> usize {
        0
    }

    fn give(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    fn steal(&mut self) -> Option<Job> {
        self.waiting.pop_front()
    }

    fn done(&mut self) -> Option<Job> {
        None
    }

    fn wait(&mut self) {}
}

/// The engine.
#[derive(Debug)]
pub struct Parallel<H> {
    blocks: Arc<[SharedRam]>,
    workers: H,
    options: Options,
    /// Of the slab at the front of `slabs`.
    first: u64,
    /// In order of submission: those that have come back from the workers, and gaps for those that have not.
    slabs: VecDeque<Option<SlabWriter>>,
    /// A job came back that was not done.
    failed: bool,
}

impl<H: Workers> Parallel<H> {
    /// Blocks in the order of the profile.
    #[must_use]
    pub fn new(blocks: Arc<[SharedRam]>, workers: H, options: Options) -> Self {
        Self { blocks, workers, options, first: 0, slabs: VecDeque::with_capacity(64), failed: false }
    }

    /// Threads that copy, the caller's own among them.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.count() + 1
    }

    fn keep(&mut self, job: Job) {
        self.failed |= !job.slab.places().is_empty();
        let index = usize::try_from(job.number - self.first).expect("no more slabs than memory");
        debug_assert!(self.slabs[index].is_none(), "a slab came back twice");
        self.slabs[index] = Some(job.slab);
    }

    fn collect(&mut self) {
        while let Some(job) = self.workers.done() {
            self.keep(job);
        }
    }
}

impl<H: Workers> CaptureEngine for Parallel<H> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn covers(&self, run: &Run) -> bool {
        memcpy::covers(&self.blocks, run)
    }

    fn submit(&mut self, slab: SlabWriter) -> Result<(), CaptureError> {
        let number = self.first + self.slabs.len() as u64;
        self.slabs.push_back(None);
        self.workers.give(Job { number, slab, blocks: Arc::clone(&self.blocks), options: self.options });
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
        self.collect();
        if self.failed {
            return Err(CaptureError::Engine { engine: NAME, source: "a copying thread panicked".into() });
        }
        let Some(slab) = self.slabs.front_mut().and_then(Option::take) else { return Ok(None) };
        self.slabs.pop_front();
        self.first += 1;
        Ok(Some(slab))
    }

    fn idle(&mut self) {
        match self.workers.steal() {
            Some(mut job) => {
                job.run();
                self.keep(job);
            }
            None => self.workers.wait(),
        }
    }

    fn pending(&self) -> usize {
        self.slabs.len()
    }

    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
        while let Some(job) = self.workers.steal() {
            self.keep(job);
        }
        while self.slabs.iter().any(Option::is_none) {
            self.workers.wait();
            self.collect();
        }
        self.failed = false;
        self.first += self.slabs.len() as u64;
        Ok(self.slabs.drain(..).flatten().collect())
    }
}
