//! What the owner of a link of two paths sees: operations go to the path in use, or wait for it.

use super::{Failover, State, kept::Kept};
use crate::transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Resumable, Transport};
use std::os::fd::{AsFd, BorrowedFd};

impl<A: Resumable, B: Transport> Failover<A, B> {
    /// Keeps an operation for the second path.
    fn keep(&mut self, op: Op) -> Result<(), Rejected> {
        let is_full = match &op {
            Op::Post(_) => self.posted.len() >= self.queue,
            _ => self.sent.len() >= 2 * self.queue,
        };
        match op {
            op if is_full => return Err(Rejected { op, why: RejectReason::Full }),
            Op::Post(slab) => self.posted.push_back(slab),
            Op::Write(slab) => self.sent.push(Kept::Slab(slab)),
            Op::Send(control) => self.sent.push(Kept::Control(control)),
        }
        Ok(())
    }
}

impl<A: Resumable, B: Transport> Transport for Failover<A, B> {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        if self.stop.is_some() {
            return Err(Rejected { op, why: RejectReason::Down });
        }
        let goes_second = if matches!(op, Op::Post(_)) { self.posted.is_empty() } else { self.sent.is_empty() };
        match &mut self.state {
            State::First(first) if !first.has_failed() => {
                let kept = Kept::of(&op);
                match first.submit(op) {
                    Ok(()) => kept.into_iter().for_each(|item| self.sent.push(item)),
                    Err(Rejected { op, why: RejectReason::Down }) => self.keep(op)?,
                    Err(full) => return Err(full),
                }
                Ok(())
            }
            State::First(_) | State::Moving => self.keep(op),
            State::Second if goes_second => match &mut self.second {
                Some(second) => second.submit(op),
                None => Err(Rejected { op, why: RejectReason::Down }),
            },
            State::Second => self.keep(op),
            State::Ending(_) | State::Ended => Err(Rejected { op, why: RejectReason::Down }),
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.ready.pop_front() {
                return Some(completion);
            }
            let goes_on = match &self.state {
                State::First(_) => self.poll_first(),
                State::Moving => self.poll_moving(),
                State::Second => self.poll_second(),
                State::Ending(_) => return self.wind_up(),
                State::Ended => return None,
            };
            if !goes_on {
                return None;
            }
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::First(_) => self.both.as_ref().map(AsFd::as_fd),
            _ => self.second.as_ref().and_then(Transport::wait_fd),
        }
    }

    /// While the first path works, the set says by itself what there is to wait for.
    fn wants_read(&self) -> bool {
        matches!(self.state, State::First(_)) || self.second.as_ref().is_none_or(Transport::wants_read)
    }

    fn wants_write(&self) -> bool {
        match &self.state {
            State::First(first) => first.wants_write(),
            _ => self.second.as_ref().is_some_and(Transport::wants_write),
        }
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        if !matches!(self.state, State::Ended) {
            let peer = self.peer.clone();
            self.stop.get_or_insert(LinkError::Revoked { peer });
        }
        self.revoke_both()
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn fell_back(&self) -> Option<&str> {
        self.fell_back.as_deref()
    }
}
