//! A warm gate allocates nothing: frames, barriers, releases, inbound traffic and waiting, all counted. One test in its
//! own binary, because it replaces the allocator.

mod gate_common;

use gate_common::{Qemu, frame, waits};
use mc_core::{
    gate::OutputGate,
    id::{Epoch, Time},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{self, ErrorKind},
    os::fd::BorrowedFd,
    time::Duration,
};
use vmm_qemu::gate::{HELD_LIMIT_MIN, Mode, NicGate, Options, Port};

thread_local! {
    /// Allocations of this thread. Const and without a destructor, so that counting never allocates.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged, which keeps `GlobalAlloc`'s contract; counting touches
// only a thread-local number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller keeps `alloc`'s conditions, which are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout, as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes everything; gives one frame a poll.
#[derive(Debug, Default)]
struct Sink(bool);

impl Port for Sink {
    fn send(&mut self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0 = !self.0;
        if self.0 {
            buf[..60].fill(7);
            return Ok(60);
        }
        Err(ErrorKind::WouldBlock.into())
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_warm_gate_allocates_nothing() {
    let mut qemu = Qemu::listen(0);
    let ports = vec![(qemu.path.clone(), Box::new(Sink::default()) as Box<dyn Port>)];
    let options = Options { held_limit_bytes: HELD_LIMIT_MIN, mode: Mode::Holding };
    let mut gate = NicGate::with_ports(ports, options).unwrap();
    gate.connect(Duration::from_secs(5)).unwrap();
    qemu.accept();
    let bytes = Qemu::wire(&frame(1, 1500)).repeat(20);
    let mut epoch = |e: u64| {
        gate.tick(Time(e * 1_000_000));
        qemu.raw(&bytes[..14_000]);
        assert_eq!(waits(&gate), 1);
        gate.poll().unwrap();
        qemu.raw(&bytes[14_000..]);
        gate.barrier(Epoch(e)).unwrap();
        if e >= 3 {
            gate.release(Epoch(e - 2)).unwrap();
        }
        qemu.skim();
        gate.stats().released_packets
    };
    (1..10).map(&mut epoch).for_each(|_| ());
    let before = COUNT.with(Cell::get);
    let released = (10..500).map(&mut epoch).last();
    let allocated = COUNT.with(Cell::get) - before;
    assert_eq!((allocated, released), (0, Some(20 * 497)));
}
