//! Which slabs of an epoch are there.

/// The slabs of the epoch after the committed one. A set, since a transport may use several connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Staged {
    seen: Vec<u64>,
    count: u32,
    /// One more than the highest index.
    end: u32,
}

impl Staged {
    /// Slabs of one epoch at most: 1 TiB of the smallest.
    const LIMIT: u32 = 1 << 27;

    /// Room for 4096 slabs before it allocates.
    pub(super) fn new() -> Self {
        Self { seen: Vec::with_capacity(64), count: 0, end: 0 }
    }

    /// Notes a slab; false if it was there already, or is beyond every bound.
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
        if index >= Self::LIMIT {
            return false;
        }
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        self.count += u32::from(fresh);
        self.end = self.end.max(index + 1);
        fresh
    }

    /// Whether exactly the slabs 0..slabs are there.
    pub(super) fn is_complete(&self, slabs: u32) -> bool {
        self.count == slabs && self.end == slabs
    }

    pub(super) fn clear(&mut self) {
        self.seen.clear();
        (self.count, self.end) = (0, 0);
    }
}
