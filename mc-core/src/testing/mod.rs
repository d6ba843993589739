//! For tests, here and in other crates (feature `testing`): a link and a keepalive group without a network, and the suite
//! that every implementation of [`crate::transport`] passes, these two included.
//!
//! | module | what |
//! |---|---|
//! | [`memory`] | [`memory::pair`]: two ends of a link in one process, with faults |
//! | [`air`] | [`air::group`]: keepalives in one process, with loss |
//! | [`paths`] | [`paths::TwoPaths`]: links of two paths, the first of which fails |
//! | [`conformance`] | what a `Transport` and a `Keepalive` must do, as cases over a factory |
//! | [`Sabotage`] | rules left out on purpose: a test must notice |
//! | [`skip`] | what a machine cannot run is said, or is a failure |

pub mod air;
pub mod conformance;
pub mod memory;
pub mod paths;
mod skipping;

pub use crate::sabotage::Sabotage;
pub use skipping::skip;

/// Reproducible numbers: splitmix64 (Steele, Lea, Flood 2014). Not for keys.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed, the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0..n; `n` must not be zero.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }
}
