//! A guest that dirties everything, all the time, against a cap that holds a part of it; and stalls, seen by the driver.

use crate::rig::{Plan, Rig, SLAB};
use mc_core::{
    id::Epoch,
    primary::{OnCap, Role},
    standby,
};
use std::{sync::atomic::Ordering, time::Duration};

/// More pages than the guest has, with every step.
const EVERYTHING: usize = 200;

fn committed(rig: &Rig) -> Epoch {
    rig.standby.machine().committed().1
}

/// Staging of 4 slabs, for a guest of 32 pages.
fn rig(on_cap: OnCap) -> Rig {
    let mut rig = Rig::new(&Plan { appetite: EVERYTHING, primary_slabs: 4, ..Plan::default() });
    rig.primary.set_cap(4 * SLAB, on_cap);
    rig
}

fn slabs(n: usize) -> u64 {
    (n * SLAB) as u64
}

#[test]
fn i7_throttle_holds_the_vm_and_never_exceeds_the_cap() {
    let mut rig = rig(OnCap::Throttle);
    rig.until("epoch 30", |r| committed(r) >= Epoch(30)); // `until` checks the pools after every step
    let stats = rig.primary.pool_stats();
    assert_eq!((stats.limit_bytes, stats.most_bytes), (slabs(4), slabs(4)));
    assert!(rig.primary.figures().streamed_while_held > 0 && stats.cap_hits > 0);
}

#[test]
fn i7_grow_goes_as_far_as_it_was_told_and_then_throttles() {
    let mut held = [0; 2];
    for (extra, held) in [6, 60].into_iter().zip(&mut held) {
        let mut rig = rig(OnCap::Grow { bytes: slabs(extra) });
        rig.until("epoch 30", |r| committed(r) >= Epoch(30));
        let stats = rig.primary.pool_stats();
        assert_eq!((stats.cap_bytes, stats.limit_bytes), (slabs(4), slabs(4 + extra)));
        assert!(stats.most_bytes > stats.cap_bytes && stats.most_bytes <= stats.limit_bytes, "{stats:?}");
        *held = rig.primary.figures().streamed_while_held;
    }
    assert!(held[0] > 0, "10 slabs do not hold 32 pages");
    assert_eq!(held[1], 0, "64 do: nobody was held");
}

#[test]
fn i7_unprotect_gives_protection_up_through_the_arbiter_rather_than_hold_the_vm() {
    let mut rig = rig(OnCap::Unprotect);
    rig.until("solo", |r| r.solo);
    assert!(rig.log.iter().any(|l| l.contains("GaveUp")), "{:?}", rig.log);
    assert_eq!(rig.register.generation.0, 3, "protected, then solo: two swaps");
    rig.until("the standby lets go", |r| r.standby.machine().role() == standby::Role::Idle);
    assert_eq!((rig.primary.machine().role(), rig.taken_over), (Role::Solo, None));
    let stats = rig.primary.pool_stats();
    assert!(stats.most_bytes <= stats.limit_bytes && stats.limit_bytes == slabs(4), "{stats:?}");
    assert_eq!(rig.slabs_away(), (0, 0));
}

#[test]
fn i7_a_cap_that_is_lowered_under_load_is_kept_as_slabs_come_back() {
    for steps in 0..40 {
        let mut rig = Rig::new(&Plan { appetite: EVERYTHING, primary_slabs: 64, ..Plan::default() });
        (0..steps).for_each(|_| rig.step());
        rig.primary.set_cap(3 * SLAB, OnCap::Throttle);
        let mut before = rig.primary.pool_stats().live_bytes;
        while before > slabs(3) {
            rig.step();
            let live = rig.primary.pool_stats().live_bytes;
            assert!(live <= before, "after {steps} steps: memory only falls");
            before = live;
        }
        let from = committed(&rig).0;
        for _ in 0..200 {
            rig.step();
            assert!(rig.primary.pool_stats().live_bytes <= slabs(3));
        }
        assert!(committed(&rig).0 > from, "and the pair goes on");
    }
}

/// It is work, not absence: what comes in meanwhile counts.
#[test]
fn captures_longer_than_the_stall_limit_are_no_stalls() {
    let mut rig = Rig::new(&Plan { appetite: EVERYTHING, ..Plan::default() });
    rig.guest.borrow_mut().clock = Some((rig.clock.clone(), Duration::from_millis(1)));
    rig.until("epoch 5", |r| committed(r) >= Epoch(5));
    let before = rig.primary.gate.out;
    for _ in 0..50 {
        rig.primary.notice_stall(Duration::from_millis(15));
        rig.step();
        rig.check();
    }
    assert_eq!(rig.primary.figures().stalls, 0);
    assert!(rig.primary.gate.out > before, "output flows");
    let pause = rig.primary.figures().pause.percentiles();
    assert!(pause.p50 > 20_000, "32 pages take about 32 ms: {pause:?}");
}

/// Frozen in the midst of a capture.
#[test]
fn a_freeze_during_a_capture_is_a_stall() {
    let mut rig = Rig::new(&Plan { appetite: EVERYTHING, ..Plan::default() });
    rig.until("epoch 5", |r| committed(r) >= Epoch(5));
    rig.guest.borrow_mut().clock = Some((rig.clock.clone(), Duration::from_millis(3)));
    for _ in 0..20 {
        rig.primary.notice_stall(Duration::from_millis(15));
        rig.step();
        rig.check();
    }
    assert!(rig.primary.figures().stalls > 0, "8 pages of 3 ms each between two looks");
}

#[test]
fn an_ack_that_lay_in_the_socket_through_a_stall_releases_nothing() {
    let mut rig = Rig::new(&Plan { window: 1, ..Plan::default() });
    rig.until("epoch 5", |r| committed(r) >= Epoch(5));
    // An epoch is out, and ACKed by the standby, and the primary has not read that.
    let limit = Duration::from_millis(15);
    loop {
        rig.guest.borrow_mut().run();
        rig.primary.notice_stall(limit);
        rig.pump_primary();
        let (captured, acked) = rig.primary.machine().epochs();
        if captured > acked {
            break;
        }
        rig.pump_standby();
        rig.clock.0.fetch_add(1_000_000, Ordering::Relaxed);
    }
    rig.pump_standby();
    rig.pump_standby();
    let before = rig.primary.gate.out;
    rig.clock.0.fetch_add(16_000_000, Ordering::Relaxed);
    rig.primary.notice_stall(limit);
    rig.pump_primary();
    assert_eq!(rig.primary.gate.out, before, "the ACK is older than the stall");
    for _ in 0..10 {
        rig.primary.notice_stall(limit);
        rig.step();
    }
    assert!(rig.primary.gate.out > before, "a fresh one lets it go");
}
