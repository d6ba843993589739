//! [`TcpLink`]: slabs and control records over one [`Stream`].
//!
//! ```text
//!        peer closed, error, hostile bytes            slabs handed back,
//!  Up ───────────── revoke() ──────────────> Ending ──── one per poll ────> Down reported, Ended
//!   │                                          │
//!   └ reads and writes                         └ touches the socket no more
//! ```
//!
//! What had arrived in full is reported before the slabs come back: reading goes on after a failed write until the kernel
//! has nothing left. With no slab posted it stops before the slab (the peer's window closes: that is the back-pressure), and
//! what lies behind it waits as well, for order's sake. If the peer closes meanwhile, the link goes down at once: what nothing
//! was posted for had not arrived. (A peer's FIN may be stuck behind bytes that our closed window keeps out; that silence is the
//! keepalive's to notice.)
//!
//! # Revocation
//!
//! [`Transport::revoke`] asks the kernel how many bytes have arrived (`FIONREAD`), reads exactly those into the posted slabs,
//! and resets the connection. That needs nothing of the peer, ends after at most a receive buffer's worth of copying, and
//! takes in whatever the peer had got across the wire by then; a slab for which nothing is posted, and what follows it, stays
//! out. Bytes only land in a slab when this code reads them, and it never reads again: late ones die in the kernel.
//!
//! A reset (by `connect` to no address, connect(2)) rather than a close: a close queues up behind what we have sent, and a
//! peer that reads nothing would not learn of it. What we had sent may die on the way; only ACKs could matter, and an ACK
//! that nobody heard releases nothing.

mod rx;
mod tx;

use crate::{options::LinkOptions, stream::Stream};
use mc_core::{
    slab::FreeSlab,
    transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Transport},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rx::{Filled, Inbox};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
};
use tx::{Outbox, Outgoing};

#[derive(Debug)]
enum State {
    Up,
    Ending(LinkError),
    Ended,
}

/// A [`Transport`] over TCP. Warm, it allocates nothing.
#[derive(Debug)]
pub struct TcpLink {
    stream: Stream,
    peer: String,
    inbox: Inbox,
    outbox: Outbox,
    /// Complete, and not yet reported. More than one only after a revocation.
    arrived: VecDeque<Completion>,
    /// Writing failed; the link ends when nothing is left to read.
    broken: Option<LinkError>,
    state: State,
}

impl TcpLink {
    /// A link over a connected stream whose handshake is over, with default options. `slab_size` is the hello's; `peer` is
    /// for messages. Fails if the system refuses a socket option.
    pub fn new(stream: impl Into<Stream>, slab_size: usize, peer: impl Into<String>) -> io::Result<Self> {
        Self::with_options(stream, slab_size, peer, &LinkOptions::default())
    }

