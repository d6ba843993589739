//! Output commit: what the VM sends to the outside waits here until its epoch is committed.

use crate::id::Epoch;
use std::io;

/// Holds what the VM sends. **Fail-closed (I6)**: an error, or the death of the process, keeps or drops output, and never
/// releases it. Inbound traffic is not held: the outside may know more than the VM, never the reverse.
pub trait OutputGate {
    /// Moves traffic: from the VM into the open batch (or straight out when [`OutputGate::open`]), from the outside to the VM.
    fn poll(&mut self) -> io::Result<()>;

    /// From now on hold. What the VM sends belongs to the first barrier to come.
    fn hold(&mut self);

    /// Called while the VM is stopped: reads everything that the VM has sent, and closes the batch as `epoch`'s output.
    fn barrier(&mut self, epoch: Epoch) -> io::Result<()>;

    /// Lets the output of every epoch up to `epoch` go, in order (I1).
    fn release(&mut self, epoch: Epoch) -> io::Result<()>;

    /// The register says (solo, self): lets everything go, and holds no more (I4).
    fn open(&mut self) -> io::Result<()>;

    /// Fenced: drops what is held, and lets nothing pass in either direction, ever again.
    fn shut(&mut self);

    /// The figures.
    fn stats(&self) -> GateStats;
}

/// A gate's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GateStats {
    /// Packets held now.
    pub held_packets: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Packets let out so far.
    pub released_packets: u64,
    /// Packets dropped so far: fenced, or over the limit of held bytes.
    pub dropped_packets: u64,
    /// Packets delivered to the VM so far.
    pub inbound_packets: u64,
}
