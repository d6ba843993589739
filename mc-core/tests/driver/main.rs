//! Both drivers end to end, over a link in memory: see `rig.rs`.

mod cap;
mod guest;
mod link;
mod peer;
mod rig;
mod trouble;
mod unfenced;

use link::Cut;
use mc_core::{driver::Clock, id::Epoch, primary, standby};
use rig::{Plan, Rig};
use std::sync::atomic::Ordering;

fn committed(rig: &Rig) -> Epoch {
    rig.standby.machine().committed().1
}

#[test]
fn every_committed_epoch_is_the_guest_as_it_was_and_covers_all_output() {
    for (seed, window) in [(1, 1), (2, 2), (3, 8)] {
        let mut rig = Rig::new(&Plan { seed, window, ..Plan::default() });
        rig.until("epoch 50", |r| committed(r) >= Epoch(50));
        assert!(rig.primary.gate.out > 0, "output flows");
        assert_eq!(rig.log, Vec::<String>::new());
    }
}

#[test]
fn a_checkpoint_larger_than_staging_is_sent_while_the_vm_is_held() {
    let mut rig = Rig::new(&Plan { appetite: 20, primary_slabs: 4, ..Plan::default() });
    rig.until("epoch 10", |r| committed(r) >= Epoch(10));
    assert!(rig.primary.figures().streamed_while_held > 0);
    assert!(rig.primary.pool_stats().cap_hits > 0);
    assert_eq!(rig.log, Vec::<String>::new());
}

#[test]
fn an_epoch_larger_than_the_standbys_staging_is_spilled() {
    for slabs in 2..24 {
        let mut rig = Rig::new(&Plan { appetite: 20, standby_slabs: slabs, spill: true, ..Plan::default() });
        rig.until("epoch 10", |r| committed(r) >= Epoch(10));
        assert_eq!(rig.log, Vec::<String>::new(), "{slabs} slabs");
        assert!(slabs > 16 || rig.standby.figures().spilled_slabs > 0, "{slabs} slabs");
    }
}

/// A caller that sleeps until the driver's deadline: nothing else says that this source has a checkpoint to offer.
#[test]
fn a_source_without_a_descriptor_is_polled_when_it_says() {
    let mut rig = Rig::new(&Plan::default());
    for _ in 0..1_000 {
        rig.guest.borrow_mut().run();
        rig.pump_standby();
        let now = rig.clock.now();
        if rig.probe.waits() || rig.primary.deadline().is_some_and(|at| at <= now) {
            rig.pump_primary();
        }
        rig.check();
        rig.clock.0.fetch_add(1_000_000, Ordering::Relaxed);
    }
    assert!(committed(&rig) > Epoch(20), "{:?}", committed(&rig));
}

#[test]
fn an_epoch_too_large_for_the_standby_ends_protection_through_the_arbiter() {
    let mut rig = Rig::new(&Plan { appetite: 20, standby_slabs: 8, ..Plan::default() });
    rig.until("solo", |r| r.solo);
    assert!(rig.log.iter().any(|l| l.contains("TooLarge")), "{:?}", rig.log);
    assert_eq!(rig.register.generation.0, 3);
    rig.until("the standby lets go", |r| r.standby.machine().role() == standby::Role::Idle);
    assert_eq!(rig.primary.machine().role(), primary::Role::Solo);
    assert_eq!(rig.slabs_away(), (0, 0));
}

/// Messages that the first epochs take, with this plan.
fn messages(plan: &Plan) -> usize {
    let mut rig = Rig::new(plan);
    rig.until("epoch 5", |r| committed(r) >= Epoch(5));
    rig.probe.delivered()
}

#[test]
fn wherever_the_link_is_cut_a_dead_primarys_vm_goes_on_from_a_committed_epoch() {
    let mut takeovers = 0;
    for after in 0..messages(&Plan::default()) {
        for drain in [false, true] {
            let mut rig = Rig::new(&Plan { cut: Some(Cut { after, drain }), ..Plan::default() });
            while !rig.log.iter().any(|l| l.contains("LinkLost")) && rig.standby.link().is_some() {
                rig.step();
                rig.check();
            }
            // From here on the primary is dead: nobody pumps it.
            for _ in 0..10 {
                rig.pump_standby();
                rig.check();
            }
            takeovers += usize::from(rig.taken_over.is_some());
        }
    }
    assert!(takeovers > 0);
}

#[test]
fn wherever_the_link_is_cut_exactly_one_side_goes_on_and_every_slab_comes_back() {
    let plan = Plan { spill: true, standby_slabs: 6, appetite: 12, ..Plan::default() };
    let (mut taken, mut solo) = (0, 0);
    for after in 0..messages(&plan) {
        for (drain, standby_first) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut rig = Rig::new(&Plan { cut: Some(Cut { after, drain }), spill: true, ..Plan { ..copy(&plan) } });
            let settled = |r: &Rig| {
                let over = matches!(
                    r.standby.machine().role(),
                    standby::Role::Idle | standby::Role::Active | standby::Role::Lost
                );
                over && (r.solo || r.fenced)
            };
            for _ in 0..200 {
                if standby_first {
                    rig.pump_standby();
                    rig.check();
                }
                rig.step();
                rig.check();
            }
            assert!(settled(&rig), "cut after {after}: {:?} {:?}", rig.primary.machine(), rig.standby.machine());
            assert_ne!(rig.solo, rig.taken_over.is_some(), "cut after {after}: exactly one");
            assert_ne!(rig.solo, rig.fenced);
            assert_eq!(rig.slabs_away(), (0, 0), "cut after {after}");
            taken += usize::from(rig.taken_over.is_some());
            solo += usize::from(rig.solo);
        }
    }
    assert!(taken > 0 && solo > 0, "{taken} takeovers, {solo} solos");
}

fn copy(plan: &Plan) -> Plan {
    Plan { cut: None, ..*plan }
}

/// Two hundred worlds: any sizes, any schedule of the two sides, a cut anywhere.
#[test]
fn in_any_world_exactly_one_side_goes_on_and_every_slab_comes_back() {
    let (mut taken, mut solo) = (0, 0);
    for seed in 0..200_u64 {
        let mut dice = numbers(seed);
        let plan = Plan {
            seed,
            appetite: dice(24),
            window: 1 + dice(3) as u64,
            primary_slabs: 2 + dice(30),
            standby_slabs: 2 + dice(30),
            spill: dice(2) == 0,
            cut: Some(Cut { after: dice(300), drain: dice(2) == 0 }),
            source_fails: None,
        };
        let mut rig = Rig::new(&plan);
        for step in 0..1_000 {
            match dice(3) {
                _ if step > 600 => rig.step(),
                0 => rig.pump_primary(),
                1 => rig.pump_standby(),
                _ => rig.step(),
            }
            rig.check();
        }
        let roles = (rig.primary.machine().role(), rig.standby.machine().role());
        assert_ne!(rig.solo, rig.taken_over.is_some(), "{plan:?}: {roles:?} {:?}", rig.log);
        assert_eq!(rig.slabs_away(), (0, 0), "{plan:?}: {roles:?}");
        taken += usize::from(rig.taken_over.is_some());
        solo += usize::from(rig.solo);
    }
    assert!(taken > 20 && solo > 20, "{taken} takeovers, {solo} solos");
}

/// Numbers below what is asked for, the same for each seed.
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    }
}
