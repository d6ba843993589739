//! The guest as a source of checkpoints: stop it, ask which pages it wrote, have a capture engine copy them.

use super::{clock::now_ns, guest::Guest};
use capture::track::Tracker;
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    histogram::Histogram,
    id::{BlockId, PAGE_SIZE, Time},
    ram::SharedRam,
    source::{CheckpointSink, CheckpointSource, SourceError, SourceEvent},
};
use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Offered,
    /// Pages, then device state: so many bytes of it were taken.
    Capturing {
        device: usize,
    },
    Captured,
}

/// The source.
#[derive(Debug)]
pub struct Source {
    guest: Guest,
    blocks: Arc<[SharedRam]>,
    tracker: Tracker,
    engine: Box<dyn CaptureEngine>,
    runs: Vec<Run>,
    /// Pages of `runs` that are in the sink already.
    taken: u64,
    state: State,
    full: bool,
    /// The next checkpoint is the last: the guest stays stopped after it.
    last: bool,
    ended: bool,
    /// Of the checkpoint under way, which may have to wait for room in between.
    capturing: Duration,
    began: u64,
    first: u64,
    figures: SourceFigures,
}

impl Source {
    /// Over this guest, which is stopped.
    #[must_use]
    pub fn new(guest: Guest, blocks: Arc<[SharedRam]>, tracker: Tracker, engine: Box<dyn CaptureEngine>) -> Self {
        Self {
            guest,
            blocks,
            tracker,
            engine,
            runs: Vec::with_capacity(1024),
            taken: 0,
            state: State::Running,
            full: true,
            last: false,
            ended: false,
            capturing: Duration::ZERO,
            began: 0,
            first: now_ns(),
            figures: SourceFigures::default(),
        }
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
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

    fn stop(&mut self) -> Result<(), SourceError> {
        self.began = now_ns();
        self.guest.pause().map_err(failed)?;
        let stopped = now_ns();
        self.tracker.collect(&self.blocks[0], &mut self.runs).map_err(failed)?;
        self.figures.stop.record(Duration::from_nanos(stopped - self.began));
        self.figures.track.record(Duration::from_nanos(now_ns() - stopped));
        self.figures.pages += self.runs.iter().map(|r| u64::from(r.pages)).sum::<u64>();
        Ok(())
    }

    /// Goes on where it was; false without room.
    fn capture(&mut self, sink: &mut dyn CheckpointSink) -> Result<bool, SourceError> {
        let rest = skip(&self.runs, self.taken);
        let total: u64 = rest.iter().map(|r| u64::from(r.pages)).sum();
        let mut runs = Runs::new(&rest);
        let began = now_ns();
        let captured = sink.capture(self.engine.as_mut(), &mut runs);
        self.capturing += Duration::from_nanos(now_ns() - began);
        match captured {
            Ok(()) => {
                self.taken += total;
                Ok(true)
            }
            Err(CaptureError::NoRoom(_)) => {
                self.taken += total - runs.pages();
                Ok(false)
            }
            Err(error) => Err(SourceError::Stream(error.to_string())),
        }
    }
}

/// The runs without their first pages.
fn skip(runs: &[Run], pages: u64) -> std::borrow::Cow<'_, [Run]> {
    if pages == 0 {
        return runs.into();
    }
    let mut left = pages;
    let rest = runs.iter().filter_map(|run| {
        let gone = left.min(u64::from(run.pages));
        left -= gone;
        let pages = run.pages - u32::try_from(gone).unwrap_or(run.pages);
        (pages > 0).then_some(Run { offset: run.offset + gone * PAGE_SIZE as u64, pages, ..*run })
    });
    rest.collect::<Vec<_>>().into()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: impl ToString) -> SourceError {
    SourceError::Stream(error.to_string())
}

impl CheckpointSource for Source {
    /// The guest is stopped for the full synchronisation, which no figure contains.
    fn begin(&mut self) -> Result<(), SourceError> {
        let pages = u32::try_from(self.blocks[0].len() / PAGE_SIZE).map_err(failed)?;
        self.runs = vec![Run { block: BlockId(0), offset: 0, pages }];
        self.state = State::Capturing { device: 0 };
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        match self.state {
            State::Running if self.ended => Ok(SourceEvent::Idle),
            State::Running => {
                self.state = State::Offered;
                Ok(SourceEvent::Ready)
            }
            State::Offered | State::Captured => Ok(SourceEvent::Idle),
            State::Capturing { mut device } => {
                if device == 0 && !self.capture(sink)? {
                    return Ok(SourceEvent::NoRoom);
                }
                while device < DEVICE {
                    let Ok(taken) = sink.device(&[0x5a; DEVICE][device..]) else {
                        return Ok(SourceEvent::NoRoom);
                    };
                    device += taken;
                    self.state = State::Capturing { device };
                }
                self.state = State::Captured;
                Ok(SourceEvent::Captured)
            }
        }
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        (self.taken, self.capturing) = (0, Duration::ZERO);
        self.state = State::Capturing { device: 0 };
        self.stop()
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        self.state = State::Running;
        if !std::mem::take(&mut self.full) {
            let length = now_ns() - self.began;
            self.figures.capture.record(self.capturing);
            self.figures.pause.record(Duration::from_nanos(length));
            self.figures.pauses.push(((self.began - self.first) as f64 / 1e9, length as f64 / 1e9));
            self.ended = self.last;
        }
        if self.ended { Ok(()) } else { self.guest.resume().map_err(failed) }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        (self.state == State::Running && !self.ended).then_some(Time(0))
    }
}
