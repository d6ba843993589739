//! Real threads: whatever they do at once, slabs come out as from one thread.

use capture::{
    Memcpy,
    parallel::{Options, Parallel, Stores},
    threads::Threads,
};
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    id::{BlockId, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::SlabPool,
    source::CheckpointSink,
    staging::{Staging, Totals},
    testing::Rng,
};
use proptest::prelude::*;
use std::{sync::Arc, thread, time::Duration};

const PAGES: u64 = 512;
const SLAB: usize = 9 * PAGE_SIZE;

fn guest() -> Arc<[SharedRam]> {
    let mut rng = Rng::new(11);
    let len = usize::try_from(PAGES).unwrap() * PAGE_SIZE;
    let mut ram = SharedRam::anonymous(len).unwrap();
    (0..len).step_by(8).for_each(|at| ram.write(at, &rng.next_u64().to_le_bytes()));
    Arc::new([ram])
}

/// The slabs of an epoch, captured into a pool of `slabs`, with device state after the pages.
fn captured(engine: &mut dyn CaptureEngine, slabs: usize, runs: &[Run]) -> (Totals, Vec<Vec<u8>>) {
    let mut staging = Staging::new(SlabPool::new(SLAB, slabs * SLAB));
    staging.begin(Incarnation(1), Generation(2));
    let (mut left, mut out) = (Runs::new(runs), Vec::new());
    let send = |staging: &mut Staging, out: &mut Vec<Vec<u8>>| {
        while let Some(slab) = staging.pop() {
            out.push(slab.as_bytes().to_vec());
            staging.put(slab.recycle());
        }
    };
    while let Err(error) = staging.capture(engine, &mut left) {
        assert!(matches!(error, CaptureError::NoRoom(_)), "{error}");
        send(&mut staging, &mut out);
    }
    while staging.device(b"device state") != Ok(12) {
        send(&mut staging, &mut out);
    }
    let totals = staging.finish();
    send(&mut staging, &mut out);
    assert_eq!(staging.pool().in_use(), 0, "a slab got lost");
    (totals, out)
}

fn run() -> impl Strategy<Value = Run> {
    (0..PAGES, 1..20_u32).prop_map(|(page, pages)| Run {
        block: BlockId(0),
        offset: page * PAGE_SIZE as u64,
        pages: pages.min(u32::try_from(PAGES - page).unwrap()),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn threads_make_the_slabs_that_memcpy_makes(
        epochs in prop::collection::vec(prop::collection::vec(run(), 0..80), 1..4),
        slabs in 2..40_usize,
        threads in 0..4_usize,
        streaming in any::<bool>(),
    ) {
        let blocks = guest();
        let mut memcpy = Memcpy::new(Arc::clone(&blocks));
        let stores = if streaming { Stores::Streaming } else { Stores::Cached };
        let workers = Threads::new(threads).unwrap();
        let mut parallel =
            Parallel::new(Arc::clone(&blocks), workers, Options { stores, ..Options::default() });
        for runs in &epochs {
            prop_assert_eq!(captured(&mut parallel, slabs, runs), captured(&mut memcpy, slabs, runs));
        }
    }
}

#[test]
fn threads_that_sleep_are_woken() {
    let blocks = guest();
    let runs: Vec<Run> = (0..PAGES).map(|p| Run { block: BlockId(0), offset: p * 4096, pages: 1 }).step_by(2).collect();
    let wanted = captured(&mut Memcpy::new(Arc::clone(&blocks)), 80, &runs);
    let mut engine = Parallel::new(Arc::clone(&blocks), capture::threads::Threads::new(3).unwrap(), Options::default());
    assert_eq!(engine.threads(), 4);
    for _ in 0..20 {
        thread::sleep(2 * capture::threads::SPIN + Duration::from_millis(1));
        assert_eq!(captured(&mut engine, 80, &runs), wanted);
    }
}

#[test]
fn an_engine_can_be_aborted_and_used_again() {
    let blocks = guest();
    let mut engine = Parallel::new(Arc::clone(&blocks), capture::threads::Threads::new(2).unwrap(), Options::default());
    let mut pool = SlabPool::new(SLAB, 16 * SLAB);
    for _ in 0..20 {
        for first in 0..16_u64 {
            let mut writer = pool.take().unwrap().writer();
            writer.reserve(BlockId(0), first * 8 * 4096, 8).unwrap();
            engine.submit(writer).unwrap();
        }
        let slabs = engine.abort().unwrap();
        assert_eq!((slabs.len(), engine.pending()), (16, 0));
        slabs.into_iter().for_each(|slab| pool.put(slab.abandon()));
    }
    let runs = [Run { block: BlockId(0), offset: 0, pages: 100 }];
    assert_eq!(captured(&mut engine, 80, &runs), captured(&mut Memcpy::new(blocks), 80, &runs));
}
