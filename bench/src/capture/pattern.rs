//! Which pages are dirty: what a dirty bitmap says, read from its start.

use mc_core::{
    capture::Run,
    id::{BlockId, PAGE_SIZE},
};

/// A splitmix64 generator: the workloads' random numbers, the same for the same seed everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    /// From 0 to 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Single pages at random places, all over guest RAM.
    Scattered,
    /// Eight in a row, at random places.
    RunsOf8,
    /// All in a row.
    Sequential,
    /// None: what doing nothing costs.
    Idle,
}

impl Pattern {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Scattered, Self::RunsOf8, Self::Sequential, Self::Idle];

    /// For people.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scattered => "scattered",
            Self::RunsOf8 => "runs of 8",
            Self::Sequential => "sequential",
            Self::Idle => "idle",
        }
    }

    /// Its runs: `pages` dirty pages of block 0, which has `of`, in rising order.
    ///
    /// # Panics
    /// When the block has fewer.
    #[must_use]
    pub(crate) fn runs(self, pages: u32, of: u32, seed: u64) -> Vec<Run> {
        assert!(pages <= of, "more dirty pages than pages");
        let run = match self {
            Self::Scattered => 1,
            Self::RunsOf8 => 8,
            Self::Sequential => pages.max(1),
            Self::Idle => return Vec::new(),
        };
        // Each run has an equal share of the clean pages around it, and a random part of that before it.
        let (count, mut random) = (pages.div_ceil(run), Random::new(seed));
        let clean = (of - pages) / count;
        let place = |index: u32| {
            let page = u64::from(index * (run + clean)) + random.below(u64::from(clean) + 1);
            Run { block: BlockId(0), offset: page * PAGE_SIZE as u64, pages: run.min(pages - index * run) }
        };
        (0..count).map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_has_that_many_pages_inside_and_in_order() {
        for (pages, of) in [(1000, 16_384), (10, 10), (9, 64), (1, 1)] {
            for pattern in Pattern::ALL {
                let runs = pattern.runs(pages, of, 5);
                let total: u32 = runs.iter().map(|r| r.pages).sum();
                assert_eq!(total, if pattern == Pattern::Idle { 0 } else { pages }, "{pattern:?} {pages} {of}");
                assert!(runs.windows(2).all(|w| w[0].offset + w[0].len() <= w[1].offset), "{pattern:?} {pages} {of}");
                assert!(runs.iter().all(|r| r.offset + r.len() <= u64::from(of) * 4096), "{pattern:?} {pages} {of}");
            }
        }
    }

    #[test]
    fn a_seed_says_it_all() {
        let runs = |seed| Pattern::Scattered.runs(100, 4000, seed);
        assert_eq!(runs(1), runs(1));
        assert_ne!(runs(1), runs(2));
    }
}
