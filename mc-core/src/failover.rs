//! A transport made of two: the first carries everything while it works, the second stands by and takes over.
//!
//! ```text
//!                 the first is down, or the peer says
//!                 that it is (then it is revoked)           the peer's count
//!   First(link) ───────────────────────────────────> Moving ───────────────> Second
//!     │  └ the second goes down: noted; the first goes on │ rerouted sent,       │ what had not arrived is sent again,
//!     │                                                   │ posts moved          │ then what was submitted meanwhile
//!     │ both are down                                     │ the second is down   │ the second is down
//!     └────────────────────────> Ending <─────────────────┴──────────────────────┘
//!                                  │ slabs handed back, one per poll
//!                                  └──> Down reported, Ended
//! ```
//!
//! # How nothing is lost, doubled or reordered
//!
//! Slabs and records are items, numbered in order of submission, in each direction. While the first path works each is kept
//! (a record copied, a slab by its address) until the path knows that it arrived ([`Resumable::delivered`]). When it fails,
//! each side says over the second path how many items arrived by the first ([`Body::Rerouted`]): once its own link is down,
//! so that the number is final. The other side sends exactly the items from there on. Before that record nothing goes over
//! the second path, and after its own link is down nothing arrives by the first: so the order is kept as well.
//!
//! A slab is `Written` only when it is known to have arrived, or when the link ends.
//!
//! # Revocation (I3)
//!
//! [`Transport::revoke`] revokes both paths. Posted slabs move to the second only when the first has given them back, which it
//! does only when the peer can no longer write to them. A first path that cannot confirm that ends the whole link.

mod error;
mod kept;
mod link;

pub use error::FailoverError;

use crate::{
    id::{Epoch, Generation, Incarnation},
    slab::FreeSlab,
    transport::{Completion, LinkError, NotFenced, Op, Rejected, Resumable, Transport},
    wire::control::{Body, Control},
};
use error::{unexpected, violation};
use kept::Ledger;
use std::{collections::VecDeque, os::fd::OwnedFd};

#[derive(Debug)]
enum State<A> {
    First(A),
    Moving,
    Second,
    Ending(LinkError),
    Ended,
}

/// See the module.
#[derive(Debug)]
pub struct Failover<A, B> {
    state: State<A>,
    second: Option<B>,
    /// Readable when either path's descriptor is.
    both: Option<OwnedFd>,
    incarnation: Incarnation,
    peer: String,
    queue: usize,
    sent: Ledger,
    /// Slabs for the peer that neither path holds.
    posted: VecDeque<FreeSlab>,
    ready: VecDeque<Completion>,
    /// Items that arrived by the first path; final when it is down.
    received: u64,
    /// The same of the peer's.
    theirs: Option<u64>,
    told: bool,
    /// Revoked, or the peer is not to be believed: both paths were ended, nothing more is submitted.
    stop: Option<LinkError>,
    first_lost: Option<LinkError>,
    second_lost: Option<LinkError>,
    /// Why the first was left, once it was.
    fell_back: Option<String>,
}

impl<A: Resumable, B: Transport> Failover<A, B> {
    /// A link over `first`, with `second` to fall back to: both to the same peer, neither used yet. `queue` bounds what is
    /// accepted while the paths are changed, as it does each path's own queue. `both` is readable whenever one of their
    /// [`Transport::wait_fd`]s is: an `epoll(7)` set, level-triggered, made by whoever may have descriptors. Without it the
    /// owner polls.
    #[must_use]
    pub fn new(first: A, second: B, both: Option<OwnedFd>, incarnation: Incarnation, queue: usize) -> Self {
        Self::with_state(State::First(first), second, both, incarnation, queue)
    }

    /// A link whose first path failed before it carried anything, `why`, although the peer counts on it.
    #[must_use]
    pub fn without_first(why: LinkError, second: B, incarnation: Incarnation, queue: usize) -> Self {
        let mut this = Self::with_state(State::Moving, second, None, incarnation, queue);
        this.first_lost = Some(why);
        this
    }

