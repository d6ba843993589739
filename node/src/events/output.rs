//! What the VM sends, and who passes it on.

use mc_core::{
    gate::GateStats,
    id::{Generation, Name},
};
use serde::{Deserialize, Serialize};

/// What the gate holds, and has let out and dropped so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputFigures {
    /// Packets held now.
    pub held: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Packets let out so far.
    pub released: u64,
    /// Packets dropped so far.
    pub dropped: u64,
}

impl From<GateStats> for OutputFigures {
    fn from(stats: GateStats) -> Self {
        Self {
            held: stats.held_packets,
            held_bytes: stats.held_bytes,
            released: stats.released_packets,
            dropped: stats.dropped_packets,
        }
    }
}

/// The VM's outputs are others than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateOutputs {
    /// The names of those that nobody holds.
    pub unheld: Vec<String>,
    /// What has come.
    pub came: Vec<String>,
    /// What has gone.
    pub went: Vec<String>,
}

/// A keeper passes the VM's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// The VM.
    pub vm: Name,
    /// What the register held when it was started.
    pub generation: u64,
    /// QEMU's process, if it is known.
    pub qemu: Option<u32>,
    /// How many NICs.
    pub nics: usize,
    /// How many of them it got from the process before it.
    pub handed_over: usize,
}

/// A keeper was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStarted {
    /// Its process.
    pub keeper: u32,
    /// What the register holds.
    pub generation: Generation,
    /// Whether it got the NICs from this process, and no packet was lost.
    pub handed_over: bool,
}

/// A keeper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperEnded {
    /// Its process.
    pub keeper: u32,
}
