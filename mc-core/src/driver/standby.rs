//! Runs the standby's machine against a link and an image.

use super::{Clock, Timings};
use crate::{
    id::{Epoch, Generation, Incarnation, Time},
    image::Image,
    machine::Machine,
    register::Register,
    slab::{FreeSlab, PoolStats, SealedSlab, SlabPool},
    standby::{Action, Event, Role, Standby},
    transport::{Completion, Op, Transport},
    wire::{
        control::{Body, Control, NackReason},
        slab::Record,
    },
};
use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt};

/// Slabs posted to the link at a time: enough to keep it busy, few enough that an idle pool stays small.
const POSTED: usize = 4;

/// What the driver's caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyErrand {
    /// Ask the arbiter what the register holds; answer with [`Event::RegisterRead`].
    ReadRegister,
    /// Ask the arbiter for the VM; answer with [`Event::Cas`].
    Cas {
        /// See [`Action::Cas`].
        expect: Generation,
        /// See [`Action::Cas`].
        new: Register,
    },
    /// The VM is ours: start it from the image, then answer with [`Event::Running`].
    TakeOver {
        /// The generation that the register now has.
        generation: Generation,
        /// The epoch that the image holds.
        epoch: Epoch,
    },
    /// The register names us: a takeover is possible from now on.
    Registered,
    /// The image is void; a new session may come.
    Discard,
    /// The image cannot be trusted any more: end the process, so that nobody ever runs it.
    Fatal(String),
    /// For the log: the link is gone.
    LinkLost(String),
    /// For the log: an epoch was refused.
    Refused(NackReason, String),
}

/// A session with a primary.
#[derive(Debug)]
pub struct Attachment<L> {
    /// The link.
    pub link: L,
    /// Of the session.
    pub incarnation: Incarnation,
    /// What is replicated.
    pub generation: Generation,
    /// Where to.
    pub image: Image,
}

/// A staged slab: in memory, or in the spill file.
#[derive(Debug)]
enum Staged {
    Memory(SealedSlab),
    Spilled { at: u64, len: usize },
}

/// Where epochs larger than staging go: an unlinked file that lives as long as the process.
#[derive(Debug)]
pub struct SpillFile {
    file: File,
    used: u64,
}

impl SpillFile {
    /// Spills into `file`, from its start.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, used: 0 }
    }
}

/// What the standby's loop has measured.
#[derive(Clone, Debug, Default)]
pub struct StandbyFigures {
    /// Applying a committed epoch to the image.
    pub apply: Timings,
    /// When the newest epoch was committed.
    pub last_commit_at: Option<Time>,
    /// Slabs that went through the spill file.
    pub spilled_slabs: u64,
}

/// The standby's loop.
#[derive(Debug)]
pub struct StandbyDriver<L, C> {
    machine: Standby,
    pool: SlabPool,
    clock: C,
    link: Option<L>,
    incarnation: Incarnation,
    image: Option<Image>,
    staged: VecDeque<Staged>,
    /// The slab that the machine is being told about.
    arriving: Option<SealedSlab>,
    /// Device state bytes of the epoch being staged.
    device_bytes: u64,
    posted: usize,
    revoking: bool,
    spill: Option<SpillFile>,
    errands: VecDeque<StandbyErrand>,
    figures: StandbyFigures,
}

impl<L: Transport, C: Clock> StandbyDriver<L, C> {
    /// A driver without a session.
    #[must_use]
    pub fn new(machine: Standby, pool: SlabPool, spill: Option<SpillFile>, clock: C) -> Self {
        let staged = VecDeque::with_capacity(pool.cap());
        Self {
            machine,
            pool,
            clock,
            link: None,
            incarnation: Incarnation(0),
            image: None,
            staged,
            arriving: None,
            device_bytes: 0,
            posted: 0,
            revoking: false,
            spill,
            errands: VecDeque::with_capacity(16),
            figures: StandbyFigures::default(),
        }
    }

    /// A primary's session is up. Only while [`Role::Idle`].
    pub fn attach(&mut self, session: Attachment<L>) {
        assert_eq!(self.machine.role(), Role::Idle, "one session at a time");
        self.link = Some(session.link);
        self.incarnation = session.incarnation;
        self.image = Some(session.image);
        self.posted = 0;
        self.device_bytes = 0;
        self.revoking = false;
        self.figures = StandbyFigures::default();
        self.event(Event::Session { generation: session.generation });
    }

    /// Feeds the machine, and does what it asks for.
    pub fn event(&mut self, event: Event) {
        let now = self.clock.now();
        self.machine.handle(now, event);
        self.act();
    }

    /// Does everything that can be done without waiting.
    pub fn pump(&mut self) {
        let now = self.clock.now();
        self.machine.handle_timeout(now);
        self.act();
        self.poll_link();
        self.pool.shrink(now);
    }

    /// The next thing to do for the driver.
    pub fn errand(&mut self) -> Option<StandbyErrand> {
        self.errands.pop_front()
    }

