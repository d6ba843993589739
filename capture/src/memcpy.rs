//! The plain engine: the processor copies, page run by page run, when a slab is submitted.

use mc_core::{
    capture::{CaptureEngine, CaptureError, Run},
    ram::SharedRam,
    slab::{Place, SlabWriter},
};
use std::{collections::VecDeque, sync::Arc};

/// One thread, ordinary stores.
#[derive(Debug)]
pub struct Memcpy {
    blocks: Arc<[SharedRam]>,
    done: VecDeque<SlabWriter>,
}

impl Memcpy {
    /// Blocks in the order of the profile.
    #[must_use]
    pub fn new(blocks: Arc<[SharedRam]>) -> Self {
        Self { blocks, done: VecDeque::with_capacity(16) }
    }
}

/// Whether the block is there, and has these pages.
#[must_use]
pub fn covers(blocks: &[SharedRam], run: &Run) -> bool {
    blocks.get(usize::from(run.block.0)).is_some_and(|ram| ram.contains(run.offset, run.len()))
}

/// Fills one place.
pub(crate) fn copy(blocks: &[SharedRam], place: &Place, to: &mut [u8]) {
    let offset = usize::try_from(place.offset).expect("inside a mapping, so it fits");
    blocks[usize::from(place.block.0)].read(offset, to);
}

impl CaptureEngine for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy"
    }

    fn covers(&self, run: &Run) -> bool {
        covers(&self.blocks, run)
    }

    fn submit(&mut self, mut slab: SlabWriter) -> Result<(), CaptureError> {
        slab.fill(|place, to| copy(&self.blocks, place, to));
        self.done.push_back(slab);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
        Ok(self.done.pop_front())
    }

    fn pending(&self) -> usize {
        self.done.len()
    }

    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
        Ok(self.done.drain(..).collect())
    }
}
