//! Warm, neither the caller nor a thread that copies allocates: the VM is stopped meanwhile.
//!
//! (The one `unsafe` of the tests: an allocator cannot be counted without being one.)

use capture::{
    parallel::{Options, Parallel},
    threads::Threads,
};
use mc_core::{
    capture::{Run, Runs},
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    ram::SharedRam,
    slab::SlabPool,
    staging::Staging,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a static only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` above, hence from the system's allocator, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of this program: another's allocations would be counted too.
#[test]
fn a_warm_capture_allocates_nothing_on_any_thread() {
    let blocks: Arc<[SharedRam]> = Arc::new([SharedRam::anonymous(2048 * PAGE_SIZE).unwrap()]);
    let threads = Threads::new(2).unwrap();
    let mut engine = Parallel::new(Arc::clone(&blocks), threads, Options::default());
    let mut staging = Staging::new(SlabPool::new(16 * PAGE_SIZE, 100 * 16 * PAGE_SIZE));
    staging.begin(Incarnation(1), Generation(1));
    let runs: Vec<Run> =
        (0..800).map(|page| Run { block: BlockId(0), offset: page * 2 * PAGE_SIZE as u64, pages: 1 }).collect();
    let mut epoch = |number| {
        staging.begin_epoch(Epoch(number));
        staging.capture(&mut engine, &mut Runs::new(&runs)).unwrap();
        assert_eq!(staging.finish().pages, 800);
        while let Some(slab) = staging.pop() {
            staging.put(slab.recycle());
        }
    };
    (1..30).for_each(&mut epoch);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "warming up allocates, and is counted");
    (30..80).for_each(&mut epoch);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
