//! The measuring side: checkpoints from slabs that are sealed already, each ended by a commit record and answered by an ACK.
//!
//! ```text
//!   begin ──> slabs submitted (while there are some and the link takes them) ──> commit record ──> ACK: done
//!     ^                                                                                              │
//!     └──── closed loop: at once, up to `depth` under way. Paced: when it is due ─────────────────────┘
//! ```
//!
//! Paced checkpoints are timed from when they were *due*, not from when the link was ready for them: a stall counts for every
//! checkpoint that it delayed (no coordinated omission).
//!
//! Sealing is not measured: that is capture's work. Receiving includes the checksum, because the transport's contract does.

use crate::{
    link::{Poll, QUEUE},
    stats,
    units::mib_per_s,
};
use anyhow::{Result, bail, ensure};
use mc_core::{
    histogram::Histogram,
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SealedSlab, SlabMeta, SlabPool},
    transport::{Completion, Op, RejectReason, Rejected, Transport},
    wire::{
        control::{Body, Control},
        slab::{HEADER_LEN, RECORD_LEN},
    },
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Without any progress for so long the measurement fails.
const STALLED: Duration = Duration::from_secs(30);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Bytes of pages in each checkpoint: a multiple of 4096; 0 for empty ones.
    pub bytes: usize,
    /// Checkpoints under way at most.
    pub depth: usize,
    /// Begin one every so often, rather than as soon as possible.
    pub every: Option<Duration>,
    /// For how long.
    pub time: Duration,
    /// How to wait.
    pub poll: Poll,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Checkpoints.
    pub iterations: u64,
    /// From the first one's beginning to the last one's ACK.
    pub seconds: f64,
    /// MB/sec (2^20) of pages.
    pub average: f64,
    /// MB/sec (2^20) of the best stretch.
    pub peak: f64,
    /// Of checkpoints, from beginning (or due time) to ACK.
    pub times: Histogram,
}

/// Pages that one slab of that size takes.
#[must_use]
pub(crate) fn pages_per_slab(slab_bytes: usize) -> usize {
    (slab_bytes - HEADER_LEN - RECORD_LEN) / PAGE_SIZE
}

/// Slabs of a checkpoint.
#[must_use]
pub(crate) fn slabs_per_checkpoint(bytes: usize, slab_bytes: usize) -> usize {
    (bytes / PAGE_SIZE).div_ceil(pages_per_slab(slab_bytes))
}

/// Sealed slabs that go round: full ones, and those that end a checkpoint.
#[derive(Debug, Default)]
struct Stock {
    full: Vec<SealedSlab>,
    last: Vec<SealedSlab>,
    /// Per checkpoint.
    slabs: usize,
    wire_bytes: u64,
    /// How many full ones there are, and pages in each.
    full_count: usize,
    full_pages: usize,
}

impl Stock {
    fn new(plan: &Plan, pool: &mut SlabPool, incarnation: Incarnation) -> Result<Self> {
        let per_slab = pages_per_slab(pool.slab_size());
        let slabs = slabs_per_checkpoint(plan.bytes, pool.slab_size());
        if slabs == 0 {
            return Ok(Self::default());
        }
        let last_pages = plan.bytes / PAGE_SIZE - (slabs - 1) * per_slab;
        let full_count = ((slabs - 1) * plan.depth).min(QUEUE);
        let mut stock = Self { slabs, full_count, full_pages: per_slab, ..Self::default() };
        for _ in 0..full_count {
            stock.full.push(seal(pool, per_slab, incarnation)?);
        }
        for _ in 0..plan.depth.min(QUEUE) {
            stock.last.push(seal(pool, last_pages, incarnation)?);
        }
        let bytes = |slab: Option<&SealedSlab>| slab.map_or(0, |s| s.as_bytes().len() as u64);
        stock.wire_bytes = bytes(stock.full.first()) * (slabs as u64 - 1) + bytes(stock.last.first());
        Ok(stock)
    }

    fn put(&mut self, slab: SealedSlab) {
        let is_full = slab.header().pages as usize == self.full_pages && self.full.len() < self.full_count;
        if is_full { self.full.push(slab) } else { self.last.push(slab) }
    }

    fn len(&self) -> usize {
        self.full.len() + self.last.len()
    }

    fn end(self, pool: &mut SlabPool) {
        self.full.into_iter().chain(self.last).for_each(|s| pool.put(s.recycle()));
    }
}

