//! What replication needs of a network: a [`Transport`] for checkpoints and a [`Keepalive`] for beats.
//!
//! Submission and completion, not `async fn`: a dropped future cannot stop a NIC that still reads the slab. `submit` takes
//! ownership, a [`Completion`] gives it back, a refusal gives it back at once. `wait_fd` is for whoever sleeps.
//!
//! Every implementation passes the one suite in `testing/conformance` (feature `testing`).

use crate::{
    slab::{FreeSlab, SealedSlab},
    wire::{WireError, beat, control::Control},
};
use std::{
    fmt::Debug,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// A link between one primary and one standby, for one incarnation. Never blocks.
pub trait Transport: Debug + Send {
    /// Hands over one operation; a refusal gives it back.
    fn submit(&mut self, op: Op) -> Result<(), Rejected>;

    /// Moves bytes, then reports one completion if there is any. Call it until `None`.
    fn poll(&mut self) -> Option<Completion>;

    /// Readable (or writable, if [`Transport::wants_write`]) when `poll` may have something to do. It tells of the network only:
    /// a link may hold what came before an [`Op::Post`] that it lacked, so poll until `None` after each, and wait then.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether `poll` could use what the peer sends. While it is false, a slab waits for an [`Op::Post`], and `wait_fd` may
    /// stay readable without anything to do: wait for errors and a hang-up (`POLLRDHUP`) only.
    fn wants_read(&self) -> bool {
        true
    }

    /// Whether bytes wait for the peer to make room.
    fn wants_write(&self) -> bool {
        false
    }

    /// I3: ends the peer's access to our memory. When it returns success, no byte of the peer's can land in a slab any more.
    /// What had arrived in full before is still reported by `poll`, then `Completion::Down`, and every slab comes back.
    ///
    /// # Errors
    /// The network's hardware or driver does not confirm that: nothing that was staged may be trusted, and no takeover may
    /// rest on it. Slabs that the peer might still write to do not come back.
    fn revoke(&mut self) -> Result<(), NotFenced>;

    /// Who is at the other end, for messages.
    fn peer(&self) -> String;

    /// Why the traffic no longer takes the path that it began on; `None` if there is but one, or it still works.
    fn fell_back(&self) -> Option<&str> {
        None
    }
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        (**self).submit(op)
    }

    fn poll(&mut self) -> Option<Completion> {
        (**self).poll()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).wait_fd()
    }

    fn wants_read(&self) -> bool {
        (**self).wants_read()
    }

    fn wants_write(&self) -> bool {
        (**self).wants_write()
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        (**self).revoke()
    }

    fn peer(&self) -> String {
        (**self).peer()
    }

    fn fell_back(&self) -> Option<&str> {
        (**self).fell_back()
    }
}

/// A transport that another can take over from without a loss: it knows how far it got. An *item* is an [`Op::Write`] or an
/// [`Op::Send`] that it took, counted from 0 in order of submission, in each direction for itself.
pub trait Resumable: Transport {
    /// So many of our items, the first ones, are known to have arrived at the peer's end: it will report them whatever becomes
    /// of the link. A slab that comes back as [`Completion::Written`] from a link that has not failed is among them.
    fn delivered(&self) -> u64;

    /// So many of the peer's items have been reported by `poll`. Final once [`Completion::Down`] was.
    fn received(&self) -> u64;

    /// Whether something has failed: from then on a slab that comes back as written may not have arrived, and nothing more
    /// should be submitted. [`Completion::Down`] follows.
    fn has_failed(&self) -> bool;

    /// Asks the peer's end for a sign of life, on a link that may be idle: one that is gone is then noticed.
    fn nudge(&mut self) {}
}

/// An operation.
#[derive(Debug)]
pub enum Op {
    /// Bulk, towards the standby. The transport owns the slab until [`Completion::Written`].
    Write(SealedSlab),
    /// A slab for the peer to write into. The transport owns it until [`Completion::Arrived`], or [`Completion::Returned`].
    Post(FreeSlab),
    /// Delivered after every earlier `Write`; goes out within `submit` if the network takes it, so that an ACK waits for nobody.
    Send(Control),
}

/// A refused operation, given back.
#[derive(Debug)]
pub struct Rejected {
    /// The operation.
    pub op: Op,
    /// Why.
    pub why: RejectReason,
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The queue is full: poll, then try again.
    Full,
    /// The link is down.
    Down,
}

/// What a transport reports. In order of the wire for what comes from the peer.
#[derive(Debug)]
pub enum Completion {
    /// The transport no longer reads this slab. It says nothing about the peer: only an ACK does (I1).
    Written(SealedSlab),
    /// A slab arrived, header and checksum verified.
    Arrived(SealedSlab),
    /// A posted slab comes back unused: the link is down.
    Returned(FreeSlab),
    /// A control record arrived.
    Received(Control),
    /// The link is gone, for good. Reported once, after all slabs came back.
    Down(LinkError),
}

/// A peer's access to our memory could not be ended.
#[derive(Debug, thiserror::Error)]
#[error("{peer} is not fenced, its writes may still land here: {why}")]
pub struct NotFenced {
    /// Who.
    pub peer: String,
    /// What was tried, and what the system said.
    pub why: String,
}

/// Why a link is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer closed it.
    #[error("{peer} closed the connection")]
    Closed {
        /// Who.
        peer: String,
    },
    /// We did.
    #[error("the connection to {peer} was revoked here")]
    Revoked {
        /// Who.
        peer: String,
    },
    /// The operating system says so.
    #[error("{peer}: {doing}: {source}")]
    Io {
        /// Who.
        peer: String,
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The peer sent what it must not.
    #[error("{peer} sent: {source}")]
    Wire {
        /// Who.
        peer: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The network says so, in words of its own, which name the peer.
    #[error(transparent)]
    Network(Box<dyn std::error::Error + Send + Sync>),
    /// We could not be sure to have ended its access.
    #[error(transparent)]
    NotFenced(#[from] NotFenced),
}

/// Best-effort datagrams for beats, apart from the bulk link: loss is normal, delay is not. Never blocks.
pub trait Keepalive: Debug + Send {
    /// Sends one beat to every other member.
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()>;

    /// Takes one datagram that has arrived, if any; longer ones are cut off at the buffer's end.
    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>>;

    /// Waits until a datagram has arrived or `timeout` has passed.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}

/// A keepalive that can be waited for together with others: the descriptor is readable once something has arrived.
pub trait PollableKeepalive: Keepalive + AsFd {
    /// Call it before each wait on the descriptor: what arrives afterwards makes that readable. True: something may be there
    /// already, so do not wait.
    fn arm(&mut self) -> io::Result<bool>;
}
