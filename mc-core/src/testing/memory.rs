//! A link without a network: both ends in one process, deterministic, with faults on demand.
//!
//! ```text
//! submit ──> outgoing ──poll──> lane (bytes in flight, bounded) ──the other's poll──> posted slab, completion
//!                       Written ┘                             └ frozen: nothing leaves the lane
//! ```
//!
//! Like a real one it has a queue at the sender and a bounded one on the way: with no slab posted, the lane fills up, and
//! then the queue. A cut lets the receiver take what was in a lane that is not frozen, as if it had arrived.
//!
//! There is no descriptor to wait for: the owner polls.
//!
//! A [`lagging_pair`] is like RDMA: a slab leaves only when one is posted for it, and is `Written` only when its arrival was
//! confirmed, some time after it arrived; when it fails ([`LinkFaults::fail`]), what was not confirmed may or may not have arrived, and not every end need notice.

mod wire;

pub use wire::{LinkFaults, Way};

use crate::{
    slab::{FreeSlab, SealedSlab},
    testing::Rng,
    transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Resumable, Transport},
    wire::{
        WireError,
        control::{self, Control},
    },
};
use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};
use wire::{Lane, Wire, is_slab, lock};

/// Two connected ends. `queue` bounds writes and sends, posted slabs, and records in flight, each for itself.
#[must_use]
pub fn pair(slab_size: usize, queue: usize) -> (MemoryTransport, MemoryTransport) {
    ends(slab_size, queue, None)
}

/// As [`pair`], but arrivals are confirmed late, by `seed`.
#[must_use]
pub fn lagging_pair(slab_size: usize, queue: usize, seed: u64) -> (MemoryTransport, MemoryTransport) {
    ends(slab_size, queue, Some(seed))
}

fn ends(slab_size: usize, queue: usize, lag: Option<u64>) -> (MemoryTransport, MemoryTransport) {
    let lane = || Lane {
        records: VecDeque::with_capacity(queue),
        spare: Vec::with_capacity(queue),
        frozen: false,
        sent: 0,
        confirmed: 0,
        taken: 0,
        slots: 0,
    };
    let wire = Arc::new(Mutex::new(Wire { lanes: [lane(), lane()], open: true, silent: false, noticed: None }));
    let end = |end| MemoryTransport {
        wire: Arc::clone(&wire),
        end,
        slab_size,
        queue,
        outgoing: VecDeque::with_capacity(queue),
        written: VecDeque::with_capacity(queue),
        posted: VecDeque::with_capacity(queue),
        arrived: VecDeque::with_capacity(queue),
        lag: lag.map(|seed| Rng::new(seed ^ end as u64)),
        unconfirmed: VecDeque::with_capacity(queue),
        received: 0,
        state: State::Up,
    };
    (end(0), end(1))
}

#[derive(Debug)]
enum Outgoing {
    Slab(SealedSlab),
    Record([u8; control::LEN]),
}

#[derive(Debug)]
enum State {
    Up,
    Ending(LinkError),
    Ended,
}

/// One end of a [`pair`].
#[derive(Debug)]
pub struct MemoryTransport {
    wire: Arc<Mutex<Wire>>,
    /// 0 or 1: the lane it sends on.
    end: usize,
    slab_size: usize,
    queue: usize,
    outgoing: VecDeque<Outgoing>,
    written: VecDeque<SealedSlab>,
    posted: VecDeque<FreeSlab>,
    /// Complete, and not yet reported: filled by a revocation.
    arrived: VecDeque<Completion>,
    /// Confirmations come late, by these numbers.
    lag: Option<Rng>,
    /// On its way: slabs, and `None` for records.
    unconfirmed: VecDeque<Option<SealedSlab>>,
    received: u64,
    state: State,
}

