//! Capture engines: whatever copies, slabs come out byte for byte as if every page had been handed over by itself; and an
//! engine that fails while the VM is paused costs neither the checkpoint nor a slab.

use capture::{
    Memcpy, WithSpare, covers,
    parallel::{CallerOnly, Job, Options, Parallel, Stores, Workers},
};
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::{SlabPool, SlabWriter},
    source::{CheckpointSink, NoRoom},
    staging::{Staging, Totals},
    testing::Rng,
};
use proptest::prelude::*;
use std::{collections::VecDeque, sync::Arc};

const PAGES: u64 = 48;
const SLAB: usize = 5 * PAGE_SIZE;

/// Two blocks of random pages.
fn guest() -> Arc<[SharedRam]> {
    let mut rng = Rng::new(7);
    (0..2)
        .map(|_| {
            let len = usize::try_from(PAGES).unwrap() * PAGE_SIZE;
            let mut ram = SharedRam::anonymous(len).unwrap();
            (0..len).step_by(8).for_each(|at| ram.write(at, &rng.next_u64().to_le_bytes()));
            ram
        })
        .collect()
}

fn staging(slabs: usize) -> Staging {
    let mut staging = Staging::new(SlabPool::new(SLAB, slabs * SLAB));
    staging.begin(Incarnation(1), Generation(2));
    staging
}

fn run() -> impl Strategy<Value = Run> {
    (0..2_u16, 0..PAGES, 1..12_u32).prop_map(|(block, page, pages)| Run {
        block: BlockId(block),
        offset: page * PAGE_SIZE as u64,
        pages: pages.min(u32::try_from(PAGES - page).unwrap()),
    })
}

/// The slabs of an epoch, as they go out.
fn sent(staging: &mut Staging, out: &mut Vec<Vec<u8>>) {
    while let Some(slab) = staging.pop() {
        out.push(slab.as_bytes().to_vec());
        staging.put(slab.recycle());
    }
}

/// What the figures and the bytes are when pages are handed over one by one.
fn one_by_one(blocks: &[SharedRam], runs: &[Run], device: &[u8]) -> (Totals, Vec<Vec<u8>>) {
    let (mut staging, mut out) = (staging(64), Vec::new());
    let mut page = [0; PAGE_SIZE];
    staging.zero(BlockId(1), 0).unwrap();
    for run in runs {
        for offset in (run.offset..run.offset + run.len()).step_by(PAGE_SIZE) {
            blocks[usize::from(run.block.0)].read(usize::try_from(offset).unwrap(), &mut page);
            while staging.page(run.block, offset, &page) == Err(NoRoom) {
                sent(&mut staging, &mut out);
            }
        }
    }
    (finish(&mut staging, device, &mut out), out)
}

fn finish(staging: &mut Staging, mut device: &[u8], out: &mut Vec<Vec<u8>>) -> Totals {
    while !device.is_empty() {
        match staging.device(device) {
            Ok(taken) => device = &device[taken..],
            Err(NoRoom) => sent(staging, out),
        }
    }
    let totals = staging.finish();
    sent(staging, out);
    totals
}

/// The same, captured by `engine`, with `slabs` in the pool.
fn captured(engine: &mut dyn CaptureEngine, slabs: usize, runs: &[Run], device: &[u8]) -> (Totals, Vec<Vec<u8>>) {
    let (mut staging, mut out) = (staging(slabs), Vec::new());
    staging.zero(BlockId(1), 0).unwrap();
    let mut left = Runs::new(runs);
    while let Err(error) = staging.capture(engine, &mut left) {
        assert!(matches!(error, CaptureError::NoRoom(_)), "{error}");
        sent(&mut staging, &mut out);
    }
    let totals = finish(&mut staging, device, &mut out);
    assert_eq!(staging.pool().in_use(), 0, "a slab got lost");
    (totals, out)
}

/// Copies as late as it can, like a device with a queue; fails for good at the `fails_at`th poll.
#[derive(Debug)]
struct Slow {
    memcpy: Memcpy,
    queue: VecDeque<SlabWriter>,
    polls: u32,
    fails_at: u32,
}

impl Slow {
    fn new(blocks: &Arc<[SharedRam]>, fails_at: u32) -> Self {
        Self { memcpy: Memcpy::new(Arc::clone(blocks)), queue: VecDeque::new(), polls: 0, fails_at }
    }
}

impl CaptureEngine for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn covers(&self, run: &Run) -> bool {
        self.memcpy.covers(run)
    }

    fn submit(&mut self, slab: SlabWriter) -> Result<(), CaptureError> {
        self.queue.push_back(slab);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<SlabWriter>, CaptureError> {
        self.polls += 1;
        if self.polls >= self.fails_at {
            return Err(CaptureError::Engine { engine: "slow", source: "it broke".into() });
        }
        if !self.polls.is_multiple_of(7) {
            return Ok(None);
        }
        self.queue.pop_front().map_or(Ok(()), |slab| self.memcpy.submit(slab))?;
        self.memcpy.poll()
    }

    fn pending(&self) -> usize {
        self.queue.len()
    }

    fn abort(&mut self) -> Result<Vec<SlabWriter>, CaptureError> {
        Ok(self.queue.drain(..).collect())
    }
}

/// Workers that do jobs in any order, late, and give the `fails_at`th back undone, as a thread does that panics.
#[derive(Debug)]
struct Shuffled {
    rng: Rng,
    waiting: Vec<Job>,
    done: Vec<Job>,
    fails_at: u32,
}

