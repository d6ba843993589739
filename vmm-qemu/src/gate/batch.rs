//! Which of the held frames may go: batches, closed by barriers, freed by releases.
//!
//! ```text
//!   front of the ring                                            back
//!   | released, not yet sent | batch e | batch e+1 | open batch |  <- what the VM sends
//!                             release(e) moves the first bar right
//!                                                   barrier(e+2) closes the open batch
//! ```
//!
//! Only counts are kept here: the frames lie in the ring in the order in which the VM sent them, and leave in that order.
//! A batch without frames is not stored, so the number of batches is bounded by the ring's size as well.

use super::ring::Ring;
use mc_core::{
    histogram::Histogram,
    id::{Epoch, Time},
};
use std::collections::VecDeque;

/// A batch that a barrier has closed.
#[derive(Clone, Copy, Debug)]
struct Batch {
    epoch: Epoch,
    frames: u64,
    first: Time,
}

/// What became of a frame that was offered to its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Out.
    Out,
    /// Lost: the port is down.
    Lost,
    /// Not now: keep it.
    Later,
}

/// The frames that wait, by epoch.
#[derive(Debug)]
pub(super) struct Held {
    ring: Ring,
    /// Frames at the front that may go.
    released: u64,
    batches: VecDeque<Batch>,
    open_frames: u64,
    /// When the open batch's first frame came; meaningless while `open_frames` is 0.
    open_first: Time,
    /// The newest barrier since holding began.
    last: Option<Epoch>,
    /// How long each released batch's first frame was held.
    hold_times: Histogram,
}

impl Held {
    /// Holds up to `limit` bytes, overhead included.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            ring: Ring::new(limit),
            released: 0,
            batches: VecDeque::with_capacity(64),
            open_frames: 0,
            open_first: Time::default(),
            last: None,
            hold_times: Histogram::new(),
        }
    }

    pub(super) fn frames(&self) -> u64 {
        self.ring.frames()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.ring.bytes()
    }

    pub(super) fn hold_times(&self) -> &Histogram {
        &self.hold_times
    }

    /// A frame for the open batch; `false` when the limit is reached.
    pub(super) fn push(&mut self, nic: u16, frame: &[u8], now: Time) -> bool {
        if !self.ring.push(nic, frame) {
            return false;
        }
        if self.open_frames == 0 {
            self.open_first = now;
        }
        self.open_frames += 1;
        true
    }

    /// Holding begins: the barriers that come may start from any epoch.
    pub(super) fn begin(&mut self) {
        self.last = None;
    }

    /// Whether `epoch` may be the next barrier; otherwise the newest one.
    pub(super) fn check_order(&self, epoch: Epoch) -> Result<(), Epoch> {
        match self.last {
            Some(last) if epoch <= last => Err(last),
            _ => Ok(()),
        }
    }

    /// Closes the open batch as `epoch`'s output.
    pub(super) fn close(&mut self, epoch: Epoch) {
        self.last = Some(epoch);
        let frames = std::mem::take(&mut self.open_frames);
        if frames > 0 {
            self.batches.push_back(Batch { epoch, frames, first: self.open_first });
        }
    }

    /// Frees every closed batch up to `epoch`.
    pub(super) fn release(&mut self, epoch: Epoch, now: Time) {
        while let Some(&batch) = self.batches.front().filter(|b| b.epoch <= epoch) {
            self.batches.pop_front();
            self.free(batch.frames, now, batch.first);
        }
    }

    /// Frees everything, the open batch as well.
    pub(super) fn release_all(&mut self, now: Time) {
        while let Some(batch) = self.batches.pop_front() {
            self.free(batch.frames, now, batch.first);
        }
        let frames = std::mem::take(&mut self.open_frames);
        if frames > 0 {
            self.free(frames, now, self.open_first);
        }
    }

    /// Frees a frame of the open batch at once: nothing is being held.
    pub(super) fn pass(&mut self) {
        self.released += std::mem::take(&mut self.open_frames);
    }

    fn free(&mut self, frames: u64, now: Time, first: Time) {
        self.released += frames;
        self.hold_times.record(now.since(first));
    }

    /// The NIC whose frame is the next to go; `None` when nothing may go.
    pub(super) fn next_nic(&self) -> Option<u16> {
        if self.released == 0 { None } else { self.ring.front().map(|(nic, _)| nic) }
    }

    /// Offers the freed frames, in order, to `send`, until one has to wait. Gives how many went out, and how many were lost.
    pub(super) fn flush(&mut self, mut send: impl FnMut(u16, &[u8]) -> Sent) -> (u64, u64) {
        let (mut out, mut lost) = (0, 0);
        while self.released > 0 {
            let Some((nic, frame)) = self.ring.front() else { break };
            match send(nic, frame) {
                Sent::Out => out += 1,
                Sent::Lost => lost += 1,
                Sent::Later => break,
            }
            self.ring.pop();
            self.released -= 1;
        }
        (out, lost)
    }

    /// Drops everything, and gives its number of frames; the memory goes too.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = self.ring.frames();
        self.ring = Ring::new(0);
        self.batches.clear();
        (self.released, self.open_frames) = (0, 0);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(held: &mut Held) -> Vec<u8> {
        let mut out = Vec::new();
        held.flush(|_, frame| {
            out.push(frame[0]);
            Sent::Out
        });
        out
    }

    #[test]
    fn only_closed_batches_up_to_the_epoch_go() {
        let mut held = Held::new(4096);
        held.push(0, b"a", Time(1_000));
        held.close(Epoch(1));
        held.close(Epoch(2));
        held.push(0, b"b", Time(2_000));
        held.close(Epoch(3));
        held.push(0, b"c", Time(3_000));
        held.release(Epoch(2), Time(51_000));
        assert_eq!(sent(&mut held), b"a");
        held.release(Epoch(99), Time(52_000));
        assert_eq!(sent(&mut held), b"b");
        assert_eq!((held.frames(), held.hold_times().count()), (1, 2));
        assert_eq!(held.hold_times().at(1.0).as_micros(), 50);
        held.release_all(Time(60_000));
        assert_eq!(sent(&mut held), b"c");
    }

    #[test]
    fn what_has_to_wait_keeps_its_place() {
        let mut held = Held::new(4096);
        for b in [b"a", b"b", b"c"] {
            held.push(0, b, Time(0));
        }
        held.close(Epoch(1));
        held.release(Epoch(1), Time(0));
        let mut left = 1;
        let went = held.flush(|_, _| {
            left -= 1;
            if left < 0 { Sent::Later } else { Sent::Lost }
        });
        assert_eq!((went, held.next_nic()), ((0, 1), Some(0)));
        assert_eq!(sent(&mut held), b"bc");
        assert_eq!(held.next_nic(), None);
    }

    #[test]
    fn epochs_rise_while_holding() {
        let mut held = Held::new(64);
        held.close(Epoch(4));
        assert_eq!(held.check_order(Epoch(4)), Err(Epoch(4)));
        assert_eq!(held.check_order(Epoch(6)), Ok(()));
        held.begin();
        assert_eq!(held.check_order(Epoch(1)), Ok(()));
    }
}
