//! One end under test, with everything that must hold of any end; and two of them.

use super::Fabric;
use crate::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{FreeSlab, SealedSlab, SlabMeta, SlabPool},
    testing::Rng,
    transport::{Completion, LinkError, Op, RejectReason, Rejected, Transport},
    wire::control::{Body, Control},
};

/// How often a fabric may idle before a wait is called a hang.
const PATIENCE: u32 = 100_000;

/// What crossed the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Control(Control),
    Slab(Vec<u8>),
}

impl Item {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Control(_) => crate::wire::control::LEN,
            Self::Slab(bytes) => bytes.len(),
        }
    }
}

/// An end, the slabs it owns, and what it saw.
pub(super) struct Station<T> {
    pub(super) link: T,
    pub(super) pool: SlabPool,
    /// Accepted by the link.
    pub(super) sent: Vec<Item>,
    /// Reported by the link.
    pub(super) seen: Vec<Item>,
    pub(super) down: Option<LinkError>,
    /// Slabs that the link holds to send.
    pub(super) writing: usize,
    /// Slabs that the link holds to receive into.
    pub(super) posted: usize,
    serial: u32,
}

impl<T: Transport> Station<T> {
    fn new(link: T, slab_size: usize, slabs: usize) -> Self {
        let pool = SlabPool::new(slab_size, slabs * slab_size);
        Self { link, pool, sent: Vec::new(), seen: Vec::new(), down: None, writing: 0, posted: 0, serial: 0 }
    }

    pub(super) fn control(&mut self) -> Control {
        self.serial += 1;
        let body = Body::Commit { slabs: self.serial, bytes: u64::from(self.serial) * 3, device_bytes: 5, held: true };
        Control { incarnation: Incarnation(77), generation: Generation(3), epoch: Epoch(self.serial.into()), body }
    }

    /// A slab with so many pages and a piece of device state, all of it telling of its serial number.
    pub(super) fn slab(&mut self, pages: u64) -> SealedSlab {
        self.serial += 1;
        let mut rng = Rng::new(self.serial.into());
        let mut writer = self.pool.take().expect("the case gave the station enough slabs").writer();
        let mut page = [0; PAGE_SIZE];
        for number in 0..pages {
            page.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&rng.next_u64().to_le_bytes()));
            writer.page(BlockId(1), number * PAGE_SIZE as u64, &page).expect("the case knows what fits");
        }
        writer.device(0, &page[..usize::try_from(rng.below(64)).expect("small")]).expect("the case leaves room");
        let (incarnation, generation) = (Incarnation(77), Generation(3));
        writer.seal(SlabMeta { incarnation, generation, epoch: Epoch(9), index: self.serial })
    }

    /// Submits a write; a refusal is checked to be the same slab, which goes back to the pool.
    pub(super) fn write(&mut self, pages: u64) -> Result<(), RejectReason> {
        let slab = self.slab(pages);
        let bytes = slab.as_bytes().to_vec();
        match self.link.submit(Op::Write(slab)) {
            Ok(()) => {
                self.sent.push(Item::Slab(bytes));
                self.writing += 1;
                Ok(())
            }
            Err(Rejected { op: Op::Write(slab), why }) => {
                assert_eq!(slab.as_bytes(), bytes, "a refused slab comes back as it was");
                self.pool.put(slab.recycle());
                Err(why)
            }
            Err(other) => panic!("a refused write came back as {:?}", other.op),
        }
    }

    pub(super) fn send(&mut self) -> Result<(), RejectReason> {
        let control = self.control();
        match self.link.submit(Op::Send(control)) {
            Ok(()) => {
                self.sent.push(Item::Control(control));
                Ok(())
            }
            Err(Rejected { op: Op::Send(back), why }) if back == control => Err(why),
            Err(other) => panic!("a refused send came back as {:?}", other.op),
        }
    }

    pub(super) fn post(&mut self) -> Result<(), RejectReason> {
        let slab = self.pool.take().expect("the case gave the station enough slabs");
        match self.link.submit(Op::Post(slab)) {
            Ok(()) => {
                self.posted += 1;
                Ok(())
            }
            Err(Rejected { op: Op::Post(slab), why }) => {
                self.pool.put(slab);
                Err(why)
            }
            Err(other) => panic!("a refused post came back as {:?}", other.op),
        }
    }

    pub(super) fn post_many(&mut self, count: usize) {
        (0..count).for_each(|_| self.post().expect("within the queue"));
    }

    /// One poll. Whether there was anything.
    pub(super) fn step(&mut self) -> bool {
        let Some(completion) = self.link.poll() else { return false };
        assert!(self.down.is_none(), "reported after Down: {completion:?}");
        match completion {
            Completion::Written(slab) => {
                self.writing = self.writing.checked_sub(1).expect("Written for a slab that was not submitted");
                self.pool.put(slab.recycle());
            }
            Completion::Returned(slab) => self.take_back(slab),
            Completion::Arrived(slab) => {
                assert!(slab.records().all(|r| r.is_ok()), "an arrived slab has valid records");
                self.seen.push(Item::Slab(slab.as_bytes().to_vec()));
                self.take_back(slab.recycle());
            }
            Completion::Received(control) => self.seen.push(Item::Control(control)),
            Completion::Down(why) => {
                assert_eq!((self.writing, self.posted), (0, 0), "slabs (written, posted) that are missing at Down");
                assert_eq!(self.pool.in_use(), 0, "slabs in use at Down");
                self.down = Some(why);
            }
        }
        true
    }

    fn take_back(&mut self, slab: FreeSlab) {
        self.posted = self.posted.checked_sub(1).expect("a slab came back that was not posted");
        self.pool.put(slab);
    }

    /// Down is final: nothing follows, and every operation comes back.
    pub(super) fn check_down(&mut self) {
        assert!(self.down.is_some(), "not down");
        assert!((0..10).all(|_| !self.step()));
        assert_eq!(self.write(1), Err(RejectReason::Down));
        assert_eq!(self.send(), Err(RejectReason::Down));
        assert_eq!(self.post(), Err(RejectReason::Down));
        assert_eq!(self.pool.in_use(), 0);
        assert!(!self.link.wants_write());
    }
}

