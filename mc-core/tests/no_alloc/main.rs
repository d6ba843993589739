//! The epoch loop does not allocate: nothing in it may wait for a lock, a page fault or the system's memory.
//!
//! (The one `unsafe` of the tests: an allocator cannot be counted without being one.)

#[path = "../driver/guest.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod guest;
#[path = "../driver/link.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod link;
#[path = "../driver/rig.rs"]
#[allow(dead_code, reason = "shared with another test")]
mod rig;

use mc_core::id::Epoch;
use rig::{Plan, Rig};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting touches a thread-local without destructor only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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

fn committed(rig: &Rig) -> Epoch {
    rig.standby.machine().committed().1
}

/// Allocations in 100 epochs, after 20 to warm up.
fn allocations(plan: &Plan) -> u64 {
    let mut rig = Rig::new(plan);
    rig.guest.borrow_mut().remember = false;
    let mut run_to = |epoch| {
        let before = ALLOCATIONS.get();
        let steps = (0..5_000).find(|_| {
            rig.step();
            committed(&rig) >= Epoch(epoch)
        });
        assert!(steps.is_some(), "epoch {epoch} never came");
        ALLOCATIONS.get() - before
    };
    assert!(run_to(20) > 0, "warming up allocates, and is counted");
    run_to(120)
}

#[test]
fn a_warm_epoch_loop_allocates_nothing() {
    assert_eq!(allocations(&Plan::default()), 0);
}

#[test]
fn nor_does_one_whose_checkpoints_are_larger_than_staging() {
    assert_eq!(allocations(&Plan { appetite: 20, primary_slabs: 4, ..Plan::default() }), 0);
}

#[test]
fn nor_does_one_that_spills() {
    assert_eq!(allocations(&Plan { appetite: 20, standby_slabs: 6, spill: true, ..Plan::default() }), 0);
}
