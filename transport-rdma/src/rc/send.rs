//! The sending half: what waits, what is posted, and what both are covered by.
//!
//! ```text
//!   submit ──> queue ──(a slot, send slots)──> WRITEs posted ──(a credit)──> message posted ──(completion)──> done
//!                  └───────────────(a credit, a send slot)──────────────────────^
//! ```
//!
//! In order, always: a slab that waits for a slot holds up what was submitted after it. One credit is kept for a message that
//! returns credits, so that two sides that have run out can always get each other going again; another, and a send slot, for
//! the bye.

use super::receive::{Receiver, region_of_sealed, wrong};
use crate::{
    ffi::{CHAIN, Domain, Qp},
    types::{Piece, PostError, Request, Work},
};
use mc_core::{
    slab::SealedSlab,
    wire::{
        WireError,
        control::Control,
        rdma::{Body, MESSAGE_LEN, Message, Slot},
    },
};
use std::{collections::VecDeque, io, sync::Arc, time::Instant};

/// What was submitted.
#[derive(Debug)]
pub(super) enum Outgoing {
    Control(Control),
    Slab(SealedSlab),
}

/// What a posted message stands for.
#[derive(Debug)]
enum Sent {
    Control,
    Slab(SealedSlab),
    /// The link's own.
    Own,
}

#[derive(Debug)]
struct InFlight {
    /// Its position in the first queue pair.
    position: u64,
    sent: Sent,
    at: Instant,
}

/// A slab on its way into a slot.
#[derive(Debug)]
struct Writing {
    slab: SealedSlab,
    lkey: u32,
    slot: Slot,
    /// Bytes of it that were posted.
    posted: usize,
    /// Bytes of it that the peer was told of.
    told: usize,
    /// With several queue pairs: up to where each must complete before the slab is announced.
    targets: Vec<u64>,
    at: Instant,
}

/// A queue pair's send slots.
#[derive(Debug)]
struct Ring {
    depth: u64,
    posted: u64,
    /// Everything before this position has completed.
    done: u64,
}

impl Ring {
    fn free(&self) -> u64 {
        self.depth - (self.posted - self.done)
    }
}

/// What a message must leave over: credits and, beyond its own, send slots.
const ORDINARY: (u32, u64) = (2, 1);
const RETURNS_CREDITS: (u32, u64) = (1, 1);
const BYE: (u32, u64) = (0, 0);

/// Bytes of a slab between two hints that so much of it is there: so much is left to checksum when the last byte comes.
const PART: usize = 128 << 10;

/// A work request that waits for the doorbell.
#[derive(Debug)]
struct Entry {
    position: u64,
    signaled: bool,
    work: EntryWork,
}

#[derive(Debug)]
enum EntryWork {
    Write { from: Piece, to: u64, rkey: u32 },
    Message([u8; MESSAGE_LEN]),
}

/// What keeps a link from sending.
#[derive(Debug)]
pub(super) enum Trouble {
    Post { queue: usize, source: io::Error },
    Register { bytes: usize, source: io::Error },
}

/// Which work request a completion is about: its queue pair, and its position there.
const POSITION_BITS: u32 = 56;

fn id_of(queue: usize, position: u64) -> u64 {
    (queue as u64) << POSITION_BITS | position
}

/// See the module.
#[derive(Debug)]
pub(super) struct Sender {
    domain: Arc<Domain>,
    queues: Vec<Arc<Qp>>,
    rings: Vec<Ring>,
    options: super::RcOptions,
    queue: VecDeque<Outgoing>,
    slots: VecDeque<Slot>,
    next_slot: u32,
    /// Messages that the peer has receives for.
    credits: u32,
    /// As many as the peer has posted at most.
    max_credits: u32,
    /// The peer may not be connected yet: nothing is sent before it was heard.
    listens: bool,
    serial: u32,
    /// With several queue pairs more than one slab may be on its way.
    writing: VecDeque<Writing>,
    in_flight: VecDeque<InFlight>,
    written: VecDeque<SealedSlab>,
    delivered: u64,
    must_speak: bool,
    /// One chain's worth; kept to allocate nothing.
    chain: Vec<Entry>,
}

