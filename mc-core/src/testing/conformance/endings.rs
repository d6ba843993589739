//! When the link ends: cut, dropped, revoked (I3).

use super::{
    Fabric,
    flow::SLAB,
    station::{Station, World},
};
use crate::{
    slab::FreeSlab,
    testing::Rng,
    transport::{LinkError, RejectReason, Transport},
};

/// A cut with slabs queued, in flight and posted on both sides: all come back, then `Down`.
pub fn a_cut_returns_every_slab<F: Fabric>(fabric: &mut F) {
    for polls in 0..20 {
        let mut w = World::new(&mut *fabric, SLAB, 8);
        w.a.post_many(3);
        w.b.post_many(3);
        for _ in 0..3 {
            w.a.write(3).expect("an empty queue");
            w.b.write(2).expect("an empty queue");
            w.a.send().expect("an empty queue");
        }
        for _ in 0..polls {
            w.a.step();
            w.b.step();
        }
        w.fabric.cut();
        w.until_both_down();
        w.check_prefixes();
    }
}

/// What had arrived in full when the link broke is not lost.
pub fn what_arrived_before_a_cut_is_reported<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(4);
    write_a_checkpoint(&mut w.a);
    w.settle();
    w.fabric.cut();
    w.until_both_down();
    w.check_complete();
}

/// With no slab posted for what waits, the end of the link is noticed all the same.
pub fn a_stalled_end_notices_a_cut<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    write_a_checkpoint(&mut w.a);
    w.until("the record before the slabs arrives", |w| w.b.seen.len() == 1);
    w.linger();
    w.fabric.cut();
    w.until_both_down();
    w.check_prefixes();
}

/// A peer that drops its end: what it had written arrives, then `Down`.
pub fn a_dropped_peer_is_down<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(4);
    w.b.write(1).expect("an empty queue");
    write_a_checkpoint(&mut w.a);
    w.settle();
    let World { a, mut b, fabric } = w;
    let sent = a.sent;
    drop(a.link);
    for _ in 0..100_000 {
        if b.down.is_some() {
            break;
        }
        if !b.step() {
            fabric.idle();
        }
    }
    b.check_down();
    assert!(b.seen == sent, "what the peer had written before it went is lost");
}

/// Records and slabs that had arrived, but were not polled for, are reported after the revocation, without the peer's help.
pub fn revoke_reports_what_had_arrived<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(6);
    write_a_checkpoint(&mut w.a);
    w.settle();
    w.b.link.revoke().expect("fenced");
    w.b.link.revoke().expect("fenced"); // the second does nothing
    w.until_second("the revoked end goes down", |b| b.down.is_some());
    assert!(matches!(w.b.down, Some(LinkError::Revoked { .. })), "{:?}", w.b.down);
    w.b.check_down();
    w.check_complete();
    w.until_both_down();
}

/// Whatever the peer writes after the revocation, none of it is reported, and no memory that came back changes.
pub fn after_revoke_nothing_lands<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(6);
    write_a_checkpoint(&mut w.a);
    w.settle();
    let before = w.a.sent.clone();
    w.b.link.revoke().expect("fenced");
    // The peer does not know yet, and may even get its bytes out. Or it does know: then it takes no more.
    while w.a.write(3).is_ok() && w.a.sent.len() < 12 {
        w.a.step();
    }
    w.until_second("the revoked end goes down", |b| b.down.is_some());
    assert!(w.b.seen == before, "something written after the revocation was reported, or something before it was not");
    let mut slabs: Vec<FreeSlab> = std::iter::from_fn(|| w.b.pool.take()).collect();
    slabs.iter_mut().for_each(|s| s.receive_buffer().fill(0xa5));
    for _ in 0..100 {
        w.a.step();
        w.fabric.idle();
    }
    let untouched = |s: &mut FreeSlab| s.receive_buffer().iter().all(|b| *b == 0xa5);
    assert!(slabs.iter_mut().all(untouched), "a late byte landed in a slab");
    slabs.into_iter().for_each(|s| w.b.pool.put(s));
    w.until_both_down();
}

/// Revoked at any moment of a stream: what is reported is whole, and a prefix.
pub fn revoke_in_mid_stream_keeps_a_prefix<F: Fabric>(fabric: &mut F) {
    let mut rng = Rng::new(3);
    for _ in 0..25 {
        let mut w = World::new(&mut *fabric, 64 * 4096, 8);
        w.b.post_many(8);
        let stop = rng.below(60);
        for _ in 0..stop {
            match rng.below(4) {
                0 if w.a.writing < 6 => drop(w.a.write(rng.below(60))),
                1 => drop(w.a.send()),
                2 => drop(w.a.step()),
                _ => drop(w.b.step()),
            }
        }
        w.b.link.revoke().expect("fenced");
        w.until_second("the revoked end goes down", |b| b.down.is_some());
        w.check_prefixes();
        w.until_both_down();
    }
}

/// A revoked end refuses operations at once, and gives them back.
pub fn the_revoked_end_takes_no_more_operations<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(2);
    w.b.write(1).expect("an empty queue");
    w.b.link.revoke().expect("fenced");
    assert_eq!(w.b.write(1), Err(RejectReason::Down));
    assert_eq!(w.b.send(), Err(RejectReason::Down));
    assert_eq!(w.b.post(), Err(RejectReason::Down));
    assert!(!w.b.link.wants_write());
    w.until_both_down();
}

/// The other role may revoke as well: nothing that it owns stays behind.
pub fn revoke_by_the_sender_returns_every_slab<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    for _ in 0..5 {
        w.a.write(3).expect("an empty queue");
    }
    w.a.step();
    w.a.link.revoke().expect("fenced");
    w.until_both_down();
    w.check_prefixes();
}

fn write_a_checkpoint<T: Transport>(station: &mut Station<T>) {
    station.send().expect("an empty queue");
    for pages in [3, 0, 2] {
        station.write(pages).expect("an empty queue");
    }
    station.send().expect("an empty queue");
}
