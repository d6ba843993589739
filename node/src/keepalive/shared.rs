//! The state that the main loop and the beat thread share. The thread never waits for the driver: it reads and writes atomics, and tries
//! locks.

use super::{SuspicionReport, Verdict, stats::Published};
use mc_core::{
    detector::Parameters,
    id::{Epoch, Generation, Time},
};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

/// What the driver tells the thread.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Other parameters on this side.
    Set(Parameters),
    /// On both.
    Propose(Parameters),
}

#[derive(Debug)]
pub(super) struct Shared {
    verdict: AtomicU8,
    pub(super) event: OwnedFd,
    pub(super) suspicion: OnceLock<SuspicionReport>,
    pub(super) last_heard: AtomicU64,
    pub(super) committed: Committed,
    orders: Mutex<Option<(u64, Order)>>,
    ordered: AtomicU64,
    taken: AtomicU64,
    /// ns; see [`super::BeatHandle::patience`].
    pub(super) patience: AtomicU64,
    pub(super) published: Mutex<Published>,
    /// No beat shall leave.
    pub(super) withhold: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) ended: AtomicBool,
}

impl Shared {
    pub(super) fn new(now: Time) -> io::Result<Self> {
        Ok(Self {
            verdict: AtomicU8::new(Verdict::Waiting as u8),
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            suspicion: OnceLock::new(),
            last_heard: AtomicU64::new(now.0),
            committed: Committed::default(),
            orders: Mutex::new(None),
            ordered: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            patience: AtomicU64::new(u64::MAX),
            published: Mutex::new(Published::new()),
            withhold: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// The newest order counts.
    pub(super) fn order(&self, order: Order) {
        let mut slot = self.orders.lock();
        let number = self.ordered.fetch_add(1, Ordering::AcqRel) + 1;
        *slot = Some((number, order));
    }

    /// The number of the newest order.
    pub(super) fn ordered(&self) -> u64 {
        self.ordered.load(Ordering::Acquire)
    }

    /// For the thread: the newest order that it has not taken. `None` as well while one is being given.
    pub(super) fn take_order(&self) -> Option<(u64, Order)> {
        if self.ordered() == self.taken.load(Ordering::Relaxed) {
            return None;
        }
        let order = self.orders.try_lock()?.take()?;
        self.taken.store(order.0, Ordering::Relaxed);
        Some(order)
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::Acquire) {
            0 => Verdict::Waiting,
            1 => Verdict::Up,
            _ => Verdict::Suspect,
        }
    }

    pub(super) fn set_verdict(&self, verdict: Verdict) {
        self.verdict.store(verdict as u8, Ordering::Release);
        self.signal();
    }

    /// The thread is gone, whatever the reason.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.signal();
    }

    /// Wakes the driver.
    pub(super) fn signal(&self) {
        // Any number but 0 and the largest adds up, whatever its byte order; a full counter is readable anyway.
        let _ = rustix::io::write(&self.event, &1_u64.to_le_bytes());
    }
}

/// A generation and an epoch of it, written by one thread and read by another without a lock.
///
/// A reader may see the generation with epoch 0 while it changes ("none yet", which understates), but never an epoch with
/// another generation: the writer passes through 0, and the reader reads the generation on both sides of the epoch.
#[derive(Debug, Default)]
pub(super) struct Committed {
    generation: AtomicU64,
    epoch: AtomicU64,
}

impl Committed {
    pub(super) fn set(&self, generation: Generation, epoch: Epoch) {
        if self.generation.load(Ordering::Relaxed) != generation.0 {
            self.epoch.store(0, Ordering::Release);
            self.generation.store(generation.0, Ordering::Release);
        }
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// `None` while it is being changed.
    pub(super) fn get(&self) -> Option<(Generation, Epoch)> {
        let before = self.generation.load(Ordering::Acquire);
        let epoch = self.epoch.load(Ordering::Acquire);
        let after = self.generation.load(Ordering::Acquire);
        (before == after).then_some((Generation(after), Epoch(epoch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_never_seen_with_another_generation() {
        let committed = Committed::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for generation in 1..20_000 {
                    committed.set(Generation(generation), Epoch(generation * 10));
                    committed.set(Generation(generation), Epoch(generation * 10 + 1));
                }
            });
            while !writer.is_finished() {
                if let Some((Generation(g), Epoch(e))) = committed.get() {
                    assert!(e == 0 || e / 10 == g, "epoch {e} of generation {g}");
                }
            }
        });
        assert_eq!(committed.get(), Some((Generation(19_999), Epoch(199_991))));
    }
}
