//! A link in memory that can be cut after any message, with or without what was under way.

use mc_core::{
    slab::{FreeSlab, SealedSlab},
    transport::{Completion, LinkError, NotFenced, Op, RejectReason, Rejected, Transport},
    wire::control::Control,
};
use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
};

/// Slabs under way at most; then a submit is refused as full.
const QUEUE: usize = 3;

#[derive(Debug)]
enum Item {
    Slab(SealedSlab),
    Control(Control),
}

#[derive(Debug, Default)]
struct Side {
    /// Sent to this side, not delivered yet.
    inbound: VecDeque<Item>,
    /// Arrived before the link went down.
    ready: VecDeque<Item>,
    posted: VecDeque<FreeSlab>,
    written: VecDeque<SealedSlab>,
    told_down: bool,
}

/// How a link ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// After so many messages were delivered, in both directions together.
    pub(crate) after: usize,
    /// Whether what was under way still arrives, as far as slabs are posted for it.
    pub(crate) drain: bool,
}

#[derive(Debug)]
struct Wire {
    sides: [Side; 2],
    cut: Option<Cut>,
    delivered: usize,
    down: bool,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Arc<Mutex<Wire>>,
    side: usize,
}

/// Looks at a link from outside.
#[derive(Clone, Debug)]
pub(crate) struct Probe(Arc<Mutex<Wire>>);

/// The primary's end, the standby's, and a probe.
pub(crate) fn pair(cut: Option<Cut>) -> (Link, Link, Probe) {
    let wire = Wire { sides: Default::default(), cut, delivered: 0, down: false };
    let wire = Arc::new(Mutex::new(wire));
    wire.lock().unwrap().cut_if_due();
    (Link { wire: wire.clone(), side: 0 }, Link { wire: wire.clone(), side: 1 }, Probe(wire))
}

impl Probe {
    /// Messages delivered so far.
    pub(crate) fn delivered(&self) -> usize {
        self.0.lock().unwrap().delivered
    }

    /// Whether the primary's end has something to report: what its descriptor would say.
    pub(crate) fn waits(&self) -> bool {
        let wire = self.0.lock().unwrap();
        let Side { inbound, ready, written, .. } = &wire.sides[0];
        wire.down || !(inbound.is_empty() && ready.is_empty() && written.is_empty())
    }
}

impl Wire {
    /// What is under way arrives, as far as there is room, or is lost; what was to be sent goes back.
    fn kill(&mut self, drain: bool) {
        if std::mem::replace(&mut self.down, true) {
            return;
        }
        for receiver in 0..2 {
            let mut arrives = drain;
            while let Some(item) = self.sides[receiver].inbound.pop_front() {
                let room = matches!(item, Item::Control(_)) || !self.sides[receiver].posted.is_empty();
                arrives &= room;
                let arrived = self.land(receiver, item, arrives);
                self.sides[receiver].ready.extend(arrived);
            }
        }
    }

    /// Copies a slab into a posted one, and gives the sender its own back.
    fn land(&mut self, receiver: usize, item: Item, arrives: bool) -> Option<Item> {
        let slab = match item {
            Item::Slab(slab) => slab,
            control @ Item::Control(_) => return arrives.then_some(control),
        };
        let arrived = arrives.then(|| {
            let mut to = self.sides[receiver].posted.pop_front().expect("there is room");
            to.receive_buffer()[..slab.as_bytes().len()].copy_from_slice(slab.as_bytes());
            Item::Slab(to.arrived().expect("a faithful copy"))
        });
        self.sides[1 - receiver].written.push_back(slab);
        arrived
    }

    fn deliver(&mut self, side: usize) -> Option<Item> {
        let next = self.sides[side].inbound.front()?;
        if matches!(next, Item::Slab(_)) && self.sides[side].posted.is_empty() {
            return None;
        }
        let item = self.sides[side].inbound.pop_front()?;
        let item = self.land(side, item, true);
        self.delivered += 1;
        self.cut_if_due();
        item
    }

    fn cut_if_due(&mut self) {
        if let Some(cut) = self.cut.filter(|c| self.delivered >= c.after) {
            self.kill(cut.drain);
        }
    }

    fn poll(&mut self, side: usize) -> Option<Completion> {
        if let Some(slab) = self.sides[side].written.pop_front() {
            return Some(Completion::Written(slab));
        }
        let item = self.sides[side].ready.pop_front().or_else(|| self.deliver(side));
        match item {
            Some(Item::Slab(slab)) => return Some(Completion::Arrived(slab)),
            Some(Item::Control(control)) => return Some(Completion::Received(control)),
            None if !self.down => return None,
            None => {}
        }
        if let Some(slab) = self.sides[side].posted.pop_front() {
            return Some(Completion::Returned(slab));
        }
        let told = std::mem::replace(&mut self.sides[side].told_down, true);
        (!told).then(|| Completion::Down(LinkError::Closed { peer: "the other side".to_owned() }))
    }
}

impl Transport for Link {
    fn submit(&mut self, op: Op) -> Result<(), Rejected> {
        let mut wire = self.wire.lock().unwrap();
        if wire.down {
            return Err(Rejected { op, why: RejectReason::Down });
        }
        let peer = 1 - self.side;
        match op {
            Op::Write(slab) if wire.sides[peer].inbound.len() >= QUEUE => {
                return Err(Rejected { op: Op::Write(slab), why: RejectReason::Full });
            }
            Op::Write(slab) => wire.sides[peer].inbound.push_back(Item::Slab(slab)),
            Op::Send(control) => wire.sides[peer].inbound.push_back(Item::Control(control)),
            Op::Post(slab) => wire.sides[self.side].posted.push_back(slab),
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        self.wire.lock().unwrap().poll(self.side)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn revoke(&mut self) -> Result<(), NotFenced> {
        self.wire.lock().unwrap().kill(true);
        Ok(())
    }

    fn peer(&self) -> String {
        "the other side".to_owned()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Ok(mut wire) = self.wire.lock() {
            wire.kill(true);
        }
    }
}
