//! The receiving half: messages, and the slabs that the peer may write into.
//!
//! ```text
//!   Op::Post ──> registered ──> offered (slot message) ──> written by the peer, announced ──> verified ──> Arrived
//!                                                            └─ part by part: checksummed ahead
//! ```
//!
//! Receives are posted again as soon as their message was copied out; the sender is told with the next message (*owed*).

use crate::{
    ffi::{Domain, Qp, Region},
    types::{Access, Completion},
};
use mc_core::{
    slab::{Ahead, FreeSlab, SealedSlab},
    wire::{
        WireError,
        rdma::{MESSAGE_LEN, Message, Slot},
    },
};
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Weak},
};

/// Bytes between two receive buffers: a message, and room so that each begins on a cache line.
const STRIDE: usize = MESSAGE_LEN.next_multiple_of(64);
/// A message's bytes, as the verbs want them.
const MESSAGE_BYTES: u32 = 80;
const _: () = assert!(MESSAGE_BYTES as usize == MESSAGE_LEN);

/// A slab's registration, which stays with the slab from one use to the next.
#[derive(Debug)]
struct Registered(Arc<Region>);

/// The region of a slab, made or found.
pub(super) fn region_of(slab: &mut FreeSlab, domain: &Arc<Domain>, access: Access) -> io::Result<(Arc<Region>, bool)> {
    if let Some(region) = found(slab.attachment(), domain, access) {
        return Ok((region, false));
    }
    *slab.attachment() = None; // the old registration goes first: pinned memory is limited
    crate::memlock::check(slab.len()).map_err(io::Error::other)?;
    let region = Arc::new(Region::of_slab(domain, slab, access)?);
    *slab.attachment() = Some(Box::new(Registered(Arc::clone(&region))));
    Ok((region, true))
}

/// The region of a slab that is to be sent, made or found.
pub(super) fn region_of_sealed(slab: &mut SealedSlab, domain: &Arc<Domain>) -> io::Result<Arc<Region>> {
    if let Some(region) = found(slab.attachment(), domain, Access::Read) {
        return Ok(region);
    }
    *slab.attachment() = None;
    crate::memlock::check(slab.memory().len()).map_err(io::Error::other)?;
    let region = Arc::new(Region::of_sealed(domain, slab)?);
    *slab.attachment() = Some(Box::new(Registered(Arc::clone(&region))));
    Ok(region)
}

fn found(attachment: &mc_core::slab::Attachment, domain: &Arc<Domain>, access: Access) -> Option<Arc<Region>> {
    let Registered(region) = attachment.as_ref()?.downcast_ref()?;
    region.serves(domain, access).then(|| Arc::clone(region))
}

/// See the module.
#[derive(Debug)]
pub(super) struct Receiver {
    queue: Arc<Qp>,
    buffers: Region,
    receives: u32,
    /// Posted again since the last message.
    owed: u32,
    serial: u32,
    /// Slabs for the peer, oldest first; those from `offered` on were not offered yet.
    posted: VecDeque<FreeSlab>,
    offered: usize,
    /// The number of the first of `posted`.
    first_slot: u32,
    /// Of the first of `posted`.
    ahead: Ahead,
    limit: usize,
    /// Every region that the peer was ever given a key of, but for those whose slab is gone: a pool that shrinks unpins.
    writable: Vec<Weak<Region>>,
}

impl Receiver {
    pub(super) fn new(domain: &Arc<Domain>, queue: &Arc<Qp>, receives: u32, limit: usize) -> io::Result<Self> {
        let buffers = Region::buffer(domain, receives as usize * STRIDE)?;
        let this = Self {
            queue: Arc::clone(queue),
            buffers,
            receives,
            owed: 0,
            serial: 0,
            posted: VecDeque::with_capacity(limit),
            offered: 0,
            first_slot: 0,
            ahead: Ahead::default(),
            limit,
            writable: Vec::with_capacity(limit * 2),
        };
        (0..receives).try_for_each(|index| this.post_receive(index))?;
        Ok(this)
    }

    fn post_receive(&self, index: u32) -> io::Result<()> {
        self.queue.post_receive(index.into(), &self.buffers, index as usize * STRIDE, MESSAGE_BYTES)
    }

    /// Copies a message out, and makes room for the next. The inner result is about the peer's bytes.
    pub(super) fn take(&mut self, done: &Completion) -> io::Result<Result<Message, WireError>> {
        let index = u32::try_from(done.id).unwrap_or(0) % self.receives;
        let mut bytes = [0; MESSAGE_LEN];
        self.buffers.copy_out(index as usize * STRIDE, &mut bytes);
        self.post_receive(index)?;
        self.owed += 1;
        Ok(self.read(&bytes[..MESSAGE_LEN.min(done.bytes as usize)]))
    }

