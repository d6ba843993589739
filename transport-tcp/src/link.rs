//! [`TcpLink`]: slabs and control records, in order, over one TCP connection.
//!
//! ```text
//! submit ──> queue ──writev──> kernel          kernel ──read──> small buffer ─┬─ control record ──> Received
//!              │ last byte taken                                              └─ slab header: the rest is read
//!              └──> Written                                                      straight into a posted slab ──> Arrived
//! ```
//!
//! With no posted slab it stops reading at a slab's header: the kernel's window, and then the primary, feel it.

use mc_core::{
    slab::{FreeSlab, SealedSlab},
    transport::{Completion, LinkError, Op, RejectReason, Rejected, Transport},
    wire::{
        WireError,
        control::{self, Control},
        slab::{self, HEADER_LEN, SlabHeader},
    },
};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
};

/// Operations that wait to be written, at most.
const QUEUE: usize = 1024;
/// Slices in one `writev`.
const SLICES: usize = 16;
/// Control records and slab headers are read through a buffer of this size.
const SMALL: usize = 4096;
const _: () = assert!(control::LEN == HEADER_LEN, "a record is told from a slab by its first 64 bytes");

#[derive(Debug)]
enum Outgoing {
    Slab(SealedSlab),
    Control([u8; control::LEN]),
}

impl Outgoing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Slab(slab) => slab.as_bytes(),
            Self::Control(bytes) => bytes,
        }
    }
}

/// A slab being received.
#[derive(Debug)]
struct Incoming {
    slab: FreeSlab,
    have: usize,
    need: usize,
}

/// One connection.
#[derive(Debug)]
pub struct TcpLink {
    /// `None` once it is down.
    stream: Option<TcpStream>,
    peer: String,
    slab_size: usize,
    queue: VecDeque<Outgoing>,
    /// Bytes of the queue's first entry that the kernel has.
    sent: usize,
    posted: VecDeque<FreeSlab>,
    incoming: Option<Incoming>,
    small: Box<[u8; SMALL]>,
    /// What of `small` was read and not used yet.
    unread: std::ops::Range<usize>,
    done: VecDeque<Completion>,
}

impl TcpLink {
    /// Takes over a connection whose handshake is done.
    pub fn new(stream: TcpStream, slab_size: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let peer = stream.peer_addr()?.to_string();
        Ok(Self {
            stream: Some(stream),
            peer,
            slab_size,
            queue: VecDeque::with_capacity(QUEUE),
            sent: 0,
            posted: VecDeque::with_capacity(64),
            incoming: None,
            small: Box::new([0; SMALL]),
            unread: 0..0,
            done: VecDeque::with_capacity(QUEUE + 64),
        })
    }

    /// Writes as much as the kernel takes.
    fn flush(&mut self) {
        while !self.queue.is_empty() {
            match self.write_some() {
                Ok(0) => return self.fail_io("writing", io::ErrorKind::WriteZero.into()),
                Ok(n) => self.wrote(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.fill(); // what the peer said before it went is still worth hearing
                    return self.fail_io("writing", e);
                }
            }
        }
    }

