//! A device may fail while the VM is paused. That must not cost the checkpoint: what did not land is copied by `memcpy`,
//! and so is everything from then on.
//!
//! ```text
//! Main ──error of prepare, submit, poll──> abort ──its slabs──> Memcpy (for good)
//! ```

use crate::memcpy::Memcpy;
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run},
    slab::{FreeSlab, SlabWriter},
};

/// An engine, and what steps in for it.
#[derive(Debug)]
pub struct WithSpare {
    /// `None` once it failed.
    main: Option<Box<dyn CaptureEngine>>,
    spare: Memcpy,
}

impl WithSpare {
    /// `spare` must know the same RAM blocks.
    #[must_use]
    pub fn new(main: Box<dyn CaptureEngine>, spare: Memcpy) -> Self {
        Self { main: Some(main), spare }
    }

    fn fail(&mut self, error: CaptureError) -> Result<(), CaptureError> {
        let Some(mut main) = self.main.take() else { return Err(error) };
        tracing::warn!(%error, "capturing by memcpy from now on");
        main.abort()?.into_iter().try_for_each(|slab| self.spare.submit(slab))
    }

    fn engine(&mut self) -> &mut dyn CaptureEngine {
        match &mut self.main {
            Some(main) => main.as_mut(),
            None => &mut self.spare,
        }
    }
}

impl CaptureEngine for WithSpare {
    fn name(&self) -> &'static str {
        self.main.as_ref().map_or_else(|| self.spare.name(), |main| main.name())
    }

    fn covers(&self, run: &Run) -> bool {
        self.spare.covers(run)
    }

    fn prepare(&mut self, slab: &mut FreeSlab) -> Result<(), CaptureError> {
        self.engine().prepare(slab).or_else(|error| self.fail(error))
    }

    fn submit(&mut self, slab: SlabWriter) -> Result<(), CaptureError> {
        self.engine().submit(slab).or_else(|error| self.fail(error))
    }

    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
        self.engine().poll().or_else(|error| {
            self.fail(error)?;
            self.spare.poll()
        })
    }

    fn idle(&mut self) {
        self.engine().idle();
    }

    fn pending(&self) -> usize {
        self.main.as_ref().map_or_else(|| self.spare.pending(), |main| main.pending())
    }

    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
        self.engine().abort()
    }
}
