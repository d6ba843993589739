//! A VM whose RAM this process maps, as a source of checkpoints: it is stopped, asked which pages were written, and an engine copies
//! them.
//!
//! ```text
//! pause ──> Guest::pause ──> Tracker: runs of dirty pages ──> poll: engine copies runs, Guest::device ──> Captured ──> resume
//! ```

use crate::{
    memcpy::Memcpy,
    track::{Mapped, Tracker, Way},
};
use mc_core::{
    capture::{CaptureEngine, CaptureError, Run, Runs},
    driver::Clock,
    id::{BlockId, PAGE_SIZE, Time},
    ram::SharedRam,
    source::{CheckpointSink, CheckpointSource, SourceError, SourceEvent},
};
use std::{fs::File, io, os::fd::BorrowedFd, sync::Arc, time::Duration};

/// What stops and starts a VM, and has the rest of its state. Its calls come from the loop that holds the VM's output, which waits for
/// them: the VM stands still from [`Guest::pause`] to [`Guest::resume`].
///
/// ```
/// use capture::source::Guest;
///
/// /// A VM that runs in the steps of its owner, who looks at `runs` before each one.
/// #[derive(Default)]
/// struct Stepped { runs: bool, register: u32 }
///
/// impl Guest for Stepped {
///     fn pause(&mut self) -> std::io::Result<()> {
///         self.runs = false;
///         Ok(())
///     }
///     fn resume(&mut self) -> std::io::Result<()> {
///         self.runs = true;
///         Ok(())
///     }
///     fn device(&mut self) -> std::io::Result<Vec<u8>> {
///         Ok(self.register.to_le_bytes().to_vec())
///     }
/// }
///
/// let mut guest = Stepped { runs: true, register: 7 };
/// guest.pause()?;
/// assert_eq!((guest.runs, guest.device()?), (false, vec![7, 0, 0, 0]));
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Guest {
    /// Stops it; one that is stopped stays so. When this returns, nobody writes to its RAM.
    ///
    /// # Errors
    /// The VM is gone, or does not stop.
    fn pause(&mut self) -> io::Result<()>;

    /// Lets it run on; one that runs is left alone.
    ///
    /// # Errors
    /// The VM is gone.
    fn resume(&mut self) -> io::Result<()>;

    /// All of its state but its RAM. The VM is stopped.
    ///
    /// # Errors
    /// The VM is gone.
    fn device(&mut self) -> io::Result<Vec<u8>>;
}

/// How long the parts of a checkpoint took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lap {
    /// When the VM was asked to stop.
    pub began: Time,
    /// Until it had.
    pub stop: Duration,
    /// Asking which pages it wrote.
    pub track: Duration,
    /// Layout, copy, checksums; without the time in which there was no room.
    pub capture: Duration,
    /// Pages of this checkpoint.
    pub pages: u64,
    /// Of the full synchronisation.
    pub full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Offered,
    Pages,
    /// Device state, of which so many bytes were taken.
    Device(usize),
    Captured,
}

/// See the module. RAM is block 0. Dropped, it lets a guest go on that it had stopped.
#[derive(Debug)]
pub struct MemorySource<G: Guest, C> {
    guest: G,
    /// By this source.
    stopped: bool,
    clock: C,
    blocks: Arc<[SharedRam]>,
    tracker: Tracker,
    engine: Box<dyn CaptureEngine>,
    runs: Vec<Run>,
    /// Pages of `runs` that are in the sink already.
    taken: u64,
    device: Vec<u8>,
    state: State,
    lap: Lap,
}

impl<G: Guest, C: Clock> MemorySource<G, C> {
    /// Over this guest. `blocks` is one, and the tracker is one of all of it: else no session begins.
    #[must_use]
    pub fn new(guest: G, clock: C, blocks: Arc<[SharedRam]>, tracker: Tracker, engine: Box<dyn CaptureEngine>) -> Self {
        Self {
            guest,
            stopped: false,
            clock,
            blocks,
            tracker,
            engine,
            runs: Vec::with_capacity(1024),
            taken: 0,
            device: Vec::new(),
            state: State::Running,
            lap: Lap::default(),
        }
    }

