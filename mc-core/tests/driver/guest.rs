//! A guest that dirties its memory and sends numbered packets, the source that captures it, and the gate it sends through.

use crate::rig::ManualClock;
use mc_core::{
    gate::{GateStats, OutputGate},
    id::{BlockId, Epoch, PAGE_SIZE, Time},
    source::{CheckpointSink, CheckpointSource, NoRoom, SourceError, SourceEvent},
};
use std::{
    cell::RefCell, collections::VecDeque, io, os::fd::BorrowedFd, rc::Rc, sync::atomic::Ordering, time::Duration,
};

/// Pages of each RAM block.
pub(crate) const BLOCKS: [usize; 2] = [24, 8];
/// Bytes of device state: not a multiple of 8, and more than one small slab holds.
const DEVICE: usize = 9_001;

/// What a checkpoint must reproduce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) ram: Vec<Vec<u8>>,
    pub(crate) device: Vec<u8>,
    /// The last packet that it had sent.
    pub(crate) sent: u64,
}

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    seed: u64,
    pub(crate) state: Snapshot,
    dirty: Vec<bool>,
    pub(crate) stopped: bool,
    /// Pages touched each time it runs.
    pub(crate) appetite: usize,
    /// By epoch; not taken when `remember` is false.
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) remember: bool,
    /// Every page that is captured moves this clock by so much.
    pub(crate) clock: Option<(ManualClock, Duration)>,
}

pub(crate) type SharedGuest = Rc<RefCell<Guest>>;

impl Guest {
    pub(crate) fn new(seed: u64, appetite: usize) -> SharedGuest {
        let ram = BLOCKS.map(|pages| vec![0; pages * PAGE_SIZE]).to_vec();
        let state = Snapshot { ram, device: vec![0; DEVICE], sent: 0 };
        let dirty = vec![false; BLOCKS.iter().sum()];
        let snapshots = Vec::new();
        let guest = Self { seed, state, dirty, stopped: false, appetite, snapshots, remember: true, clock: None };
        Rc::new(RefCell::new(guest))
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.seed >> 33).unwrap() % below
    }

    /// Runs for a moment, unless it is stopped.
    pub(crate) fn run(&mut self) {
        if self.stopped {
            return;
        }
        for _ in 0..self.appetite {
            let page = self.random(self.dirty.len());
            let (byte, zero) = (self.random(256), self.random(4) == 0);
            self.dirty[page] = true;
            let (block, offset) = place(page);
            let fill = if zero { 0 } else { u8::try_from(byte).unwrap() };
            self.state.ram[block][offset..offset + PAGE_SIZE].fill(fill);
        }
        let at = self.random(DEVICE);
        self.state.device[at] = self.state.device[at].wrapping_add(1);
        self.state.sent += 1;
    }

    fn time_passes(&self) {
        if let Some((clock, each)) = &self.clock {
            clock.0.fetch_add(u64::try_from(each.as_nanos()).unwrap(), Ordering::Relaxed);
        }
    }

    fn capture(&mut self) {
        if self.remember {
            self.snapshots.push(self.state.clone());
        }
    }
}

