//! Output commit: what the VM sends to the outside waits here until its epoch is committed.

use crate::id::{Epoch, Time};
use std::{fmt::Debug, io, os::fd::BorrowedFd};

mod several;

pub use several::Gates;

/// Holds what the VM sends. **Fail-closed (I6)**: an error, or the death of the process, keeps or drops output, and never
/// releases it. Inbound traffic is not held: the outside may know more than the VM, never the reverse.
///
/// ```
/// use mc_core::{gate::{GateStats, OutputGate}, id::Epoch};
/// use std::io;
///
/// /// A serial line: what the VM wrote, and what came out at the other end.
/// #[derive(Debug, Default)]
/// struct Serial { written: String, holds: bool, shut: bool, batches: Vec<(Epoch, String)>, seen: String }
///
/// impl OutputGate for Serial {
///     fn poll(&mut self) -> io::Result<()> {
///         if !self.holds {
///             self.seen.extend(self.written.drain(..));
///         }
///         Ok(())
///     }
///     fn hold(&mut self) {
///         self.holds = true;
///     }
///     fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
///         self.batches.push((epoch, std::mem::take(&mut self.written)));
///         Ok(())
///     }
///     fn release(&mut self, epoch: Epoch) -> io::Result<()> {
///         let held = self.batches.partition_point(|(of, _)| *of <= epoch);
///         self.seen.extend(self.batches.drain(..held).map(|(_, batch)| batch));
///         Ok(())
///     }
///     fn open(&mut self) -> io::Result<()> {
///         self.release(Epoch(u64::MAX))?;
///         self.holds = self.shut;
///         self.poll()
///     }
///     fn shut(&mut self) {
///         (self.shut, self.holds) = (true, true);
///         self.batches.clear();
///     }
///     fn stats(&self) -> GateStats {
///         GateStats { held_packets: self.batches.len() as u64, ..GateStats::default() }
///     }
/// }
///
/// let mut gate = Serial::default();
/// gate.hold();
/// gate.written += "paid";
/// gate.barrier(Epoch(1))?; // the VM is stopped, and its checkpoint taken
/// gate.written += ", shipped"; // of the next epoch
/// gate.poll()?;
/// assert_eq!(gate.seen, "");
/// gate.release(Epoch(1))?; // the standby has ACKed it
/// assert_eq!(gate.seen, "paid");
/// # Ok::<(), io::Error>(())
/// ```
pub trait OutputGate: Debug {
    /// The time of the calls that follow. The driver says it before each round of them.
    fn tick(&mut self, _now: Time) {}

    /// Moves traffic: from the VM into the open batch (or straight out when [`OutputGate::open`]), from the outside to the VM.
    fn poll(&mut self) -> io::Result<()>;

    /// From now on hold. What the VM sends belongs to the first barrier to come.
    fn hold(&mut self);

    /// Called while the VM is stopped: reads everything that the VM has sent, and closes the batch as `epoch`'s output.
    fn barrier(&mut self, epoch: Epoch) -> io::Result<()>;

    /// Lets the output of every epoch up to `epoch` go, in order (I1).
    fn release(&mut self, epoch: Epoch) -> io::Result<()>;

    /// The register says (solo, self): lets everything go, and holds no more (I4). An error is told, and it is called again.
    fn open(&mut self) -> io::Result<()>;

    /// Fenced: drops what is held, and lets nothing pass in either direction, ever again.
    fn shut(&mut self);

    /// The figures.
    fn stats(&self) -> GateStats;

    /// What to wait for before the next [`OutputGate::poll`], one descriptor a call of `each`.
    fn wait_fds<'a>(&'a self, _each: &mut dyn FnMut(WaitFd<'a>)) {}

    /// When to poll at the latest, though none of its descriptors is ready; `None` for never.
    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// A descriptor to wait for. Errors and a hang-up count as well, whatever else is asked for.
#[derive(Clone, Copy, Debug)]
pub struct WaitFd<'a> {
    /// Which.
    pub fd: BorrowedFd<'a>,
    /// Until there is something to read.
    pub read: bool,
    /// Until there is room to write.
    pub write: bool,
}

impl<G: OutputGate + ?Sized> OutputGate for Box<G> {
    fn tick(&mut self, now: Time) {
        (**self).tick(now);
    }

    fn poll(&mut self) -> io::Result<()> {
        (**self).poll()
    }

    fn hold(&mut self) {
        (**self).hold();
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        (**self).barrier(epoch)
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        (**self).release(epoch)
    }

    fn open(&mut self) -> io::Result<()> {
        (**self).open()
    }

    fn shut(&mut self) {
        (**self).shut();
    }

    fn stats(&self) -> GateStats {
        (**self).stats()
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        (**self).wait_fds(each);
    }

    fn deadline(&self) -> Option<Time> {
        (**self).deadline()
    }
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

impl std::iter::Sum for GateStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), |sum, next| Self {
            held_packets: sum.held_packets + next.held_packets,
            held_bytes: sum.held_bytes + next.held_bytes,
            released_packets: sum.released_packets + next.released_packets,
            dropped_packets: sum.dropped_packets + next.dropped_packets,
            inbound_packets: sum.inbound_packets + next.inbound_packets,
        })
    }
}