    fn with_state(state: State<A>, second: B, both: Option<OwnedFd>, incarnation: Incarnation, queue: usize) -> Self {
        let queue = queue.max(1);
        Self {
            state,
            peer: second.peer(),
            second: Some(second),
            both,
            incarnation,
            queue,
            sent: Ledger::new(2 * queue),
            posted: VecDeque::with_capacity(queue),
            ready: VecDeque::with_capacity(2 * queue),
            received: 0,
            theirs: None,
            told: false,
            stop: None,
            first_lost: None,
            second_lost: None,
            fell_back: None,
        }
    }

    /// The first path, while it is in use.
    #[must_use]
    pub fn first(&self) -> Option<&A> {
        if let State::First(first) = &self.state { Some(first) } else { None }
    }

    /// The second path, as long as it works.
    #[must_use]
    pub fn second(&self) -> Option<&B> {
        self.second.as_ref()
    }

    /// One step of [`State::First`]; false if there is nothing to do.
    fn poll_first(&mut self) -> bool {
        let State::First(first) = &mut self.state else { return false };
        let completion = first.poll();
        let is_idle = completion.is_none();
        match completion {
            None => {}
            Some(Completion::Written(slab)) => self.sent.home(slab, &mut self.ready),
            Some(Completion::Returned(slab)) => self.posted.push_back(slab),
            Some(Completion::Down(why)) => {
                self.first_is_down(why);
                return true;
            }
            Some(arrived) => self.ready.push_back(arrived),
        }
        self.sent.settle(first.delivered(), &mut self.ready);
        !is_idle || !self.ready.is_empty() || self.watch_second()
    }

    /// While the first path works, the second may say that the peer has left it, or end.
    fn watch_second(&mut self) -> bool {
        if self.stop.is_some() || self.theirs.is_some() {
            return false;
        }
        let Some(completion) = self.second.as_mut().and_then(Transport::poll) else { return false };
        match completion {
            Completion::Received(Control { incarnation, body: Body::Rerouted { received }, .. })
                if incarnation == self.incarnation =>
            {
                self.peer_left(received);
            }
            Completion::Down(why) => {
                tracing::warn!(error = %why, "the link has lost what it could fall back to");
                self.second_lost = Some(why);
                self.second = None; // its descriptor leaves the set
                // Perhaps the peer is gone altogether, and the first path too idle to know.
                if let State::First(first) = &mut self.state {
                    first.nudge();
                }
            }
            other => self.halt(unexpected(&self.peer, &other)),
        }
        true
    }

    /// The peer's end of the first path has failed; ours may not know. What had arrived is still reported.
    fn peer_left(&mut self, received: u64) {
        self.theirs = Some(received);
        let State::First(first) = &mut self.state else { return };
        if let Err(not_fenced) = first.revoke() {
            self.halt(not_fenced.into());
        }
    }

    fn first_is_down(&mut self, why: LinkError) {
        let State::First(first) = std::mem::replace(&mut self.state, State::Moving) else { return };
        self.sent.settle(first.delivered(), &mut self.ready);
        self.received = first.received();
        drop(first);
        if matches!(why, LinkError::NotFenced(_)) && self.stop.is_none() {
            return self.halt(why);
        }
        debug_assert!(self.sent.is_home(), "the first path went down with a slab");
        let left = || LinkError::Network(Box::new(FailoverError::PeerLeft { peer: self.peer.clone() }));
        self.first_lost = Some(if self.theirs.is_some() { left() } else { why });
        if self.second.is_none() {
            self.end();
        }
    }

    /// One step of [`State::Moving`]: posts first, so that what the peer sends has somewhere to go; then our count; then we
    /// wait for theirs.
    fn poll_moving(&mut self) -> bool {
        self.move_posts();
        self.tell();
        if let Some(received) = self.theirs.take() {
            self.resume(received);
            return true;
        }
        match self.second.as_mut().and_then(Transport::poll) {
            None => return false,
            Some(Completion::Received(Control { incarnation, body: Body::Rerouted { received }, .. }))
                if incarnation == self.incarnation =>
            {
                self.theirs = Some(received);
            }
            Some(Completion::Received(other)) => self.halt(unexpected(&self.peer, &Completion::Received(other))),
            Some(Completion::Arrived(slab)) => {
                self.posted.push_back(slab.recycle());
                self.halt(violation(&self.peer, 0, "a slab came before it"));
            }
            Some(other) => self.second_reports(other),
        }
        true
    }

