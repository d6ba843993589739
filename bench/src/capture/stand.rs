//! Guest RAM, slabs, and one engine timed once, from cold caches.

use anyhow::{Result, bail, ensure};
use mc_core::{
    capture::{CaptureEngine, Run, Runs},
    id::{Epoch, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::{SealedSlab, SlabMeta, SlabPool, SlabWriter},
    source::NoRoom,
    staging::Staging,
    wire::slab::Record,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes that go through the caches before each time: more than they hold.
pub(crate) const EVICT: usize = 96 << 20;
/// Captures of nothing that are timed together.
const IDLE: u32 = 1000;

/// What measurements stand on.
#[derive(Debug)]
pub(crate) struct Stand {
    blocks: Arc<[SharedRam]>,
    staging: Staging,
    evict: Vec<u64>,
    epoch: u64,
}

impl Stand {
    /// `ram` bytes of guest RAM; slabs for `pages` pages in any pattern.
    ///
    /// # Errors
    /// There is less memory than that, or fewer pages in `ram`.
    pub(crate) fn new(ram: usize, slab: usize, pages: u32) -> Result<Self> {
        ensure!(pages as usize <= ram / PAGE_SIZE, "{pages} dirty pages do not fit into guest RAM: raise --ram");
        let blocks = Arc::new([guest_ram(ram)?]);
        let per_slab = (slab - 64) / (PAGE_SIZE + 16);
        let mut pool = SlabPool::new(slab, ((pages as usize).div_ceil(per_slab) + 2) * slab);
        let slabs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        for mut slab in slabs {
            slab.receive_buffer().fill(0xee);
            pool.put(slab);
        }
        let mut staging = Staging::new(pool);
        staging.begin(Incarnation(1), Generation(1));
        Ok(Self { blocks, staging, evict: vec![1; EVICT / 8], epoch: 1 })
    }

    /// Guest RAM.
    #[must_use]
    pub(crate) fn blocks(&self) -> &Arc<[SharedRam]> {
        &self.blocks
    }

    /// Its pages.
    #[must_use]
    pub(crate) fn ram_pages(&self) -> u32 {
        u32::try_from(self.blocks[0].len() / PAGE_SIZE).unwrap_or(u32::MAX)
    }

    /// The time of the copy alone, from the first slab submitted to the last one back; slabs are laid out before.
    ///
    /// # Errors
    /// The engine fails, or lies.
    pub(crate) fn time_copy(&mut self, engine: &mut dyn CaptureEngine, runs: &[Run]) -> Result<Duration> {
        self.fill_caches();
        self.copy(engine, runs)
    }

    /// The time of a whole capture, from the first page laid out to the last slab sealed.
    ///
    /// # Errors
    /// The engine fails, or lies.
    pub(crate) fn time_capture(&mut self, engine: &mut dyn CaptureEngine, runs: &[Run]) -> Result<Duration> {
        if runs.is_empty() {
            return self.idle(engine);
        }
        self.fill_caches();
        self.capture(engine, runs)
    }

    fn fill_caches(&mut self) {
        self.evict.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(1));
        std::hint::black_box(&mut self.evict);
    }

    fn idle(&mut self, engine: &mut dyn CaptureEngine) -> Result<Duration> {
        let began = Instant::now();
        for _ in 0..IDLE {
            self.staging.begin_epoch(Epoch(2));
            self.staging.capture(engine, &mut Runs::new(std::hint::black_box(&[])))?;
            std::hint::black_box(self.staging.finish());
        }
        Ok(began.elapsed() / IDLE)
    }

    fn capture(&mut self, engine: &mut dyn CaptureEngine, runs: &[Run]) -> Result<Duration> {
        self.epoch += 1;
        self.staging.begin_epoch(Epoch(self.epoch));
        let began = Instant::now();
        self.staging.capture(engine, &mut Runs::new(runs))?;
        self.staging.finish();
        let took = began.elapsed();
        let slabs: Vec<SealedSlab> = std::iter::from_fn(|| self.staging.pop()).collect();
        self.check(slabs, runs)?;
        Ok(took)
    }

    fn copy(&mut self, engine: &mut dyn CaptureEngine, runs: &[Run]) -> Result<Duration> {
        let writers = lay_out(self.staging.pool(), runs)?;
        let (count, mut landed) = (writers.len(), Vec::with_capacity(writers.len()));
        let began = Instant::now();
        for writer in writers {
            engine.submit(writer)?;
            landed.extend(engine.poll()?);
        }
        while landed.len() < count {
            match engine.poll()? {
                Some(writer) => landed.push(writer),
                None => engine.idle(),
            }
        }
        let took = began.elapsed();
        let meta = |index| SlabMeta { incarnation: Incarnation(1), generation: Generation(1), epoch: Epoch(2), index };
        let slabs = landed.into_iter().zip(0..).map(|(writer, index)| writer.seal(meta(index))).collect();
        self.check(slabs, runs)?;
        Ok(took)
    }

    /// Compares slabs with guest RAM, and gives them back to the pool, spoilt.
    fn check(&mut self, slabs: Vec<SealedSlab>, runs: &[Run]) -> Result<()> {
        let mut wanted = runs.iter().flat_map(|run| (run.offset..run.offset + run.len()).step_by(PAGE_SIZE));
        let mut page = [0; PAGE_SIZE];
        for slab in slabs {
            slab.header().check_body(&slab.as_bytes()[mc_core::wire::slab::HEADER_LEN..])?;
            for record in slab.records() {
                let Record::Pages { offset, data, .. } = record? else { bail!("a record of something else") };
                for (data, offset) in data.chunks(PAGE_SIZE).zip((offset..).step_by(PAGE_SIZE)) {
                    ensure!(wanted.next() == Some(offset), "page {offset:#x} instead of another");
                    self.blocks[0].read(usize::try_from(offset)?, &mut page);
                    ensure!(page == data, "page {offset:#x} has other bytes than guest RAM");
                }
            }
            let mut slab = slab.recycle();
            slab.receive_buffer().fill(0xee);
            self.staging.put(slab);
        }
        ensure!(wanted.next().is_none(), "pages are missing");
        Ok(())
    }
}

/// Slabs with places for all pages.
fn lay_out(pool: &mut SlabPool, runs: &[Run]) -> Result<Vec<SlabWriter>> {
    let mut writers: Vec<SlabWriter> = Vec::new();
    for run in runs {
        let mut done = 0;
        while done < run.pages {
            let offset = run.offset + u64::from(done) * PAGE_SIZE as u64;
            let open = writers.last_mut();
            match open.and_then(|writer| writer.reserve(run.block, offset, run.pages - done).ok()) {
                Some(pages) => done += pages,
                None => writers.push(pool.take().ok_or(NoRoom)?.writer()),
            }
        }
    }
    Ok(writers)
}

/// Shared memory, every page different.
fn guest_ram(bytes: usize) -> Result<SharedRam> {
    let file = File::from(memfd_create("mc-bench-guest", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes as u64)?;
    let mut ram = SharedRam::map(&file, bytes)?;
    let mut page = [0; PAGE_SIZE];
    for at in (0..bytes).step_by(PAGE_SIZE) {
        for (index, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&((at + index) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        ram.write(at, &page);
    }
    Ok(ram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::pattern::Pattern;
    use ::capture::{Memcpy, parallel};
    use mc_core::capture::CaptureError;

    /// Copies, and spoils a byte.
    #[derive(Debug)]
    struct Liar(Memcpy, Vec<SlabWriter>);

    impl CaptureEngine for Liar {
        fn name(&self) -> &'static str {
            "liar"
        }

        fn covers(&self, run: &Run) -> bool {
            self.0.covers(run)
        }

        fn submit(&mut self, slab: SlabWriter) -> Result<(), CaptureError> {
            let at = slab.places()[0].at;
            self.0.submit(slab)?;
            let mut slab = self.0.poll()?.expect("memcpy is done at once");
            slab.memory()[at + 9] ^= 1;
            self.1.push(slab);
            Ok(())
        }

        fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
            Ok(self.1.pop())
        }

        fn pending(&self) -> usize {
            self.1.len()
        }

        fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
            Ok(self.1.drain(..).collect())
        }
    }

    #[test]
    fn engines_that_are_right_get_times_and_one_that_lies_none() {
        let mut stand = Stand::new(1 << 20, 64 << 10, 40).unwrap();
        let mut plain = Memcpy::new(Arc::clone(stand.blocks()));
        let workers = parallel::CallerOnly::default();
        let mut past_caches =
            parallel::Parallel::new(Arc::clone(stand.blocks()), workers, parallel::Options::default());
        let mut liar = Liar(Memcpy::new(Arc::clone(stand.blocks())), vec![]);
        for pattern in Pattern::ALL {
            let runs = pattern.runs(40, stand.ram_pages(), 1);
            for engine in [&mut plain as &mut dyn CaptureEngine, &mut past_caches] {
                stand.time_copy(engine, &runs).unwrap();
                stand.time_capture(engine, &runs).unwrap();
            }
        }
        let runs = Pattern::Scattered.runs(40, stand.ram_pages(), 1);
        let error = stand.time_copy(&mut liar, &runs).unwrap_err().to_string();
        assert!(error.contains("other bytes"), "{error}");
    }

    #[test]
    fn more_dirty_pages_than_guest_ram_are_refused() {
        assert!(Stand::new(1 << 20, 64 << 10, 257).unwrap_err().to_string().contains("--ram"));
    }
}
