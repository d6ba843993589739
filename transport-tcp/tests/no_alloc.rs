//! A warm link allocates nothing, on either side: allocations of this thread are counted. A binary of its own, for its
//! allocator.

use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SlabMeta, SlabPool},
    transport::{Completion, Op, Transport},
    wire::control::{Body, Control},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{Ipv4Addr, TcpListener, TcpStream},
};
use transport_tcp::TcpLink;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // Fails only while the thread ends.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the caller's arguments; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` by way of `alloc` or `realloc` above, with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: `ptr` came from `System` with this layout; the caller vouches for `new_size`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SLAB: usize = 256 << 10;
const SLABS: u32 = 6;

struct Side {
    link: TcpLink,
    pool: SlabPool,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        Self { link: TcpLink::new(stream, SLAB, "the other side").unwrap(), pool: SlabPool::new(SLAB, 8 * SLAB) }
    }
}

/// One checkpoint of six slabs and a commit record there, an ACK back, every slab back in its pool.
fn epoch(primary: &mut Side, standby: &mut Side, epoch: Epoch) {
    let (incarnation, generation) = (Incarnation(1), Generation(1));
    let control = |body| Control { incarnation, generation, epoch, body };
    for index in 0..SLABS {
        standby.link.submit(Op::Post(standby.pool.take().unwrap())).unwrap();
        let mut writer = primary.pool.take().unwrap().writer();
        for page in 0..60 {
            writer.page(BlockId(0), page * PAGE_SIZE as u64, &[7; PAGE_SIZE]).unwrap();
        }
        let slab = writer.seal(SlabMeta { incarnation, generation, epoch, index });
        primary.link.submit(Op::Write(slab)).unwrap();
    }
    primary
        .link
        .submit(Op::Send(control(Body::Commit { slabs: SLABS, bytes: 0, device_bytes: 0, held: true })))
        .unwrap();
    let ack = control(Body::Ack { free_slabs: SLABS });
    let mut acked = false;
    while !(acked && primary.pool.in_use() == 0) {
        match primary.link.poll() {
            Some(Completion::Written(slab)) => primary.pool.put(slab.recycle()),
            Some(Completion::Received(_)) => acked = true,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
        match standby.link.poll() {
            Some(Completion::Arrived(slab)) => standby.pool.put(slab.recycle()),
            Some(Completion::Received(_)) => standby.link.submit(Op::Send(ack)).unwrap(),
            Some(other) => panic!("{other:?}"),
            None => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_warm_link_allocates_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut primary = Side::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let mut standby = Side::new(listener.accept().unwrap().0);
    let mut run = |epochs: std::ops::Range<u64>| {
        epochs.for_each(|number| epoch(&mut primary, &mut standby, Epoch(number)));
        ALLOCATIONS.get()
    };
    let warm = run(1..4);
    assert!(warm > 0, "the counter counts");
    assert_eq!(run(4..54) - warm, 0, "allocations in 50 warm epochs");
}