    /// As [`TcpLink::new`], with options. Buffer sizes must have been set before the stream was connected.
    pub fn with_options(
        stream: impl Into<Stream>,
        slab_size: usize,
        peer: impl Into<String>,
        options: &LinkOptions,
    ) -> io::Result<Self> {
        let stream = stream.into();
        options.set_stream(stream.socket())?;
        let queue = options.queue.max(1);
        Ok(Self {
            stream,
            peer: peer.into(),
            inbox: Inbox::new(slab_size, queue),
            outbox: Outbox::new(queue),
            arrived: VecDeque::with_capacity(1),
            broken: None,
            state: State::Up,
        })
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// Touches the socket for the last time; the peer shall see it although we still live.
    fn end(&mut self, why: LinkError) {
        if !self.is_up() {
            return;
        }
        match why {
            LinkError::Revoked { .. } | LinkError::Wire { .. } => self.stream.reset(),
            _ => self.stream.shut(),
        }
        self.state = State::Ending(why);
    }

    fn io_error(&self, doing: &'static str, source: io::Error) -> LinkError {
        LinkError::Io { peer: self.peer.clone(), doing, source }
    }

    /// Cuts the next record out of what was read.
    fn parse(&mut self) -> Option<Completion> {
        if !self.is_up() {
            return None;
        }
        self.inbox.next().unwrap_or_else(|source| {
            self.end(LinkError::Wire { peer: self.peer.clone(), source });
            None
        })
    }

    /// A completion that costs no system call.
    fn ready(&mut self) -> Option<Completion> {
        let written = self.outbox.take_written().map(Completion::Written);
        written.or_else(|| self.arrived.pop_front()).or_else(|| self.parse()).or_else(|| self.wind_up())
    }

    /// Once down: the slabs, then the reason, then nothing.
    fn wind_up(&mut self) -> Option<Completion> {
        if !matches!(self.state, State::Ending(_)) {
            return None;
        }
        let slab = self.inbox.take_any().map(Completion::Returned);
        slab.or_else(|| self.outbox.take_any().map(Completion::Written)).or_else(|| {
            let State::Ending(why) = std::mem::replace(&mut self.state, State::Ended) else { return None };
            Some(Completion::Down(why))
        })
    }

    /// Writes what the kernel takes, then reads until a record is complete or the kernel has no more.
    fn exchange(&mut self) {
        if self.broken.is_none()
            && let Err(source) = self.outbox.flush(&mut self.stream)
        {
            self.broken = Some(self.io_error("writing", source));
        }
        while self.is_up() && !self.inbox.is_stalled() {
            match self.inbox.fill(&mut self.stream, usize::MAX) {
                Ok(Filled::Bytes(_)) => {}
                Ok(Filled::Nothing) => break,
                Ok(Filled::End) => self.end_of_stream(),
                Err(source) => self.end(self.io_error("reading", source)),
            }
            if let Some(completion) = self.parse() {
                return self.arrived.push_back(completion);
            }
        }
        self.check_idle();
    }

    /// The peer closed, or a failed write made the kernel say so: the latter knows more.
    fn end_of_stream(&mut self) {
        let closed = LinkError::Closed { peer: self.peer.clone() };
        let why = self.broken.take().unwrap_or(closed);
        self.end(why);
    }

    /// Nothing more can be read: a failed write ends the link now, and so does an end that a stalled reader would not see.
    fn check_idle(&mut self) {
        if let Some(why) = self.broken.take() {
            self.end(why);
        } else if self.is_up() && self.inbox.is_stalled() {
            self.check_hang_up();
        }
    }

    /// A closed connection is a suspicion at once, also while its end lies behind a slab that nothing is posted for.
    fn check_hang_up(&mut self) {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        if polled.is_ok() && !fds[0].revents().is_empty() {
            let closed = LinkError::Closed { peer: self.peer.clone() };
            let error = self.stream.socket().take_error().ok().flatten();
            self.end(error.map_or(closed, |source| self.io_error("waiting to read", source)));
        }
    }

    /// Takes in what the kernel had received when this was called.
    fn drain(&mut self) {
        let mut left = self.stream.arrived();
        loop {
            match self.inbox.next() {
                Ok(Some(completion)) => self.arrived.push_back(completion),
                Ok(None) if left > 0 && !self.inbox.is_stalled() => match self.inbox.fill(&mut self.stream, left) {
                    Ok(Filled::Bytes(bytes)) => left -= bytes.min(left),
                    Ok(Filled::Nothing | Filled::End) | Err(_) => return,
                },
                Ok(None) | Err(_) => return,
            }
        }
    }
}

impl Transport for TcpLink {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        if !self.is_up() {
            return Err(Rejected { op, why: RejectReason::Down });
        }
        let refuse = |slab: FreeSlab| Rejected { op: Op::Post(slab), why: RejectReason::Full };
        if !matches!(op, Op::Post(_)) && self.outbox.is_full() {
            return Err(Rejected { op, why: RejectReason::Full });
        }
        match Outgoing::try_from(op) {
            Ok(outgoing) => self.outbox.push(outgoing),
            Err(slab) => self.inbox.post(slab).map_err(refuse)?,
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.ready() {
            return Some(completion);
        }
        if self.is_up() {
            self.exchange();
        }
        self.ready()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (!matches!(self.state, State::Ended)).then(|| self.stream.as_fd())
    }

    fn wants_read(&self) -> bool {
        !self.inbox.is_stalled()
    }

    fn wants_write(&self) -> bool {
        self.is_up() && (self.outbox.has_bytes() || self.stream.wants_write())
    }

    /// Never fails: only this code writes into slabs.
    fn revoke(&mut self) -> Result<(), NotFenced> {
        if self.is_up() {
            self.drain();
            self.end(LinkError::Revoked { peer: self.peer.clone() });
        }
        Ok(())
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}

/// What is in the kernel is still sent, and the peer learns of the end even if somebody duplicated the descriptor.
impl Drop for TcpLink {
    fn drop(&mut self) {
        if self.is_up() {
            self.stream.shut();
        }
    }
}
