//! One end against a peer that the test plays.

use mc_core::{
    failover::Failover,
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SealedSlab, SlabMeta, SlabPool},
    testing::{
        memory::{self, LinkFaults, MemoryTransport},
        paths::SESSION,
    },
    transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Resumable, Transport},
    wire::control::{Body, Control},
};
use std::os::fd::BorrowedFd;

const SLAB: usize = 4 * PAGE_SIZE;

/// The end under test, and both paths' other ends.
struct World {
    link: Failover<MemoryTransport, MemoryTransport>,
    first: MemoryTransport,
    second: MemoryTransport,
    faults: LinkFaults,
    pool: SlabPool,
}

fn world() -> World {
    let ((a, first), (b, second)) = (memory::pair(SLAB, 8), memory::pair(SLAB, 8));
    let faults = a.faults();
    let pool = SlabPool::new(SLAB, 16 * SLAB);
    World { link: Failover::new(a, b, None, SESSION, 8), first, second, faults, pool }
}

fn control(incarnation: Incarnation, body: Body) -> Op {
    Op::Send(Control { incarnation, generation: Generation(1), epoch: Epoch(1), body })
}

fn rerouted(received: u64) -> Op {
    control(SESSION, Body::Rerouted { received })
}

impl World {
    fn slab(&mut self) -> SealedSlab {
        let mut writer = self.pool.take().unwrap().writer();
        writer.page(BlockId(0), 0, &[7; PAGE_SIZE]).unwrap();
        let (incarnation, generation) = (SESSION, Generation(1));
        writer.seal(SlabMeta { incarnation, generation, epoch: Epoch(1), index: 0 })
    }

    /// The peer says this by the second path.
    fn says(&mut self, op: Op) {
        self.second.submit(op).unwrap();
        self.second.poll();
    }

    /// Everything up to Down; all slabs come home.
    fn until_down(&mut self) -> String {
        for _ in 0..100 {
            match self.link.poll() {
                Some(Completion::Written(slab) | Completion::Arrived(slab)) => self.pool.put(slab.recycle()),
                Some(Completion::Returned(slab)) => self.pool.put(slab),
                Some(Completion::Down(why)) => {
                    assert_eq!(self.pool.in_use(), 0, "slabs that did not come back");
                    assert!(self.link.poll().is_none());
                    assert_eq!(self.link.submit(rerouted(0)).unwrap_err().why, RejectReason::Down);
                    return why.to_string();
                }
                Some(Completion::Received(_)) | None => {}
            }
            drop(self.first.poll());
            drop(self.second.poll());
        }
        panic!("the link does not end");
    }
}

#[track_caller]
fn ends_with(mut world: World, words: &str) {
    let why = world.until_down();
    assert!(why.contains(words), "{why:?} does not say {words:?}");
}

#[test]
fn a_peer_that_received_more_than_was_sent_is_refused() {
    let mut w = world();
    let slab = w.slab();
    w.link.submit(Op::Write(slab)).unwrap();
    w.says(rerouted(2));
    ends_with(w, "more than was sent");
}

#[test]
fn a_peer_that_takes_back_what_had_arrived_is_refused() {
    let mut w = world();
    w.link.submit(control(SESSION, Body::Rehearse)).unwrap();
    assert!(w.link.poll().is_none());
    assert!(matches!(w.first.poll(), Some(Completion::Received(_))));
    w.says(rerouted(0));
    ends_with(w, "less than had arrived");
}

#[test]
fn a_peer_that_reroutes_twice_is_refused() {
    let mut w = world();
    let slab = w.pool.take().unwrap();
    w.link.submit(Op::Post(slab)).unwrap();
    w.says(rerouted(0));
    w.says(rerouted(0));
    ends_with(w, "twice");
}

#[test]
fn nothing_may_come_before_the_count() {
    let mut w = world();
    w.says(control(SESSION, Body::Rehearse));
    ends_with(w, "something else came before it");
    let mut w = world();
    w.faults.fail([true, true], 1);
    assert!(w.link.poll().is_none());
    w.says(control(SESSION, Body::Rehearse));
    ends_with(w, "something else came before it");
}

