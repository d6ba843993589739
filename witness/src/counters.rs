//! What a witness counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted by the witness's threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Answers that say what a register holds.
    pub(crate) read: AtomicU64,
    /// Swaps won.
    pub(crate) won: AtomicU64,
    /// Swaps lost.
    pub(crate) lost: AtomicU64,
    /// Swaps that were not tried: by who is not entitled, or before the nodes have told what they have seen.
    pub(crate) refused: AtomicU64,
    /// Requests that could not be answered: nothing was stored, or a limit was reached.
    pub(crate) failed: AtomicU64,
    /// Registers that are not vacant.
    pub(crate) registers: AtomicU64,
}

/// What a witness has counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Answers: read, won, lost, failed, refused.
    pub answers: [u64; 5],
    /// Registers.
    pub registers: u64,
    /// Connections that are open.
    pub connections: u64,
}

impl Counters {
    /// With so many connections.
    pub(crate) fn read(&self, connections: usize) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            answers: [&self.read, &self.won, &self.lost, &self.failed, &self.refused].map(get),
            registers: get(&self.registers),
            connections: connections as u64,
        }
    }
}
