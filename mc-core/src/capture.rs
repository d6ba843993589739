//! Capture engines: how dirty pages get from guest RAM into staging slabs while the VM is paused.
//!
//! ```text
//! runs ──reserve──> SlabWriter ──submit──> CaptureEngine ──poll──> SlabWriter (landed) ──seal──> SealedSlab
//!        places, no bytes yet              copies, in order        all bytes are there
//! ```
//!
//! [`crate::staging::Staging::capture`] turns that wheel. Submission and completion are apart, so that a device copies one
//! slab while the processor lays out the next and checksums the last; whoever owns the [`SlabWriter`] may touch its memory,
//! and from submission to completion that is the engine. Slabs come out byte for byte as [`SlabWriter::page`] would have
//! filled them, whatever the engine.
//!
//! The engines, and what finds dirty pages, are a crate of their own (`capture`): they need threads, a device, a kernel.

use crate::{
    id::{BlockId, PAGE_SIZE},
    slab::{FreeSlab, SlabWriter},
    source::NoRoom,
};
use std::error::Error;

/// Contiguous dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which RAM block.
    pub block: BlockId,
    /// Of the first page, in the block: bytes, page aligned.
    pub offset: u64,
    /// How many pages; not 0.
    pub pages: u32,
}

impl Run {
    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "runs are never empty")]
    pub fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE_SIZE as u64
    }
}

/// Runs that are still to be captured: it shrinks from the front.
#[derive(Clone, Copy, Debug)]
pub struct Runs<'a> {
    rest: &'a [Run],
    /// Pages of the first run that were taken.
    taken: u32,
}

impl<'a> Runs<'a> {
    /// All of them.
    #[must_use]
    pub fn new(runs: &'a [Run]) -> Self {
        Self { rest: runs, taken: 0 }
    }

    /// What is left of the first; `None` when nothing is.
    #[must_use]
    pub fn first(&self) -> Option<Run> {
        let run = self.rest.first()?;
        let offset = run.offset + u64::from(self.taken) * PAGE_SIZE as u64;
        Some(Run { offset, pages: run.pages - self.taken, ..*run })
    }

    /// Pages that are left.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.rest.iter().map(|run| u64::from(run.pages)).sum::<u64>() - u64::from(self.taken)
    }

    /// `pages` of the first were taken.
    pub(crate) fn take(&mut self, pages: u32) {
        self.taken += pages;
        if self.rest.first().is_some_and(|run| run.pages <= self.taken) {
            (self.rest, self.taken) = (&self.rest[1..], 0);
        }
    }
}

/// Fills reserved places with pages of guest RAM. It knows the RAM blocks from when it was made; their indices are the
/// profile's.
///
/// ```
/// use mc_core::{capture::*, id::*, ram::SharedRam, slab::{SlabPool, SlabWriter}, staging::Staging};
///
/// /// The processor copies, as soon as a slab is submitted.
/// #[derive(Debug)]
/// struct Copies { ram: SharedRam, landed: Vec<SlabWriter> }
///
/// impl CaptureEngine for Copies {
///     fn name(&self) -> &'static str {
///         "copies"
///     }
///     fn covers(&self, run: &Run) -> bool {
///         run.block == BlockId(0) && self.ram.contains(run.offset, run.len())
///     }
///     fn submit(&mut self, mut slab: SlabWriter) -> Result<(), CaptureError> {
///         slab.fill(|place, to| self.ram.read(place.offset as usize, to));
///         self.landed.push(slab);
///         Ok(())
///     }
///     fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
///         Ok(if self.landed.is_empty() { None } else { Some(self.landed.remove(0)) })
///     }
///     fn pending(&self) -> usize {
///         self.landed.len()
///     }
///     fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
///         Ok(self.landed.drain(..).collect())
///     }
/// }
///
/// let mut engine = Copies { ram: SharedRam::anonymous(8 * PAGE_SIZE)?, landed: Vec::new() };
/// let mut staging = Staging::new(SlabPool::new(1 << 20, 4 << 20));
/// staging.begin(Incarnation(1), Generation(2));
/// let dirty = [Run { block: BlockId(0), offset: 0, pages: 3 }];
/// staging.capture(&mut engine, &mut Runs::new(&dirty))?;
/// assert_eq!(staging.finish().pages, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CaptureEngine: std::fmt::Debug + Send {
    /// For messages and figures.
    fn name(&self) -> &'static str;

    /// Whether guest RAM has these pages.
    fn covers(&self, run: &Run) -> bool;

    /// Makes a slab known that will be handed to it some day, so that no pause pays for it. Optional.
    fn prepare(&mut self, _slab: &mut FreeSlab) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Begins to fill the places of `slab`, all of which it [covers](CaptureEngine::covers). After an error the slab is
    /// among what [`CaptureEngine::abort`] gives back.
    fn submit(&mut self, slab: SlabWriter) -> Result<(), CaptureError>;

    /// The next slab whose places are all filled, in the order of submission; `None`: none is, yet. Must be called again
    /// and again: it is what drives the engine.
    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError>;

    /// The caller has nothing to do until a slab has landed, and `poll` just had none: the engine may use its thread for a
    /// while. Whoever waits calls this between polls.
    fn idle(&mut self) {
        std::hint::spin_loop();
    }

    /// Slabs that were submitted and have not come back.
    fn pending(&self) -> usize;

    /// After an error: gives back what did not complete, in order, places as they were; nothing lands in it any more. The
    /// engine is of no use afterwards.
    ///
    /// # Errors
    /// The copying could not be stopped: those slabs are lost.
    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError>;
}

/// Why pages could not be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// All slabs are in use. What was captured can be sent; then go on with the same [`Runs`].
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A dirty page that guest RAM does not have.
    #[error("{} dirty pages at {:#x} of {}: outside of guest RAM", .0.pages, .0.offset, .0.block)]
    Outside(Run),
    /// The engine failed.
    #[error("capture engine {engine}: {source}")]
    Engine {
        /// Its name.
        engine: &'static str,
        /// What it says.
        source: Box<dyn Error + Send + Sync>,
    },
}