#[test]
fn a_slab_before_the_count_is_refused() {
    let mut w = world();
    let (free, slab) = (w.pool.take().unwrap(), w.slab());
    w.link.submit(Op::Post(free)).unwrap();
    w.faults.fail([true, true], 1);
    assert!(w.link.poll().is_none());
    let bytes = slab.as_bytes().len();
    w.second.submit(Op::Write(slab)).unwrap();
    let Some(Completion::Written(slab)) = w.second.poll() else { panic!("{bytes} bytes are not under way") };
    w.pool.put(slab.recycle());
    ends_with(w, "a slab came before it");
}

#[test]
fn a_count_of_another_session_is_refused() {
    let mut w = world();
    w.says(control(Incarnation(78), Body::Rerouted { received: 0 }));
    ends_with(w, "another session");
}

#[test]
fn a_second_path_that_is_lost_while_idle_ends_nothing() {
    let mut w = world();
    w.second.faults().cut();
    assert!(w.link.poll().is_none() && w.link.second().is_none());
    let slab = w.slab();
    w.link.submit(Op::Write(slab)).unwrap();
    let written = std::iter::from_fn(|| w.link.poll()).next();
    let Some(Completion::Written(slab)) = written else { panic!("{written:?}") };
    w.pool.put(slab.recycle());
    w.faults.fail([true, true], 1);
    ends_with(w, "nothing left to fall back to");
}

#[test]
fn both_reasons_are_told_when_the_second_ends_after_the_first() {
    let mut w = world();
    w.faults.fail([true, true], 1);
    assert!(w.link.poll().is_none());
    w.says(rerouted(0));
    assert!(w.link.poll().is_none());
    assert!(w.link.fell_back().is_some_and(|why| why.contains("closed")));
    w.second.faults().cut();
    ends_with(w, "it had taken over from a path that failed");
}

/// The peer was told of two paths, but ours to the first does not come about.
#[test]
fn a_first_path_that_never_worked_is_left_at_once() {
    let ((_unused, b), (c, d)) = (memory::pair(SLAB, 8), memory::pair(SLAB, 8));
    let why = LinkError::Closed { peer: "nobody".into() };
    let mut a: Failover<MemoryTransport, _> = Failover::without_first(why, c, SESSION, 8);
    let mut b = Failover::new(b, d, None, SESSION, 8);
    a.submit(control(SESSION, Body::Rehearse)).unwrap();
    let mut has_spoken = false;
    let (mut got_a, mut got_b) = (0, 0);
    for _ in 0..20 {
        got_a += usize::from(matches!(a.poll(), Some(Completion::Received(_))));
        got_b += usize::from(matches!(b.poll(), Some(Completion::Received(_))));
        if b.fell_back().is_some() && !std::mem::replace(&mut has_spoken, true) {
            b.submit(control(SESSION, Body::Rehearse)).unwrap();
        }
    }
    assert_eq!((got_a, got_b), (1, 1));
    assert!(b.fell_back().is_some_and(|why| why.contains("reports that its end")));
}

/// A first path whose hardware does not confirm that the peer is fenced.
#[derive(Debug)]
struct Unfenced(MemoryTransport);

impl Transport for Unfenced {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        self.0.submit(op)
    }

    fn poll(&mut self) -> Option<Completion> {
        match self.0.poll() {
            Some(Completion::Down(_)) => Some(Completion::Down(not_fenced().into())),
            other => other,
        }
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

impl Resumable for Unfenced {
    fn delivered(&self) -> u64 {
        self.0.delivered()
    }

    fn received(&self) -> u64 {
        self.0.received()
    }

    fn has_failed(&self) -> bool {
        self.0.has_failed()
    }
}

fn not_fenced() -> NotFenced {
    NotFenced { peer: "it".into(), why: "the device says no".into() }
}

#[test]
fn a_first_path_that_cannot_be_fenced_takes_everything_down() {
    for revoked_here in [true, false] {
        let ((a, _b), (c, mut d)) = (memory::pair(SLAB, 8), memory::pair(SLAB, 8));
        let mut link = Failover::new(Unfenced(a), c, None, SESSION, 8);
        if revoked_here {
            assert!(link.revoke().is_err());
            continue;
        }
        d.submit(rerouted(0)).unwrap();
        d.poll();
        let down = std::iter::from_fn(|| link.poll()).last();
        assert!(matches!(down, Some(Completion::Down(LinkError::NotFenced(_)))), "{down:?}");
        assert!(link.fell_back().is_none());
    }
}
