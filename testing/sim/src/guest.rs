//! A guest that dirties its memory and says numbered words, its checkpoints, and its gate.
//!
//! Each word carries a link of a chain that nobody could continue from elsewhere: two copies of a guest that live on apart say different
//! ones.

use crate::observer::{Observer, SharedLedger};
use anyhow::Result;
use mc_core::{
    gate::{GateStats, OutputGate, WaitFd},
    id::{BlockId, Epoch, Generation, PAGE_SIZE, Time},
    image::Image,
    ram::SharedRam,
    register::Register,
    source::{CheckpointSink, CheckpointSource, NoRoom, SourceError, SourceEvent},
};
use node::{
    gate::MessageGate,
    inbox::Outbox,
    primary::{Life, PrimaryVm},
    standby::{Ready, StandbyVm},
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

/// Pages of the guest.
pub(crate) const PAGES: usize = 6;
/// Bytes of device state: how many words it has said, and the newest link.
const DEVICE: usize = 16;
/// What both sides must have in common.
pub(crate) const PROFILE: &[u8] = b"a guest of 6 pages";

/// A word: its number, and its link.
pub(crate) type Word = (u64, u64);

/// What runs, or is stopped, on a host.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) ram: Vec<u8>,
    dirty: [bool; PAGES],
    pub(crate) word: Word,
    /// Commanded to run.
    pub(crate) runs: bool,
    /// Stopped for a checkpoint.
    pub(crate) paused: bool,
}

impl Guest {
    fn new(word: Word) -> Self {
        Self { ram: vec![0; PAGES * PAGE_SIZE], dirty: [true; PAGES], word, runs: false, paused: false }
    }

    /// Runs for a moment. `None` while it is stopped.
    pub(crate) fn step(&mut self, rng: &mut fastrand::Rng, appetite: usize) -> Option<Word> {
        if !self.runs || self.paused {
            return None;
        }
        for _ in 0..rng.usize(0..=appetite) {
            let (page, fill) = (rng.usize(0..PAGES), rng.u8(..).saturating_sub(100));
            self.ram[page * PAGE_SIZE..][..PAGE_SIZE].fill(fill);
            self.dirty[page] = true;
        }
        self.word = (self.word.0 + 1, rng.u64(..));
        self.ram[..8].copy_from_slice(&self.word.1.to_le_bytes());
        self.dirty[0] = true;
        Some(self.word)
    }

    fn device(&self) -> [u8; DEVICE] {
        let mut device = [0; DEVICE];
        device[..8].copy_from_slice(&self.word.0.to_le_bytes());
        device[8..].copy_from_slice(&self.word.1.to_le_bytes());
        device
    }
}

/// A guest's place on a host.
pub(crate) type Room = Rc<RefCell<Option<Guest>>>;

/// How a gate stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stands {
    #[default]
    Shut,
    Holds,
    Open,
}

/// What a runner commands.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) host: usize,
    pub(crate) room: Room,
    pub(crate) ledger: SharedLedger,
    pub(crate) observer: Arc<Mutex<Observer>>,
    /// Of the copy that was continued here.
    pub(crate) instance: Option<u64>,
    pub(crate) boots: Rc<Cell<bool>>,
    /// So often, about, a takeover fails before it succeeds.
    pub(crate) attempts: Cell<u8>,
}

impl PrimaryVm for Vm {
    type Source = Source;
    type Gate = Gate;

    fn profile(&self) -> Vec<u8> {
        PROFILE.to_vec()
    }

    fn lives(&self, instance: u64) -> bool {
        self.instance.is_none() && self.room.borrow().is_some() && instance != 0
    }

    fn life(&mut self) -> Life {
        Life::Lives
    }

    fn source(&mut self) -> Result<Source> {
        let (room, ledger) = (self.room.clone(), self.ledger.clone());
        room.borrow_mut().iter_mut().for_each(|guest| guest.dirty = [true; PAGES]);
        let session = self.ledger.borrow().session;
        Ok(Source { room, ledger, session, state: State::Idle, epoch: Epoch(0) })
    }

    fn leave(&mut self, _: &Register) -> Result<()> {
        let mut room = self.room.borrow_mut();
        if room.is_none() {
            let word = self.ledger.borrow_mut().boot();
            self.boots.set(true);
            *room = Some(Guest::new(word));
        }
        room.iter_mut().for_each(|guest| (guest.runs, guest.paused) = (true, false));
        Ok(())
    }

    fn fence(&mut self) -> Result<()> {
        *self.room.borrow_mut() = None;
        Ok(())
    }
}

impl StandbyVm for Vm {
    fn prepare(&mut self, profile: &[u8]) -> Result<Ready> {
        anyhow::ensure!(profile == PROFILE, "another VM");
        let instance = self.ledger.borrow_mut().instance();
        self.instance = Some(instance);
        let image = Image::new(vec![SharedRam::anonymous(PAGES * PAGE_SIZE)?]);
        Ok(Ready { profile: profile.to_vec(), image, instance })
    }

