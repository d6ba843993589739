//! A link of two paths: the whole suite over it, with the first failing never, at once, and anywhere; then what a peer must
//! not say, and what is left when a path is gone.

mod ends;

use mc_core::testing::{
    conformance::{Fabric, run_all, run_together},
    memory::{self, LinkFaults, MemoryTransport},
    paths::{Fails, TwoPaths},
};

struct Memory(Option<LinkFaults>);

impl Fabric for Memory {
    type T = MemoryTransport;

    fn pair(&mut self, slab_size: usize, queue: usize) -> (MemoryTransport, MemoryTransport) {
        let (a, b) = memory::pair(slab_size, queue);
        self.0 = Some(a.faults());
        (a, b)
    }

    fn cut(&mut self) {
        self.0.as_ref().unwrap().cut();
    }
}

#[test]
fn conforms_while_the_first_path_works() {
    run_all(&mut TwoPaths::new(Memory(None), Fails::Never, 1));
}

#[test]
fn conforms_once_the_second_has_taken_over() {
    run_all(&mut TwoPaths::new(Memory(None), Fails::AtOnce, 2));
}

/// With items under way in both directions, seen by one end or by both: nothing is lost, doubled or reordered.
#[test]
fn conforms_while_the_first_fails() {
    for seed in 0..20 {
        eprintln!("seed {seed}");
        run_together(&mut TwoPaths::new(Memory(None), Fails::Somewhere, seed));
    }
}
