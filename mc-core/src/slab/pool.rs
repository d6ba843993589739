//! The pool: it grows on demand up to its cap (I7), keeps what is warm, and gives back what has long been idle.

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
    /// Slabs that exist, free or not. Never above `cap`.
    live: usize,
    free: Vec<FreeSlab>,
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
    /// Bytes that `live_bytes` never exceeds.
    pub cap_bytes: u64,
    /// How often the cap was hit.
    pub cap_hits: u64,
}

impl SlabPool {
    /// A pool of at most `cap_bytes / slab_size` slabs, and at least two (one to fill while one is sent).
    #[must_use]
    pub fn new(slab_size: usize, cap_bytes: usize) -> Self {
        let cap = (cap_bytes / slab_size).max(2);
        Self { slab_size, cap, live: 0, free: Vec::with_capacity(cap), peak: 0, window_start: Time(0), refusals: 0 }
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
        self.free.len() + (self.cap - self.live)
    }

    /// Slabs handed out.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.live - self.free.len()
    }

    /// A free slab; `None` at the cap, or when the system has no memory left (the cap is then lower than configured).
    pub fn take(&mut self) -> Option<FreeSlab> {
        let slab = self.free.pop().or_else(|| self.grow());
        if slab.is_none() {
            self.refusals += 1;
        }
        self.peak = self.peak.max(self.in_use());
        slab
    }

    fn grow(&mut self) -> Option<FreeSlab> {
        if self.live == self.cap {
            return None;
        }
        let slab = FreeSlab::allocate(self.slab_size).ok()?;
        self.live += 1;
        Some(slab)
    }

    /// Takes a slab back.
    pub fn put(&mut self, slab: FreeSlab) {
        assert!(self.free.len() < self.live, "more slabs came back than went out");
        self.free.push(slab);
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
            cap_bytes: bytes(self.cap),
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