/// A linked pair, and the fabric that it hangs on.
pub(super) struct World<'f, F: Fabric> {
    pub(super) a: Station<F::T>,
    pub(super) b: Station<F::T>,
    pub(super) fabric: &'f mut F,
}

impl<'f, F: Fabric> World<'f, F> {
    pub(super) fn new(fabric: &'f mut F, slab_size: usize, queue: usize) -> Self {
        let (a, b) = fabric.pair(slab_size, queue);
        // Both queues full, and some at hand: also for a transport that rounds its queue up.
        let slabs = 6 * queue + 8;
        Self { a: Station::new(a, slab_size, slabs), b: Station::new(b, slab_size, slabs), fabric }
    }

    /// Polls both ends until `done`; panics if that never happens.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let mut idle = 0;
        while !done(self) {
            let busy = self.a.step() | self.b.step();
            if !busy {
                idle += 1;
                assert!(idle < PATIENCE, "hangs: {what}");
                self.fabric.idle();
            }
        }
    }

    /// As [`World::until`], with the first end left alone: it may be dead for all the second knows.
    pub(super) fn until_second(&mut self, what: &str, mut done: impl FnMut(&Station<F::T>) -> bool) {
        let mut idle = 0;
        while !done(&self.b) {
            if !self.b.step() {
                idle += 1;
                assert!(idle < PATIENCE, "hangs: {what}");
                self.fabric.idle();
            }
        }
    }

    /// Polls both ends for a while in which nothing is expected to finish.
    pub(super) fn linger(&mut self) {
        for _ in 0..100 {
            if !(self.a.step() | self.b.step()) {
                self.fabric.idle();
            }
        }
    }

    /// Everything that the first end sent has arrived at the second's host, but the second has not looked.
    pub(super) fn settle(&mut self) {
        let bytes = self.a.sent.iter().map(Item::len).sum();
        let mut idle = 0;
        while self.a.writing > 0 || self.a.link.wants_write() || !self.fabric.settled(&self.a.link, bytes) {
            if !self.a.step() {
                idle += 1;
                assert!(idle < PATIENCE, "hangs: writing what the second end does not read yet");
                self.fabric.idle();
            }
        }
    }

    pub(super) fn until_both_down(&mut self) {
        self.until("both ends go down", |w| w.a.down.is_some() && w.b.down.is_some());
        self.a.check_down();
        self.b.check_down();
    }

    /// What each end saw is what the other sent, up to some point.
    pub(super) fn check_prefixes(&self) {
        let is_prefix = |seen: &[Item], sent: &[Item]| sent.starts_with(seen);
        assert!(is_prefix(&self.b.seen, &self.a.sent), "the second end saw something else than the first sent");
        assert!(is_prefix(&self.a.seen, &self.b.sent), "the first end saw something else than the second sent");
    }

    pub(super) fn check_complete(&self) {
        assert!(self.b.seen == self.a.sent, "the second end lacks something, or saw something else");
        assert!(self.a.seen == self.b.sent, "the first end lacks something, or saw something else");
    }
}
