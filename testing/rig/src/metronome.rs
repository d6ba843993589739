//! Whether this machine kept time: a thread on each processor wakes up again and again, and writes down when it was
//! late.
//!
//! A side that suspects the other because of "silence" is excused by the machine's load only if the machine was late
//! then, by this clock and not by the program's own word. The threads have no priority: whatever keeps a sidecar's
//! beats from running keeps them from running too.

use crate::timeline::now_ms;
use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How often each wakes up.
const TICK: Duration = Duration::from_millis(5);
/// Lateness that is no news.
const USUAL: Duration = Duration::from_millis(5);
/// Entries that are kept.
const KEPT: usize = 100_000;

/// When somebody was late, in unix milliseconds, and by how much, in milliseconds.
#[derive(Debug, Default)]
struct Late(Mutex<Vec<(f64, f64)>>);

static LATE: OnceLock<Late> = OnceLock::new();

impl Late {
    fn entries(&self) -> MutexGuard<'_, Vec<(f64, f64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, at_ms: f64, late_ms: f64) {
        let mut entries = self.entries();
        if entries.len() >= KEPT {
            entries.drain(..KEPT / 2);
        }
        entries.push((at_ms, late_ms));
    }

    fn worst(&self, from_ms: f64, to_ms: f64) -> f64 {
        // A stretch of lateness ends when it is noted.
        let touches = |(at, late): &&(f64, f64)| *at >= from_ms && at - late <= to_ms;
        self.entries().iter().filter(touches).map(|(_, late)| *late).fold(0.0, f64::max)
    }
}

/// Begins, once; the threads live as long as the process.
///
/// # Errors
/// A thread cannot be started.
pub fn start() -> Result<()> {
    if LATE.set(Late::default()).is_err() {
        return Ok(());
    }
    let allowed = sched_getaffinity(None::<Pid>).context("the processors of this process")?;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
        let name = format!("metronome {cpu}");
        thread::Builder::new().name(name).spawn(move || tick(cpu)).context("metronome")?;
    }
    Ok(())
}

fn tick(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    // (A processor that is taken away is nobody's to watch; this thread then watches another one.)
    let _ = sched_setaffinity(None::<Pid>, &only);
    loop {
        let start = Instant::now();
        thread::sleep(TICK);
        let late = start.elapsed().saturating_sub(TICK);
        if let Some(watched) = LATE.get().filter(|_| late > USUAL) {
            watched.note(now_ms(), late.as_secs_f64() * 1e3);
        }
    }
}

/// The most that a processor was late between two moments (unix milliseconds), in milliseconds. None: nobody watches.
#[must_use]
pub fn worst(from_ms: f64, to_ms: f64) -> Option<f64> {
    LATE.get().map(|late| late.worst(from_ms, to_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_found_where_it_was() {
        let late = Late::default();
        late.note(1000.0, 60.0);
        late.note(1500.0, 20.0);
        assert_eq!(late.worst(900.0, 1600.0), 60.0);
        assert_eq!(late.worst(1001.0, 1600.0), 20.0);
        assert_eq!(late.worst(930.0, 950.0), 60.0, "in the midst of it");
        assert_eq!(late.worst(1501.0, 1600.0), 0.0);
    }

    #[test]
    fn no_more_is_kept_than_is_needed() {
        let late = Late::default();
        (0..=KEPT).for_each(|_| late.note(1.0, 1.0));
        assert!(late.entries().len() < KEPT);
    }
}
