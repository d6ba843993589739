//! I3 on real verbs: when `revoke` has returned, not one byte of a peer that goes on writing lands any more.

mod common;

use common::RawPeer;
use mc_core::{
    id::Incarnation,
    slab::{FreeSlab, SlabPool},
    testing::Rng,
    transport::{Completion, LinkError, Op, Transport},
    wire::rdma::Slot,
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::sleep,
    time::Duration,
};
use transport_rdma::{Place, Prepared, RcOptions, RdmaLink};

const TRIALS: u64 = 200;
const IN_FLIGHT: u64 = 16;
const SLABS: usize = 4;
const SLAB: usize = 64 << 10;

/// A writer that keeps 16 writes in flight, and never stops by itself.
fn storm(peer: &RawPeer, slots: &[Slot], piece: u32, stop: &AtomicBool, landed: &AtomicU64) {
    let (mut posted, mut done) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        while posted - done < IN_FLIGHT {
            let slot = &slots[usize::try_from(posted).unwrap() % slots.len()];
            let pieces = u64::from(slot.len / piece);
            let to = slot.addr + (posted / slots.len() as u64 % pieces) * u64::from(piece);
            // Every write brings other bytes than the one before it at the same place.
            let from = usize::try_from(posted * 8 % 4096).unwrap();
            if !peer.write(posted, from, piece, to, slot.rkey) {
                return;
            }
            posted += 1;
        }
        while let Ok(Some(completion)) = peer.send_cq.poll() {
            if completion.status != 0 {
                return; // it has noticed
            }
            done += 1;
            landed.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::yield_now();
    }
}

fn collect(link: &mut RdmaLink) -> Vec<FreeSlab> {
    let mut slabs = Vec::new();
    loop {
        match link.poll() {
            Some(Completion::Returned(slab)) => slabs.push(slab),
            Some(Completion::Down(LinkError::Revoked { .. })) => return slabs,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}

/// One trial: whether anything landed late.
fn trial(places: &(Place, Place), number: u64, rng: &mut Rng) -> bool {
    let (ours, theirs) = (&places.1, &places.0);
    let prepared = Prepared::new(ours, Incarnation(number), &RcOptions::default()).unwrap();
    let mut peer = RawPeer::new(theirs, Incarnation(number));
    for at in 0..(SLAB + 4096) / 8 {
        peer.fill(at * 8, &(rng.next_u64() | 1).to_le_bytes());
    }
    let (peer, mut link) = peer.meet(theirs, prepared);
    let mut pool = SlabPool::new(SLAB, SLABS * SLAB);
    for _ in 0..SLABS {
        let mut slab = pool.take().unwrap();
        slab.receive_buffer().fill(0);
        link.submit(Op::Post(slab)).unwrap();
    }
    let slots: Vec<Slot> = (0..SLABS).map(|_| peer.slot(&mut link)).collect();
    while peer.send_cq.poll().unwrap().is_none() {} // its greeting
    let (stop, landed) = (AtomicBool::new(false), AtomicU64::new(0));
    let piece = if number.is_multiple_of(3) { 64 << 10 } else { 4096 };
    let pause = rng.below(4000);
    std::thread::scope(|scope| {
        scope.spawn(|| storm(&peer, &slots, piece, &stop, &landed));
        while landed.load(Ordering::Relaxed) < 4 {
            std::thread::yield_now();
        }
        sleep(Duration::from_micros(pause));
        link.revoke().expect("fenced");
        let mut slabs = collect(&mut link);
        assert_eq!(slabs.len(), SLABS);
        let before: Vec<Vec<u8>> = slabs.iter_mut().map(|s| s.receive_buffer().to_vec()).collect();
        assert!(before.iter().any(|s| s.iter().any(|b| *b != 0)), "no traffic: the trial says nothing");
        // Late bytes have been seen up to 21 ms after weaker measures.
        sleep(Duration::from_millis(30));
        stop.store(true, Ordering::Relaxed);
        let late = slabs.iter_mut().zip(&before).any(|(s, b)| s.receive_buffer() != b.as_slice());
        slabs.into_iter().for_each(|s| pool.put(s));
        late
    })
}

#[test]
fn not_one_byte_lands_after_revoke_has_returned() {
    let Some(places) = common::places() else { return };
    let mut rng = Rng::new(20);
    let late = (0..TRIALS).filter(|number| trial(&places, *number, &mut rng)).count();
    println!("{TRIALS} trials, {IN_FLIGHT} writes in flight: {late} with bytes that landed late");
    assert_eq!(late, 0);
}
