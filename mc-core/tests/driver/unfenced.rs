//! I3 when the network does not confirm it: a standby whose primary may still write to its memory is of no use, and says so
//! instead of asking anybody for anything.

use crate::{
    link::{Link, pair},
    rig::{ManualClock, SLAB, image, node},
};
use mc_core::{
    driver::{Attachment, StandbyDriver, StandbyErrand},
    id::{Epoch, Generation, Incarnation},
    register::Owner,
    slab::SlabPool,
    standby::{self, Standby},
    transport::{Completion, NotFenced, Op, Rejected, Transport},
    wire::control::{Body, Control},
};
use std::os::fd::BorrowedFd;

/// A link that cannot fence.
#[derive(Debug)]
struct Unfenced(Link);

fn not_fenced() -> NotFenced {
    NotFenced { peer: "a".into(), why: "the device says no".into() }
}

impl Transport for Unfenced {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        self.0.submit(op)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.0.poll().map(|c| if let Completion::Down(_) = c { Completion::Down(not_fenced().into()) } else { c })
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        self.0.revoke()?;
        Err(not_fenced())
    }

    fn peer(&self) -> String {
        self.0.peer()
    }
}

/// A standby that the register names.
fn standby() -> (StandbyDriver<Unfenced, ManualClock>, Link) {
    let owner = Owner { node: node("b"), instance: 1 };
    let config = standby::Config { owner, rehearse: false };
    let pool = SlabPool::new(SLAB, 16 * SLAB);
    let mut driver = StandbyDriver::new(Standby::new(config), ManualClock::default());
    let (incarnation, generation) = (Incarnation(5), Generation(2));
    let (mut peer, link, _) = pair(None);
    let link = Unfenced(link);
    driver.attach(Attachment { link, incarnation, generation, instance: 1, image: image(), pool, spill: None });
    let body = Body::Commit { slabs: 0, bytes: 0, device_bytes: 0, held: true };
    peer.submit(Op::Send(Control { incarnation, generation, epoch: Epoch(1), body })).unwrap();
    driver.pump();
    assert!(driver.machine().is_entitled());
    (driver, peer)
}

#[track_caller]
fn is_fatal(driver: &mut StandbyDriver<Unfenced, ManualClock>) {
    driver.pump();
    let first = driver.errand();
    assert!(matches!(&first, Some(StandbyErrand::Fatal(why)) if why.contains("the device says no")), "{first:?}");
    // Also for a caller that goes on: it asks for nothing, and hands over nothing to run.
    for _ in 0..3 {
        driver.event(standby::Event::Suspect);
        driver.pump();
    }
    while let Some(errand) = driver.errand() {
        assert!(matches!(errand, StandbyErrand::Fatal(_) | StandbyErrand::LinkLost(_)), "{errand:?}");
    }
    assert!(driver.image().is_none());
}

#[test]
fn i3_a_revocation_that_fails_ends_the_standby() {
    let (mut driver, _peer) = standby();
    driver.event(standby::Event::Suspect);
    is_fatal(&mut driver);
}

#[test]
fn i3_a_link_that_goes_down_unfenced_ends_the_standby() {
    let (mut driver, peer) = standby();
    drop(peer);
    is_fatal(&mut driver);
}
