//! A gate for a VM of this process: what it sends comes through a channel, and leaves by a function.

use crate::inbox::{Inbox, Outbox, inbox};
use mc_core::{
    gate::{GateStats, OutputGate, WaitFd},
    id::Epoch,
};
use std::{collections::VecDeque, fmt, io, os::fd::AsFd};

/// Holds messages of a VM until the epoch that covers them is committed. The VM puts them into the [`Outbox`] that it was made with.
///
/// ```
/// use mc_core::{gate::OutputGate, id::Epoch};
/// use std::sync::{Arc, Mutex};
/// let seen = Arc::new(Mutex::new(Vec::new()));
/// let outside = Arc::clone(&seen);
/// let (vm, mut gate) = node::gate::messages(move |message: u32| outside.lock().unwrap().push(message))?;
/// gate.hold();
/// vm.put(1);
/// gate.barrier(Epoch(1))?;
/// vm.put(2);
/// gate.release(Epoch(1))?;
/// assert_eq!(*seen.lock().unwrap(), [1]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct MessageGate<T> {
    inbox: Inbox<T>,
    out: Box<dyn FnMut(T) + Send>,
    mode: Mode,
    open: Vec<T>,
    batches: VecDeque<(Epoch, Vec<T>)>,
    stats: GateStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Holds,
    Shut,
}

/// The VM's end, and a gate that is open. `out` is what the outside sees.
///
/// # Errors
/// No descriptor.
pub fn messages<T>(out: impl FnMut(T) + Send + 'static) -> io::Result<(Outbox<T>, MessageGate<T>)> {
    let (outbox, inbox) = inbox()?;
    let (open, batches, stats) = (Vec::new(), VecDeque::new(), GateStats::default());
    Ok((outbox, MessageGate { inbox, out: Box::new(out), mode: Mode::Open, open, batches, stats }))
}

impl<T> MessageGate<T> {
    fn let_out(&mut self, messages: Vec<T>) {
        self.stats.released_packets += messages.len() as u64;
        messages.into_iter().for_each(&mut self.out);
    }

    fn count(&mut self) {
        let held = self.open.len() + self.batches.iter().map(|(_, batch)| batch.len()).sum::<usize>();
        self.stats.held_packets = held as u64;
    }
}

impl<T> OutputGate for MessageGate<T> {
    fn poll(&mut self) -> io::Result<()> {
        while let Some(message) = self.inbox.take() {
            match self.mode {
                Mode::Open => self.let_out(vec![message]),
                Mode::Holds => self.open.push(message),
                Mode::Shut => self.stats.dropped_packets += 1,
            }
        }
        self.count();
        Ok(())
    }

    fn hold(&mut self) {
        if self.mode == Mode::Open {
            self.mode = Mode::Holds;
        }
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        if self.mode == Mode::Shut {
            return Err(io::Error::other("the gate is shut"));
        }
        self.poll()?;
        self.batches.push_back((epoch, std::mem::take(&mut self.open)));
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        while self.batches.front().is_some_and(|(of, _)| *of <= epoch) {
            let (_, batch) = self.batches.pop_front().unwrap_or_default();
            self.let_out(batch);
        }
        self.count();
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if self.mode == Mode::Shut {
            return Ok(());
        }
        self.mode = Mode::Open;
        let held: Vec<_> = self.batches.drain(..).flat_map(|(_, batch)| batch).collect();
        self.let_out(held);
        let held = std::mem::take(&mut self.open);
        self.let_out(held);
        self.poll()
    }

    fn shut(&mut self) {
        self.mode = Mode::Shut;
        self.count();
        self.stats.dropped_packets += self.stats.held_packets;
        self.stats.held_packets = 0;
        (self.open, self.batches) = Default::default();
    }

    fn stats(&self) -> GateStats {
        self.stats
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        each(WaitFd { fd: self.inbox.as_fd(), read: true, write: false });
    }
}

impl<T> fmt::Debug for MessageGate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageGate").field("mode", &self.mode).field("stats", &self.stats).finish_non_exhaustive()
    }
}