impl Sender {
    /// `credits`: what the peer's endpoint says; `speaks_first`: else nothing is sent until the peer was heard.
    pub(super) fn new(
        domain: &Arc<Domain>,
        queues: &[Arc<Qp>],
        options: super::RcOptions,
        credits: u32,
        speaks_first: bool,
    ) -> Self {
        Self {
            domain: Arc::clone(domain),
            queues: queues.to_vec(),
            rings: queues.iter().map(|_| Ring { depth: options.depth.into(), posted: 0, done: 0 }).collect(),
            options,
            queue: VecDeque::with_capacity(options.queue),
            slots: VecDeque::with_capacity(options.queue),
            next_slot: 0,
            credits,
            max_credits: credits,
            listens: !speaks_first,
            serial: 0,
            writing: VecDeque::with_capacity(options.queue),
            in_flight: VecDeque::with_capacity(options.depth as usize),
            written: VecDeque::with_capacity(options.queue),
            delivered: 0,
            must_speak: speaks_first,
            chain: Vec::with_capacity(CHAIN),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= self.options.queue
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        self.queue.push_back(outgoing);
    }

    /// The next pump sends something, if only credits.
    pub(super) fn nudge(&mut self) {
        self.must_speak = true;
    }

    #[cfg(feature = "testing")]
    pub(super) fn is_open(&self) -> bool {
        !self.listens
    }

    /// Whether something submitted was not posted yet.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty() || !self.writing.is_empty()
    }

    /// Whether everything submitted has reached the peer's device.
    #[cfg(feature = "testing")]
    pub(super) fn is_settled(&self) -> bool {
        !self.waits() && self.in_flight.is_empty()
    }

