//! A link of two paths whose first is RDMA: broken at any moment, at one end, it loses nothing. (Not the cases that end the
//! link: an end that was broken and then revoked cannot say goodbye by RDMA, and an idle queue pair does not notice. Beats do.)

mod common;

use mc_core::{
    failover::Failover,
    id::Incarnation,
    testing::{
        Rng,
        conformance::{Fabric, flow},
        memory::{self, LinkFaults, MemoryTransport},
    },
    transport::{Completion, NotFenced, Op, Rejected, Transport},
};
use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::sleep,
    time::Duration,
};
use transport_rdma::{Breaker, Place, Prepared, RcOptions, RdmaLink};

/// RDMA with memory to fall back to; one end's queue pairs fail after a random number of calls.
struct Breaking {
    places: (Place, Place),
    rng: Rng,
    sessions: u64,
    breakers: Vec<Breaker>,
    second: Option<LinkFaults>,
    fallbacks: Arc<AtomicU64>,
}

#[derive(Debug)]
struct End {
    link: Failover<RdmaLink, MemoryTransport>,
    calls_left: Arc<AtomicU64>,
    breaker: Breaker,
    fallbacks: Arc<AtomicU64>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.fallbacks.fetch_add(u64::from(self.link.fell_back().is_some()), Ordering::Relaxed);
    }
}

impl End {
    fn call(&self) {
        if self.calls_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.breaker.break_link();
        }
    }
}

impl Fabric for Breaking {
    type T = End;

    fn pair(&mut self, slab_size: usize, queue: usize) -> (End, End) {
        self.sessions += 1;
        let session = Incarnation(self.sessions);
        let options = RcOptions { queue, farewell: Duration::from_millis(500), ..RcOptions::default() };
        let prepare = |place| Prepared::new(place, session, &options).unwrap();
        let (a, b) = (prepare(&self.places.0), prepare(&self.places.1));
        let (to_a, to_b) = (a.endpoint(), b.endpoint());
        let mut b = b.connect(&to_a, "a", false).unwrap();
        let mut a = a.connect(&to_b, "b", true).unwrap();
        while !b.is_open() {
            assert!(a.poll().is_none() && b.poll().is_none());
        }
        let (c, d) = memory::pair(slab_size, queue);
        (self.breakers, self.second) = (vec![a.breaker(), b.breaker()], Some(c.faults()));
        let calls_left = Arc::new(AtomicU64::new(self.rng.below(60)));
        let end = |link: RdmaLink, second| {
            let (breaker, calls_left) = (link.breaker(), Arc::clone(&calls_left));
            End {
                link: Failover::new(link, second, None, session, queue),
                calls_left,
                breaker,
                fallbacks: Arc::clone(&self.fallbacks),
            }
        };
        (end(a, c), end(b, d))
    }

    fn cut(&mut self) {
        self.breakers.iter().for_each(Breaker::break_link);
        if let Some(second) = &self.second {
            second.cut();
        }
    }

    fn idle(&mut self) {
        sleep(Duration::from_micros(50));
    }
}

impl Transport for End {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        self.call();
        self.link.submit(op)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.call();
        self.link.poll()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
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
}

#[test]
fn rdma_that_breaks_in_mid_stream_loses_nothing() {
    let Some(places) = common::places() else { return };
    let fallbacks = Arc::new(AtomicU64::new(0));
    for seed in 0..10 {
        eprintln!("seed {seed}");
        let rng = Rng::new(seed);
        let mut fabric = Breaking {
            places: places.clone(),
            rng,
            sessions: 0,
            breakers: Vec::new(),
            second: None,
            fallbacks: Arc::clone(&fallbacks),
        };
        flow::records_and_slabs_arrive_in_order(&mut fabric);
        flow::both_directions_at_once(&mut fabric);
        flow::without_a_posted_slab_nothing_overtakes_and_nothing_is_lost(&mut fabric);
    } // Three cases, two ends.
    assert_eq!(fallbacks.load(Ordering::Relaxed), 10 * 3 * 2);
}
