//! One gate made of several: of NICs of different kinds, or of a network and something else that a VM lets out.

use super::{GateStats, OutputGate, WaitFd};
use crate::id::{Epoch, Time};
use std::io;

/// Several gates that open and close as one.
///
/// Every call reaches every gate, in the order in which they were given, also after one has failed; the first error is
/// returned. **Fail-closed**: when a barrier fails in one gate, no gate lets that epoch's output go until a later barrier,
/// which covers it, has held in all of them.
#[derive(Debug)]
pub struct Gates<G = Box<dyn OutputGate + Send>> {
    gates: Vec<G>,
    holding: bool,
    /// The first and the last epoch whose barrier failed somewhere. Those in between count as failed too.
    incomplete: Option<(Epoch, Epoch)>,
}

impl<G: OutputGate> Gates<G> {
    /// Of these, which must all be in the same mode.
    #[must_use]
    pub fn new(gates: Vec<G>) -> Self {
        Self { gates, holding: false, incomplete: None }
    }

    /// Each of them, for its own figures.
    pub fn each(&self) -> impl Iterator<Item = &G> {
        self.gates.iter()
    }

    /// Each of them, to see to what no trait knows of.
    pub fn each_mut(&mut self) -> impl Iterator<Item = &mut G> {
        self.gates.iter_mut()
    }

    fn all(&mut self, mut call: impl FnMut(&mut G) -> io::Result<()>) -> io::Result<()> {
        self.gates.iter_mut().map(&mut call).fold(Ok(()), io::Result::and)
    }

    /// The newest epoch, up to `epoch`, that may leave.
    fn complete(&mut self, epoch: Epoch) -> Epoch {
        match self.incomplete {
            Some((first, last)) if (first..=last).contains(&epoch) => Epoch(first.0.saturating_sub(1)),
            Some((_, last)) if epoch > last => {
                self.incomplete = None;
                epoch
            }
            _ => epoch,
        }
    }
}

impl<G: OutputGate> OutputGate for Gates<G> {
    fn tick(&mut self, now: Time) {
        self.gates.iter_mut().for_each(|gate| gate.tick(now));
    }

    fn poll(&mut self) -> io::Result<()> {
        self.all(G::poll)
    }

    fn hold(&mut self) {
        if !std::mem::replace(&mut self.holding, true) {
            self.incomplete = None;
        }
        self.gates.iter_mut().for_each(G::hold);
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        let closed = self.all(|gate| gate.barrier(epoch));
        if closed.is_err() {
            let first = self.incomplete.map_or(epoch, |(first, _)| first);
            self.incomplete = Some((first, epoch));
        }
        closed
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        let epoch = self.complete(epoch);
        self.all(|gate| gate.release(epoch))
    }

    fn open(&mut self) -> io::Result<()> {
        (self.holding, self.incomplete) = (false, None);
        self.all(G::open)
    }

    fn shut(&mut self) {
        self.gates.iter_mut().for_each(G::shut);
    }

    fn stats(&self) -> GateStats {
        self.gates.iter().map(G::stats).sum()
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        self.gates.iter().for_each(|gate| gate.wait_fds(each));
    }

    fn deadline(&self) -> Option<Time> {
        self.gates.iter().filter_map(G::deadline).min()
    }
}
