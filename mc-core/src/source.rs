//! Where checkpoints come from: something that can stop a VM, hand over what changed, and let it run on.

use crate::{
    capture::{CaptureEngine, CaptureError, Runs},
    id::{BlockId, PAGE_SIZE, Time},
};
use std::{io, os::fd::BorrowedFd};

/// A running VM, as a source of checkpoints. Never blocks, but for the time a checkpoint takes to read.
///
/// ```text
///           ┌────────── VM runs ──────────┐┌────────────── VM stopped ────────────────┐┌─ VM runs
/// begin ──> (initial copy, VM runs)        Captured ──resume──> Ready ──pause──> … Captured ──resume──> Ready …
/// ```
///
/// ```
/// use mc_core::{id::*, slab::SlabPool, source::*, staging::Staging};
/// use std::os::fd::BorrowedFd;
///
/// /// A VM whose only page is copied in every pause.
/// struct Page { page: [u8; PAGE_SIZE], stopped: bool, told: bool }
///
/// impl CheckpointSource for Page {
///     fn begin(&mut self) -> Result<(), SourceError> {
///         self.pause() // the first checkpoint has everything
///     }
///     fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
///         if std::mem::replace(&mut self.told, true) {
///             return Ok(SourceEvent::Idle); // each event is told once
///         }
///         if !self.stopped {
///             return Ok(SourceEvent::Ready);
///         }
///         match sink.page(BlockId(0), 0, &self.page) {
///             Ok(()) => Ok(SourceEvent::Captured),
///             Err(NoRoom) => {
///                 self.told = false; // it is polled again
///                 Ok(SourceEvent::NoRoom)
///             }
///         }
///     }
///     fn pause(&mut self) -> Result<(), SourceError> {
///         (self.stopped, self.told) = (true, false);
///         Ok(())
///     }
///     fn resume(&mut self) -> Result<(), SourceError> {
///         (self.stopped, self.told) = (false, false);
///         Ok(())
///     }
///     fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
///         None
///     }
///     fn deadline(&self) -> Option<Time> {
///         (!self.told).then_some(Time(0)) // now
///     }
/// }
///
/// let mut staging = Staging::new(SlabPool::new(1 << 20, 4 << 20));
/// staging.begin(Incarnation(1), Generation(2));
/// let mut vm = Page { page: [7; PAGE_SIZE], stopped: false, told: false };
/// vm.begin()?;
/// assert_eq!(vm.poll(&mut staging)?, SourceEvent::Captured);
/// assert_eq!(staging.finish().pages, 1);
/// vm.resume()?; // once the gate's barrier stands
/// assert_eq!(vm.poll(&mut staging)?, SourceEvent::Ready);
/// # Ok::<(), SourceError>(())
/// ```
pub trait CheckpointSource {
    /// Starts the full synchronisation. Its end is reported as `Captured`, like every later checkpoint.
    fn begin(&mut self) -> Result<(), SourceError>;

    /// Reads what the VM has sent, into `sink`. Call it whenever its fd is readable, and after the sink had no room.
    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError>;

    /// Lets the VM stop and send a checkpoint. Only after [`SourceEvent::Ready`].
    fn pause(&mut self) -> Result<(), SourceError>;

    /// Lets the VM run on. Only after [`SourceEvent::Captured`], and only once the gate's barrier stands.
    fn resume(&mut self) -> Result<(), SourceError>;

    /// Readable when `poll` may have something to do; `None` before `begin`, and for a source that has no descriptor.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// When `poll` has something to do though no descriptor says so; a time that has passed, such as `Time(0)`, means now.
    /// `None`: never, or not before the driver's next call. After [`SourceEvent::NoRoom`] the driver polls by itself.
    fn deadline(&self) -> Option<Time> {
        None
    }
}

/// What a source has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Nothing until its fd is readable.
    Idle,
    /// The VM runs, and a checkpoint can be taken. Reported once; nothing more comes until `pause`.
    Ready,
    /// The VM is stopped, and the whole checkpoint is in the sink. Reported once.
    Captured,
    /// The sink has no room: make some and poll again. The VM is stopped meanwhile (or the initial copy waits).
    NoRoom,
}

/// The sink had no room for what was offered. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no staging slab is free")]
pub struct NoRoom;

/// Takes a checkpoint, piece by piece.
pub trait CheckpointSink {
    /// One page.
    fn page(&mut self, block: BlockId, offset: u64, data: &[u8; PAGE_SIZE]) -> Result<(), NoRoom>;

    /// One page of zeros.
    fn zero(&mut self, block: BlockId, offset: u64) -> Result<(), NoRoom>;

    /// Some device state, from the front; says how many bytes were taken.
    fn device(&mut self, data: &[u8]) -> Result<usize, NoRoom>;

    /// Has an engine copy `runs`, for a source that can see guest RAM. A sink that only takes pages refuses.
    ///
    /// # Errors
    /// [`CaptureError::NoRoom`]: make some, then go on with what is left of `runs`. Otherwise the checkpoint cannot be
    /// completed.
    fn capture(&mut self, engine: &mut dyn CaptureEngine, _runs: &mut Runs<'_>) -> Result<(), CaptureError> {
        Err(CaptureError::Engine { engine: engine.name(), source: "this sink only takes pages".into() })
    }
}

/// Why a source failed. The VM's state is then unknown: whoever holds its control connection must see to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The VM's side closed the stream: it shut down, or it died.
    #[error("the VM closed the checkpoint stream")]
    Closed,
    /// The operating system says so.
    #[error("checkpoint stream: {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The stream is not what it should be.
    #[error("checkpoint stream: {0}")]
    Stream(String),
}