    /// Whether a message has not completed.
    pub(super) fn has_posted(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Items, in order of their submission, that have reached the peer's device.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The peer was heard, and returns credits.
    pub(super) fn credit(&mut self, returned: u16) -> Result<(), WireError> {
        self.listens = false;
        self.credits += u32::from(returned);
        if self.credits > self.max_credits {
            return Err(wrong("credits", returned.into(), "more than receives were used"));
        }
        Ok(())
    }

    /// The peer offers a slot.
    pub(super) fn slot(&mut self, slot: Slot) -> Result<(), WireError> {
        if slot.number != self.next_slot {
            return Err(wrong("slot", slot.number.into(), "not the one after the last"));
        }
        self.next_slot = self.next_slot.wrapping_add(1);
        self.slots.push_back(slot);
        Ok(())
    }

    /// Posts what can be posted. Slots of our own go first: the peer can write meanwhile.
    pub(super) fn pump(&mut self, receiver: &mut Receiver) -> Result<(), Trouble> {
        while receiver.has_offers() && self.may_speak(ORDINARY) {
            let Some(slot) = receiver.offer() else { break };
            self.message(Body::Slot(slot), Sent::Own, receiver)?;
        }
        while self.advance(receiver)? {}
        if (self.must_speak || receiver.owes_much()) && self.may_speak(RETURNS_CREDITS) {
            self.must_speak = false;
            self.message(Body::Credits, Sent::Own, receiver)?;
        }
        self.ring_in(0)
    }

    /// A message that ends the link, if there is a credit left for it.
    pub(super) fn bye(&mut self, receiver: &mut Receiver) {
        if self.may_speak(BYE) && self.message(Body::Bye, Sent::Own, receiver).is_ok() {
            let _ = self.ring_in(0);
        }
    }

    fn may_speak(&self, (credits, slots): (u32, u64)) -> bool {
        !self.listens && self.credits > credits && self.rings[0].free() > slots
    }

    fn is_striped(&self) -> bool {
        self.queues.len() > 1
    }

    /// One step; false if what comes next must wait.
    fn advance(&mut self, receiver: &mut Receiver) -> Result<bool, Trouble> {
        if self.announce(receiver)? || self.hint(receiver)? || self.write_on()? {
            return Ok(true);
        }
        match self.queue.front() {
            Some(Outgoing::Control(control)) if self.writing.is_empty() && self.may_speak(ORDINARY) => {
                let record = control.encode();
                self.queue.pop_front();
                self.message(Body::Control(record), Sent::Control, receiver)?;
                Ok(true)
            }
            Some(Outgoing::Slab(_)) if self.may_begin() => self.begin(),
            _ => Ok(false),
        }
    }

    /// On one queue pair a slab is announced before the next begins; on several, slabs overlap.
    fn may_begin(&self) -> bool {
        let ready = !self.listens && if self.is_striped() { self.is_posted() } else { self.writing.is_empty() };
        ready && !self.slots.is_empty()
    }

    /// Whether all writes of all begun slabs are posted.
    fn is_posted(&self) -> bool {
        self.writing.back().is_none_or(|w| w.posted == w.slab.as_bytes().len())
    }

    fn begin(&mut self) -> Result<bool, Trouble> {
        let (Some(slot), Some(Outgoing::Slab(mut slab))) = (self.slots.pop_front(), self.queue.pop_front()) else {
            return Ok(false);
        };
        let bytes = slab.as_bytes().len();
        let targets = Vec::new();
        let region = if bytes > slot.len as usize {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the peer's slot has {} bytes", slot.len)))
        } else {
            region_of_sealed(&mut slab, &self.domain)
        };
        let lkey = region.as_ref().map_or(0, |r| r.lkey());
        self.writing.push_back(Writing { slab, lkey, slot, posted: 0, told: 0, targets, at: Instant::now() });
        region.map(|_| true).map_err(|source| Trouble::Register { bytes, source })
    }

    /// Posts the next slice of the slab that is on its way.
    fn write_on(&mut self) -> Result<bool, Trouble> {
        let data_queues = self.queues.len().max(2) - 1;
        let Some(w) = self.writing.back_mut() else { return Ok(false) };
        let (slice, total) = (self.options.slice_bytes, w.slab.as_bytes().len());
        let queue = if self.queues.len() > 1 { 1 + (w.posted / slice) % data_queues } else { 0 };
        let ring = &mut self.rings[queue];
        if w.posted == total || ring.free() <= 1 {
            return Ok(false);
        }
        let length = slice.min(total - w.posted);
        let address = w.slab.as_bytes().as_ptr().addr() as u64 + w.posted as u64;
        let from = Piece { addr: address, length: u32::try_from(length).unwrap_or(0), lkey: w.lkey };
        let work = EntryWork::Write { from, to: w.slot.addr + w.posted as u64, rkey: w.slot.rkey };
        w.posted += length;
        let position = ring.posted;
        ring.posted += 1;
        // The last slices of a striped slab are waited for, one by one.
        let is_last = queue > 0 && w.posted + slice * (data_queues - 1) >= total;
        let signaled = is_last || position.is_multiple_of(self.options.signal_every.into());
        if is_last {
            w.targets.resize(self.rings.len(), 0);
            w.targets[queue] = position + 1;
        }
        self.chain_up(queue, Entry { position, signaled, work })?;
        Ok(true)
    }

    /// Announces the oldest slab, if all of it is posted (one queue pair) or has completed (several).
    fn announce(&mut self, receiver: &mut Receiver) -> Result<bool, Trouble> {
        let Some(w) = self.writing.front() else { return Ok(false) };
        let is_complete = w.targets.iter().zip(&self.rings).all(|(target, ring)| ring.done >= *target);
        if w.posted < w.slab.as_bytes().len() || !is_complete || !self.may_speak(ORDINARY) {
            return Ok(false);
        }
        let Some(w) = self.writing.pop_front() else { return Ok(false) };
        let len = u32::try_from(w.slab.as_bytes().len()).unwrap_or(u32::MAX);
        self.message(Body::Slab { slot: w.slot.number, len }, Sent::Slab(w.slab), receiver)?;
        if let Some(last) = self.in_flight.back_mut() {
            last.at = w.at;
        }
        Ok(true)
    }

    /// Tells how far the slab has come, if credits abound: the peer can do without. (Striped writes have no order to tell.)
    fn hint(&mut self, receiver: &mut Receiver) -> Result<bool, Trouble> {
        let abundant = (self.max_credits / 2, ORDINARY.1);
        let Some(w) = self.writing.front().filter(|_| !self.is_striped() && self.may_speak(abundant)) else {
            return Ok(false);
        };
        if w.posted < w.told + PART || w.posted == w.slab.as_bytes().len() {
            return Ok(false);
        }
        let (slot, told) = (w.slot.number, w.posted);
        let len = u32::try_from(told).unwrap_or(u32::MAX);
        self.message(Body::Part { slot, len }, Sent::Own, receiver)?;
        if let Some(w) = self.writing.front_mut() {
            w.told = told;
        }
        Ok(true)
    }

    fn message(&mut self, body: Body, sent: Sent, receiver: &mut Receiver) -> Result<(), Trouble> {
        let message = Message { credits: receiver.take_owed(), serial: self.serial, body };
        self.serial = self.serial.wrapping_add(1);
        self.credits -= 1;
        let position = self.rings[0].posted;
        self.rings[0].posted += 1;
        self.in_flight.push_back(InFlight { position, sent, at: Instant::now() });
        self.chain_up(0, Entry { position, signaled: true, work: EntryWork::Message(message.encode()) })
    }

    /// Adds a request to the chain of its queue pair; the chain is rung in when it is full, or another queue pair's turn comes.
    fn chain_up(&mut self, queue: usize, entry: Entry) -> Result<(), Trouble> {
        if self.is_striped() {
            // Striped requests alternate between queue pairs: each is its own chain.
            self.chain.push(entry);
            return self.ring_in(queue);
        }
        self.chain.push(entry);
        if self.chain.len() == CHAIN { self.ring_in(queue) } else { Ok(()) }
    }

    fn ring_in(&mut self, queue: usize) -> Result<(), Trouble> {
        let nothing = Request { id: 0, signaled: false, work: Work::Send(&[]) };
        let mut requests = [nothing; CHAIN];
        for (request, entry) in requests.iter_mut().zip(&self.chain) {
            let work = match &entry.work {
                EntryWork::Write { from, to, rkey } => {
                    Work::Write { from: std::slice::from_ref(from), to: *to, rkey: *rkey }
                }
                EntryWork::Message(bytes) => Work::Send(bytes),
            };
            *request = Request { id: id_of(queue, entry.position), signaled: entry.signaled, work };
        }
        let rung = self.queues[queue].post(&requests[..self.chain.len()]);
        self.chain.clear();
        rung.map_err(|PostError { source, .. }| Trouble::Post { queue, source })
    }

    /// A work request has completed, and with it all before it on its queue pair.
    pub(super) fn completed(&mut self, id: u64) {
        let (queue, position) = split(id);
        let Some(ring) = self.rings.get_mut(queue) else { return };
        ring.done = ring.done.max(position + 1);
        if queue > 0 {
            return;
        }
        while self.in_flight.front().is_some_and(|f| f.position <= position) {
            match self.in_flight.pop_front().map_or(Sent::Own, |f| f.sent) {
                Sent::Own => {}
                Sent::Control => self.delivered += 1,
                Sent::Slab(slab) => {
                    self.delivered += 1;
                    self.written.push_back(slab);
                }
            }
        }
    }

    /// What a failed work request was, and when it was posted.
    pub(super) fn describe(&self, id: u64) -> (u32, &'static str, Option<Instant>) {
        let (queue, position) = split(id);
        let number = self.queues.get(queue).map_or(0, |q| q.number());
        let next = self.in_flight.iter().find(|f| f.position >= position);
        let kind = match next {
            Some(InFlight { position: at, sent, .. }) if queue == 0 && *at == position => match sent {
                Sent::Control => "SEND of a control record",
                Sent::Slab(_) => "SEND that announces a slab",
                Sent::Own => "SEND of credits or a slot",
            },
            _ => "RDMA WRITE of a slab",
        };
        let at = next.map(|f| f.at).or_else(|| self.writing.front().map(|w| w.at));
        (number, kind, at)
    }

    /// A slab whose bytes the peer's device has.
    pub(super) fn take_written(&mut self) -> Option<SealedSlab> {
        self.written.pop_front()
    }

    /// Gives a slab back, oldest first, when the link is down.
    pub(super) fn take_any(&mut self) -> Option<SealedSlab> {
        while let Some(f) = self.in_flight.pop_front() {
            if let Sent::Slab(slab) = f.sent {
                return Some(slab);
            }
        }
        if let Some(w) = self.writing.pop_front() {
            return Some(w.slab);
        }
        while let Some(outgoing) = self.queue.pop_front() {
            if let Outgoing::Slab(slab) = outgoing {
                return Some(slab);
            }
        }
        None
    }
}

fn split(id: u64) -> (usize, u64) {
    let queue = usize::try_from(id >> POSITION_BITS).unwrap_or(usize::MAX);
    (queue, id & ((1 << POSITION_BITS) - 1))
}
