//! [`RdmaLink`]: the state of a link, its completions, and sleeping.
//!
//! ```text
//!        a work request failed, a bye,
//!        hostile messages                       the peer fenced; slabs handed back,
//!  Up ───────────── revoke() ──────────────> Ending ──── one per poll ────> Down reported, Ended
//! ```
//!
//! However a link ends, the peer's access ends with it, before the first slab comes back. If that cannot be had, slabs that the
//! peer could still write to never come back, and `Down` says so.

use super::{
    Parts,
    bell::Bell,
    fence,
    receive::Receiver,
    send::{Outgoing, Sender, Trouble},
};
use crate::{
    error::{RdmaError, WorkFailure},
    ffi::status_words,
    types::{Completion as Done, FLUSHED},
};
use mc_core::{
    transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Resumable, Transport},
    wire::{
        WireError,
        control::Control,
        rdma::{Body, Endpoint, Message},
    },
};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

/// Completions taken at a time: so that neither direction starves the other.
const ROUND: usize = 64;

#[derive(Debug)]
enum State {
    Up,
    Ending(LinkError),
    Ended,
}

/// A [`Transport`] over reliable queue pairs. Warm, it allocates nothing on one queue pair.
#[derive(Debug)]
pub struct RdmaLink {
    pub(super) sender: Sender,
    receiver: Receiver,
    ready: VecDeque<Completion>,
    /// Arrived and reported, slabs and records.
    received: u64,
    bell: Bell,
    state: State,
    /// Not [`State::Ended`] yet, but nothing can be relied on.
    failed: bool,
    peer: String,
    pub(super) parts: Parts,
}

impl RdmaLink {
    pub(super) fn new(parts: Parts, receiver: Receiver, theirs: &Endpoint, peer: String, speaks_first: bool) -> Self {
        let sender = Sender::new(&parts.domain, &parts.queues, parts.options, theirs.receives, speaks_first);
        let ready = VecDeque::with_capacity(2 * ROUND);
        let (received, state) = (0, State::Up);
        Self { sender, receiver, ready, received, bell: Bell::default(), state, failed: false, peer, parts }
    }

    /// Number of the queue pair that carries the messages.
    #[must_use]
    pub fn qpn(&self) -> u32 {
        self.parts.queues[0].number()
    }