impl MemoryTransport {
    /// The faults of this link.
    #[must_use]
    pub fn faults(&self) -> LinkFaults {
        LinkFaults { wire: Arc::clone(&self.wire) }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    fn end(&mut self, why: LinkError) {
        if self.is_up() {
            self.state = State::Ending(why);
            let mut wire = lock(&self.wire);
            if wire.noticed.is_none() {
                wire.cut(); // over a link that has failed, the other end hears nothing
            }
        }
    }

    /// Puts what the lane has room for on its way.
    fn push(&mut self) {
        let mut wire = lock(&self.wire);
        let works = wire.open && wire.noticed.is_none();
        while works && wire.lanes[self.end].records.len() < self.queue {
            let lane = &mut wire.lanes[self.end];
            // What is confirmed must not wait for a slab to be posted.
            let may_go = |o: &Outgoing| self.lag.is_none() || matches!(o, Outgoing::Record(_)) || lane.has_slot();
            if !self.outgoing.front().is_some_and(may_go) {
                break;
            }
            let Some(outgoing) = self.outgoing.pop_front() else { break };
            let mut record = lane.spare.pop().unwrap_or_default();
            record.clear();
            match outgoing {
                Outgoing::Slab(slab) => {
                    record.extend_from_slice(slab.as_bytes());
                    self.unconfirmed.push_back(Some(slab));
                }
                Outgoing::Record(bytes) => {
                    record.extend_from_slice(&bytes);
                    self.unconfirmed.push_back(None);
                }
            }
            lane.records.push_back(record);
            lane.sent += 1;
        }
        let under_way = self.unconfirmed.len();
        let late = self.lag.as_mut().map_or(0, |rng| rng.below(under_way as u64 + 1));
        let confirmed = if works { under_way - usize::try_from(late).unwrap_or(0) } else { 0 };
        wire.lanes[self.end].confirmed += confirmed as u64;
        self.written.extend(self.unconfirmed.drain(..confirmed).flatten());
    }

    /// Takes one record off the other lane; `Ok(None)` if there is none that could be delivered.
    fn pull(&mut self) -> Result<Option<Completion>, WireError> {
        let mut wire = lock(&self.wire);
        let lane = &mut wire.lanes[1 - self.end];
        let Some(record) = lane.records.front().filter(|_| !lane.frozen) else { return Ok(None) };
        let completion = if is_slab(record) {
            let Some(mut slab) = self.posted.pop_front() else { return Ok(None) };
            if record.len() > slab.len().min(self.slab_size) {
                let need = record.len();
                let have = slab.len();
                self.posted.push_front(slab);
                return Err(WireError::Short { record: "posted slab", have, need });
            }
            slab.receive_buffer()[..record.len()].copy_from_slice(record);
            slab.arrived().map(Completion::Arrived).map_err(|(slab, error)| {
                self.posted.push_front(slab);
                error
            })?
        } else {
            Completion::Received(Control::decode(record)?)
        };
        lane.spare.extend(lane.records.pop_front());
        lane.taken += 1;
        lane.slots = self.posted.len();
        Ok(Some(completion))
    }

    fn pull_or_end(&mut self) -> Option<Completion> {
        self.pull().unwrap_or_else(|source| {
            self.end(LinkError::Wire { peer: self.peer(), source });
            None
        })
    }

    fn exchange(&mut self) -> Option<Completion> {
        self.push();
        if let Some(slab) = self.written.pop_front() {
            return Some(Completion::Written(slab));
        }
        let completion = self.pull_or_end();
        if completion.is_none() && self.has_lost_the_wire() {
            self.end(LinkError::Closed { peer: self.peer() });
        }
        completion
    }

    fn has_lost_the_wire(&self) -> bool {
        let wire = lock(&self.wire);
        !wire.open || wire.noticed.is_some_and(|noticed| noticed[self.end])
    }

    /// A completion, if there is any.
    fn next(&mut self) -> Option<Completion> {
        let ready = self.written.pop_front().map(Completion::Written).or_else(|| self.arrived.pop_front());
        if ready.is_some() {
            return ready;
        }
        let exchanged = if self.is_up() { self.exchange() } else { None };
        exchanged.or_else(|| self.wind_up())
    }

    /// Once down: the slabs, then the reason, then nothing.
    fn wind_up(&mut self) -> Option<Completion> {
        if !matches!(self.state, State::Ending(_)) {
            return None;
        }
        if let Some(slab) = self.posted.pop_front() {
            return Some(Completion::Returned(slab));
        }
        while let Some(sent) = self.unconfirmed.pop_front() {
            if let Some(slab) = sent {
                return Some(Completion::Written(slab));
            }
        }
        while let Some(outgoing) = self.outgoing.pop_front() {
            if let Outgoing::Slab(slab) = outgoing {
                return Some(Completion::Written(slab));
            }
        }
        let State::Ending(why) = std::mem::replace(&mut self.state, State::Ended) else { return None };
        Some(Completion::Down(why))
    }
}

impl Transport for MemoryTransport {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        if !self.is_up() {
            return Err(Rejected { op, why: RejectReason::Down });
        }
        let sending = self.outgoing.len() + self.written.len() + self.unconfirmed.iter().flatten().count();
        let used = if matches!(op, Op::Post(_)) { self.posted.len() } else { sending };
        if used >= self.queue {
            return Err(Rejected { op, why: RejectReason::Full });
        }
        match op {
            Op::Write(slab) => self.outgoing.push_back(Outgoing::Slab(slab)),
            Op::Send(control) => self.outgoing.push_back(Outgoing::Record(control.encode())),
            Op::Post(slab) => {
                self.posted.push_back(slab);
                lock(&self.wire).lanes[1 - self.end].slots = self.posted.len();
            }
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.next();
        self.received += u64::from(matches!(completion, Some(Completion::Arrived(_) | Completion::Received(_))));
        completion
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wants_read(&self) -> bool {
        let wire = lock(&self.wire);
        let stalled = wire.lanes[1 - self.end].records.front().is_some_and(|r| is_slab(r)) && self.posted.is_empty();
        !stalled
    }

    fn wants_write(&self) -> bool {
        self.is_up() && !self.outgoing.is_empty()
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        if !self.is_up() {
            return Ok(());
        }
        while let Ok(Some(completion)) = self.pull() {
            self.arrived.push_back(completion);
        }
        self.end(LinkError::Revoked { peer: self.peer() });
        Ok(())
    }

    fn peer(&self) -> String {
        let name = if self.end == 0 { "the second end" } else { "the first end" };
        name.to_owned()
    }
}

impl Resumable for MemoryTransport {
    fn delivered(&self) -> u64 {
        lock(&self.wire).lanes[self.end].confirmed
    }

