//! Sources, gates and spill files that fail, and protection that ends on purpose.

use crate::rig::{Plan, Rig};
use mc_core::{
    driver::SpillFile,
    id::{Epoch, Time},
    primary, standby,
    wire::control::GoodbyeReason,
};
use std::{
    fs::{File, OpenOptions},
    sync::atomic::Ordering,
};

fn committed(rig: &Rig) -> Epoch {
    rig.standby.machine().committed().1
}

#[test]
fn protection_ends_on_request_at_any_moment_without_a_takeover() {
    for steps in 0..40 {
        let mut rig = Rig::new(&Plan::default());
        (0..steps).for_each(|_| rig.step());
        rig.primary.event(primary::Event::Unprotect(GoodbyeReason::Unprotected));
        rig.until("both are apart", |r| r.solo && r.standby.machine().role() == standby::Role::Idle);
        rig.step();
        assert_eq!(rig.taken_over, None, "after {steps} steps");
        assert_eq!(rig.primary.gate.out, rig.guest.borrow().state.sent, "all output flows");
        assert_eq!(rig.slabs_away(), (0, 0), "after {steps} steps");
    }
}

#[test]
fn protection_begins_again_in_a_new_generation() {
    let mut rig = Rig::new(&Plan::default());
    rig.until("epoch 5", |r| committed(r) >= Epoch(5));
    rig.primary.event(primary::Event::Unprotect(GoodbyeReason::Unprotected));
    rig.until("both are apart", |r| r.solo && r.standby.machine().role() == standby::Role::Idle);
    rig.solo = false;
    rig.attach(None);
    rig.until("epoch 5 again", |r| committed(r) >= Epoch(5));
    assert_eq!(rig.register.generation.0, 4);
    assert_eq!(rig.primary.machine().role(), primary::Role::Protected);
}

#[test]
fn a_vm_that_dies_goes_on_at_the_standby() {
    let mut rig = Rig::new(&Plan { source_fails: Some(5), ..Plan::default() });
    rig.until("the source fails", |r| r.log.iter().any(|l| l.contains("SourceFailed")));
    let out = rig.primary.gate.out;
    rig.primary.event(primary::Event::SourceLost);
    rig.until("takeover", |r| r.taken_over.is_some());
    assert!(rig.fenced && !rig.solo);
    assert_eq!(rig.primary.gate.out, out, "a fenced primary releases nothing");
    assert_eq!(rig.slabs_away(), (0, 0));
}

#[test]
fn i6_a_gate_that_fails_holds_output() {
    let mut rig = Rig::new(&Plan::default());
    rig.until("epoch 3", |r| committed(r) >= Epoch(3));
    rig.primary.gate.broken = true;
    (0..5).for_each(|_| rig.step());
    let out = rig.primary.gate.out;
    rig.until("epoch 20", |r| committed(r) >= Epoch(20));
    assert_eq!(rig.primary.gate.out, out, "what no barrier closed stays");
    assert!(rig.log.iter().all(|l| l.contains("GateFailed")), "{:?}", rig.log);
    rig.primary.gate.broken = false;
    let next = committed(&rig).0 + 3;
    rig.until("three more", |r| committed(r) >= Epoch(next));
    assert!(rig.primary.gate.out > out, "a later barrier covers it");
}

#[test]
fn i4_a_gate_that_does_not_open_is_tried_again_while_the_vm_runs_alone() {
    let mut rig = Rig::new(&Plan::default());
    rig.until("epoch 3", |r| committed(r) >= Epoch(3));
    rig.primary.gate.jams = 3;
    rig.primary.event(primary::Event::Unprotect(GoodbyeReason::Unprotected));
    rig.until("solo", |r| r.solo);
    assert!(rig.primary.is_mute());
    rig.until("an open gate", |r| !r.primary.is_mute());
    rig.step();
    assert_eq!(rig.primary.gate.out, rig.guest.borrow().state.sent, "all output flows");
    let told = rig.log.iter().filter(|l| l.contains("a gate that jams")).count();
    assert_eq!(told, 3, "{:?}", rig.log);
}

#[test]
fn a_spill_file_that_cannot_be_written_ends_protection() {
    let spill = SpillFile::new(File::open("/dev/null").unwrap());
    let mut rig = Rig::with_spill(&Plan { appetite: 20, standby_slabs: 6, ..Plan::default() }, Some(spill));
    rig.until("solo", |r| r.solo && r.standby.machine().role() == standby::Role::Idle);
    assert!(rig.log.iter().any(|l| l.contains("Storage") && l.contains("spill file")), "{:?}", rig.log);
    assert_eq!(rig.slabs_away(), (0, 0));
}

/// It was ACKed, so that its output may be out; nobody else has it, so that nobody must run what is left.
#[test]
fn an_image_that_is_lost_after_the_ack_is_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spill");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let damage = file.try_clone().unwrap();
    let plan = Plan { appetite: 20, standby_slabs: 6, ..Plan::default() };
    let mut rig = Rig::with_spill(&plan, Some(SpillFile::new(file)));
    rig.until("something is spilled", |r| r.standby.figures().spilled_slabs > 0);
    let fatal = |r: &Rig| r.log.iter().any(|l| l.contains("Fatal"));
    while !fatal(&rig) {
        damage.set_len(0).unwrap();
        rig.step();
    }
    assert!(rig.standby.image().is_none());
    assert!(rig.log.iter().any(|l| l.contains("was ACKed and cannot be applied")), "{:?}", rig.log);
    rig.standby.event(standby::Event::Suspect);
    (0..20).for_each(|_| rig.pump_standby());
    assert_eq!(rig.taken_over, None);
    assert_eq!(rig.register.generation.0, 2, "and the primary keeps the VM");
}

#[test]
fn epochs_are_as_long_as_they_are_set_to_be() {
    let mut rig = Rig::new(&Plan::default());
    rig.until("epoch 3", |r| committed(r) >= Epoch(3));
    rig.primary.set_epoch(std::time::Duration::from_millis(10));
    rig.until("epoch 4", |r| committed(r) >= Epoch(4)); // its deadline was set before
    let (start, first) = (rig.clock.0.load(Ordering::Relaxed), committed(&rig).0);
    rig.until("ten more", |r| committed(r) >= Epoch(first + 10));
    let passed = rig.clock.0.load(Ordering::Relaxed) - start;
    assert!((90_000_000..=120_000_000).contains(&passed), "{passed} ns for ten epochs");
    assert!(rig.primary.deadline().is_some_and(|at| at > Time(0)));
}
