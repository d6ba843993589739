//! The guest as a source of checkpoints: stop it, ask which pages it wrote, have a capture engine copy them.

use super::{
    clock::{Monotonic, now_ns},
    guest::Guest,
};
use capture::{
    source::{self, MemorySource},
    track::Tracker,
};
use mc_core::{
    capture::CaptureEngine,
    driver::Clock,
    histogram::Histogram,
    id::Time,
    ram::SharedRam,
    source::{CheckpointSink, CheckpointSource, SourceError, SourceEvent},
};
use std::{io, os::fd::BorrowedFd, sync::Arc};

/// Bytes of device state in every checkpoint: what a small `pc` machine has.
const DEVICE: usize = 13 << 10;

/// What the source has measured; the full synchronisation does not count.
#[derive(Clone, Debug, Default)]
pub struct SourceFigures {
    /// From asking the guest to stop until it had.
    pub stop: Histogram,
    /// Asking which pages it wrote.
    pub track: Histogram,
    /// Layout, copy, checksums.
    pub capture: Histogram,
    /// From asking the guest to stop until it was told to run.
    pub pause: Histogram,
    /// Each pause: when it began, seconds since the first, and its length, seconds.
    pub pauses: Vec<(f64, f64)>,
    /// Dirty pages.
    pub pages: u64,
}

/// The guest, whose last pause does not end.
#[derive(Debug)]
struct Ends {
    guest: Guest,
    stopped: bool,
    last: bool,
}

impl source::Guest for Ends {
    fn pause(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.stopped, true) { Ok(()) } else { self.guest.pause().map_err(io::Error::other) }
    }

    fn resume(&mut self) -> io::Result<()> {
        self.stopped = self.last;
        if self.last { Ok(()) } else { self.guest.resume().map_err(io::Error::other) }
    }

    fn device(&mut self) -> io::Result<Vec<u8>> {
        Ok(vec![0x5a; DEVICE])
    }
}

/// The source, and what it measures.
#[derive(Debug)]
pub struct Source {
    inner: MemorySource<Ends, Monotonic>,
    /// The next checkpoint is the last: the guest stays stopped after it.
    last: bool,
    ended: bool,
    first: u64,
    figures: SourceFigures,
}

impl Source {
    /// Over this guest, which is stopped.
    #[must_use]
    pub fn new(guest: Guest, blocks: Arc<[SharedRam]>, tracker: Tracker, engine: Box<dyn CaptureEngine>) -> Self {
        let guest = Ends { guest, stopped: true, last: false };
        let inner = MemorySource::new(guest, Monotonic, blocks, tracker, engine);
        Self { inner, last: false, ended: false, first: now_ns(), figures: SourceFigures::default() }
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.inner.guest().guest
    }

    /// What it has measured.
    #[must_use]
    pub fn figures(&self) -> &SourceFigures {
        &self.figures
    }

    /// Forgets its figures so far.
    pub fn reset(&mut self) {
        (self.figures, self.first) = (SourceFigures::default(), now_ns());
    }

    /// The next checkpoint is the last.
    pub fn finish(&mut self) {
        self.last = true;
    }

    fn note(&mut self) {
        let lap = self.inner.lap();
        let (began, length) = (lap.began, Monotonic.now().since(lap.began));
        let figures = &mut self.figures;
        figures.stop.record(lap.stop);
        figures.track.record(lap.track);
        figures.capture.record(lap.capture);
        figures.pause.record(length);
        figures.pauses.push(((began.0 - self.first) as f64 / 1e9, length.as_secs_f64()));
        figures.pages += lap.pages;
    }
}

impl CheckpointSource for Source {
    fn begin(&mut self) -> Result<(), SourceError> {
        self.inner.begin()
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        if self.ended { Ok(SourceEvent::Idle) } else { self.inner.poll(sink) }
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        self.inner.pause()
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        let counts = !self.inner.lap().full;
        if counts {
            self.note();
            self.ended = self.last;
        }
        self.inner.guest_mut().last = self.ended;
        self.inner.resume()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        self.inner.deadline().filter(|_| !self.ended)
    }
}
