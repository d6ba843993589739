//! While the link is up: order, bytes, back-pressure.

use super::{
    Fabric,
    station::{Item, World},
};
use crate::{
    id::PAGE_SIZE,
    transport::{RejectReason, Transport},
    wire::slab::{HEADER_LEN, MAX_SLAB, RECORD_LEN},
};

/// Room for three pages, and a little device state.
pub(super) const SLAB: usize = 4 * PAGE_SIZE;

/// A link with nothing to do says nothing, also with slabs posted.
pub fn an_idle_link_reports_nothing<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(2);
    for _ in 0..20 {
        assert!(!w.a.step() && !w.b.step());
        w.fabric.idle();
    }
    assert!(!w.a.link.wants_write());
    assert!(!w.a.link.peer().is_empty());
}

/// Slabs of several sizes among control records: all arrive, in order, byte for byte.
pub fn records_and_slabs_arrive_in_order<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    w.b.post_many(8);
    for round in 0..40 {
        w.a.send().expect("an empty queue");
        w.a.write(round % 4).expect("an empty queue");
        w.a.write((round + 1) % 4).expect("an empty queue");
        w.a.send().expect("an empty queue");
        w.a.send().expect("an empty queue");
        let sent = w.a.sent.len();
        w.until("a round arrives", |w| w.b.seen.len() == sent && w.a.writing == 0);
        w.b.post_many(2);
    }
    w.check_complete();
    assert!(!w.a.link.wants_write());
}

/// The largest slab that the wire format allows, several times, back to back.
pub fn big_slabs_arrive_whole<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, MAX_SLAB, 4);
    let pages = ((MAX_SLAB - HEADER_LEN - 2 * RECORD_LEN - 64) / PAGE_SIZE) as u64;
    w.b.post_many(3);
    for _ in 0..3 {
        w.a.write(pages).expect("an empty queue");
    }
    w.a.send().expect("an empty queue");
    w.until("big slabs arrive", |w| w.b.seen.len() == 4 && w.a.writing == 0);
    w.check_complete();
}

/// Two streams that meet do not disturb each other, and a full one does not block the other.
pub fn both_directions_at_once<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, 64 * PAGE_SIZE, 4);
    for _ in 0..30 {
        for station in [&mut w.a, &mut w.b] {
            while station.posted < 4 && station.post().is_ok() {}
            station.write(60).expect("the queue is empty");
            station.write(3).expect("the queue is empty");
            station.send().expect("the queue is empty");
        }
        let sent = w.a.sent.len();
        w.until("both rounds arrive", |w| {
            w.b.seen.len() == sent && w.a.seen.len() == sent && w.a.writing + w.b.writing == 0
        });
    }
    w.check_complete();
}

/// A slab waits for a posted one, and what was sent after it waits behind it.
pub fn without_a_posted_slab_nothing_overtakes_and_nothing_is_lost<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    for _ in 0..3 {
        w.a.write(3).expect("an empty queue");
        w.a.send().expect("an empty queue");
    }
    w.linger();
    assert!(w.b.seen.is_empty(), "a slab arrived that nothing was posted for, or a record overtook it");
    for posted in 1..=3 {
        w.b.post().expect("an empty queue");
        w.until("the next slab and its record arrive", |w| w.b.seen.len() == 2 * posted);
        w.linger();
        assert_eq!(w.b.seen.len(), 2 * posted, "more arrived than was posted for");
    }
    w.until("every slab comes back", |w| w.a.writing == 0);
    w.check_complete();
}

/// Control records need no posted slab.
pub fn records_before_a_slab_need_no_posted_slab<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 8);
    for _ in 0..5 {
        w.a.send().expect("an empty queue");
    }
    w.a.write(1).expect("an empty queue");
    w.until("the records arrive", |w| w.b.seen.len() == 5);
    w.linger();
    assert!(w.b.seen.iter().all(|i| matches!(i, Item::Control(_))));
}

/// The sender's queue is bounded, says so, and has room again later.
pub fn a_full_queue_gives_the_operation_back<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 4);
    let accepted = (0..16).take_while(|_| w.a.write(2).is_ok()).count();
    assert!((4..16).contains(&accepted), "a queue for 4 accepted {accepted} slabs");
    assert_eq!(w.a.write(1), Err(RejectReason::Full));
    assert_eq!(w.a.send(), Err(RejectReason::Full));
    w.until("the queue drains", |w| {
        while w.b.posted < 2 && w.b.post().is_ok() {}
        w.a.writing == 0 && w.b.seen.len() == accepted
    });
    w.a.send().expect("room again");
    w.until("the record arrives", |w| w.b.seen.len() == accepted + 1);
    w.check_complete();
}

/// So is the receiver's.
pub fn posting_too_many_gives_the_slab_back<F: Fabric>(fabric: &mut F) {
    let mut w = World::new(fabric, SLAB, 4);
    let accepted = (0..16).take_while(|_| w.b.post().is_ok()).count();
    assert!((4..16).contains(&accepted), "a queue for 4 accepted {accepted} posted slabs");
    assert_eq!(w.b.post(), Err(RejectReason::Full));
    w.a.write(1).expect("an empty queue");
    w.until("a slab arrives", |w| w.b.seen.len() == 1);
    w.b.post().expect("room again");
    w.check_complete();
}
