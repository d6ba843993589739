//! A gate for a VM of this process: what it sends comes through a channel, and leaves by a function.

use crate::{
    events::{Event, emit},
    inbox::{Inbox, Outbox, inbox},
};
use mc_core::{
    gate::{GateStats, OutputGate, WaitFd},
    id::Epoch,
};
use std::{collections::VecDeque, fmt, io, os::fd::AsFd};

/// Messages held at most; what comes beyond is dropped, as on a wire.
const MOST_HELD: u64 = 1 << 16;
/// Messages taken in one poll: a VM that never stops sending keeps nobody from the rest of the loop.
const AT_ONCE: usize = 1024;

/// Holds messages of a VM, 65,536 at most, until the epoch that covers them is committed. The VM puts them into the [`Outbox`] that it was made with.
///
/// A message leaves at most once, and never before it is committed. It may be lost, although the state of the VM says that it was sent: with
/// a primary that dies after the commit and before it let the message out, since the standby continues behind it; and beyond the 65,536,
/// which is told as an event. What has to arrive is acknowledged by whoever receives it, and sent again by the VM, as over any network.
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
    /// Dropped because too many are held.
    overflowed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Holds,
    Shut,
}

/// The VM's end, and a gate that is open. `out` is what the outside sees; it is called by the runner's loop, and must not wait.
///
/// # Errors
/// No descriptor.
pub fn messages<T>(out: impl FnMut(T) + Send + 'static) -> io::Result<(Outbox<T>, MessageGate<T>)> {
    let (outbox, inbox) = inbox()?;
    let (open, batches, stats) = (Vec::new(), VecDeque::new(), GateStats::default());
    Ok((outbox, MessageGate { inbox, out: Box::new(out), mode: Mode::Open, open, batches, stats, overflowed: 0 }))
}

impl<T> MessageGate<T> {
    fn let_out(&mut self, messages: Vec<T>) {
        self.stats.released_packets += messages.len() as u64;
        messages.into_iter().for_each(&mut self.out);
    }

    fn take(&mut self, message: T) {
        match self.mode {
            Mode::Open => self.let_out(vec![message]),
            Mode::Holds if self.stats.held_packets < MOST_HELD => {
                self.open.push(message);
                self.stats.held_packets += 1;
            }
            Mode::Holds => {
                self.stats.dropped_packets += 1;
                self.tell_dropped();
            }
            Mode::Shut => self.stats.dropped_packets += 1,
        }
    }

    /// At the first one, and at twice as many each time.
    fn tell_dropped(&mut self) {
        self.overflowed += 1;
        if self.overflowed.is_power_of_two() {
            let why = format!(
                "the VM sent more than {MOST_HELD} messages that no commit covers yet; {} of them were dropped so far",
                self.overflowed
            );
            tracing::warn!(why, "messages of the VM are lost");
            emit(Event::GateFailed(why.into()));
        }
    }

    fn let_out_held(&mut self, messages: Vec<T>) {
        self.stats.held_packets -= messages.len() as u64;
        self.let_out(messages);
    }
}

impl<T> OutputGate for MessageGate<T> {
    fn poll(&mut self) -> io::Result<()> {
        for _ in 0..AT_ONCE {
            let Some(message) = self.inbox.take() else { break };
            self.take(message);
        }
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
        while let Some(message) = self.inbox.take() {
            self.take(message); // all of them: the VM is stopped
        }
        self.batches.push_back((epoch, std::mem::take(&mut self.open)));
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        while self.batches.front().is_some_and(|(of, _)| *of <= epoch) {
            let (_, batch) = self.batches.pop_front().unwrap_or_default();
            self.let_out_held(batch);
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if self.mode == Mode::Shut {
            return Ok(());
        }
        self.mode = Mode::Open;
        let held: Vec<_> = self.batches.drain(..).flat_map(|(_, batch)| batch).collect();
        self.let_out_held(held);
        let held = std::mem::take(&mut self.open);
        self.let_out_held(held);
        self.poll()
    }

    fn shut(&mut self) {
        self.mode = Mode::Shut;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn gate() -> (Outbox<u64>, MessageGate<u64>, Arc<Mutex<Vec<u64>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let outside = Arc::clone(&seen);
        let (vm, gate) = messages(move |message| outside.lock().unwrap().push(message)).unwrap();
        (vm, gate, seen)
    }

    #[test]
    fn a_gate_that_is_shut_lets_nothing_out_ever_again() {
        let (vm, mut gate, seen) = gate();
        gate.hold();
        vm.put(1);
        gate.barrier(Epoch(1)).unwrap();
        vm.put(2);
        gate.poll().unwrap();
        gate.shut();
        vm.put(3);
        gate.poll().unwrap();
        gate.release(Epoch(9)).unwrap();
        gate.hold();
        gate.open().unwrap();
        gate.poll().unwrap();
        assert!(gate.barrier(Epoch(2)).is_err() && seen.lock().unwrap().is_empty());
        assert_eq!((gate.stats().held_packets, gate.stats().dropped_packets), (0, 3));
    }

    #[test]
    fn what_is_held_is_bounded_and_what_is_open_is_taken_in_turns() {
        let (vm, mut gate, seen) = gate();
        (0..2000).for_each(|n| assert!(vm.put(n)));
        gate.poll().unwrap();
        assert_eq!(seen.lock().unwrap().len(), AT_ONCE);
        gate.hold();
        (2000..MOST_HELD + 2000).for_each(|n| assert!(vm.put(n)));
        gate.barrier(Epoch(1)).unwrap();
        assert_eq!((gate.stats().held_packets, gate.stats().dropped_packets), (MOST_HELD, 2000 - AT_ONCE as u64));
        assert_eq!(gate.overflowed, 2000 - AT_ONCE as u64, "told as events");
        gate.open().unwrap();
        assert!(seen.lock().unwrap().is_sorted() && gate.stats().held_packets == 0);
    }
}
