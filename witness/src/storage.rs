//! The thread that stores registers, one at a time; once a second it writes a test file, to prove that it still can.

use super::{registrar::Input, store::Store};
use mc_core::{id::Name, register::Register};
use std::{
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};
use tracing::{error, info};

/// From one probe to the next.
const EVERY: Duration = Duration::from_secs(1);

/// What is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// This register.
    Persist(Name, Register),
    /// That there is none.
    Remove(Name),
}

/// When the storage last proved that it can store: nodes are told with every answer. A disk that hangs is found out by its age.
#[derive(Debug)]
pub(crate) struct Probe {
    start: Instant,
    /// Milliseconds after `start`, and one; 0: never.
    passed: AtomicU64,
}

impl Default for Probe {
    fn default() -> Self {
        Self { start: Instant::now(), passed: AtomicU64::new(0) }
    }
}

impl Probe {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// How long ago that was; `None`: never.
    pub(crate) fn age_ms(&self) -> Option<u32> {
        let passed = self.passed.load(Ordering::Relaxed).checked_sub(1)?;
        Some(u32::try_from(self.now().saturating_sub(passed)).unwrap_or(u32::MAX - 1))
    }

    /// Tries it; says so when it stops working, and when it works again.
    pub(crate) fn run(&self, store: &Store, works: &mut bool) {
        let began = self.now();
        let result = store.probe();
        if result.is_ok() {
            self.passed.store(began + 1, Ordering::Relaxed);
        }
        match result {
            Err(why) if *works => error!("swaps fail until this is mended; the nodes are told: {why}"),
            Ok(()) if !*works => info!("the state directory can be written again"),
            _ => {}
        }
        *works = self.passed.load(Ordering::Relaxed) == began + 1;
    }
}

/// Writes what the registrar asks for, until it ends.
pub(crate) fn run(store: &Store, work: &Receiver<Work>, done: &Sender<Input>, probe: &Probe, mut works: bool) {
    let mut due = Instant::now() + EVERY;
    loop {
        // However much there is to write: its age is told with every answer.
        if Instant::now() >= due {
            probe.run(store, &mut works);
            due = Instant::now() + EVERY;
        }
        let (vm, result) = match work.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Work::Persist(vm, register)) => (vm, store.persist(vm, register)),
            Ok(Work::Remove(vm)) => (vm, store.remove(vm)),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => continue,
        };
        if done.send(Input::Stored { vm, result }).is_err() {
            return;
        }
    }
}