fn place(page: usize) -> (usize, usize) {
    if page < BLOCKS[0] { (0, page * PAGE_SIZE) } else { (1, (page - BLOCKS[0]) * PAGE_SIZE) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// The initial copy: the next page, while the guest runs.
    Copying(usize),
    Running,
    Offered,
    /// Next page, and how much of the device state was taken.
    Stopped(usize, usize),
    Captured,
}

/// Captures the guest.
#[derive(Debug)]
pub(crate) struct Source {
    guest: SharedGuest,
    state: State,
    /// Fails instead of the n-th capture.
    pub(crate) fail_at: Option<usize>,
    captures: usize,
}

impl Source {
    pub(crate) fn new(guest: SharedGuest) -> Self {
        Self { guest, state: State::Idle, fail_at: None, captures: 0 }
    }

    fn copy(&mut self, from: usize, sink: &mut dyn CheckpointSink) -> SourceEvent {
        let mut guest = self.guest.borrow_mut();
        for page in from..guest.dirty.len() {
            self.state = State::Copying(page);
            guest.dirty[page] = false;
            if put_page(&guest.state, page, sink).is_err() {
                return SourceEvent::NoRoom;
            }
            if page % 7 == 6 {
                self.state = State::Copying(page + 1);
                return SourceEvent::Idle; // lets the guest run in between
            }
        }
        guest.stopped = true;
        self.state = State::Stopped(0, 0);
        SourceEvent::Idle
    }

    fn capture(&mut self, from: usize, mut device: usize, sink: &mut dyn CheckpointSink) -> SourceEvent {
        let mut guest = self.guest.borrow_mut();
        for page in from..guest.dirty.len() {
            if guest.dirty[page] {
                guest.time_passes();
            }
            if guest.dirty[page] && put_page(&guest.state, page, sink).is_err() {
                self.state = State::Stopped(page, device);
                return SourceEvent::NoRoom;
            }
            guest.dirty[page] = false;
        }
        while device < DEVICE {
            let Ok(taken) = sink.device(&guest.state.device[device..]) else {
                self.state = State::Stopped(guest.dirty.len(), device);
                return SourceEvent::NoRoom;
            };
            device += taken;
        }
        guest.capture();
        self.captures += 1;
        self.state = State::Captured;
        SourceEvent::Captured
    }
}

fn put_page(state: &Snapshot, page: usize, sink: &mut dyn CheckpointSink) -> Result<(), NoRoom> {
    let (block, offset) = place(page);
    let data: &[u8; PAGE_SIZE] = state.ram[block][offset..offset + PAGE_SIZE].try_into().unwrap();
    let (block, offset) = (BlockId(u16::try_from(block).unwrap()), offset as u64);
    if data.iter().all(|b| *b == 0) { sink.zero(block, offset) } else { sink.page(block, offset, data) }
}

impl CheckpointSource for Source {
    fn begin(&mut self) -> Result<(), SourceError> {
        assert_eq!(self.state, State::Idle, "begun twice");
        self.state = State::Copying(0);
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        if self.fail_at == Some(self.captures) {
            return Err(SourceError::Closed);
        }
        Ok(match self.state {
            State::Idle | State::Offered | State::Captured => SourceEvent::Idle,
            State::Copying(page) => self.copy(page, sink),
            State::Running => {
                self.state = State::Offered;
                SourceEvent::Ready
            }
            State::Stopped(page, device) => self.capture(page, device, sink),
        })
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        assert_eq!(self.state, State::Offered, "pause without Ready");
        self.guest.borrow_mut().stopped = true;
        self.state = State::Stopped(0, 0);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        assert_eq!(self.state, State::Captured, "resume without Captured");
        self.guest.borrow_mut().stopped = false;
        self.state = State::Running;
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline(&self) -> Option<Time> {
        matches!(self.state, State::Copying(_) | State::Running).then_some(Time(0))
    }
}

/// Remembers which packets left: all up to `out`.
#[derive(Debug)]
pub(crate) struct Gate {
    guest: SharedGuest,
    hold: bool,
    shut: bool,
    /// Epoch, and the last packet of it.
    batches: VecDeque<(Epoch, u64)>,
    pub(crate) out: u64,
    /// Every barrier fails.
    pub(crate) broken: bool,
    /// It fails to open so many times.
    pub(crate) jams: u32,
}

impl Gate {
    pub(crate) fn new(guest: SharedGuest) -> Self {
        Self { guest, hold: false, shut: false, batches: VecDeque::with_capacity(16), out: 0, broken: false, jams: 0 }
    }
}

impl OutputGate for Gate {
    fn poll(&mut self) -> io::Result<()> {
        if !self.hold && !self.shut {
            self.out = self.guest.borrow().state.sent;
        }
        Ok(())
    }

    fn hold(&mut self) {
        self.hold = true;
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        assert!(self.guest.borrow().stopped, "a barrier while the VM runs");
        if self.broken {
            return Err(io::Error::other("a broken gate"));
        }
        self.batches.push_back((epoch, self.guest.borrow().state.sent));
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        assert!(!self.shut, "a release after the gate was shut");
        while let Some((_, last)) = self.batches.front().copied().filter(|(e, _)| *e <= epoch) {
            self.out = self.out.max(last);
            self.batches.pop_front();
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        assert!(!self.shut, "opened after it was shut");
        if let Some(left) = self.jams.checked_sub(1) {
            self.jams = left;
            return Err(io::Error::other("a gate that jams"));
        }
        self.hold = false;
        self.batches.clear();
        self.poll()
    }

    fn shut(&mut self) {
        self.shut = true;
        self.batches.clear();
    }

    fn stats(&self) -> GateStats {
        GateStats::default()
    }
}