    /// As [`Receiver::take`], once the queue pair is in error: nothing more will come.
    pub(super) fn take_last(&mut self, done: &Completion) -> Result<Message, WireError> {
        let index = usize::try_from(done.id).unwrap_or(0) % self.receives as usize;
        let mut bytes = [0; MESSAGE_LEN];
        self.buffers.copy_out(index * STRIDE, &mut bytes);
        self.read(&bytes[..MESSAGE_LEN.min(done.bytes as usize)])
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Message, WireError> {
        let message = Message::decode(bytes)?;
        if message.serial != self.serial {
            return Err(wrong("serial", message.serial.into(), "not the one after the last"));
        }
        self.serial = self.serial.wrapping_add(1);
        Ok(message)
    }

    /// Whether so many receives wait to be told of that the peer might run short.
    pub(super) fn owes_much(&self) -> bool {
        self.owed >= self.receives / 2
    }

    /// What the next message tells.
    pub(super) fn take_owed(&mut self) -> u16 {
        let told = u16::try_from(self.owed).unwrap_or(u16::MAX);
        self.owed -= u32::from(told);
        told
    }

    pub(super) fn is_full(&self) -> bool {
        self.posted.len() >= self.limit
    }

    /// Takes a slab for the peer to write into; on an error it stays out.
    pub(super) fn post(&mut self, mut slab: FreeSlab, domain: &Arc<Domain>) -> Result<(), (FreeSlab, io::Error)> {
        match region_of(&mut slab, domain, Access::RemoteWrite) {
            Err(error) => Err((slab, error)),
            Ok((region, new)) => {
                if new {
                    self.writable.retain(|r| r.strong_count() > 0);
                    self.writable.push(Arc::downgrade(&region));
                }
                self.posted.push_back(slab);
                Ok(())
            }
        }
    }

    /// The next slot to tell the peer of.
    pub(super) fn offer(&mut self) -> Option<Slot> {
        let slab = self.posted.get_mut(self.offered)?;
        let Registered(region) = slab.attachment().as_ref()?.downcast_ref()?;
        let number = self.first_slot.wrapping_add(u32::try_from(self.offered).unwrap_or(0));
        let len = u32::try_from(region.len()).unwrap_or(u32::MAX);
        let slot = Slot { number, len, addr: region.addr(), rkey: region.rkey() };
        self.offered += 1;
        Some(slot)
    }

    pub(super) fn has_offers(&self) -> bool {
        self.offered < self.posted.len()
    }

    /// The peer says that the first `len` bytes of a slab are in `slot`.
    pub(super) fn part(&mut self, slot: u32, len: u32) -> Result<(), WireError> {
        let slab = self.oldest(slot)?;
        if len as usize > slab.len() {
            return Err(wrong("part bytes", len.into(), "more than the slot has"));
        }
        self.ahead.advance(&self.posted[0], len as usize);
        Ok(())
    }

    fn oldest(&self, slot: u32) -> Result<&FreeSlab, WireError> {
        let oldest = self.posted.front().filter(|_| self.offered > 0 && slot == self.first_slot);
        oldest.ok_or_else(|| wrong("slot", slot.into(), "not the oldest that was offered"))
    }

    /// The peer says that a slab of `len` bytes is in `slot`: verifies it. A slab that is not what it should be stays posted.
    pub(super) fn arrived(&mut self, slot: u32, len: u32) -> Result<SealedSlab, WireError> {
        self.oldest(slot)?;
        let ahead = std::mem::take(&mut self.ahead);
        let slab = self.posted.pop_front().ok_or_else(|| wrong("slot", slot.into(), "none was offered"))?;
        self.offered -= 1;
        self.first_slot = self.first_slot.wrapping_add(1);
        match slab.arrived_after(ahead) {
            Ok(sealed) if sealed.as_bytes().len() == len as usize => Ok(sealed),
            Ok(sealed) => {
                self.posted.push_front(sealed.recycle());
                Err(wrong("slab bytes", len.into(), "not what the slab's header says"))
            }
            Err((slab, error)) => {
                self.posted.push_front(slab);
                Err(error)
            }
        }
    }

    /// Gives a posted slab back, when the link is down.
    pub(super) fn take_any(&mut self) -> Option<FreeSlab> {
        self.posted.pop_front()
    }

    /// Ends the peer's access to all memory that it was ever told of, as far as the system confirms it.
    pub(super) fn deregister(&mut self) -> io::Result<()> {
        let mut returned = Ok(());
        for region in self.writable.iter().filter_map(Weak::upgrade) {
            let one = region.deregister();
            returned = returned.and(one);
        }
        if self.queue.domain().has_lost_regions() {
            return Err(io::Error::other("a slab's region could not be deregistered when the slab went"));
        }
        returned
    }

    /// The peer may still write: what it was given must never be used for anything else.
    pub(super) fn abandon(&mut self) {
        self.posted.drain(..).for_each(std::mem::forget);
    }
}

pub(super) fn wrong(field: &'static str, value: u64, why: &'static str) -> WireError {
    WireError::Field { record: "RDMA message", field, value, why }
}
