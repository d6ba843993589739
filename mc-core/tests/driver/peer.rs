//! What each driver makes of a peer that errs or lies.

use crate::{
    guest::{BLOCKS, Gate, Guest, Source},
    link::{Link, pair},
    rig::{ManualClock, SLAB, image, node},
};
use mc_core::{
    driver::{Attachment, Clock, PrimaryDriver, PrimaryErrand, StandbyDriver, StandbyErrand},
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE, Time},
    primary::{self, Primary},
    register::{Mode, Owner, Register},
    slab::{SealedSlab, SlabMeta, SlabPool},
    staging::Staging,
    standby::{self, Role, Standby},
    transport::{Completion, Op, Transport},
    wire::control::{Body, Control, NackReason},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const US: Incarnation = Incarnation(5);
const G: Generation = Generation(2);

/// A standby whose primary is the test.
struct Lone {
    driver: StandbyDriver<Link, ManualClock>,
    peer: Link,
    pool: SlabPool,
}

impl Lone {
    fn new() -> Self {
        Self::that(false)
    }

    fn that(rehearses: bool) -> Self {
        let owner = Owner { node: node("b"), instance: 1 };
        let config = standby::Config { owner, rehearse: rehearses };
        let pool = SlabPool::new(SLAB, 16 * SLAB);
        let mut driver = StandbyDriver::new(Standby::new(config), ManualClock::default());
        let (peer, link, _) = pair(None);
        let (incarnation, generation) = (US, G);
        driver.attach(Attachment { link, incarnation, generation, instance: 1, image: image(), pool, spill: None });
        Self { driver, peer, pool: SlabPool::new(SLAB, 16 * SLAB) }
    }

    fn slab(&mut self, incarnation: Incarnation, epoch: u64, block: u16, offset: u64) {
        let mut writer = self.pool.take().unwrap().writer();
        writer.page(BlockId(block), offset, &[7; PAGE_SIZE]).unwrap();
        let slab: SealedSlab = writer.seal(SlabMeta { incarnation, generation: G, epoch: Epoch(epoch), index: 0 });
        self.peer.submit(Op::Write(slab)).unwrap();
        self.driver.pump();
    }

    fn control(&mut self, incarnation: Incarnation, epoch: u64, body: Body) {
        let control = Control { incarnation, generation: G, epoch: Epoch(epoch), body };
        self.peer.submit(Op::Send(control)).unwrap();
        self.driver.pump();
    }

    fn commit(&mut self, epoch: u64, device_bytes: u64) {
        self.control(US, epoch, Body::Commit { slabs: 1, bytes: 0, device_bytes, held: true });
    }

    fn answers(&mut self) -> Vec<Body> {
        std::iter::from_fn(|| self.peer.poll())
            .filter_map(|c| if let Completion::Received(control) = c { Some(control.body) } else { None })
            .filter(|body| !matches!(body, Body::Words(_)))
            .collect()
    }

    fn errands(&mut self) -> Vec<StandbyErrand> {
        std::iter::from_fn(|| self.driver.errand()).collect()
    }
}

#[test]
fn a_slab_outside_the_image_is_refused_and_nothing_of_it_is_written() {
    let size = (BLOCKS[1] * PAGE_SIZE) as u64;
    for (block, offset) in [(2, 0), (1, size), (1, u64::MAX - 4095), (u16::MAX, 0)] {
        let mut lone = Lone::new();
        lone.slab(US, 1, block, offset);
        assert_eq!(lone.answers(), [Body::Nack(NackReason::Malformed)], "block {block} at {offset:#x}");
        lone.commit(1, 0);
        assert_eq!(lone.answers(), [Body::Nack(NackReason::OutOfOrder)], "and its epoch is not complete");
        let image = lone.driver.image().unwrap();
        assert!((0..2).all(|b| image.block(BlockId(b)).iter().all(|byte| *byte == 0)));
    }
}

#[test]
fn what_was_acked_beside_a_rehearsal_is_in_the_image_when_a_later_one_is_asked_for() {
    let mut lone = Lone::that(true);
    lone.slab(US, 1, 0, 0);
    lone.commit(1, 0);
    lone.driver.rehearsed(Ok(()));
    lone.control(US, 2, Body::Rehearse);
    for (epoch, block) in [(2, 0), (3, 1)] {
        lone.slab(US, epoch, block, 0);
        lone.commit(epoch, 0);
    }
    let has = |lone: &Lone| lone.driver.image().unwrap().block(BlockId(1))[..PAGE_SIZE] == [7; PAGE_SIZE];
    assert_eq!((lone.driver.machine().committed().1, has(&lone)), (Epoch(3), false), "it stands still, at epoch 2");
    let epoch = Epoch(4);
    lone.driver.event(standby::Event::RehearsalAsked { generation: G, epoch });
    assert!(has(&lone));
}

/// It panics when it is told to.
#[derive(Clone, Default)]
struct Trap(Arc<AtomicBool>);

impl Clock for Trap {
    fn now(&self) -> Time {
        assert!(!self.0.load(Ordering::Relaxed), "on purpose");
        Time(0)
    }
}

#[test]
fn after_a_panic_nobody_knows_of_which_epoch_the_image_is() {
    let owner = Owner { node: node("b"), instance: 1 };
    let machine = Standby::new(standby::Config { owner, rehearse: false });
    let trap = Trap::default();
    let mut driver = StandbyDriver::<Link, _>::new(machine, trap.clone());
    driver.pump();
    assert!(driver.is_whole());
    trap.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| driver.pump())).is_err());
    assert!(!driver.is_whole());
}