    /// Over the memory of this file, all of it, which other mappings of this process or another may write. It is compared with a
    /// copy in every pause: the one way that finds whoever's writes.
    ///
    /// # Errors
    /// The file cannot be mapped, or is not made of whole pages.
    pub fn over(guest: G, clock: C, file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let blocks: Arc<[SharedRam]> = Arc::new([SharedRam::map(file, len)?]);
        let writers = Mapped { pid: std::process::id(), start: 0, watched: false };
        let tracker = Tracker::new(writers, &blocks[0], Way::Compare).map_err(io::Error::other)?;
        let engine = Box::new(Memcpy::new(Arc::clone(&blocks)));
        Ok(Self::new(guest, clock, blocks, tracker, engine))
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// The guest.
    pub fn guest_mut(&mut self) -> &mut G {
        &mut self.guest
    }

    /// Of the checkpoint that was captured last.
    #[must_use]
    pub fn lap(&self) -> &Lap {
        &self.lap
    }

    /// The whole RAM, once: later checkpoints have what was written since.
    fn everything(&self) -> Result<Run, SourceError> {
        let (blocks, len, tracked) = (self.blocks.len(), self.blocks[0].len(), self.tracker.len());
        if blocks != 1 || tracked != len as u64 {
            let why = format!("{blocks} blocks of RAM, the first of {len} bytes, and a tracker of {tracked} bytes");
            return Err(SourceError::Stream(format!(
                "the source takes one block of RAM, tracked as a whole; here: {why}"
            )));
        }
        let pages = u32::try_from(len / PAGE_SIZE).map_err(failed)?;
        Ok(Run { block: BlockId(0), offset: 0, pages })
    }

    fn count(&mut self) {
        self.taken = 0;
        self.lap.pages = self.runs.iter().map(|run| u64::from(run.pages)).sum();
        self.state = State::Pages;
    }

    /// Goes on where it was; false without room.
    fn copy(&mut self, sink: &mut dyn CheckpointSink) -> Result<bool, SourceError> {
        let rest = skip(&self.runs, self.taken);
        let total: u64 = rest.iter().map(|run| u64::from(run.pages)).sum();
        let mut runs = Runs::new(&rest);
        let began = self.clock.now();
        let captured = sink.capture(self.engine.as_mut(), &mut runs);
        self.lap.capture += self.clock.now().since(began);
        match captured {
            Ok(()) => {
                self.taken += total;
                Ok(true)
            }
            Err(CaptureError::NoRoom(_)) => {
                self.taken += total - runs.pages();
                Ok(false)
            }
            Err(error) => Err(failed(error)),
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

impl<G: Guest, C: Clock> CheckpointSource for MemorySource<G, C> {
    /// The guest is stopped until the full synchronisation is in the sink.
    fn begin(&mut self) -> Result<(), SourceError> {
        let everything = self.everything()?;
        self.pause()?; // what was written before is in it anyway
        self.runs = vec![everything];
        self.lap.full = true;
        self.count();
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        loop {
            match self.state {
                State::Offered | State::Captured => return Ok(SourceEvent::Idle),
                State::Running => {
                    self.state = State::Offered;
                    return Ok(SourceEvent::Ready);
                }
                State::Pages => {
                    if !self.copy(sink)? {
                        return Ok(SourceEvent::NoRoom);
                    }
                    self.device = self.guest.device().map_err(failed)?;
                    self.state = State::Device(0);
                }
                State::Device(taken) if taken == self.device.len() => {
                    self.state = State::Captured;
                    return Ok(SourceEvent::Captured);
                }
                State::Device(taken) => {
                    let Ok(more) = sink.device(&self.device[taken..]) else { return Ok(SourceEvent::NoRoom) };
                    self.state = State::Device(taken + more);
                }
            }
        }
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        self.lap = Lap { began: self.clock.now(), ..Lap::default() };
        self.stopped = true;
        self.guest.pause().map_err(failed)?;
        let stopped = self.clock.now();
        self.tracker.collect(&self.blocks[0], &mut self.runs).map_err(failed)?;
        (self.lap.stop, self.lap.track) = (stopped.since(self.lap.began), self.clock.now().since(stopped));
        self.count();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        self.state = State::Running;
        self.stopped = false;
        self.guest.resume().map_err(failed)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        (self.state == State::Running).then_some(Time(0))
    }
}

/// Its output is held until the register says whose the VM is.
impl<G: Guest, C> Drop for MemorySource<G, C> {
    fn drop(&mut self) {
        if self.stopped
            && let Err(error) = self.guest.resume()
        {
            tracing::error!(%error, "the VM stays stopped");
        }
    }
}