fn seal(pool: &mut SlabPool, pages: usize, incarnation: Incarnation) -> Result<SealedSlab> {
    let Some(slab) = pool.take() else { bail!("no memory for slabs") };
    let mut writer = slab.writer();
    let mut page = [0; PAGE_SIZE];
    for number in 0..pages {
        let offset = (number * PAGE_SIZE) as u64;
        page.iter_mut().zip(offset.to_le_bytes().iter().cycle()).for_each(|(to, from)| *to = *from ^ 0x5a);
        writer.page(BlockId(0), offset, &page)?;
    }
    Ok(writer.seal(SlabMeta { incarnation, generation: Generation(1), epoch: Epoch(1), index: 0 }))
}

/// A checkpoint whose ACK has not come.
#[derive(Clone, Copy, Debug)]
struct Open {
    epoch: u64,
    since: Instant,
}

/// A run of checkpoints over a link.
struct Load<'a> {
    link: &'a mut dyn Transport,
    plan: Plan,
    incarnation: Incarnation,
    stock: Stock,
    open: VecDeque<Open>,
    /// Of the newest checkpoint: slabs to submit, and whether its commit record is.
    slabs_left: usize,
    commit_left: bool,
    epoch: u64,
    done: Vec<(Instant, Instant)>,
}

/// Sends checkpoints as planned, after some that only warm up. The link must be open; slabs go back to the pool.
///
/// # Errors
/// The link goes down, stalls, or the peer answers nonsense.
pub(crate) fn run(
    link: &mut dyn Transport,
    plan: &Plan,
    pool: &mut SlabPool,
    incarnation: Incarnation,
) -> Result<Outcome> {
    ensure!(plan.bytes.is_multiple_of(PAGE_SIZE), "checkpoints are made of pages: {} bytes are not", plan.bytes);
    let stock = Stock::new(plan, pool, incarnation)?;
    // Every slab is registered with the device on its first use: that is for the warm-up.
    let rounds = 2 * plan.depth + stock.len() / stock.slabs.max(1);
    let mut load = Load {
        link,
        plan: *plan,
        incarnation,
        stock,
        open: VecDeque::with_capacity(plan.depth),
        slabs_left: 0,
        commit_left: false,
        epoch: 0,
        done: Vec::with_capacity(1 << 16),
    };
    let slabs = load.stock.len();
    let outcome = load.go(Duration::MAX, rounds as u64).and_then(|()| load.measure());
    let outcome = outcome.and_then(|outcome| load.settle(slabs).map(|()| outcome));
    load.stock.end(pool);
    outcome
}