    /// When to pump at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.machine.deadline()
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Standby {
        &self.machine
    }

    /// The QEMU that waits here was started anew.
    pub fn set_owner(&mut self, owner: crate::register::Owner) {
        self.machine.set_owner(owner);
    }

    /// The image; `None` without a session.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// The link, to wait on.
    #[must_use]
    pub fn link(&self) -> Option<&L> {
        self.link.as_ref()
    }

    /// The figures of this session.
    #[must_use]
    pub fn figures(&self) -> &StandbyFigures {
        &self.figures
    }

    /// The staging pool's figures.
    #[must_use]
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    fn poll_link(&mut self) {
        loop {
            self.post();
            match self.link.as_mut().and_then(Transport::poll) {
                Some(completion) => self.completed(completion),
                None => return,
            }
        }
    }

    /// Keeps a few slabs ready for the primary to write into.
    fn post(&mut self) {
        while self.posted < POSTED && self.link.is_some() {
            let Some(slab) = self.free_slab() else { return };
            let Some(link) = &mut self.link else { return self.pool.put(slab) };
            match link.submit(Op::Post(slab)) {
                Ok(()) => self.posted += 1,
                Err(rejected) => {
                    if let Op::Post(slab) = rejected.op {
                        self.pool.put(slab);
                    }
                    return;
                }
            }
        }
    }

    /// A slab from the pool; when the epoch in progress has filled all of staging, from the spill file's help, or none.
    fn free_slab(&mut self) -> Option<FreeSlab> {
        if self.pool.available() == 0 {
            if self.posted > 0 || self.staged.is_empty() {
                return None;
            }
            self.make_room();
        }
        self.pool.take()
    }

