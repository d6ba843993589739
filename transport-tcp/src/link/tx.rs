//! The sending half: a bounded queue of slabs and control records, written in order, several at once.

use crate::stream::Stream;
use mc_core::{slab::SealedSlab, transport::Op, wire::control};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
};

/// Operations per system call at most.
const IOVECS: usize = 16;

/// Something to send.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A slab's own bytes.
    Slab(SealedSlab),
    /// A control record.
    Record([u8; control::LEN]),
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Slab(slab) => slab.as_bytes(),
            Self::Record(record) => record,
        }
    }
}

/// What waits to be sent, and the slabs whose last byte the stream has taken.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: VecDeque<Outgoing>,
    /// Bytes of the queue's first that the stream has taken.
    sent: usize,
    written: VecDeque<SealedSlab>,
    capacity: usize,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Self {
        let room = || VecDeque::with_capacity(capacity);
        Self { queue: room(), sent: 0, written: VecDeque::with_capacity(capacity), capacity }
    }

    /// Slabs count until they were reported, so that `written` never grows past its capacity.
    pub(super) fn is_full(&self) -> bool {
        self.queue.len() + self.written.len() >= self.capacity
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        debug_assert!(!self.is_full(), "the caller refuses what does not fit");
        self.queue.push_back(outgoing);
    }

    /// Whether bytes wait for the stream to take them.
    pub(super) fn has_bytes(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next slab that the stream has taken whole.
    pub(super) fn take_written(&mut self) -> Option<SealedSlab> {
        self.written.pop_front()
    }

    /// The next slab, sent or not: for a link that is down.
    pub(super) fn take_any(&mut self) -> Option<SealedSlab> {
        self.take_written().or_else(|| {
            while let Some(outgoing) = self.queue.pop_front() {
                if let Outgoing::Slab(slab) = outgoing {
                    return Some(slab);
                }
            }
            None
        })
    }

    /// Writes until the queue is empty or the stream takes no more.
    pub(super) fn flush(&mut self, stream: &mut Stream) -> io::Result<()> {
        while self.has_bytes() || stream.wants_write() {
            match self.write_some(stream) {
                Ok(taken) => self.retire(taken),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_some(&self, stream: &mut Stream) -> io::Result<usize> {
        if !self.has_bytes() {
            return stream.flush().map(|()| 0);
        }
        let mut slices = [IoSlice::new(&[]); IOVECS];
        let mut count = 0;
        for (slice, outgoing) in slices.iter_mut().zip(&self.queue) {
            let skip = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&outgoing.bytes()[skip..]);
            count += 1;
        }
        stream.write_vectored(&slices[..count])
    }

    /// Takes everything off the queue that `taken` more bytes complete.
    fn retire(&mut self, taken: usize) {
        self.sent += taken;
        while let Some(len) = self.queue.front().map(|o| o.bytes().len()).filter(|len| self.sent >= *len) {
            self.sent -= len;
            if let Some(Outgoing::Slab(slab)) = self.queue.pop_front() {
                self.written.push_back(slab);
            }
        }
        debug_assert!(self.has_bytes() || self.sent == 0, "the stream took more than it was given");
    }
}

/// A [`Op::Write`] or [`Op::Send`] as bytes; a [`Op::Post`] is not for sending and comes back.
impl TryFrom<Op> for Outgoing {
    type Error = mc_core::slab::FreeSlab;

    fn try_from(op: Op) -> Result<Self, Self::Error> {
        match op {
            Op::Write(slab) => Ok(Self::Slab(slab)),
            Op::Send(control) => Ok(Self::Record(control.encode())),
            Op::Post(slab) => Err(slab),
        }
    }
}