    fn received(&self) -> u64 {
        self.received
    }

    fn has_failed(&self) -> bool {
        !self.is_up() || self.has_lost_the_wire()
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        lock(&self.wire).cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{Epoch, Generation, Incarnation},
        wire::control::Body,
    };

    fn registered() -> Control {
        Control { incarnation: Incarnation(1), generation: Generation(1), epoch: Epoch(1), body: Body::Rehearse }
    }

    #[test]
    fn a_frozen_way_delivers_nothing_until_it_thaws() {
        let (mut a, mut b) = pair(8192, 4);
        a.faults().freeze(Way::FirstToSecond);
        a.submit(Op::Send(registered())).unwrap();
        b.submit(Op::Send(registered())).unwrap();
        assert!(a.poll().is_none() && b.poll().is_none());
        assert!(matches!(a.poll(), Some(Completion::Received(_))), "the other way is not frozen");
        a.faults().thaw(Way::FirstToSecond);
        assert!(matches!(b.poll(), Some(Completion::Received(_))));
    }

    #[test]
    fn what_a_frozen_way_held_is_lost_with_the_link() {
        let (mut a, mut b) = pair(8192, 4);
        a.submit(Op::Send(registered())).unwrap();
        a.poll();
        a.faults().freeze(Way::FirstToSecond);
        a.faults().cut();
        assert!(matches!(b.poll(), Some(Completion::Down(LinkError::Closed { .. }))));
    }

    #[test]
    fn a_damaged_record_ends_the_link() {
        let (mut a, mut b) = pair(8192, 4);
        a.submit(Op::Send(registered())).unwrap();
        a.poll();
        a.faults().corrupt(Way::FirstToSecond);
        assert!(matches!(b.poll(), Some(Completion::Down(LinkError::Wire { .. }))));
    }
}
