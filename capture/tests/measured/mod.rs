//! How fast an engine is, with contents checked.

use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::{SealedSlab, SlabMeta, SlabPool, SlabWriter},
    source::NoRoom,
    staging::Staging,
    wire::slab::Record,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Which pages are dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pattern {
    /// Every second page, alone.
    Scattered,
    /// Eight in a row, then eight clean ones.
    RunsOf8,
    /// All in a row.
    Sequential,
}

impl Pattern {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Scattered, Self::RunsOf8, Self::Sequential];

    /// The runs of `pages` dirty pages; they span twice as many pages of block 0, or just as many.
    #[must_use]
    pub(super) fn runs(self, pages: u32) -> Vec<Run> {
        let (run, step) = match self {
            Self::Scattered => (1, 2),
            Self::RunsOf8 => (8, 16),
            Self::Sequential => (pages, pages),
        };
        let page = |number: u32| u64::from(number) * PAGE_SIZE as u64;
        let whole = |index| Run { block: BlockId(0), offset: page(index * step), pages: run.min(pages - index * run) };
        (0..pages.div_ceil(run.max(1))).map(whole).collect()
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(super) struct Figure {
    /// The engine.
    pub(super) engine: &'static str,
    /// The pattern.
    pub(super) pattern: Pattern,
    /// Dirty pages of a round.
    pub(super) pages: u32,
    /// The best round's time, from the first page laid out to the last slab sealed.
    pub(super) capture: Duration,
    /// The best round's time of the engine alone: from the first slab submitted to the last one back.
    pub(super) copy: Duration,
}

impl Figure {
    /// Bytes of pages of a round.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_SIZE as u64
    }

    /// MB/s (10^6), checksums and all.
    #[must_use]
    pub(super) fn capture_mb_s(&self) -> f64 {
        rate(self.bytes(), self.capture)
    }

    /// MB/s (10^6) of the engine alone: what compares with a device's own figures.
    #[must_use]
    pub(super) fn copy_mb_s(&self) -> f64 {
        rate(self.bytes(), self.copy)
    }
}

