//! The receiving half: cuts the byte stream into control records and slabs.
//!
//! ```text
//!            64 bytes, magic AIC1 ──> Received, and on
//! Between ──<
//!    ^       64 bytes, magic AIS1 ──> no slab posted: stalled, reads no more until one is
//!    |                          └──> a slab posted: Filling
//!    └── header and body complete, checksum right ── Filling: body read straight into the slab
//! ```
//!
//! Between records it reads up to [`BUFFER`] bytes at once, so that a burst of records costs one system call; of a slab
//! that begins in there at most [`BUFFER`] bytes are copied. The rest of the body is read into the slab itself, and what
//! follows it into the buffer, by the same call. Its checksum is computed as it comes, while the bytes are in the cache.

use crate::stream::Stream;
use mc_core::{
    slab::{Ahead, FreeSlab},
    transport::Completion,
    wire::{
        WireError,
        control::{self, Control},
        slab::{self, HEADER_LEN, SlabHeader},
    },
};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSliceMut, Read},
};

/// Bytes read ahead between records.
const BUFFER: usize = 1024;
/// Both kinds of records begin with so many bytes that say everything about the rest.
const HEAD: usize = 64;
const _: () = assert!(control::LEN == HEAD && HEADER_LEN == HEAD);

/// A slab that is being received.
#[derive(Debug)]
struct Filling {
    slab: FreeSlab,
    have: usize,
    need: usize,
    ahead: Ahead,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes.
    Bytes(usize),
    /// Nothing right now.
    Nothing,
    /// The peer's end of the stream.
    End,
}

/// Posted slabs, and the bytes that are not yet a completion.
#[derive(Debug)]
pub(super) struct Inbox {
    slab_size: usize,
    capacity: usize,
    posted: VecDeque<FreeSlab>,
    filling: Option<Filling>,
    buffer: Box<[u8; BUFFER]>,
    /// `buffer[start..end]` was read and not yet used.
    start: usize,
    end: usize,
    stalled: bool,
}

impl Inbox {
    pub(super) fn new(slab_size: usize, capacity: usize) -> Self {
        let posted = VecDeque::with_capacity(capacity);
        Self {
            slab_size,
            capacity,
            posted,
            filling: None,
            buffer: Box::new([0; BUFFER]),
            start: 0,
            end: 0,
            stalled: false,
        }
    }

    /// Takes a slab to receive into; gives it back if there are enough.
    pub(super) fn post(&mut self, slab: FreeSlab) -> Result<(), FreeSlab> {
        if self.posted.len() >= self.capacity {
            return Err(slab);
        }
        self.posted.push_back(slab);
        self.stalled = false;
        Ok(())
    }

    /// Whether a slab's header has arrived and there is nothing to receive it into.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// The next slab, half received or untouched: for a link that is down.
    pub(super) fn take_any(&mut self) -> Option<FreeSlab> {
        self.filling.take().map(|f| f.slab).or_else(|| self.posted.pop_front())
    }

    /// The next complete record among the bytes read so far. After an error the stream is out of step, for good.
    pub(super) fn next(&mut self) -> Result<Option<Completion>, WireError> {
        if self.filling.is_none() {
            let Some(head) = self.buffer[self.start..self.end].first_chunk::<HEAD>() else { return Ok(None) };
            let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            if magic != slab::MAGIC {
                let control = Control::decode(head)?;
                self.start += HEAD;
                return Ok(Some(Completion::Received(control)));
            }
            let header = SlabHeader::decode(head, self.slab_size)?;
            self.begin(&header)?;
        }
        self.go_on()
    }

    /// Starts to receive a slab if one is posted.
    fn begin(&mut self, header: &SlabHeader) -> Result<(), WireError> {
        let need = HEADER_LEN + header.body_len as usize;
        let Some(slab) = self.posted.pop_front() else {
            self.stalled = true;
            return Ok(());
        };
        if slab.len() < need {
            let why = "larger than the slab posted for it";
            let value = header.body_len.into();
            self.posted.push_front(slab);
            return Err(WireError::Field { record: "slab header", field: "body_len", value, why });
        }
        self.filling = Some(Filling { slab, have: 0, need, ahead: Ahead::default() });
        Ok(())
    }

    /// Moves what was read ahead into the slab; reports it when it is whole.
    fn go_on(&mut self) -> Result<Option<Completion>, WireError> {
        let Some(mut filling) = self.filling.take() else { return Ok(None) };
        let take = (filling.need - filling.have).min(self.end - self.start);
        filling.slab.receive_buffer()[filling.have..filling.have + take]
            .copy_from_slice(&self.buffer[self.start..self.start + take]);
        filling.have += take;
        self.start += take;
        if filling.have < filling.need {
            self.filling = Some(filling);
            return Ok(None);
        }
        match filling.slab.arrived_after(filling.ahead) {
            Ok(slab) => Ok(Some(Completion::Arrived(slab))),
            Err((slab, error)) => {
                self.posted.push_front(slab);
                Err(error)
            }
        }
    }

    /// One read of at most `limit` bytes (not zero), after [`Inbox::next`] found nothing.
    pub(super) fn fill(&mut self, stream: &mut Stream, limit: usize) -> io::Result<Filled> {
        debug_assert!(limit > 0 && !self.stalled);
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            return match self.read_some(stream, limit) {
                Ok(0) => Ok(Filled::End),
                Ok(bytes) => Ok(self.account(bytes)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled::Nothing),
                Err(error) => Err(error),
            };
        }
    }

    fn read_some(&mut self, stream: &mut Stream, limit: usize) -> io::Result<usize> {
        let direct = match &mut self.filling {
            Some(f) => &mut f.slab.receive_buffer()[f.have..f.need],
            None => &mut [][..],
        };
        let direct_len = direct.len().min(limit);
        let ahead = &mut self.buffer[self.end..];
        let ahead_len = ahead.len().min(limit - direct_len);
        stream
            .read_vectored(&mut [IoSliceMut::new(&mut direct[..direct_len]), IoSliceMut::new(&mut ahead[..ahead_len])])
    }

    fn account(&mut self, bytes: usize) -> Filled {
        let mut ahead = bytes;
        if let Some(f) = &mut self.filling {
            let direct = ahead.min(f.need - f.have);
            f.have += direct;
            f.ahead.advance(&f.slab, f.have);
            ahead -= direct;
        }
        self.end += ahead;
        Filled::Bytes(bytes)
    }
}
