//! The metrics of a witness.

use super::collect::{Writer, float};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use std::fmt::Error;
use witness::Figures;

/// A witness's figures, as metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Witness(pub Figures);

impl Collector for Witness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let figures = &self.0;
        let w = &mut Writer { encoder: &mut encoder, labels: Vec::new() };
        w.build()?;
        w.gauge(
            "afterimage_witness_registers",
            "Registers that this witness holds, one per VM; vacant ones are not counted",
            float(figures.registers),
        )?;
        w.gauge(
            "afterimage_witness_connections",
            "Connections of nodes that are open at this witness",
            float(figures.connections),
        )?;
        let [read, won, lost, failed, refused] = figures.answers;
        let answers = [("read", read), ("won", won), ("lost", lost), ("failed", failed), ("refused", refused)];
        w.counters("afterimage_witness_answers", "Answers of this witness to nodes, by outcome", "answer", &answers)
    }
}