    fn take_over(&mut self, image: &Image, _: Generation, _: Epoch) -> Result<()> {
        let device: [u8; DEVICE] = image.device().try_into()?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| device[at + i]));
        let guest = Guest { ram: image.block(BlockId(0)), runs: true, ..Guest::new((number(0), number(8))) };
        let attempts = self.attempts.replace(self.attempts.get() / 2);
        anyhow::ensure!(attempts == 0, "no room for a VM yet");
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        observer.continues(self.host, guest.word);
        *self.room.borrow_mut() = Some(guest);
        Ok(())
    }

    fn discard(&mut self) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Offered,
    /// Next page, and how much of the device state was taken.
    Stopped(usize, usize),
    Captured,
}

/// Captures a guest.
#[derive(Debug)]
pub(crate) struct Source {
    room: Room,
    ledger: SharedLedger,
    session: usize,
    state: State,
    epoch: Epoch,
}

impl Source {
    fn capture(&mut self, from: usize, mut taken: usize, sink: &mut dyn CheckpointSink) -> SourceEvent {
        let mut room = self.room.borrow_mut();
        let Some(guest) = &mut *room else { return SourceEvent::Idle };
        for page in from..PAGES {
            if guest.dirty[page] && put_page(&guest.ram, page, sink).is_err() {
                self.state = State::Stopped(page, taken);
                return SourceEvent::NoRoom;
            }
            guest.dirty[page] = false;
        }
        let device = guest.device();
        while taken < DEVICE {
            let Ok(more) = sink.device(&device[taken..]) else {
                self.state = State::Stopped(PAGES, taken);
                return SourceEvent::NoRoom;
            };
            taken += more;
        }
        self.epoch = self.epoch.next();
        self.ledger.borrow_mut().captured(self.session, self.epoch, &guest.ram, &device);
        self.state = State::Captured;
        SourceEvent::Captured
    }
}

fn put_page(ram: &[u8], page: usize, sink: &mut dyn CheckpointSink) -> Result<(), NoRoom> {
    let offset = page * PAGE_SIZE;
    let Ok(data) = <&[u8; PAGE_SIZE]>::try_from(&ram[offset..][..PAGE_SIZE]) else { return Ok(()) };
    let is_zero = data.iter().all(|byte| *byte == 0);
    let (block, offset) = (BlockId(0), offset as u64);
    if is_zero { sink.zero(block, offset) } else { sink.page(block, offset, data) }
}

impl CheckpointSource for Source {
    fn begin(&mut self) -> Result<(), SourceError> {
        self.room.borrow_mut().iter_mut().for_each(|guest| guest.paused = true);
        self.state = State::Stopped(0, 0);
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        Ok(match self.state {
            State::Idle | State::Offered | State::Captured => SourceEvent::Idle,
            State::Running => {
                self.state = State::Offered;
                SourceEvent::Ready
            }
            State::Stopped(page, taken) => self.capture(page, taken, sink),
        })
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        self.room.borrow_mut().iter_mut().for_each(|guest| guest.paused = true);
        self.state = State::Stopped(0, 0);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        self.room.borrow_mut().iter_mut().for_each(|guest| guest.paused = false);
        self.state = State::Running;
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        (self.state == State::Running).then_some(Time(0))
    }
}

/// One that lets a VM run on must do so when it is dropped in the middle of a checkpoint.
impl Drop for Source {
    fn drop(&mut self) {
        if let Ok(mut room) = self.room.try_borrow_mut() {
            room.iter_mut().for_each(|guest| guest.paused = false);
        }
    }
}

/// The product's gate, watched.
#[derive(Debug)]
pub(crate) struct Gate {
    inner: MessageGate<Word>,
    stands: Rc<Cell<Stands>>,
}

impl Gate {
    /// The VM's end, and a gate that is open; `out`: what the outside sees.
    pub(crate) fn new(
        stands: &Rc<Cell<Stands>>,
        out: impl FnMut(Word) + Send + 'static,
    ) -> io::Result<(Outbox<Word>, Self)> {
        let (vm, inner) = node::gate::messages(out)?;
        stands.set(Stands::Open);
        Ok((vm, Self { inner, stands: stands.clone() }))
    }
}

impl OutputGate for Gate {
    fn poll(&mut self) -> io::Result<()> {
        self.inner.poll()
    }

    fn hold(&mut self) {
        if self.stands.get() == Stands::Open {
            self.stands.set(Stands::Holds);
        }
        self.inner.hold();
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        self.inner.barrier(epoch)
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        self.inner.release(epoch)
    }

    fn open(&mut self) -> io::Result<()> {
        if self.stands.get() == Stands::Holds {
            self.stands.set(Stands::Open);
        }
        self.inner.open()
    }

    fn shut(&mut self) {
        self.stands.set(Stands::Shut);
        self.inner.shut();
    }

    fn stats(&self) -> GateStats {
        self.inner.stats()
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        self.inner.wait_fds(each);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stands.set(Stands::Shut);
    }
}