impl Load<'_> {
    fn measure(&mut self) -> Result<Outcome> {
        self.done.clear();
        self.go(self.plan.time, u64::MAX)?;
        let mut times = Histogram::new();
        self.done.iter().for_each(|(since, until)| times.record(*until - *since));
        let Some((first, _)) = self.done.first().copied() else { bail!("not one checkpoint was acknowledged") };
        let at = |time: Instant| (time - first).as_secs_f64();
        let (starts, ends): (Vec<f64>, Vec<f64>) = self.done.iter().map(|(a, b)| (at(*a), at(*b))).unzip();
        let (iterations, seconds) = (self.done.len() as u64, ends.last().copied().unwrap_or(0.0));
        let bytes = self.plan.bytes as u64;
        Ok(Outcome {
            iterations,
            seconds,
            average: mib_per_s(bytes * iterations, seconds),
            peak: stats::peak(&starts, &ends, bytes) / f64::from(1 << 20),
            times,
        })
    }

    /// Begins checkpoints for so long or until there were so many, and at least one; then waits for the ACKs.
    fn go(&mut self, time: Duration, most: u64) -> Result<()> {
        let start = Instant::now();
        let (mut begun, mut progress) = (0_u64, start);
        loop {
            let now = Instant::now();
            let over = begun >= most.max(1) || (begun > 0 && now - start >= time);
            if over && self.open.is_empty() {
                return Ok(());
            }
            let due = self.plan.every.map_or(now, |every| start + every.mul_f64(begun as f64));
            if !over && self.may_begin() && due <= now {
                self.begin(due);
                begun += 1;
            }
            if self.push()? | self.reap()? {
                progress = now;
            } else {
                ensure!(now - progress < STALLED, "no progress for {STALLED:?} on the link to {}", self.link.peer());
                let next = if over || !self.may_begin() { STALLED } else { due.saturating_duration_since(now) };
                self.plan.poll.idle(self.link, next);
            }
        }
    }

    /// Waits until the link has given every slab back.
    fn settle(&mut self, slabs: usize) -> Result<()> {
        let start = Instant::now();
        while self.stock.len() < slabs {
            ensure!(start.elapsed() < STALLED, "slabs do not come back from the link to {}", self.link.peer());
            self.reap()?;
        }
        Ok(())
    }

    fn may_begin(&self) -> bool {
        self.open.len() < self.plan.depth && self.slabs_left == 0 && !self.commit_left
    }

    fn begin(&mut self, since: Instant) {
        self.epoch += 1;
        self.open.push_back(Open { epoch: self.epoch, since });
        (self.slabs_left, self.commit_left) = (self.stock.slabs, true);
    }

    /// Submits what the link takes of the newest checkpoint. Whether it took anything.
    fn push(&mut self) -> Result<bool> {
        let mut any = false;
        while self.slabs_left > 0 {
            let from = if self.slabs_left == 1 { &mut self.stock.last } else { &mut self.stock.full };
            let Some(slab) = from.pop() else { return Ok(any) };
            if !self.submit(Op::Write(slab))? {
                return Ok(any);
            }
            self.slabs_left -= 1;
            any = true;
        }
        if self.commit_left {
            let body = Body::Commit {
                slabs: u32::try_from(self.stock.slabs)?,
                bytes: self.stock.wire_bytes,
                device_bytes: 0,
                held: true,
            };
            let (incarnation, generation, epoch) = (self.incarnation, Generation(1), Epoch(self.epoch));
            self.commit_left = !self.submit(Op::Send(Control { incarnation, generation, epoch, body }))?;
            any |= !self.commit_left;
        }
        Ok(any)
    }

    fn submit(&mut self, op: Op) -> Result<bool> {
        let Err(Rejected { op, why }) = self.link.submit(op) else { return Ok(true) };
        if let Op::Write(slab) = op {
            self.stock.put(slab);
        }
        match why {
            RejectReason::Full => Ok(false),
            RejectReason::Down => self.reap().and_then(|_| bail!("the link to {} is down", self.link.peer())),
        }
    }

    /// Takes completions. Whether there were any.
    fn reap(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(completion) = self.link.poll() {
            any = true;
            match completion {
                Completion::Written(slab) => self.stock.put(slab),
                Completion::Received(Control { epoch, body: Body::Ack { .. }, .. }) => {
                    let Some(open) = self.open.pop_front() else { bail!("an ACK of {epoch}, which nobody sent") };
                    ensure!(open.epoch == epoch.0, "an ACK of {epoch} where one of e{} was due", open.epoch);
                    self.done.push((open.since, Instant::now()));
                }
                Completion::Down(why) => return Err(why.into()),
                other => bail!("{} sent what a standby does not: {other:?}", self.link.peer()),
            }
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_fills_slabs_one_after_the_other() {
        assert_eq!(pages_per_slab(1 << 20), 255);
        let slabs = |pages: usize| slabs_per_checkpoint(pages * PAGE_SIZE, 1 << 20);
        assert_eq!([slabs(0), slabs(1), slabs(255), slabs(256), slabs(511)], [0, 1, 1, 2, 3]);
    }

    #[test]
    fn the_stock_holds_a_checkpoint_and_its_last_slab() {
        let mut pool = SlabPool::new(16 << 10, 1 << 20);
        let plan = Plan { bytes: 7 * PAGE_SIZE, depth: 2, every: None, time: Duration::ZERO, poll: Poll::Busy };
        let mut stock = Stock::new(&plan, &mut pool, Incarnation(1)).unwrap();
        // Three pages fit a slab of 16 KiB: 3 + 3 + 1.
        assert_eq!((stock.slabs, stock.full.len(), stock.last.len()), (3, 4, 2));
        let header = (HEADER_LEN + RECORD_LEN) as u64;
        assert_eq!(stock.wire_bytes, 3 * header + 7 * PAGE_SIZE as u64);
        let (full, last) = (stock.full.pop().unwrap(), stock.last.pop().unwrap());
        stock.put(last);
        stock.put(full);
        assert_eq!((stock.full.len(), stock.last.len()), (4, 2));
        stock.end(&mut pool);
        assert_eq!(pool.in_use(), 0);
    }
}