    fn tell(&mut self) {
        let Some(second) = self.second.as_mut().filter(|_| !self.told) else { return };
        let body = Body::Rerouted { received: self.received };
        let (generation, epoch) = (Generation(0), Epoch(0));
        let control = Control { incarnation: self.incarnation, generation, epoch, body };
        // A refusal is followed by its `Down`; a full queue has room at the next poll.
        self.told = second.submit(Op::Send(control)).is_ok();
    }

    /// The peer has said how far we got: the rest goes the second way.
    fn resume(&mut self, received: u64) {
        if received > self.sent.taken() {
            return self.halt(violation(&self.peer, received, "more than was sent"));
        }
        if received < self.sent.settled() {
            return self.halt(violation(&self.peer, received, "less than had arrived"));
        }
        self.sent.settle(received, &mut self.ready);
        if self.stop.is_none() {
            let why = self.first_lost.as_ref().map_or_else(String::new, ToString::to_string);
            let again = self.sent.len();
            tracing::warn!(why, arrived = received, again, "the link falls back to its second path");
            self.fell_back = Some(why);
        }
        self.state = State::Second;
    }

    fn poll_second(&mut self) -> bool {
        self.move_posts();
        self.resubmit();
        match self.second.as_mut().and_then(Transport::poll) {
            None => return false,
            Some(Completion::Received(Control { body: Body::Rerouted { received }, .. })) => {
                self.halt(violation(&self.peer, received, "said twice"));
            }
            Some(completion) => self.second_reports(completion),
        }
        true
    }

    /// What the second path reports once it is in use. A peer that is not to be believed has nothing to say any more.
    fn second_reports(&mut self, completion: Completion) {
        let distrusted = self.stop.as_ref().is_some_and(|why| !matches!(why, LinkError::Revoked { .. }));
        match completion {
            Completion::Down(why) => {
                self.second = None;
                self.second_lost = Some(why);
                self.end();
            }
            Completion::Arrived(slab) if distrusted => self.ready.push_back(Completion::Returned(slab.recycle())),
            Completion::Received(_) if distrusted => {}
            other => self.ready.push_back(other),
        }
    }

    fn move_posts(&mut self) {
        let Some(second) = &mut self.second else { return };
        while let Some(slab) = self.posted.pop_front() {
            if let Err(Rejected { op: Op::Post(slab), .. }) = second.submit(Op::Post(slab)) {
                self.posted.push_front(slab);
                return;
            }
        }
    }

    fn resubmit(&mut self) {
        let Some(second) = &mut self.second else { return };
        while let Some(op) = self.sent.next() {
            if let Err(Rejected { op, .. }) = second.submit(op) {
                self.sent.put_back(op);
                return;
            }
        }
    }

    /// Ends both paths for a reason of our own.
    fn halt(&mut self, why: LinkError) {
        let revoked = self.revoke_both();
        // What cannot be fenced is the graver news.
        self.stop = Some(revoked.err().map_or(why, LinkError::from));
        if self.second.is_none() && !matches!(self.state, State::First(_)) {
            self.end();
        }
    }

    fn revoke_both(&mut self) -> Result<(), NotFenced> {
        let first = if let State::First(first) = &mut self.state { first.revoke() } else { Ok(()) };
        let second = self.second.as_mut().map_or(Ok(()), Transport::revoke);
        first.and(second)
    }

    /// Both paths are down.
    fn end(&mut self) {
        let peer = || self.peer.clone();
        let first = self.first_lost.take();
        let second = self.second_lost.take().unwrap_or_else(|| LinkError::Closed { peer: peer() });
        let why = self.stop.take().unwrap_or_else(|| match first {
            None => second,
            Some(first) => LinkError::Network(Box::new(if matches!(self.state, State::Second) {
                FailoverError::Both { first, second }
            } else {
                FailoverError::NothingLeft { first, second }
            })),
        });
        self.state = State::Ending(why);
    }

    /// Once down: the slabs, then the reason, then nothing.
    fn wind_up(&mut self) -> Option<Completion> {
        let slab = self.posted.pop_front().map(Completion::Returned);
        slab.or_else(|| self.sent.take_slab().map(Completion::Written)).or_else(|| {
            let State::Ending(why) = std::mem::replace(&mut self.state, State::Ended) else { return None };
            Some(Completion::Down(why))
        })
    }
}
