//! A fabric of [`Failover`] links: the first path in memory and failing on demand, the second whatever is under test.

use super::{
    Rng,
    conformance::Fabric,
    memory::{self, LinkFaults, MemoryTransport},
};
use crate::{
    failover::Failover,
    id::Incarnation,
    transport::{Completion, NotFenced, Op, Rejected, Transport},
};
use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// When the first path fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// Only with everything else.
    Never,
    /// Before the pair is handed out: all traffic takes the second.
    AtOnce,
    /// After a random number of calls, seen by one end or by both, with a random part of what was under way lost. Cases that
    /// leave one end alone while the other waits for it cannot be run over this.
    Somewhere,
}

/// Makes pairs with two paths.
#[derive(Debug)]
pub struct TwoPaths<F> {
    second: F,
    fails: Fails,
    rng: Rng,
    faults: Option<LinkFaults>,
}

impl<F: Fabric> TwoPaths<F> {
    /// Over `second`, by `seed`.
    pub fn new(second: F, fails: Fails, seed: u64) -> Self {
        Self { second, fails, rng: Rng::new(seed), faults: None }
    }

    fn someone_notices(&mut self) -> [bool; 2] {
        [[true, false], [false, true], [true, true]][usize::try_from(self.rng.below(3)).unwrap_or(0)]
    }
}

/// A call counter that makes the first path fail.
#[derive(Debug)]
struct Strike {
    calls_left: AtomicU64,
    faults: LinkFaults,
    noticed: [bool; 2],
    seed: u64,
}

impl Strike {
    fn call(&self) {
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.faults.fail(self.noticed, self.seed);
        }
    }
}

/// One end of a pair.
#[derive(Debug)]
pub struct Struck<T> {
    /// The link under test.
    pub link: Failover<MemoryTransport, T>,
    strike: Arc<Strike>,
}

/// Of every session in these tests.
pub const SESSION: Incarnation = Incarnation(77);

impl<F: Fabric> Fabric for TwoPaths<F> {
    type T = Struck<F::T>;

    fn pair(&mut self, slab_size: usize, queue: usize) -> (Self::T, Self::T) {
        let (a, b) = memory::lagging_pair(slab_size, queue, self.rng.next_u64());
        let (c, d) = self.second.pair(slab_size, queue);
        let calls_left = match self.fails {
            Fails::Never => u64::MAX,
            Fails::AtOnce => 0,
            Fails::Somewhere => self.rng.below(300),
        };
        let faults = a.faults();
        self.faults = Some(faults.clone());
        let (noticed, seed) = (self.someone_notices(), self.rng.next_u64());
        let strike = Arc::new(Strike { calls_left: AtomicU64::new(calls_left), faults, noticed, seed });
        let end = |first, second| Struck {
            link: Failover::new(first, second, None, SESSION, queue),
            strike: Arc::clone(&strike),
        };
        let (mut a, mut b) = (end(a, c), end(b, d));
        while self.fails == Fails::AtOnce && (a.fell_back().is_none() || b.fell_back().is_none()) {
            assert!(a.poll().is_none() && b.poll().is_none(), "nothing was sent");
            self.second.idle();
        }
        (a, b)
    }

    fn cut(&mut self) {
        if let Some(faults) = &self.faults {
            faults.cut();
        }
        self.second.cut();
    }

    fn settled(&mut self, first: &Self::T, bytes: usize) -> bool {
        let second = first.link.second().filter(|_| first.fell_back().is_some());
        second.is_none_or(|second| self.second.settled(second, bytes))
    }

    fn idle(&mut self) {
        self.second.idle();
    }
}

impl<T: Transport> Transport for Struck<T> {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        self.strike.call();
        self.link.submit(op)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.strike.call();
        self.link.poll()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.wait_fd()
    }

    fn wants_read(&self) -> bool {
        self.link.wants_read()
    }

    fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        self.link.revoke()
    }

    fn peer(&self) -> String {
        self.link.peer()
    }

    fn fell_back(&self) -> Option<&str> {
        self.link.fell_back()
    }
}
