//! The metrics of a witness.

use super::collect::{Writer, float};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use std::{
    fmt::Error,
    sync::atomic::{AtomicU64, Ordering},
};

/// Counted by the witness's threads.
#[derive(Debug, Default)]
pub struct WitnessCounters {
    /// Answers that say what a register holds.
    pub read: AtomicU64,
    /// Swaps won.
    pub won: AtomicU64,
    /// Swaps lost.
    pub lost: AtomicU64,
    /// Swaps that were not tried: by who is not entitled, or before the nodes have told what they have seen.
    pub refused: AtomicU64,
    /// Requests that could not be answered: nothing was stored, or a limit was reached.
    pub failed: AtomicU64,
    /// Registers that are not vacant.
    pub registers: AtomicU64,
}

/// A witness's figures for a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witness {
    /// Answers: read, won, lost, failed, refused.
    pub answers: [u64; 5],
    /// Registers.
    pub registers: u64,
    /// Connections that are open.
    pub connections: u64,
}

impl WitnessCounters {
    /// With so many connections.
    #[must_use]
    pub fn read(&self, connections: usize) -> Witness {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Witness {
            answers: [&self.read, &self.won, &self.lost, &self.failed, &self.refused].map(get),
            registers: get(&self.registers),
            connections: connections as u64,
        }
    }
}

impl Collector for Witness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let w = &mut Writer { encoder: &mut encoder, labels: Vec::new() };
        w.build()?;
        w.gauge(
            "afterimage_witness_registers",
            "Registers that this witness holds, one per VM; vacant ones are not counted",
            float(self.registers),
        )?;
        w.gauge(
            "afterimage_witness_connections",
            "Connections of nodes that are open at this witness",
            float(self.connections),
        )?;
        let [read, won, lost, failed, refused] = self.answers;
        let answers = [("read", read), ("won", won), ("lost", lost), ("failed", failed), ("refused", refused)];
        w.counters("afterimage_witness_answers", "Answers of this witness to nodes, by outcome", "answer", &answers)
    }
}
