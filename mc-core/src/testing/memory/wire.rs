//! What lies between the two ends, and what a test does to it.

use crate::{testing::Rng, wire::slab};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// One way of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What the first end of the pair sends.
    FirstToSecond,
    /// What the second sends.
    SecondToFirst,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) records: VecDeque<Vec<u8>>,
    /// Buffers of delivered records, so that a warm link allocates nothing.
    pub(super) spare: Vec<Vec<u8>>,
    pub(super) frozen: bool,
    /// Records that were put on their way.
    pub(super) sent: u64,
    /// Records whose arrival the sender knows of.
    pub(super) confirmed: u64,
    /// Records that the receiver took.
    pub(super) taken: u64,
    /// Slabs that the receiver has posted.
    pub(super) slots: usize,
}

impl Lane {
    /// Whether every slab on its way has a place to go to, and another one would have.
    pub(super) fn has_slot(&self) -> bool {
        self.records.iter().filter(|r| is_slab(r)).count() < self.slots
    }
}

#[derive(Debug)]
pub(super) struct Wire {
    /// By sender.
    pub(super) lanes: [Lane; 2],
    pub(super) open: bool,
    /// The end of an end is not heard at the other one: its host has no power.
    pub(super) silent: bool,
    /// It failed: nothing moves any more, and this end, or that, has noticed.
    pub(super) noticed: Option<[bool; 2]>,
}

impl Wire {
    pub(super) fn cut(&mut self) {
        self.open &= self.silent;
        self.lanes.iter_mut().filter(|l| l.frozen).for_each(|l| l.records.clear());
    }

    /// Of what was on its way and is not confirmed, a random part at the end did not arrive.
    fn fail(&mut self, noticed: [bool; 2], rng: &mut Rng) {
        self.noticed = Some(noticed);
        for lane in &mut self.lanes {
            let certain = lane.confirmed.saturating_sub(lane.taken);
            let open = lane.records.len() as u64 - certain.min(lane.records.len() as u64);
            let keep = certain + rng.below(open + 1);
            lane.records.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        }
    }
}

pub(super) fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a test does to a link. Clones act on the same one.
#[derive(Clone, Debug)]
pub struct LinkFaults {
    pub(super) wire: Arc<Mutex<Wire>>,
}

impl LinkFaults {
    /// The link breaks, and both ends notice. What a frozen way held is lost.
    pub fn cut(&self) {
        lock(&self.wire).cut();
    }

    /// The link fails like RDMA: by `seed`, some of what was not confirmed is lost; of the first and the second end, those
    /// `noticed` it that the array says.
    pub fn fail(&self, noticed: [bool; 2], seed: u64) {
        lock(&self.wire).fail(noticed, &mut Rng::new(seed));
    }

    /// Nothing moves any more, and no end hears when the other one goes: a host lost its power.
    pub fn silence(&self) {
        let mut wire = lock(&self.wire);
        wire.silent = true;
        wire.lanes.iter_mut().for_each(|lane| lane.frozen = true);
    }

    /// The newest slab under way never arrives, as over a link that is broken itself.
    pub fn lose(&self, way: Way) {
        let mut wire = lock(&self.wire);
        let lane = &mut wire.lanes[way as usize];
        if let Some(index) = lane.records.iter().rposition(|record| is_slab(record)) {
            lane.records.remove(index);
        }
    }

    /// Of the records on this way: how many were sent, are known to have arrived, and were taken.
    #[must_use]
    pub fn progress(&self, way: Way) -> [u64; 3] {
        let wire = lock(&self.wire);
        let lane = &wire.lanes[way as usize];
        [lane.sent, lane.confirmed, lane.taken]
    }

    /// From now on nothing is delivered on this way, and nobody is told.
    pub fn freeze(&self, way: Way) {
        lock(&self.wire).lanes[way as usize].frozen = true;
    }

    /// Delivery goes on where it stopped.
    pub fn thaw(&self, way: Way) {
        lock(&self.wire).lanes[way as usize].frozen = false;
    }

    /// Flips one bit in the last byte of every record under way.
    pub fn corrupt(&self, way: Way) {
        let mut wire = lock(&self.wire);
        wire.lanes[way as usize].records.iter_mut().filter_map(|r| r.last_mut()).for_each(|byte| *byte ^= 1);
    }
}

pub(super) fn is_slab(record: &[u8]) -> bool {
    record.starts_with(&slab::MAGIC.to_le_bytes())
}