    fn write_some(&mut self) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, out) in slices.iter_mut().zip(&self.queue) {
            let skip = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&out.bytes()[skip..]);
            count += 1;
        }
        stream.write_vectored(&slices[..count])
    }

    fn wrote(&mut self, n: usize) {
        self.sent += n;
        while let Some(front) = self.queue.front()
            && self.sent >= front.bytes().len()
        {
            self.sent -= front.bytes().len();
            if let Some(Outgoing::Slab(slab)) = self.queue.pop_front() {
                self.done.push_back(Completion::Written(slab));
            }
        }
    }

    /// Reads until the kernel has no more, or a slab comes for which nothing is posted.
    fn fill(&mut self) {
        loop {
            if !self.parse() {
                return;
            }
            match self.read_some() {
                Ok(0) => return self.fail(LinkError::Closed { peer: self.peer.clone() }),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.fail_io("reading", e),
            }
        }
    }

    fn read_some(&mut self) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::WouldBlock.into()) };
        if let Some(incoming) = &mut self.incoming {
            let n = stream.read(&mut incoming.slab.receive_buffer()[incoming.have..incoming.need])?;
            incoming.have += n;
            return Ok(n);
        }
        if !self.unread.is_empty() {
            self.small.copy_within(self.unread.clone(), 0);
        }
        self.unread = 0..self.unread.len();
        let n = stream.read(&mut self.small[self.unread.end..])?;
        self.unread.end += n;
        Ok(n)
    }

    /// Uses what was read. True if more should be read.
    fn parse(&mut self) -> bool {
        loop {
            if self.incoming.as_ref().is_some_and(|i| i.have == i.need) && !self.finish_slab() {
                return false;
            }
            if self.incoming.is_some() || self.unread.len() < HEADER_LEN {
                return self.stream.is_some();
            }
            match self.parse_record() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(source) => {
                    self.fail(LinkError::Wire { peer: self.peer.clone(), source });
                    return false;
                }
            }
        }
    }

    /// A control record, or the beginning of a slab. False if no slab is posted for it.
    fn parse_record(&mut self) -> Result<bool, WireError> {
        let head = &self.small[self.unread.clone()][..HEADER_LEN];
        if head[..4] == slab::MAGIC.to_le_bytes() {
            let need = HEADER_LEN + SlabHeader::decode(head, self.slab_size)?.body_len as usize;
            return Ok(self.begin_slab(need));
        }
        let control = Control::decode(head)?;
        self.unread.start += control::LEN;
        self.done.push_back(Completion::Received(control));
        Ok(true)
    }

    fn begin_slab(&mut self, need: usize) -> bool {
        let Some(mut slab) = self.posted.pop_front() else { return false };
        let have = need.min(self.unread.len());
        slab.receive_buffer()[..have].copy_from_slice(&self.small[self.unread.start..][..have]);
        self.unread.start += have;
        self.incoming = Some(Incoming { slab, have, need });
        true
    }

    fn finish_slab(&mut self) -> bool {
        let Some(incoming) = self.incoming.take() else { return true };
        match incoming.slab.arrived() {
            Ok(slab) => {
                self.done.push_back(Completion::Arrived(slab));
                true
            }
            Err((slab, source)) => {
                self.done.push_back(Completion::Returned(slab));
                self.fail(LinkError::Wire { peer: self.peer.clone(), source });
                false
            }
        }
    }

    fn fail_io(&mut self, doing: &'static str, source: io::Error) {
        self.fail(LinkError::Io { peer: self.peer.clone(), doing, source });
    }

    /// Ends the connection: every slab comes back, then `Down`, once.
    fn fail(&mut self, error: LinkError) {
        if self.stream.take().is_none() {
            return;
        }
        for out in self.queue.drain(..) {
            if let Outgoing::Slab(slab) = out {
                self.done.push_back(Completion::Written(slab));
            }
        }
        let unused = self.incoming.take().map(|i| i.slab).into_iter().chain(self.posted.drain(..));
        self.done.extend(unused.map(Completion::Returned));
        self.done.push_back(Completion::Down(error));
    }
}

impl Transport for TcpLink {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        if self.stream.is_none() {
            return Err(Rejected { op, why: RejectReason::Down });
        }
        if let Op::Post(slab) = op {
            self.posted.push_back(slab);
            return Ok(());
        }
        if self.queue.len() == QUEUE {
            return Err(Rejected { op, why: RejectReason::Full });
        }
        match op {
            Op::Write(slab) => self.queue.push_back(Outgoing::Slab(slab)),
            Op::Send(control) => {
                self.queue.push_back(Outgoing::Control(control.encode()));
                self.flush();
            }
            Op::Post(_) => {}
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if self.done.is_empty() && self.stream.is_some() {
            self.flush();
            self.fill();
        }
        self.done.pop_front()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes what the kernel has already received, as far as slabs are posted for it, then closes. Bytes of the peer's reach
    /// a slab only by our own reading, so nothing can land afterwards.
    fn revoke(&mut self) {
        if self.stream.is_some() {
            self.fill();
            self.fail(LinkError::Revoked { peer: self.peer.clone() });
        }
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}