    fn make_room(&mut self) {
        match self.spill_staged() {
            None => self.event(Event::StagingFull),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.errands.push_back(StandbyErrand::Refused(NackReason::Storage, format!("spill file: {error}")));
                self.event(Event::StorageFailed);
            }
        }
    }

    fn spill_staged(&mut self) -> Option<io::Result<()>> {
        let spill = self.spill.as_mut()?;
        for staged in &mut self.staged {
            let Staged::Memory(slab) = staged else { continue };
            let (at, len) = (spill.used, slab.as_bytes().len());
            if let Err(error) = spill.file.write_all_at(slab.as_bytes(), at) {
                return Some(Err(error));
            }
            spill.used += len as u64;
            self.figures.spilled_slabs += 1;
            if let Staged::Memory(slab) = std::mem::replace(staged, Staged::Spilled { at, len }) {
                self.pool.put(slab.recycle());
            }
        }
        Some(Ok(()))
    }

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Arrived(slab) => {
                self.posted -= 1;
                self.arrived(slab);
            }
            Completion::Returned(slab) => {
                self.posted -= 1;
                self.pool.put(slab);
            }
            Completion::Written(slab) => self.pool.put(slab.recycle()),
            Completion::Received(control) => self.received(control),
            Completion::Down(error) => {
                self.link = None;
                self.errands.push_back(StandbyErrand::LinkLost(error.to_string()));
                self.event(if self.revoking { Event::Revoked } else { Event::LinkDown });
            }
        }
    }

    /// I2: what does not fit the image is never staged.
    fn arrived(&mut self, slab: SealedSlab) {
        let header = *slab.header();
        let checked = self.image.as_ref().map(|image| image.check(&slab));
        let event = match checked {
            Some(Ok(())) if header.incarnation == self.incarnation => {
                Event::Slab { generation: header.generation, epoch: header.epoch, index: header.index }
            }
            Some(Err(error)) => {
                self.errands.push_back(StandbyErrand::Refused(NackReason::Malformed, error.to_string()));
                Event::BadSlab
            }
            _ => Event::BadSlab,
        };
        self.arriving = Some(slab);
        self.event(event);
    }

    fn received(&mut self, control: Control) {
        if control.incarnation != self.incarnation {
            return self.drop_link(format!("a control record of another session, {}", control.incarnation));
        }
        let (generation, epoch) = (control.generation, control.epoch);
        match control.body {
            Body::Commit { slabs, device_bytes, .. } => {
                let slabs = if device_bytes == self.device_bytes { slabs } else { u32::MAX };
                self.event(Event::Commit { generation, epoch, slabs });
            }
            Body::Registered => {
                self.errands.push_back(StandbyErrand::Registered);
                self.event(Event::Registered { generation });
            }
            Body::Goodbye(_) => self.event(Event::Goodbye),
            Body::Ack { .. } | Body::Nack(_) => self.drop_link("a record that only a standby sends".to_owned()),
        }
    }

    fn drop_link(&mut self, why: String) {
        self.errands.push_back(StandbyErrand::LinkLost(why));
        self.event(Event::LinkDown);
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Stage => self.stage(),
            Action::ApplyNow => self.apply_now(),
            Action::Drop => self.drop_arriving(),
            Action::Send { generation, epoch, body } => self.send(generation, epoch, body),
            Action::Apply(epoch) => self.apply(epoch),
            Action::DiscardStaged => self.discard_staged(),
            Action::Revoke => self.revoke(),
            Action::ReadRegister => self.errands.push_back(StandbyErrand::ReadRegister),
            Action::Cas { expect, new } => self.errands.push_back(StandbyErrand::Cas { expect, new }),
            Action::TakeOver { generation, epoch } => self.take_over(generation, epoch),
            Action::Discard => self.discard(),
        }
    }

    fn count_device(&mut self, slab: &SealedSlab) {
        for record in slab.records() {
            if let Ok(Record::Device { data, .. }) = record {
                self.device_bytes += data.len() as u64;
            }
        }
    }

    fn stage(&mut self) {
        if let Some(slab) = self.arriving.take() {
            self.count_device(&slab);
            self.staged.push_back(Staged::Memory(slab));
        }
    }

    fn apply_now(&mut self) {
        if let (Some(slab), Some(image)) = (self.arriving.take(), &mut self.image) {
            image.apply(&slab);
            self.count_device(&slab);
            self.pool.put(slab.recycle());
        }
    }

    fn drop_arriving(&mut self) {
        if let Some(slab) = self.arriving.take() {
            self.pool.put(slab.recycle());
        }
    }

    fn send(&mut self, generation: Generation, epoch: Epoch, body: Body) {
        let body = match body {
            Body::Ack { .. } => Body::Ack { free_slabs: u32::try_from(self.pool.available()).unwrap_or(u32::MAX) },
            Body::Nack(reason) => {
                self.errands.push_back(StandbyErrand::Refused(reason, format!("{generation} {epoch}")));
                body
            }
            _ => body,
        };
        let control = Control { incarnation: self.incarnation, generation, epoch, body };
        // A refused ACK is as good as a lost one: the primary holds its output until it hears of us, or suspects us.
        let _ = self.link.as_mut().map(|l| l.submit(Op::Send(control)));
    }

    /// The committed epoch becomes the image. The ACK is on its way already: what is staged here is not lost by waiting.
    fn apply(&mut self, epoch: Epoch) {
        let start = self.clock.now();
        let mut order = std::mem::take(&mut self.staged);
        for staged in order.drain(..) {
            match self.unspill(staged) {
                Ok(slab) => {
                    if let Some(image) = &mut self.image {
                        image.apply(&slab);
                    }
                    self.pool.put(slab.recycle());
                }
                Err(error) => self.torn(epoch, &error),
            }
        }
        self.staged = order;
        self.reset_epoch();
        let now = self.clock.now();
        self.figures.apply.record(now.since(start));
        self.figures.last_commit_at = Some(now);
    }

    fn unspill(&mut self, staged: Staged) -> io::Result<SealedSlab> {
        let (at, len) = match staged {
            Staged::Memory(slab) => return Ok(slab),
            Staged::Spilled { at, len } => (at, len),
        };
        let (Some(spill), Some(mut slab)) = (&self.spill, self.pool.take()) else {
            return Err(io::Error::other("no slab is free to read the spill file into"));
        };
        let read = spill.file.read_exact_at(&mut slab.receive_buffer()[..len], at);
        match read.map(|()| slab.arrived()) {
            Ok(Ok(slab)) => Ok(slab),
            Ok(Err((slab, error))) => {
                self.pool.put(slab);
                Err(io::Error::other(error))
            }
            Err(error) => Err(error),
        }
    }

    /// An ACKed epoch cannot be applied: the image is that of no epoch, and must never run.
    fn torn(&mut self, epoch: Epoch, error: &io::Error) {
        self.image = None;
        self.errands.push_back(StandbyErrand::Fatal(format!("{epoch} was ACKed and cannot be applied: {error}")));
    }

    fn reset_epoch(&mut self) {
        self.device_bytes = 0;
        if let Some(spill) = &mut self.spill {
            spill.used = 0;
        }
    }

    fn discard_staged(&mut self) {
        while let Some(staged) = self.staged.pop_front() {
            if let Staged::Memory(slab) = staged {
                self.pool.put(slab.recycle());
            }
        }
        self.reset_epoch();
    }

    fn take_over(&mut self, generation: Generation, epoch: Epoch) {
        if self.image.is_some() {
            self.errands.push_back(StandbyErrand::TakeOver { generation, epoch });
        }
    }

    /// I3. What had arrived in full is reported by the link before it says that it is down; see `completed`.
    fn revoke(&mut self) {
        self.revoking = true;
        match &mut self.link {
            Some(link) => link.revoke(),
            None => self.event(Event::Revoked),
        }
    }

    fn discard(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.revoke();
            while let Some(completion) = link.poll() {
                match completion {
                    Completion::Arrived(slab) | Completion::Written(slab) => self.pool.put(slab.recycle()),
                    Completion::Returned(slab) => self.pool.put(slab),
                    Completion::Received(_) | Completion::Down(_) => {}
                }
            }
        }
        self.posted = 0;
        self.image = None;
        self.errands.push_back(StandbyErrand::Discard);
    }
}
