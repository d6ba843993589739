//! The load of a probe: sends checkpoints of generated pages; the other end counts and ACKs them.

use crate::SLABS;
use anyhow::{Context, Result, bail, ensure};
use mc_core::{
    id::{BlockId, Epoch, Generation, Incarnation, PAGE_SIZE},
    slab::{SealedSlab, SlabMeta, SlabPool},
    transport::{Completion, LinkError, Op, Rejected, Transport},
    wire::control::{Body, Control},
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Checkpoints whose ACK may be due.
const DEPTH: u64 = 2;
/// No ACK for so long: the way of the checkpoints is dead, or was.
const DEAD: Duration = Duration::from_secs(2);

/// Sleeps until the link has something to do, at most so long.
pub(crate) fn rest(link: &(impl Transport + ?Sized), most: Duration) {
    let Some(fd) = node::inbox::link(link) else { return std::thread::sleep(most) };
    // An error or a signal is as good as readiness: the link is polled next.
    let _ = node::inbox::wait(&mut [fd], mc_core::id::Time(0), None, most);
}

/// The sending end.
pub(crate) struct Load {
    incarnation: Incarnation,
    slabs: Vec<SealedSlab>,
    per_checkpoint: u32,
    slab_bytes: u64,
    sent: u32,
    epoch: u64,
    acked: u64,
    pages: u64,
    last_ack: Instant,
    longest: Duration,
}

impl Load {
    pub(crate) fn new(bytes: u64, slab_size: u32, incarnation: Incarnation) -> Result<Self> {
        let mut pool = SlabPool::new(slab_size as usize, SLABS * slab_size as usize);
        let mut slabs = vec![];
        while slabs.len() < SLABS {
            let mut writer = pool.take().context("no memory for the load")?.writer();
            let page = [0x5a; PAGE_SIZE];
            let mut offset = 0;
            while writer.page(BlockId(0), offset, &page).is_ok() {
                offset += PAGE_SIZE as u64;
            }
            slabs.push(writer.seal(SlabMeta { incarnation, generation: Generation(0), epoch: Epoch(1), index: 0 }));
        }
        let (pages, slab_bytes) = slabs.first().map_or((0, 0), |s| (s.header().pages, s.as_bytes().len() as u64));
        let per_checkpoint = u32::try_from(bytes.div_ceil(u64::from(slab_size)))?.max(1);
        Ok(Self {
            incarnation,
            slabs,
            per_checkpoint,
            slab_bytes,
            sent: 0,
            epoch: 0,
            acked: 0,
            pages: pages.into(),
            last_ack: Instant::now(),
            longest: Duration::ZERO,
        })
    }

    /// What was wrong with the way of the checkpoints by the phase's end, and whether that ended it: beats beside no load tell
    /// nothing of beats beside load.
    pub(crate) fn trouble(&self, phase: &str, peer: &str) -> Option<(String, bool)> {
        let now = self.last_ack.elapsed();
        let longest = self.longest.max(now).as_secs_f64();
        if self.acked == 0 {
            let what = format!("phase {phase}: no checkpoint reached {peer}, so its beats were measured without load");
            return Some((what, true));
        }
        (self.longest.max(now) >= DEAD).then(|| {
            let until = if now >= DEAD { ", and never resumed" } else { "" };
            let what = format!("phase {phase}: checkpoints to {peer} stalled for {longest:.1} s{until}");
            (what, now >= DEAD)
        })
    }

    /// Bytes of pages that were ACKed.
    pub(crate) fn acked_bytes(&self) -> u64 {
        self.acked * u64::from(self.per_checkpoint) * self.pages * PAGE_SIZE as u64
    }

    /// Submits what the link takes. Whether it took anything.
    pub(crate) fn push(&mut self, link: &mut dyn Transport) -> bool {
        let mut any = false;
        while self.epoch - self.acked < DEPTH {
            if self.sent < self.per_checkpoint {
                let Some(slab) = self.slabs.pop() else { return any };
                if let Err(Rejected { op, .. }) = link.submit(Op::Write(slab)) {
                    if let Op::Write(slab) = op {
                        self.slabs.push(slab);
                    }
                    return any;
                }
                self.sent += 1;
            } else {
                let bytes = self.slab_bytes * u64::from(self.sent);
                let body = Body::Commit { slabs: self.sent, bytes, device_bytes: 0, held: false };
                let (incarnation, generation, epoch) = (self.incarnation, Generation(0), Epoch(self.epoch + 1));
                if link.submit(Op::Send(Control { incarnation, generation, epoch, body })).is_err() {
                    return any;
                }
                (self.sent, self.epoch) = (0, self.epoch + 1);
            }
            any = true;
        }
        any
    }

    pub(crate) fn take(&mut self, completion: Completion) -> Result<()> {
        match completion {
            Completion::Written(slab) => self.slabs.push(slab),
            Completion::Received(Control { epoch, body: Body::Ack { .. }, .. }) => {
                ensure!(epoch.0 == self.acked + 1, "the other side ACKed {epoch} after e{}", self.acked);
                self.acked += 1;
                self.longest = self.longest.max(self.last_ack.elapsed());
                self.last_ack = Instant::now();
            }
            other => bail!("the other side sent what no `keepalive serve` does: {other:?}"),
        }
        Ok(())
    }
}

/// The receiving end.
pub(crate) struct Sink {
    slabs: u32,
    bytes: u64,
    waiting: VecDeque<Op>,
}

impl Sink {
    /// Posts slabs.
    pub(crate) fn new(link: &mut dyn Transport, slab_size: u32) -> Result<Self> {
        let mut pool = SlabPool::new(slab_size as usize, SLABS * slab_size as usize);
        let mut sink = Self { slabs: 0, bytes: 0, waiting: VecDeque::new() };
        for _ in 0..SLABS {
            sink.waiting.push_back(Op::Post(pool.take().context("no memory for slabs")?));
        }
        sink.retry(link);
        Ok(sink)
    }

    fn retry(&mut self, link: &mut dyn Transport) {
        while let Some(op) = self.waiting.pop_front() {
            if let Err(Rejected { op, .. }) = link.submit(op) {
                return self.waiting.push_front(op);
            }
        }
    }

    /// Takes what has come. Whether the other end has said goodbye, or hung up.
    pub(crate) fn turn(&mut self, link: &mut dyn Transport) -> Result<bool> {
        self.retry(link);
        while let Some(completion) = link.poll() {
            match completion {
                Completion::Arrived(slab) => {
                    self.slabs = self.slabs.saturating_add(1);
                    self.bytes = self.bytes.saturating_add(slab.as_bytes().len() as u64);
                    self.waiting.push_back(Op::Post(slab.recycle()));
                }
                Completion::Received(Control {
                    body: Body::Commit { slabs, bytes, .. },
                    incarnation,
                    generation,
                    epoch,
                }) => {
                    let came = (self.slabs, self.bytes);
                    ensure!(
                        (slabs, bytes) == came,
                        "{epoch}: {slabs} slabs with {bytes} bytes were sent, {came:?} came"
                    );
                    (self.slabs, self.bytes) = (0, 0);
                    let body = Body::Ack { free_slabs: 0 };
                    self.waiting.push_back(Op::Send(Control { incarnation, generation, epoch, body }));
                }
                Completion::Received(Control { body: Body::Goodbye(_), .. }) => return Ok(true),
                Completion::Returned(_) => {}
                Completion::Down(LinkError::Closed { .. }) => return Ok(true),
                Completion::Down(why) => return Err(why.into()),
                other => bail!("the other side sent what no `keepalive probe` does: {other:?}"),
            }
            self.retry(link);
        }
        Ok(false)
    }
}
