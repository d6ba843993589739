//! The primary's staging: turns the pages that a source hands over into sealed slabs, within the pool's cap.

use crate::{
    capture::{CaptureEngine, CaptureError, Runs},
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{FreeSlab, SealedSlab, SlabFull, SlabMeta, SlabPool, SlabWriter},
    source::{CheckpointSink, NoRoom},
};
use std::collections::VecDeque;

/// The checkpoint being captured, and slabs that wait to be sent.
#[derive(Debug)]
pub struct Staging {
    pool: SlabPool,
    incarnation: Incarnation,
    generation: Generation,
    epoch: Epoch,
    writer: Option<SlabWriter>,
    sealed: VecDeque<SealedSlab>,
    /// Of the epoch being captured.
    totals: Totals,
}

/// What an epoch consists of, for its commit record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Slabs sealed.
    pub slabs: u32,
    /// Bytes in them.
    pub bytes: u64,
    /// Pages in them.
    pub pages: u64,
    /// Bytes of device state in them.
    pub device_bytes: u64,
}

impl Staging {
    /// Empty staging over `pool`.
    #[must_use]
    pub fn new(pool: SlabPool) -> Self {
        let sealed = VecDeque::with_capacity(pool.cap());
        Self {
            pool,
            incarnation: Incarnation(0),
            generation: Generation(0),
            epoch: Epoch(0),
            writer: None,
            sealed,
            totals: Totals::default(),
        }
    }

    /// From now on slabs belong to this session and generation; the next epoch is the full synchronisation.
    pub fn begin(&mut self, incarnation: Incarnation, generation: Generation) {
        self.clear();
        (self.incarnation, self.generation) = (incarnation, generation);
        self.begin_epoch(Epoch::FULL_SYNC);
    }

    /// From now on slabs belong to this epoch.
    pub fn begin_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.totals = Totals::default();
    }

    /// The checkpoint is complete: seals what is open, and says what the epoch consists of.
    pub fn finish(&mut self) -> Totals {
        self.seal_open();
        self.totals
    }

    /// The next slab to send, in order.
    pub fn pop(&mut self) -> Option<SealedSlab> {
        self.sealed.pop_front()
    }

    /// A slab that could not be sent yet goes back to the front.
    pub fn unpop(&mut self, slab: SealedSlab) {
        self.sealed.push_front(slab);
    }

    /// Slabs that wait to be sent.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.sealed.len()
    }

    /// A slab came back from the transport.
    pub fn put(&mut self, slab: FreeSlab) {
        self.pool.put(slab);
    }

    /// Whether a further checkpoint should be captured: at least half of the pool can be had.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pool.room() * 2 >= self.pool.cap()
    }

    /// Drops whatever was captured and not sent.
    pub fn clear(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.pool.put(writer.abandon());
        }
        while let Some(slab) = self.sealed.pop_front() {
            self.pool.put(slab.recycle());
        }
    }

    /// The pool.
    pub fn pool(&mut self) -> &mut SlabPool {
        &mut self.pool
    }

    /// Has `engine` copy `runs`; all bytes are there when this returns. They go into the open slab and further ones, exactly
    /// as pages do that are handed over one by one.
    ///
    /// # Errors
    /// No room: send slabs, then go on with what is left of `runs`. Otherwise the epoch cannot be completed.
    pub fn capture(&mut self, engine: &mut dyn CaptureEngine, runs: &mut Runs<'_>) -> Result<(), CaptureError> {
        debug_assert_eq!(engine.pending(), 0, "an engine serves one epoch at a time");
        let captured = match self.submit_all(engine, runs) {
            Ok(()) => self.land(engine),
            Err(full @ CaptureError::NoRoom(_)) => self.land(engine).and(Err(full)),
            Err(error) => Err(error),
        };
        if captured.as_ref().is_err_and(|error| !matches!(error, CaptureError::NoRoom(_))) {
            self.give_up(engine);
        }
        captured
    }

    fn submit_all(&mut self, engine: &mut dyn CaptureEngine, runs: &mut Runs<'_>) -> Result<(), CaptureError> {
        while let Some(run) = runs.first() {
            if !engine.covers(&run) {
                return Err(CaptureError::Outside(run));
            }
            let Some(mut writer) = self.writer.take().or_else(|| Some(self.pool.take()?.writer())) else {
                return Err(NoRoom.into());
            };
            match writer.reserve(run.block, run.offset, run.pages) {
                Ok(pages) => {
                    runs.take(pages);
                    self.writer = Some(writer);
                }
                Err(SlabFull) => engine.submit(writer)?,
            }
            while let Some(landed) = engine.poll()? {
                self.seal(landed);
            }
        }
        Ok(())
    }

    /// Waits until everything has landed. The open slab stays open: device state follows.
    fn land(&mut self, engine: &mut dyn CaptureEngine) -> Result<(), CaptureError> {
        let open = self.writer.take_if(|writer| !writer.places().is_empty());
        let reopen = open.is_some();
        open.map_or(Ok(()), |writer| engine.submit(writer))?;
        while engine.pending() > 0 {
            let last = engine.pending() == 1;
            match engine.poll()? {
                Some(landed) if last && reopen => self.writer = Some(landed),
                Some(landed) => self.seal(landed),
                None => engine.idle(),
            }
        }
        Ok(())
    }

    fn give_up(&mut self, engine: &mut dyn CaptureEngine) {
        if let Some(writer) = self.writer.take_if(|writer| !writer.places().is_empty()) {
            self.pool.put(writer.abandon());
        }
        match engine.abort() {
            Ok(slabs) => slabs.into_iter().for_each(|slab| self.pool.put(slab.abandon())),
            // They stay out of the pool for good: something may still write into them.
            Err(error) => tracing::error!(%error, "staging slabs are lost"),
        }
    }

    fn seal_open(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.seal(writer);
        }
    }

    fn seal(&mut self, writer: SlabWriter) {
        if writer.is_empty() {
            return self.pool.put(writer.abandon());
        }
        let meta = SlabMeta {
            incarnation: self.incarnation,
            generation: self.generation,
            epoch: self.epoch,
            index: self.totals.slabs,
        };
        let slab = writer.seal(meta);
        self.totals.slabs += 1;
        self.totals.bytes += slab.as_bytes().len() as u64;
        self.totals.pages += u64::from(slab.header().pages);
        self.sealed.push_back(slab);
    }

    /// Runs `put` on the open slab, and once more on a fresh one if the first was full.
    fn write<T>(&mut self, mut put: impl FnMut(&mut SlabWriter) -> Result<T, SlabFull>) -> Result<T, NoRoom> {
        if let Some(writer) = &mut self.writer {
            if let Ok(done) = put(writer) {
                return Ok(done);
            }
            self.seal_open();
        }
        let mut writer = self.pool.take().ok_or(NoRoom)?.writer();
        let done = put(&mut writer);
        self.writer = Some(writer);
        done.map_err(|SlabFull| NoRoom)
    }
}

impl CheckpointSink for Staging {
    fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> Result<(), NoRoom> {
        self.write(|w| w.page(block, offset, data))
    }

    fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom> {
        self.write(|w| w.zero(block, offset))
    }

    fn device(&mut self, data: &[u8]) -> Result<usize, NoRoom> {
        let offset = self.totals.device_bytes;
        let taken = self.write(|w| w.device(offset, data))?;
        self.totals.device_bytes += taken as u64;
        Ok(taken)
    }

    fn capture(&mut self, engine: &mut dyn CaptureEngine, runs: &mut Runs<'_>) -> Result<(), CaptureError> {
        Self::capture(self, engine, runs)
    }
}