impl Shuffled {
    fn new(seed: u64, fails_at: u32) -> Self {
        Self { rng: Rng::new(seed), waiting: vec![], done: vec![], fails_at }
    }

    fn any(&mut self, jobs: usize) -> usize {
        usize::try_from(self.rng.next_u64() % jobs as u64).unwrap()
    }
}

impl Workers for Shuffled {
    fn count(&self) -> usize {
        1
    }

    fn give(&mut self, job: Job) {
        self.waiting.push(job);
    }

    fn steal(&mut self) -> Option<Job> {
        let some = self.any(3) == 0 && !self.waiting.is_empty();
        some.then(|| self.waiting.remove(0))
    }

    fn done(&mut self) -> Option<Job> {
        let some = self.any(5) == 0 && !self.done.is_empty();
        let index = self.any(self.done.len().max(1));
        some.then(|| self.done.swap_remove(index))
    }

    fn wait(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let index = self.any(self.waiting.len());
        let mut job = self.waiting.swap_remove(index);
        self.fails_at = self.fails_at.saturating_sub(1);
        if self.fails_at > 0 {
            job.run();
        }
        self.done.push(job);
    }
}

fn options() -> impl Strategy<Value = Options> {
    let stores = prop_oneof![Just(Stores::Streaming), Just(Stores::Cached)];
    (stores, any::<bool>()).prop_map(|(stores, checksum)| Options { stores, checksum })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_makes_the_slabs_that_single_pages_make(
        runs in prop::collection::vec(run(), 0..24),
        device in prop::collection::vec(any::<u8>(), 0..3 * PAGE_SIZE),
        slabs in 2..6_usize,
        fails_at in 1..200_u32,
        options in options(),
        seed in any::<u64>(),
    ) {
        let blocks = guest();
        let wanted = one_by_one(&blocks, &runs, &device);
        let spare = || Memcpy::new(Arc::clone(&blocks));
        prop_assert_eq!(&captured(&mut spare(), slabs, &runs, &device), &wanted);
        prop_assert_eq!(&captured(&mut Slow::new(&blocks, u32::MAX), slabs, &runs, &device), &wanted);
        let mut breaks = WithSpare::new(Box::new(Slow::new(&blocks, fails_at)), spare());
        prop_assert_eq!(&captured(&mut breaks, slabs, &runs, &device), &wanted);
        let parallel = |workers| Parallel::new(Arc::clone(&blocks), workers, options);
        let mut alone = Parallel::new(Arc::clone(&blocks), CallerOnly::default(), options);
        prop_assert_eq!(&captured(&mut alone, slabs, &runs, &device), &wanted);
        prop_assert_eq!(&captured(&mut parallel(Shuffled::new(seed, u32::MAX)), slabs, &runs, &device), &wanted);
        let mut breaks = WithSpare::new(Box::new(parallel(Shuffled::new(seed, fails_at % 20 + 1))), spare());
        prop_assert_eq!(&captured(&mut breaks, slabs, &runs, &device), &wanted);
    }
}

#[test]
fn a_failure_without_a_spare_is_an_error_and_loses_no_slab() {
    let blocks = guest();
    let mut staging = staging(4);
    let runs = [Run { block: BlockId(0), offset: 0, pages: 9 }];
    let error = staging.capture(&mut Slow::new(&blocks, 3), &mut Runs::new(&runs)).unwrap_err();
    assert_eq!(error.to_string(), "capture engine slow: it broke");
    staging.clear();
    assert_eq!(staging.pool().in_use(), 0);
}

#[test]
fn a_job_that_was_not_done_fails_the_engine_and_loses_no_slab() {
    let blocks = guest();
    let mut engine = Parallel::new(Arc::clone(&blocks), Shuffled::new(3, 2), Options::default());
    let mut staging = staging(12);
    let runs = [Run { block: BlockId(0), offset: 0, pages: 40 }];
    let error = staging.capture(&mut engine, &mut Runs::new(&runs)).unwrap_err();
    assert_eq!(error.to_string(), "capture engine parallel: a copying thread panicked");
    assert_eq!(engine.pending(), 0);
    staging.clear();
    assert_eq!(staging.pool().in_use(), 0);
}

#[test]
fn pages_that_the_guest_does_not_have_are_refused() {
    let blocks = guest();
    let cases =
        [(2, 0, 1), (0, PAGES * PAGE_SIZE as u64, 1), (1, (PAGES - 1) * PAGE_SIZE as u64, 2), (0, u64::MAX - 4095, 1)];
    for (block, offset, pages) in cases {
        let run = Run { block: BlockId(block), offset, pages };
        assert!(!covers(&blocks, &run));
        let mut staging = staging(4);
        let runs = [Run { block: BlockId(0), offset: 0, pages: 2 }, run];
        let error = staging.capture(&mut Memcpy::new(Arc::clone(&blocks)), &mut Runs::new(&runs)).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&format!("{pages} dirty pages at {offset:#x} of block {block}: outside")), "{said}");
        staging.clear();
        assert_eq!(staging.pool().in_use(), 0);
    }
}

#[test]
#[should_panic(expected = "sealed before its pages landed")]
fn a_slab_with_a_place_that_was_never_filled_is_not_sealed() {
    let mut writer = SlabPool::new(SLAB, SLAB).take().unwrap().writer();
    writer.reserve(BlockId(0), 0, 1).unwrap();
    let meta =
        mc_core::slab::SlabMeta { incarnation: Incarnation(1), generation: Generation(2), epoch: Epoch(3), index: 0 };
    drop(writer.seal(meta));
}
