//! The suite that every transport passes, over reliable queue pairs of real kernel verbs.

mod common;

use mc_core::{
    id::Incarnation,
    testing::conformance::{Fabric, run_all},
    transport::Transport,
};
use std::{thread::sleep, time::Duration};
use transport_rdma::{Breaker, Place, Prepared, RcOptions, RdmaLink};

struct Verbs {
    places: (Place, Place),
    options: RcOptions,
    breakers: Vec<Breaker>,
    sessions: u64,
}

impl Fabric for Verbs {
    type T = RdmaLink;

    fn pair(&mut self, _: usize, queue: usize) -> (RdmaLink, RdmaLink) {
        self.sessions += 1;
        // (Emulated devices take their time.)
        let options = RcOptions { queue, farewell: Duration::from_millis(500), ..self.options };
        let prepare = |place| Prepared::new(place, Incarnation(self.sessions), &options).unwrap();
        let (a, b) = (prepare(&self.places.0), prepare(&self.places.1));
        let (to_a, to_b) = (a.endpoint(), b.endpoint());
        let mut b = b.connect(&to_a, "a", false).unwrap();
        let mut a = a.connect(&to_b, "b", true).unwrap();
        while !b.is_open() {
            assert!(a.poll().is_none() && b.poll().is_none());
        }
        self.breakers = vec![a.breaker(), b.breaker()];
        (a, b)
    }

    fn cut(&mut self) {
        self.breakers.iter().for_each(Breaker::break_link);
    }

    fn settled(&mut self, first: &RdmaLink, _: usize) -> bool {
        first.is_settled()
    }

    fn idle(&mut self) {
        sleep(Duration::from_micros(50));
    }
}

fn conforms(options: RcOptions) {
    let Some(places) = common::places() else { return };
    run_all(&mut Verbs { places, options, breakers: Vec::new(), sessions: 0 });
}

#[test]
fn rdma_conforms() {
    conforms(RcOptions::default());
}

#[test]
fn rdma_conforms_with_short_queues_and_small_slices() {
    conforms(RcOptions { depth: 8, signal_every: 3, slice_bytes: 8192, ..RcOptions::default() });
}

#[test]
fn rdma_conforms_with_data_striped_over_queue_pairs() {
    conforms(RcOptions { queues: 3, slice_bytes: 16 << 10, ..RcOptions::default() });
}
