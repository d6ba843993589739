//! What we have sent, for as long as it may have to be sent again.

use crate::{
    slab::SealedSlab,
    transport::{Completion, Op},
    wire::control::Control,
};
use std::collections::VecDeque;

/// An item that is not known to have arrived.
#[derive(Debug)]
pub(super) enum Kept {
    /// A slab that the first path holds, by its address: it comes back.
    Away(usize),
    /// A slab that came back, or never went.
    Slab(SealedSlab),
    /// A record.
    Control(Control),
}

impl Kept {
    /// What is to be remembered of an operation that a link takes; `None` for a post.
    pub(super) fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Write(slab) => Some(Self::Away(address(slab))),
            Op::Send(control) => Some(Self::Control(*control)),
            Op::Post(_) => None,
        }
    }
}

fn address(slab: &SealedSlab) -> usize {
    slab.as_bytes().as_ptr().addr()
}

/// Items in order of submission.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The number of the oldest one kept: all before it arrived.
    settled: u64,
    items: VecDeque<Kept>,
}

impl Ledger {
    pub(super) fn new(capacity: usize) -> Self {
        Self { settled: 0, items: VecDeque::with_capacity(capacity) }
    }

    /// Items that are known to have arrived.
    pub(super) fn settled(&self) -> u64 {
        self.settled
    }

    /// Items taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.settled + self.items.len() as u64
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether the first path has given every slab back.
    pub(super) fn is_home(&self) -> bool {
        !self.items.iter().any(|item| matches!(item, Kept::Away(_)))
    }

    pub(super) fn push(&mut self, item: Kept) {
        self.items.push_back(item);
    }

    /// A slab comes back from the first path. One that it was never given is given on to the caller.
    pub(super) fn home(&mut self, slab: SealedSlab, out: &mut VecDeque<Completion>) {
        let at = address(&slab);
        match self.items.iter_mut().find(|k| matches!(k, Kept::Away(address) if *address == at)) {
            Some(item) => *item = Kept::Slab(slab),
            None => out.push_back(Completion::Written(slab)),
        }
    }

    /// The items before `upto` have arrived: their slabs are the caller's again. Waits for one that is not back yet.
    pub(super) fn settle(&mut self, upto: u64, out: &mut VecDeque<Completion>) {
        while self.settled < upto && !matches!(self.items.front(), None | Some(Kept::Away(_))) {
            self.settled += 1;
            if let Some(Op::Write(slab)) = self.next() {
                out.push_back(Completion::Written(slab));
            }
        }
    }

    /// The oldest item, for the second path, which counts nothing.
    pub(super) fn next(&mut self) -> Option<Op> {
        match self.items.pop_front()? {
            Kept::Slab(slab) => Some(Op::Write(slab)),
            Kept::Control(control) => Some(Op::Send(control)),
            Kept::Away(_) => None,
        }
    }

    /// The second path did not take it.
    pub(super) fn put_back(&mut self, op: Op) {
        match op {
            Op::Write(slab) => self.items.push_front(Kept::Slab(slab)),
            Op::Send(control) => self.items.push_front(Kept::Control(control)),
            Op::Post(_) => {}
        }
    }

    /// Gives one slab back, at the end.
    pub(super) fn take_slab(&mut self) -> Option<SealedSlab> {
        while let Some(item) = self.items.pop_front() {
            if let Kept::Slab(slab) = item {
                return Some(slab);
            }
        }
        None
    }
}
