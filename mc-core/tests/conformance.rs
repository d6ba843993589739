//! The in-memory transport and keepalive pass the suite that all others pass.

use mc_core::testing::{
    air::{self, KeepaliveFaults, MemoryKeepalive},
    conformance::{Fabric, KeepaliveFabric, run_all, run_all_keepalive},
    memory::{self, LinkFaults, MemoryTransport},
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

struct Air(Option<KeepaliveFaults>);

impl KeepaliveFabric for Air {
    type K = MemoryKeepalive;

    fn pair(&mut self) -> (MemoryKeepalive, MemoryKeepalive) {
        let (members, faults) = air::group(2, 1);
        self.0 = Some(faults);
        let [a, b] = members.try_into().unwrap();
        (a, b)
    }

    fn inject(&mut self, bytes: &[u8]) {
        self.0.as_ref().unwrap().inject(1, bytes);
    }
}

#[test]
fn the_memory_transport_conforms() {
    run_all(&mut Memory(None));
}

#[test]
fn the_memory_keepalive_conforms() {
    run_all_keepalive(&mut Air(None));
}