#[test]
fn a_slab_of_another_session_is_refused() {
    let mut lone = Lone::new();
    lone.slab(Incarnation(6), 1, 0, 0);
    assert_eq!(lone.answers(), [Body::Nack(NackReason::Malformed)]);
    assert_eq!(lone.driver.image().unwrap().block(BlockId(0))[0], 0);
}

#[test]
fn a_commit_that_promises_other_device_state_is_refused() {
    let mut lone = Lone::new();
    lone.slab(US, 1, 0, 0);
    lone.commit(1, 8);
    assert_eq!(lone.answers(), [Body::Nack(NackReason::OutOfOrder)]);
    assert_eq!(lone.driver.machine().committed().1, Epoch(0));
}

#[test]
fn an_epoch_is_acked_with_the_slabs_that_are_free() {
    let mut lone = Lone::new();
    lone.slab(US, 1, 0, 0);
    lone.commit(1, 0);
    assert_eq!(lone.answers(), [Body::Ack { free_slabs: 12 }], "sixteen, less four posted");
    assert_eq!(lone.driver.image().unwrap().block(BlockId(0))[..PAGE_SIZE], [7; PAGE_SIZE]);
}

#[test]
fn a_record_of_another_session_or_role_breaks_the_link_and_leads_to_the_arbiter() {
    let ack = Body::Ack { free_slabs: 1 };
    for (incarnation, body) in [(Incarnation(6), Body::Rehearse), (US, ack), (US, Body::Nack(NackReason::Storage))] {
        let mut lone = Lone::new();
        lone.slab(US, 1, 0, 0);
        lone.commit(1, 0);
        lone.control(incarnation, 1, body);
        assert_eq!(lone.driver.machine().role(), Role::Claiming, "{body:?}");
        assert!(matches!(&lone.errands()[..], [StandbyErrand::LinkLost(_), .., StandbyErrand::ReadRegister]));
        assert_eq!(lone.driver.pool_stats().unwrap_or_default().used_bytes, 0);
    }
}

#[test]
fn a_record_of_another_session_during_the_full_synchronisation_ends_the_session() {
    let mut lone = Lone::new();
    lone.control(Incarnation(6), 1, Body::Rehearse);
    assert_eq!(lone.driver.machine().role(), Role::Idle);
    assert!(lone.errands().contains(&StandbyErrand::Discard));
    assert!(lone.driver.image().is_none());
    assert_eq!(lone.driver.pool_stats().unwrap_or_default().used_bytes, 0);
}

/// A primary whose standby is the test, with epoch 1 on its way.
fn lone_primary() -> (PrimaryDriver<Source, Gate, ManualClock>, Link) {
    let owner = Owner { node: node("a"), instance: 1 };
    let register = Register { generation: Generation(1), owner, mode: Mode::Solo };
    let guest = Guest::new(1, 3);
    let config = primary::Config { epoch: Duration::ZERO, window: 2, commit_deadline: Duration::from_secs(60) };
    let staging = Staging::new(SlabPool::new(SLAB, 64 * SLAB));
    let gate = Gate::new(guest.clone());
    let mut driver = PrimaryDriver::new(Primary::new(config, register), staging, gate, ManualClock::default());
    let (link, mut peer, _) = pair(None);
    let mut pool = SlabPool::new(SLAB, 64 * SLAB);
    std::iter::from_fn(|| pool.take()).for_each(|slab| peer.submit(Op::Post(slab)).unwrap());
    driver.attach(link, US, Source::new(guest), Owner { node: node("b"), instance: 1 });
    for _ in 0..40 {
        driver.pump();
        while peer.poll().is_some() {}
    }
    assert_eq!(driver.machine().epochs(), (Epoch(1), Epoch(0)));
    while driver.errand().is_some() {}
    (driver, peer)
}

#[test]
fn a_primary_believes_no_ack_of_an_epoch_it_did_not_capture() {
    let (mut driver, mut peer) = lone_primary();
    for (generation, epoch) in [(G, 2), (G, u64::MAX), (Generation(1), 1), (Generation(3), 1), (G, 0)] {
        let body = Body::Ack { free_slabs: 1 };
        peer.submit(Op::Send(Control { incarnation: US, generation, epoch: Epoch(epoch), body })).unwrap();
        driver.pump();
        assert_eq!(driver.machine().epochs().1, Epoch(0), "{generation} {epoch}");
        assert_eq!(driver.errand(), None);
    }
}

#[test]
fn a_primary_leaves_a_peer_that_speaks_out_of_turn() {
    let commit = Body::Commit { slabs: 1, bytes: 1, device_bytes: 0, held: true };
    for (incarnation, body) in [(US, Body::Rehearse), (US, commit), (Incarnation(6), Body::Ack { free_slabs: 1 })] {
        let (mut driver, mut peer) = lone_primary();
        peer.submit(Op::Send(Control { incarnation, generation: G, epoch: Epoch(1), body })).unwrap();
        driver.pump();
        let errands: Vec<_> = std::iter::from_fn(|| driver.errand()).collect();
        assert!(matches!(errands[..], [PrimaryErrand::LinkLost(_), PrimaryErrand::LeaveSource]), "{errands:?}");
        assert_eq!(driver.machine().role(), primary::Role::Solo);
        assert_eq!(driver.pool_stats().used_bytes, 0);
    }
}