fn rate(bytes: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let megabytes = bytes as f64 / 1e6;
    megabytes / time.as_secs_f64()
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum MeasureError {
    /// The engine failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The engine lies.
    #[error("{engine}: the slabs do not hold what guest RAM does: {what}")]
    Wrong {
        /// The engine.
        engine: &'static str,
        /// Where.
        what: String,
    },
    /// No memory.
    #[error("memory to measure with: {0}")]
    Memory(#[from] io::Error),
}

/// Guest RAM to measure with: one block, shared memory, room for `pages` dirty pages of any pattern, every page different.
pub(super) fn scratch(pages: u32) -> io::Result<Arc<[SharedRam]>> {
    let len = 2 * pages as usize * PAGE_SIZE;
    let file = File::from(memfd_create("capture-scratch", MemfdFlags::CLOEXEC)?);
    file.set_len(len as u64)?;
    let mut ram = SharedRam::map(&file, len)?;
    let mut page = [0; PAGE_SIZE];
    for number in 0..2 * u64::from(pages) {
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            let value = (number << 16 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&value.to_le_bytes());
        }
        ram.write(usize::try_from(number).map_err(io::Error::other)? * PAGE_SIZE, &page);
    }
    Ok(Arc::new([ram]))
}

/// Captures `pages` dirty pages of `blocks` (see [`scratch`]; the engine was made with them) into slabs of `slab_size`
/// bytes, `rounds` times after one to warm up, and checks every byte of every round.
pub(super) fn measure(
    engine: &mut dyn CaptureEngine,
    blocks: &[SharedRam],
    pattern: Pattern,
    pages: u32,
    slab_size: usize,
    rounds: u32,
) -> Result<Figure, MeasureError> {
    let runs = pattern.runs(pages);
    let mut staging = prepared(engine, pages, slab_size)?;
    let (mut capture, mut copy) = (Duration::MAX, Duration::MAX);
    for round in 0..=rounds {
        staging.begin_epoch(Epoch(2 * u64::from(round) + 1));
        let began = Instant::now();
        staging.capture(engine, &mut Runs::new(&runs))?;
        let totals = staging.finish();
        let captured = began.elapsed();
        let whole = totals.pages == u64::from(pages);
        let slabs = std::iter::from_fn(|| staging.pop()).collect();
        check(blocks, &runs, slabs, whole, staging.pool()).map_err(|what| wrong(engine, what))?;
        let (copied, slabs) = copy_only(engine, &runs, staging.pool())?;
        check(blocks, &runs, slabs, true, staging.pool()).map_err(|what| wrong(engine, what))?;
        if round > 0 {
            (capture, copy) = (capture.min(captured), copy.min(copied));
        }
    }
    Ok(Figure { engine: engine.name(), pattern, pages, capture, copy })
}

fn wrong(engine: &dyn CaptureEngine, what: String) -> MeasureError {
    MeasureError::Wrong { engine: engine.name(), what }
}

/// Times the engine alone: slabs are laid out before, and sealed after.
fn copy_only(
    engine: &mut dyn CaptureEngine,
    runs: &[Run],
    pool: &mut SlabPool,
) -> Result<(Duration, Vec<SealedSlab>), CaptureError> {
    let (mut writers, mut landed) = (Vec::new(), Vec::new());
    for run in runs {
        let mut done = 0;
        while done < run.pages {
            let offset = run.offset + u64::from(done) * PAGE_SIZE as u64;
            let open: Option<&mut SlabWriter> = writers.last_mut();
            match open.and_then(|writer| writer.reserve(run.block, offset, run.pages - done).ok()) {
                Some(pages) => done += pages,
                None => writers.push(pool.take().ok_or(NoRoom)?.writer()),
            }
        }
    }
    let count = writers.len();
    let began = Instant::now();
    writers.into_iter().try_for_each(|writer| engine.submit(writer))?;
    while landed.len() < count {
        match engine.poll()? {
            Some(slab) => landed.push(slab),
            None => engine.idle(),
        }
    }
    let took = began.elapsed();
    let meta = |index| SlabMeta { incarnation: Incarnation(1), generation: Generation(1), epoch: Epoch(2), index };
    Ok((took, landed.into_iter().zip(0..).map(|(writer, index)| writer.seal(meta(index))).collect()))
}

/// Compares the slabs of a round with guest RAM, and gives them back to the pool.
fn check(
    blocks: &[SharedRam],
    runs: &[Run],
    slabs: Vec<SealedSlab>,
    whole: bool,
    pool: &mut SlabPool,
) -> Result<(), String> {
    let mut check = Check { blocks, runs, run: 0, page: 0, buffer: [0; PAGE_SIZE] };
    for slab in slabs {
        check.slab(&slab)?;
        let mut slab = slab.recycle();
        // What an engine forgets must not be right from last time.
        slab.receive_buffer().fill(0xee);
        pool.put(slab);
    }
    if whole && check.run == runs.len() { Ok(()) } else { Err("pages are missing".to_owned()) }
}

/// Staging with room for a round, all of whose slabs the engine knows.
fn prepared(engine: &mut dyn CaptureEngine, pages: u32, slab_size: usize) -> Result<Staging, CaptureError> {
    let most = pages as usize * (PAGE_SIZE + 16) * 2 + 2 * slab_size;
    let mut pool = SlabPool::new(slab_size, most);
    let mut slabs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    slabs.iter_mut().try_for_each(|slab| {
        slab.receive_buffer().fill(0xee);
        engine.prepare(slab)
    })?;
    slabs.into_iter().for_each(|slab| pool.put(slab));
    let mut staging = Staging::new(pool);
    staging.begin(Incarnation(1), Generation(1));
    Ok(staging)
}

/// Compares slabs with guest RAM, page by page, in order.
struct Check<'a> {
    blocks: &'a [SharedRam],
    runs: &'a [Run],
    run: usize,
    page: u32,
    buffer: [u8; PAGE_SIZE],
}

impl Check<'_> {
    fn slab(&mut self, slab: &SealedSlab) -> Result<(), String> {
        let body = &slab.as_bytes()[mc_core::wire::slab::HEADER_LEN..];
        slab.header().check_body(body).map_err(|error| error.to_string())?;
        for record in slab.records() {
            match record.map_err(|error| error.to_string())? {
                Record::Pages { block, offset, data } => self.pages(block, offset, data)?,
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    }

    fn pages(&mut self, block: BlockId, offset: u64, data: &[u8]) -> Result<(), String> {
        for (page, offset) in data.chunks(PAGE_SIZE).zip((offset..).step_by(PAGE_SIZE)) {
            let run = self.runs.get(self.run).ok_or("more pages than are dirty")?;
            let expected = run.offset + u64::from(self.page) * PAGE_SIZE as u64;
            if (block, offset) != (run.block, expected) {
                return Err(format!("{block} {offset:#x} instead of {} {expected:#x}", run.block));
            }
            let at = usize::try_from(offset).map_err(|error| error.to_string())?;
            self.blocks[usize::from(block.0)].read(at, &mut self.buffer);
            if page != self.buffer {
                return Err(format!("{block} {offset:#x} has other bytes"));
            }
            self.page += 1;
            if self.page == run.pages {
                (self.run, self.page) = (self.run + 1, 0);
            }
        }
        Ok(())
    }
}
