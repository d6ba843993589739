//! A link that fails on purpose: between a beat thread and its keepalive, datagrams are dropped, delayed, or all cut off.
//!
//! It stands at the receiving end, where it serves UD and UDP alike: what is dropped there has as little effect as what is dropped on the
//! way.

use super::dice::Dice;
use mc_core::{transport::Keepalive, wire::beat};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How a link fails.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Failing {
    /// The share of datagrams that are lost, each by itself.
    pub loss: f64,
    /// Each is late by up to this, evenly; so they overtake each other.
    pub jitter: Duration,
}

/// Datagrams held at most: a queue that is full drops.
const HELD: usize = 64;

/// The keepalive with the failing link before it.
#[derive(Debug)]
pub struct Filter {
    inner: Box<dyn Keepalive>,
    failing: Failing,
    cut: Arc<AtomicBool>,
    dice: Dice,
    held: Vec<(Instant, usize, [u8; beat::LEN + 1])>,
}

impl Filter {
    /// The keepalive, behind a link that fails so, and not at all once `cut` is set.
    #[must_use]
    pub fn new(inner: Box<dyn Keepalive>, failing: Failing, cut: Arc<AtomicBool>, seed: u64) -> Self {
        Self { inner, failing, cut, dice: Dice::new(seed), held: Vec::with_capacity(HELD) }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

impl Keepalive for Filter {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        if self.is_cut() { Ok(()) } else { self.inner.send(beat) }
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        while let Some(len) = self.inner.receive(buffer)? {
            if self.is_cut() || self.dice.share() < self.failing.loss || self.held.len() == HELD {
                continue;
            }
            if self.failing.jitter.is_zero() {
                return Ok(Some(len));
            }
            let late = self.failing.jitter.mul_f64(self.dice.share());
            self.held.push((Instant::now() + late, len, *buffer));
        }
        if self.is_cut() {
            self.held.clear();
        }
        let now = Instant::now();
        let Some(at) = self.held.iter().position(|(due, ..)| *due <= now) else { return Ok(None) };
        let (_, len, bytes) = self.held.swap_remove(at);
        *buffer = bytes;
        Ok(Some(len))
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let now = Instant::now();
        let due = self.held.iter().map(|(due, ..)| due.saturating_duration_since(now));
        self.inner.wait(due.fold(timeout, Duration::min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has so many datagrams.
    #[derive(Debug)]
    struct Full(usize);

    impl Keepalive for Full {
        fn send(&mut self, _: &[u8; beat::LEN]) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn receive(&mut self, _: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
            let some = self.0 > 0;
            self.0 = self.0.saturating_sub(1);
            Ok(some.then_some(beat::LEN))
        }
        fn wait(&mut self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn through(count: usize, failing: Failing, cut: bool) -> usize {
        let mut filter = Filter::new(Box::new(Full(count)), failing, Arc::new(AtomicBool::new(cut)), 1);
        assert_eq!(filter.send(&[0; beat::LEN]).is_ok(), cut, "a cut link swallows");
        let mut buffer = [0; beat::LEN + 1];
        let start = Instant::now();
        let (mut came, mut nothing) = (0, 0);
        // Until all has been asked for, and what is late has come.
        while start.elapsed() < failing.jitter + Duration::from_millis(1) || nothing < count {
            match filter.receive(&mut buffer).unwrap() {
                Some(_) => (came, nothing) = (came + 1, 0),
                None => nothing += 1,
            }
        }
        came
    }

    #[test]
    fn what_is_lost_is_lost_and_what_is_late_comes() {
        assert_eq!(through(50, Failing::default(), false), 50);
        assert_eq!(through(50, Failing::default(), true), 0);
        assert_eq!(through(50, Failing { loss: 0.0, jitter: Duration::from_millis(5) }, false), 50);
        assert!((300..700).contains(&through(1000, Failing { loss: 0.5, jitter: Duration::ZERO }, false)));
    }
}
