//! The other side: takes slabs, counts them against each commit record, and ACKs.

use crate::link::Poll;
use anyhow::{Result, bail, ensure};
use mc_core::{
    slab::SlabPool,
    transport::{Completion, LinkError, Op, Rejected, Transport},
    wire::control::{Body, Control},
};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

/// What came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    /// Checkpoints that were complete and ACKed.
    pub checkpoints: u64,
    /// Their bytes on the wire, headers included, commit records not.
    pub bytes: u64,
}

#[derive(Default)]
struct Sink {
    report: SinkReport,
    slabs: u32,
    bytes: u64,
    /// ACKs and slabs that the link had no room for yet.
    waiting: VecDeque<Op>,
}

/// Keeps `posts` slabs posted and answers until the peer closes the link.
///
/// # Errors
/// The link goes down otherwise, or a checkpoint is not what its commit record says.
pub(crate) fn run(link: &mut dyn Transport, posts: usize, pool: &mut SlabPool, poll: Poll) -> Result<SinkReport> {
    let mut sink = Sink::default();
    for _ in 0..posts {
        let Some(slab) = pool.take() else { bail!("no memory for {posts} slabs") };
        sink.submit(link, Op::Post(slab));
    }
    let down = loop {
        match link.poll() {
            Some(Completion::Down(why)) => break why,
            Some(Completion::Returned(slab)) => pool.put(slab),
            Some(completion) => sink.take(link, completion)?,
            None => {
                sink.retry(link);
                poll.idle(link, Duration::MAX);
            }
        }
    };
    sink.waiting.drain(..).for_each(|op| {
        if let Op::Post(slab) = op {
            pool.put(slab);
        }
    });
    match down {
        LinkError::Closed { .. } => Ok(sink.report),
        why => Err(why.into()),
    }
}

impl Sink {
    fn take(&mut self, link: &mut dyn Transport, completion: Completion) -> Result<()> {
        match completion {
            Completion::Arrived(slab) => {
                self.slabs += 1;
                self.bytes += slab.as_bytes().len() as u64;
                self.submit(link, Op::Post(slab.recycle()));
                Ok(())
            }
            Completion::Received(control) => self.commit(link, control),
            other => bail!("{} sent what a primary does not: {other:?}", link.peer()),
        }
    }

    fn commit(&mut self, link: &mut dyn Transport, control: Control) -> Result<()> {
        let Body::Commit { slabs, bytes, .. } = control.body else { bail!("no commit record: {control:?}") };
        let epoch = control.epoch;
        ensure!(
            (slabs, bytes) == (self.slabs, self.bytes),
            "{epoch} is {slabs} slabs with {bytes} bytes, but {} with {} came",
            self.slabs,
            self.bytes
        );
        self.report.checkpoints += 1;
        self.report.bytes += bytes;
        (self.slabs, self.bytes) = (0, 0);
        self.submit(link, Op::Send(Control { body: Body::Ack { free_slabs: 0 }, ..control }));
        Ok(())
    }

    fn submit(&mut self, link: &mut dyn Transport, op: Op) {
        if self.waiting.is_empty() {
            self.offer(link, op);
        } else {
            self.waiting.push_back(op);
        }
    }

    /// Whether the link took it; else it waits. That a link is down is reported by `poll`, with the reason.
    fn offer(&mut self, link: &mut dyn Transport, op: Op) -> bool {
        let refused = link.submit(op).map_err(|Rejected { op, .. }| self.waiting.push_front(op));
        refused.is_ok()
    }

    fn retry(&mut self, link: &mut dyn Transport) {
        while let Some(op) = self.waiting.pop_front() {
            if !self.offer(link, op) {
                break;
            }
        }
    }
}
