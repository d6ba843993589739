//! Whether this process was away: frozen, or starved, for so long that it may have been declared dead meanwhile.
//!
//! Absence is told from work by looking at the clock often enough: after every sleep, and all along a capture, which may
//! rightly take longer than a standby bears silence. Were a long capture taken for an absence, the ACK that comes in
//! during it would never count as fresh, and its output would never leave.

use crate::{
    capture::{CaptureEngine, CaptureError, Runs},
    driver::Clock,
    id::{BlockId, PAGE_SIZE, Time},
    source::{CheckpointSink, NoRoom},
};
use std::time::Duration;

/// Looks at the clock once for so many records of a checkpoint.
const EVERY: u32 = 8;

/// When it was last seen that this process runs.
#[derive(Debug)]
pub(super) struct Awake {
    limit: Duration,
    seen: Time,
    /// Away for longer than the limit, since somebody asked.
    away: bool,
}

impl Awake {
    pub(super) fn new(now: Time) -> Self {
        Self { limit: Duration::MAX, seen: now, away: false }
    }

    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    fn look(&mut self, now: Time) {
        self.away |= now.since(std::mem::replace(&mut self.seen, now)) > self.limit;
    }

    /// Whether it was away since this was asked last.
    pub(super) fn was_away(&mut self, now: Time) -> bool {
        self.look(now);
        std::mem::take(&mut self.away)
    }

    /// The same sink, with a look at the clock now and then.
    pub(super) fn watch<'a, S, C>(&'a mut self, sink: &'a mut S, clock: &'a C) -> Watched<'a, S, C> {
        Watched { sink, clock, awake: self, records: 0 }
    }
}

/// See [`Awake::watch`].
#[derive(Debug)]
pub(super) struct Watched<'a, S, C> {
    sink: &'a mut S,
    clock: &'a C,
    awake: &'a mut Awake,
    records: u32,
}

impl<S: CheckpointSink, C: Clock> Watched<'_, S, C> {
    fn sink(&mut self) -> &mut S {
        self.records += 1;
        if self.records.is_multiple_of(EVERY) {
            self.awake.look(self.clock.now());
        }
        self.sink
    }
}

impl<S: CheckpointSink, C: Clock> CheckpointSink for Watched<'_, S, C> {
    fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> Result<(), NoRoom> {
        self.sink().page(block, offset, data)
    }

    fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom> {
        self.sink().zero(block, offset)
    }

    fn device(&mut self, data: &[u8]) -> Result<usize, NoRoom> {
        self.sink().device(data)
    }

    fn capture(&mut self, engine: &mut dyn CaptureEngine, runs: &mut Runs<'_>) -> Result<(), CaptureError> {
        self.awake.look(self.clock.now());
        let captured = self.sink.capture(engine, runs);
        self.awake.look(self.clock.now());
        captured
    }
}
