//! The pool: it grows on demand up to its cap (I7), keeps what is warm, and gives back what has long been idle.
//!
//! The *limit* is the cap and what the pool may outgrow it by (`--on-cap grow`). [`SlabPool::take`] is the only place where
//! slabs are made, and it makes none at the limit. A limit that is lowered while slabs are out is not kept at once: nobody
//! can take back what is on its way. From then on no slab is made, the free ones are unmapped at once, and the others as
//! they come back, until the pool is within its new limit; so its memory only falls meanwhile.

use super::FreeSlab;
use crate::id::Time;
use std::time::Duration;

/// After this long without needing them, slabs beyond the recent peak are unmapped.
const IDLE: Duration = Duration::from_secs(10);

/// All slabs of one side.
#[derive(Debug)]
pub struct SlabPool {
    slab_size: usize,
    cap: usize,
    /// Slabs that it may outgrow its cap by.
    extra: usize,
    /// Slabs that exist, free or not. None is made while there are `cap + extra`.
    live: usize,
    free: Vec<FreeSlab>,
    /// Most slabs that ever existed at once.
    most: usize,
    /// Most slabs in use at once since `window_start`.
    peak: usize,
    window_start: Time,
    /// How often somebody asked while all `cap` slabs were in use.
    refusals: u64,
}

/// A pool's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolStats {
    /// Bytes of slabs in use.
    pub used_bytes: u64,
    /// Bytes of slabs that exist.
    pub live_bytes: u64,
    /// Bytes at which no slab is made any more. Lowering it takes effect as slabs come back.
    pub limit_bytes: u64,
    /// Bytes wanted at most; what is between this and `limit_bytes` is for checkpoints that do not fit.
    pub cap_bytes: u64,
    /// The most that `live_bytes` ever was.
    pub most_bytes: u64,
    /// How often the cap was hit.
    pub cap_hits: u64,
}

impl SlabPool {
    /// A pool of at most `cap_bytes / slab_size` slabs, and at least two (one to fill while one is sent).
    #[must_use]
    pub fn new(slab_size: usize, cap_bytes: usize) -> Self {
        let cap = (cap_bytes / slab_size).max(2);
        let free = Vec::with_capacity(cap);
        Self { slab_size, cap, extra: 0, live: 0, free, most: 0, peak: 0, window_start: Time(0), refusals: 0 }
    }

    /// Another cap, and how much the pool may outgrow it by: see the module.
    pub fn set_limit(&mut self, cap_bytes: usize, extra_bytes: usize) {
        self.cap = (cap_bytes / self.slab_size).max(2);
        self.extra = extra_bytes / self.slab_size;
        while self.live > self.limit() && self.free.pop().is_some() {
            self.live -= 1;
        }
    }

    fn limit(&self) -> usize {
        self.cap + self.extra
    }

    /// Bytes of each slab.
    #[must_use]
    pub fn slab_size(&self) -> usize {
        self.slab_size
    }

    /// Slabs at most.
    #[must_use]
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// Slabs that can be had right now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.limit().saturating_sub(self.live)
    }

    /// Of those, what is within the cap.
    #[must_use]
    pub fn room(&self) -> usize {
        self.cap.saturating_sub(self.in_use())
    }

    /// Slabs handed out.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.live - self.free.len()
    }

    /// A free slab; `None` at the limit, or when the system has no memory left (the limit is then lower than configured).
    pub fn take(&mut self) -> Option<FreeSlab> {
        let slab = self.free.pop().or_else(|| self.grow());
        if slab.is_none() {
            self.refusals += 1;
        }
        self.peak = self.peak.max(self.in_use());
        slab
    }

    fn grow(&mut self) -> Option<FreeSlab> {
        if self.live >= self.limit() {
            return None;
        }
        let slab = FreeSlab::allocate(self.slab_size).ok()?;
        self.live += 1;
        self.most = self.most.max(self.live);
        Some(slab)
    }

    /// Takes a slab back.
    pub fn put(&mut self, slab: FreeSlab) {
        assert!(self.free.len() < self.live, "more slabs came back than went out");
        if self.live > self.limit() {
            self.live -= 1; // and unmapped: the limit was lowered
        } else {
            self.free.push(slab);
        }
    }

    /// Unmaps what the last [`IDLE`] period did not need. Call it now and then, outside a pause.
    pub fn shrink(&mut self, now: Time) {
        if now.since(self.window_start) < IDLE {
            return;
        }
        while self.live > self.peak.max(self.in_use()) && self.free.pop().is_some() {
            self.live -= 1;
        }
        self.peak = self.in_use();
        self.window_start = now;
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let bytes = |slabs: usize| (slabs * self.slab_size) as u64;
        PoolStats {
            used_bytes: bytes(self.in_use()),
            live_bytes: bytes(self.live),
            limit_bytes: bytes(self.limit()),
            cap_bytes: bytes(self.cap),
            most_bytes: bytes(self.most),
            cap_hits: self.refusals,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i7_the_pool_never_exceeds_its_cap_and_counts_the_refusals() {
        let mut pool = SlabPool::new(8192, 4 * 8192);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((taken.len(), pool.available()), (4, 0));
        assert_eq!(pool.stats().live_bytes, pool.stats().cap_bytes);
        assert_eq!(pool.stats().cap_hits, 1);
        taken.into_iter().for_each(|s| pool.put(s));
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn i7_a_pool_that_may_outgrow_its_cap_has_a_limit_all_the_same() {
        let mut pool = SlabPool::new(8192, 4 * 8192);
        pool.set_limit(4 * 8192, 2 * 8192);
        let mut taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((taken.len(), pool.available(), pool.room()), (6, 0, 0));
        assert_eq!((pool.stats().live_bytes, pool.stats().limit_bytes), (6 * 8192, 6 * 8192));
        pool.put(taken.pop().unwrap());
        assert_eq!((pool.available(), pool.room()), (1, 0), "what may be taken, and what should");
    }

    #[test]
    fn i7_a_limit_that_is_lowered_makes_nothing_new_and_memory_only_falls() {
        let mut pool = SlabPool::new(8192, 8 * 8192);
        let mut taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        pool.put(taken.pop().unwrap());
        pool.set_limit(3 * 8192, 0);
        assert_eq!(pool.stats().live_bytes, 7 * 8192, "the free one is gone, the others are on their way");
        for left in (3..7).rev() {
            assert!(pool.take().is_none(), "{left} to come back");
            pool.put(taken.pop().unwrap());
            assert_eq!(pool.stats().live_bytes, left * 8192);
        }
        pool.put(taken.pop().unwrap());
        assert_eq!((pool.stats().live_bytes, pool.available()), (3 * 8192, 1));
        assert!(pool.take().is_some() && pool.take().is_none());
        assert_eq!(pool.stats().most_bytes, 8 * 8192);
        pool.set_limit(5 * 8192, 0);
        assert!(pool.take().is_some(), "and it may be raised again");
    }

    #[test]
    fn a_long_idle_pool_shrinks_to_what_it_needed_and_grows_again() {
        let mut pool = SlabPool::new(8192, 8 * 8192);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        all.into_iter().for_each(|s| pool.put(s));
        let minute = |m: u64| Time(m * 60_000_000_000);
        pool.shrink(minute(1)); // the peak was eight: nothing to give back yet
        assert_eq!(pool.stats().live_bytes, 8 * 8192);
        let one = pool.take().unwrap();
        pool.put(one);
        pool.shrink(minute(2));
        assert_eq!(pool.stats().live_bytes, 8192);
        assert_eq!(pool.available(), 8);
    }
}