    /// The local ACK timeout's code, and the retries, in force.
    #[must_use]
    pub fn timeout(&self) -> (u8, u8) {
        (self.parts.options.timeout_code(&self.parts.place), self.parts.options.retry)
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// Ends the link: the peer is fenced, what had arrived is kept for `poll`.
    fn end(&mut self, why: LinkError) -> Result<(), NotFenced> {
        if !self.is_up() {
            return Ok(());
        }
        self.failed = true;
        self.state = State::Ending(why);
        if let Err(why) = self.fence() {
            self.receiver.abandon();
            let error = || NotFenced { peer: self.peer.clone(), why: why.clone() };
            self.state = State::Ending(error().into());
            return Err(error());
        }
        Ok(())
    }

    /// See [`fence`] for the order. Goes on after an error, to stop as much as can be stopped.
    fn fence(&mut self) -> Result<(), String> {
        self.sender.bye(&mut self.receiver);
        let deregistered = self.receiver.deregister().map_err(fence::failed("ibv_dereg_mr"));
        let mut late = VecDeque::new();
        if matches!(self.state, State::Ending(LinkError::Revoked { .. })) {
            self.linger(&mut late);
        }
        let stopped = fence::stop(&self.parts, |is_receive, done| late.push_back((is_receive, done)));
        let destroyed = fence::destroy(&self.parts, |is_receive, done| late.push_back((is_receive, done)));
        self.salvage(late);
        deregistered.and(stopped).and(destroyed)
    }

    /// Gives a peer that lives the time to take what was posted, for as long as it does.
    fn linger(&mut self, late: &mut VecDeque<(bool, Done)>) {
        let (start, patience) = (Instant::now(), self.parts.options.farewell);
        let mut progress = start;
        while self.sender.has_posted() && progress.elapsed() < patience && start.elapsed() < 10 * patience {
            let before = late.len();
            if fence::drain(&self.parts, &mut |is_receive, done| late.push_back((is_receive, done))) {
                progress = Instant::now();
            }
            let new = late.iter().skip(before);
            if new.clone().any(|(_, done)| done.status != 0) {
                return;
            }
            new.filter(|(is_receive, _)| !is_receive).for_each(|(_, done)| self.sender.completed(done.id));
        }
    }

    /// What had arrived before the end. The first message that is wrong ends it: what follows cannot be trusted.
    fn salvage(&mut self, late: VecDeque<(bool, Done)>) {
        let mut trusted = true;
        for (is_receive, done) in late {
            if done.status != 0 {
                continue;
            }
            if !is_receive {
                self.sender.completed(done.id);
            } else if trusted {
                let message = self.receiver.take_last(&done);
                trusted = message.and_then(|m| self.understand(m)).is_ok_and(|goes_on| goes_on);
            }
        }
    }

    fn fail(&mut self, error: RdmaError) {
        // A failed fence is reported with `Down`.
        let _ = self.end(LinkError::Network(Box::new(error)));
    }

    fn trouble(&mut self, trouble: Trouble) {
        let peer = self.peer.clone();
        self.fail(match trouble {
            Trouble::Post { queue, source } => {
                let qpn = self.parts.queues.get(queue).map_or(0, |q| q.number());
                RdmaError::Verb { peer, qpn, doing: "posting work requests", source }
            }
            Trouble::Register { bytes, source } => {
                RdmaError::Register { peer, device: self.parts.place.context.name().to_owned(), bytes, source }
            }
        });
    }

    fn pump(&mut self) {
        if self.is_up()
            && let Err(trouble) = self.sender.pump(&mut self.receiver)
        {
            self.trouble(trouble);
        }
    }

    /// Takes completions in. Whether there were any.
    fn reap(&mut self) -> bool {
        let mut any = false;
        for _ in 0..ROUND {
            if !self.is_up() {
                return true;
            }
            let (sent, received) = (self.parts.send_cq.poll(), self.parts.receive_cq.poll());
            match (sent, received) {
                (Ok(None), Ok(None)) => return any,
                (Err(error), _) | (_, Err(error)) => self.verb_failed("polling for completions", error),
                (Ok(sent), Ok(received)) => {
                    any = true;
                    self.bell.rang([sent.is_some(), received.is_some()]);
                    // What has arrived is reported before a failure ends the link; a flushed receive knows less than a
                    // failed work request.
                    let ok = |done: &Done| done.status == 0;
                    sent.filter(ok).into_iter().for_each(|done| self.sender.completed(done.id));
                    received.filter(ok).into_iter().for_each(|done| self.received_one(&done));
                    sent.filter(|done| !ok(done)).into_iter().for_each(|done| self.send_failed(&done));
                    received.filter(|done| !ok(done)).into_iter().for_each(|done| self.receive_failed(&done));
                }
            }
        }
        any
    }

    fn verb_failed(&mut self, doing: &'static str, source: io::Error) {
        self.fail(RdmaError::Verb { peer: self.peer.clone(), qpn: self.qpn(), doing, source });
    }

    fn send_failed(&mut self, done: &Done) {
        if self.is_up() {
            let (qpn, kind, at) = self.sender.describe(done.id);
            self.work_failed(qpn, kind, done, at.map(|at| at.elapsed()));
        }
    }

    fn receive_failed(&mut self, done: &Done) {
        self.look_for_the_cause();
        if self.is_up() {
            self.work_failed(self.qpn(), "RECV", done, None);
        }
    }

    fn received_one(&mut self, done: &Done) {
        let message = match self.receiver.take(done) {
            Err(error) => return self.verb_failed("posting a receive", error),
            Ok(message) => message,
        };
        match message.and_then(|m| self.understand(m)) {
            Ok(true) => {}
            Ok(false) => {
                let closed = LinkError::Closed { peer: self.peer.clone() };
                let _ = self.end(closed);
            }
            Err(source) => self.fail(RdmaError::Wire { peer: self.peer.clone(), source }),
        }
    }

    /// A receive that comes back flushed tells of a failure, but not which: a work request of ours may know, in a moment.
    fn look_for_the_cause(&mut self) {
        let start = Instant::now();
        while self.is_up() && self.sender.has_posted() && start.elapsed() < fence::FLUSH {
            match self.parts.send_cq.poll() {
                Ok(Some(done)) if done.status == 0 => self.sender.completed(done.id),
                Ok(Some(done)) if done.status != FLUSHED => self.send_failed(&done),
                Ok(Some(_)) | Err(_) => return,
                Ok(None) => std::thread::yield_now(),
            }
        }
    }

    fn work_failed(&mut self, qpn: u32, kind: &'static str, done: &Done, elapsed: Option<std::time::Duration>) {
        let (timeout, retry) = self.timeout();
        let (status, words, vendor) = (done.status, status_words(done.status), done.vendor);
        let failure = Box::new(WorkFailure { kind, status, words, vendor, elapsed, timeout, retry });
        self.fail(RdmaError::Work { peer: self.peer.clone(), qpn, failure });
    }

    /// False: the peer says goodbye.
    fn understand(&mut self, message: Message) -> Result<bool, WireError> {
        self.sender.credit(message.credits)?;
        match message.body {
            Body::Credits => {}
            Body::Part { slot, len } => self.receiver.part(slot, len)?,
            Body::Slot(slot) => self.sender.slot(slot)?,
            Body::Control(record) => {
                let control = Control::decode(&record)?;
                self.received += 1;
                self.ready.push_back(Completion::Received(control));
            }
            Body::Slab { slot, len } => {
                let slab = self.receiver.arrived(slot, len)?;
                self.received += 1;
                self.ready.push_back(Completion::Arrived(slab));
            }
            Body::Bye => return Ok(false),
        }
        Ok(true)
    }

    /// What can be reported without asking the device.
    fn report(&mut self) -> Option<Completion> {
        let written = self.sender.take_written().map(Completion::Written);
        written.or_else(|| self.ready.pop_front()).or_else(|| self.wind_up())
    }

    /// Once down: the slabs, then the reason, then nothing.
    fn wind_up(&mut self) -> Option<Completion> {
        if !matches!(self.state, State::Ending(_)) {
            return None;
        }
        let slab = self.receiver.take_any().map(Completion::Returned);
        slab.or_else(|| self.sender.take_any().map(Completion::Written)).or_else(|| {
            let State::Ending(why) = std::mem::replace(&mut self.state, State::Ended) else { return None };
            Some(Completion::Down(why))
        })
    }

    /// Nothing is ready: the next completion shall wake who sleeps. Whether one came just before.
    fn arm(&mut self) -> bool {
        let queues = [&self.parts.send_cq, &self.parts.receive_cq];
        match self.bell.set(&self.parts.channel, queues) {
            Ok(false) => false,
            Ok(true) => self.reap(),
            Err(error) => {
                self.verb_failed("arming completion queues", error);
                true
            }
        }
    }
}

impl Transport for RdmaLink {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        let refuse = |op, why| Err(Rejected { op, why });
        if !self.is_up() {
            return refuse(op, RejectReason::Down);
        }
        match op {
            Op::Post(slab) if self.receiver.is_full() => return refuse(Op::Post(slab), RejectReason::Full),
            Op::Post(slab) => {
                let bytes = slab.len();
                if let Err((slab, source)) = self.receiver.post(slab, &self.parts.domain) {
                    self.trouble(Trouble::Register { bytes, source });
                    return refuse(Op::Post(slab), RejectReason::Down);
                }
            }
            op if self.sender.is_full() => return refuse(op, RejectReason::Full),
            Op::Write(slab) => self.sender.push(Outgoing::Slab(slab)),
            Op::Send(control) => self.sender.push(Outgoing::Control(control)),
        }
        self.pump();
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.report() {
            return Some(completion);
        }
        if !self.is_up() {
            return None;
        }
        self.pump();
        if self.reap() || self.arm() {
            self.pump();
        }
        self.report()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (!matches!(self.state, State::Ended)).then(|| self.parts.channel.as_fd())
    }

    fn wants_write(&self) -> bool {
        self.is_up() && self.sender.waits()
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        match &self.state {
            State::Ending(LinkError::NotFenced(NotFenced { peer, why })) => {
                Err(NotFenced { peer: peer.clone(), why: why.clone() })
            }
            State::Up => self.end(LinkError::Revoked { peer: self.peer.clone() }),
            _ => Ok(()),
        }
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}

impl Resumable for RdmaLink {
    fn delivered(&self) -> u64 {
        self.sender.delivered()
    }

    fn received(&self) -> u64 {
        self.received
    }

    fn has_failed(&self) -> bool {
        self.failed
    }

    /// A message that nobody acknowledges fails when the device's retries are used up. An idle queue pair notices nothing.
    fn nudge(&mut self) {
        self.sender.nudge();
        self.pump();
    }
}

/// The peer is told, and fenced, however the link goes.
impl Drop for RdmaLink {
    fn drop(&mut self) {
        if let Err(error) = self.revoke() {
            tracing::error!(%error, "a link was dropped");
        }
    }
}
