//! What the two ends tell each other: records and slabs whose every byte follows from their number and their author, so that
//! the receiver knows what must come next.

use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{FreeSlab, SealedSlab, SlabMeta},
    testing::Rng,
    wire::control::{Body, Control, GoodbyeReason},
};

/// Bytes of a slab: the largest item, and its header and records.
pub(crate) const SLAB: usize = 8 * PAGE_SIZE;
const MOST_PAGES: u64 = 7;

/// One direction's items.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Items {
    pub(crate) session: Incarnation,
    pub(crate) author: u8,
}

impl Items {
    fn rng(&self, number: u64) -> Rng {
        let mut rng = Rng::new(self.session.0 ^ u64::from(self.author) << 56);
        let seed = rng.next_u64();
        Rng::new(seed.wrapping_add(number))
    }

    /// Every fourth item, about, is a record.
    pub(crate) fn is_record(&self, number: u64) -> bool {
        self.rng(number).below(4) == 0
    }

    fn told(&self, number: u64, body: Body) -> Control {
        let generation = Generation(self.author.into());
        Control { incarnation: self.session, generation, epoch: Epoch(number), body }
    }

    /// The item of that number, if it is a record.
    pub(crate) fn record(&self, number: u64) -> Control {
        let mut rng = self.rng(number);
        let (bytes, device_bytes) = (rng.next_u64(), rng.next_u64());
        self.told(number, Body::Commit { slabs: u32::from(self.author), bytes, device_bytes, held: false })
    }

    /// What the author has received: items, and slabs among them. No item itself.
    pub(crate) fn note(&self, items: u64, slabs: u32) -> Control {
        self.told(items, Body::Ack { free_slabs: slabs })
    }

    /// The slabs, if that is a [`Items::note`].
    pub(crate) fn noted(&self, record: &Control) -> Option<u32> {
        let Body::Ack { free_slabs } = record.body else { return None };
        (*record == self.note(record.epoch.0, free_slabs)).then_some(free_slabs)
    }

    /// The record after the last item, which is the item of that number.
    pub(crate) fn last(&self, number: u64) -> Control {
        self.told(number, Body::Goodbye(GoodbyeReason::Unprotected))
    }

    /// The item of that number, if it is a slab: 1 to [`MOST_PAGES`] pages, half of them neighbours, and device state.
    pub(crate) fn slab(&self, number: u64, free: FreeSlab) -> SealedSlab {
        let mut rng = self.rng(number);
        rng.next_u64(); // which said that it is a slab
        let mut writer = free.writer();
        let (pages, stride) = (1 + rng.below(MOST_PAGES), 1 + rng.below(2));
        for page in 0..pages {
            let mut bytes = [0; PAGE_SIZE];
            bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next_u64().to_le_bytes()));
            let offset = (number * 8 + page) * stride * PAGE_SIZE as u64;
            writer.page(BlockId(u16::from(self.author)), offset, &bytes).expect("there is room");
        }
        writer.device(number, &rng.next_u64().to_le_bytes()).expect("there is room");
        let (incarnation, generation) = (self.session, Generation(self.author.into()));
        writer.seal(SlabMeta { incarnation, generation, epoch: Epoch(number), index: 0 })
    }
}
