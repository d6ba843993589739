//! Runs the standby's machine against a link and an image.

use super::{
    Clock,
    store::{Shortage, SpillFile, Store},
    words::Words,
};
use crate::{
    histogram::Histogram,
    id::{Epoch, Generation, Incarnation, Time},
    image::Image,
    machine::Machine,
    register::Swap,
    slab::{FreeSlab, PoolStats, SealedSlab, SlabPool},
    standby::{Action, Event, Role, Standby},
    transport::{Completion, LinkError, NotFenced, Op, Transport},
    wire::control::{Body, Control, NackReason},
};
use std::collections::VecDeque;

/// Slabs posted to the link at a time: enough to keep it busy, few enough that an idle pool stays small.
const POSTED: usize = 4;

/// What the driver's caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandbyErrand {
    /// Ask the arbiter what the register holds; answer with [`Event::RegisterRead`].
    ReadRegister,
    /// Ask the arbiter for the VM; answer with [`Event::Cas`].
    Cas(Swap),
    /// Tell the arbiter that this node has no copy; answer with [`Event::Cas`].
    Renounce(Swap),
    /// The VM is ours: start it from the image, then answer with [`Event::Running`].
    TakeOver {
        /// The generation that the register now has.
        generation: Generation,
        /// The epoch that the image holds.
        epoch: Epoch,
    },
    /// Have a throw-away copy of the VM load the image; answer with [`StandbyDriver::rehearsed`]. The image stands still until
    /// then.
    Rehearse(Epoch),
    /// That copy is not needed any more: end it.
    EndRehearsal,
    /// The image is void; a new session may come.
    Discard,
    /// Another copy owns the VM: the takeover ends, and whatever it has started.
    Abandon,
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
    /// What this side drew for the session, and told the primary.
    pub instance: u64,
    /// Where to.
    pub image: Image,
    /// Staging, in slabs of the primary's size.
    pub pool: SlabPool,
    /// Where epochs larger than staging go.
    pub spill: Option<SpillFile>,
}

/// What the standby's loop has measured.
#[derive(Clone, Debug, Default)]
pub struct StandbyFigures {
    /// Applying a committed epoch to the image.
    pub apply: Histogram,
    /// When the newest epoch was committed.
    pub last_commit_at: Option<Time>,
    /// When the full synchronisation was.
    pub synced_at: Option<Time>,
    /// When the primary's access was found to have ended, and all that had arrived was handled (I3).
    pub revoked_at: Option<Time>,
    /// Slabs that went through the spill file.
    pub spilled_slabs: u64,
}

/// The standby's loop.
#[derive(Debug)]
pub struct StandbyDriver<L, C> {
    machine: Standby,
    store: Store,
    clock: C,
    link: Option<L>,
    incarnation: Incarnation,
    /// The slab that the machine is being told about.
    arriving: Option<SealedSlab>,
    posted: usize,
    revoking: bool,
    /// The image stands still.
    rehearsing: bool,
    /// In the middle of something. It is so for ever after a panic: then the image may be of no whole epoch.
    within: bool,
    /// What is to be said with the next NACK.
    why: String,
    errands: VecDeque<StandbyErrand>,
    figures: StandbyFigures,
}

impl<L: Transport, C: Clock> StandbyDriver<L, C> {
    /// A driver without a session.
    #[must_use]
    pub fn new(machine: Standby, clock: C) -> Self {
        Self {
            machine,
            store: Store::default(),
            clock,
            link: None,
            incarnation: Incarnation(0),
            arriving: None,
            posted: 0,
            revoking: false,
            rehearsing: false,
            within: false,
            why: String::new(),
            errands: VecDeque::with_capacity(16),
            figures: StandbyFigures::default(),
        }
    }

    /// A primary's session is up. Only while [`Role::Idle`].
    pub fn attach(&mut self, session: Attachment<L>) {
        assert_eq!(self.machine.role(), Role::Idle, "one session at a time");
        self.link = Some(session.link);
        self.incarnation = session.incarnation;
        self.store = Store::new(session.image, session.pool, session.spill);
        self.posted = 0;
        (self.revoking, self.rehearsing) = (false, false);
        self.why.clear();
        self.figures = StandbyFigures::default();
        self.event(Event::Session { generation: session.generation, instance: session.instance });
    }

    /// Feeds the machine, and does what it asks for.
    pub fn event(&mut self, event: Event) {
        let outer = std::mem::replace(&mut self.within, true);
        let now = self.clock.now();
        self.machine.handle(now, event);
        self.act();
        self.within = outer;
    }

    /// Does everything that can be done without waiting.
    pub fn pump(&mut self) {
        let outer = std::mem::replace(&mut self.within, true);
        let now = self.clock.now();
        self.machine.handle_timeout(now);
        self.act();
        self.poll_link();
        self.store.shrink(now);
        self.figures.spilled_slabs = self.store.spilled;
        self.within = outer;
    }

    /// Whether the image stands still for a rehearsal: then it may be of an older epoch than the committed one, which waits in staging.
    #[must_use]
    pub fn is_rehearsing(&self) -> bool {
        self.rehearsing
    }

    /// Whether image and machine are of the same epoch. Not after a panic in here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.within
    }

    /// What came of [`StandbyErrand::Rehearse`]: nothing, or why the copy could not load the image.
    pub fn rehearsed(&mut self, outcome: Result<(), String>) {
        let passed = outcome.is_ok();
        if let Err(why) = outcome {
            self.why = why;
        }
        self.event(Event::Rehearsed { passed });
    }

    /// The VM could not be run here, for now: the primary is told why, and goes on alone. Should it die first, this side asks for the
    /// VM all the same: its copy is as good as before.
    pub fn unable(&mut self, why: String) {
        self.why = why;
        self.event(Event::Unable);
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
        self.store.image.as_ref()
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

    /// The figures of staging; `None` before the first session.
    #[must_use]
    pub fn pool_stats(&self) -> Option<PoolStats> {
        self.store.stats()
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
            let goes_on = match self.store.take(self.posted) {
                Ok(slab) => self.submit(slab),
                Err(shortage) => self.drop_epoch(&shortage),
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether the link took it.
    fn submit(&mut self, slab: FreeSlab) -> bool {
        let Some(link) = &mut self.link else {
            self.store.put(slab);
            return false;
        };
        let refused = link.submit(Op::Post(slab)).err();
        self.posted += usize::from(refused.is_none());
        match refused.map(|r| r.op) {
            None => return true,
            Some(Op::Post(slab)) => self.store.put(slab),
            Some(_) => {}
        }
        false
    }

    /// Whether that made room.
    fn drop_epoch(&mut self, shortage: &Shortage) -> bool {
        match shortage {
            Shortage::ForNow => return false,
            Shortage::Full => self.event(Event::StagingFull),
            Shortage::Spill(error) => {
                self.why = format!("spill file: {error}");
                self.event(Event::StorageFailed);
            }
        }
        self.store.has_room()
    }

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Arrived(slab) => {
                self.posted -= 1;
                self.arrived(slab);
            }
            Completion::Returned(slab) => {
                self.posted -= 1;
                self.store.put(slab);
            }
            Completion::Written(slab) => self.store.put(slab.recycle()),
            Completion::Received(control) => self.received(control),
            Completion::Down(error) => {
                self.link = None;
                match &error {
                    LinkError::NotFenced(error) => self.unfenced(error),
                    _ => self.errands.push_back(StandbyErrand::LinkLost(error.to_string())),
                }
                if self.revoking { self.revoked() } else { self.event(Event::LinkDown) }
            }
        }
    }

    /// I2: what does not fit the image is never staged.
    fn arrived(&mut self, slab: SealedSlab) {
        let header = *slab.header();
        let event = match self.store.check(&slab) {
            Some(Ok(())) if header.incarnation == self.incarnation => {
                Event::Slab { generation: header.generation, epoch: header.epoch, index: header.index }
            }
            Some(Err(error)) => {
                self.why = error.to_string();
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
            Body::Commit { slabs, device_bytes, held, .. } => {
                let slabs = if device_bytes == self.store.device_bytes() { slabs } else { u32::MAX };
                self.event(Event::Commit { generation, epoch, slabs, held });
            }
            Body::Rehearse => self.event(Event::RehearsalAsked { generation, epoch }),
            Body::Goodbye(_) => self.event(Event::Goodbye),
            Body::Ack { .. } | Body::Nack(_) | Body::Rehearsed | Body::Words(_) => {
                self.drop_link("a record that only a standby sends".to_owned());
            }
            Body::Rerouted { .. } => self.drop_link("a record that only a link sends".to_owned()),
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
            Action::Rehearse(epoch) => {
                self.rehearsing = true;
                self.errands.push_back(StandbyErrand::Rehearse(epoch));
            }
            Action::EndRehearsal => self.end_rehearsal(),
            Action::DiscardStaged => self.store.discard(),
            Action::Revoke => self.revoke(),
            Action::ReadRegister => self.ask(StandbyErrand::ReadRegister),
            Action::Cas(swap) => self.ask(StandbyErrand::Cas(swap)),
            Action::Renounce(swap) => self.renounce(swap),
            Action::TakeOver { generation, epoch } => self.ask(StandbyErrand::TakeOver { generation, epoch }),
            Action::Discard => self.discard(),
            Action::Abandon => self.errands.push_back(StandbyErrand::Abandon),
        }
    }

    fn stage(&mut self) {
        if let Some(slab) = self.arriving.take() {
            self.store.stage(slab);
        }
    }

    fn apply_now(&mut self) {
        if let Some(slab) = self.arriving.take() {
            self.store.apply_now(slab);
        }
    }

    fn drop_arriving(&mut self) {
        if let Some(slab) = self.arriving.take() {
            self.store.put(slab.recycle());
        }
    }

    fn send(&mut self, generation: Generation, epoch: Epoch, body: Body) {
        let body = match body {
            Body::Ack { .. } => Body::Ack { free_slabs: u32::try_from(self.store.available()).unwrap_or(u32::MAX) },
            Body::Nack(reason) => {
                self.explain(generation, epoch, reason);
                body
            }
            _ => body,
        };
        let control = Control { incarnation: self.incarnation, generation, epoch, body };
        // A refused ACK is as good as a lost one: the primary holds its output until it hears of us, or suspects us.
        let _ = self.link.as_mut().map(|l| l.submit(Op::Send(control)));
    }

    /// Says why, in words, before a NACK.
    fn explain(&mut self, generation: Generation, epoch: Epoch, reason: NackReason) {
        let why = std::mem::take(&mut self.why);
        for body in Words::records(&why) {
            let control = Control { incarnation: self.incarnation, generation, epoch, body };
            let _ = self.link.as_mut().map(|l| l.submit(Op::Send(control)));
        }
        let why = if why.is_empty() { format!("{generation} {epoch}") } else { why };
        self.errands.push_back(StandbyErrand::Refused(reason, why));
    }

    /// What was committed while the image stood still becomes the image.
    fn end_rehearsal(&mut self) {
        if std::mem::take(&mut self.rehearsing) {
            self.errands.push_back(StandbyErrand::EndRehearsal);
            self.apply_committed(self.machine.committed().1);
        }
    }

    /// The committed epoch becomes the image. The ACK is on its way already: what is staged here is not lost by waiting.
    fn apply(&mut self, epoch: Epoch) {
        self.store.commit();
        let now = self.clock.now();
        self.figures.last_commit_at = Some(now);
        self.figures.synced_at.get_or_insert(now);
        if !self.rehearsing {
            self.apply_committed(epoch);
        }
    }

    fn apply_committed(&mut self, epoch: Epoch) {
        let start = self.clock.now();
        let clock = &self.clock;
        // Whoever watches this loop by the readings of its clock sees that it works.
        let applied = self.store.apply(|| {
            clock.now();
        });
        if let Err(error) = applied {
            let text = format!("{epoch} was ACKed and cannot be applied: {error}");
            self.errands.push_back(StandbyErrand::Fatal(text));
        }
        let now = self.clock.now();
        self.figures.apply.record(now.since(start));
    }

    /// I3: the primary may still write to what is staged here. This standby has no image that anybody could rely on: it asks
    /// the arbiter for nothing any more, whatever becomes of its caller.
    fn unfenced(&mut self, error: &NotFenced) {
        self.store.image = None;
        self.errands.push_back(StandbyErrand::Fatal(error.to_string()));
    }

    /// Never beside an image.
    fn renounce(&mut self, swap: Swap) {
        if self.store.image.is_none() {
            self.errands.push_back(StandbyErrand::Renounce(swap));
        }
    }

    /// Nobody asks for a VM that it could not run: the primary keeps it.
    fn ask(&mut self, errand: StandbyErrand) {
        if self.store.image.is_some() {
            self.errands.push_back(errand);
        }
    }

    /// I3. What had arrived in full is reported by the link before it says that it is down; see `completed`.
    fn revoke(&mut self) {
        self.revoking = true;
        match self.link.as_mut().map(Transport::revoke) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.unfenced(&error),
            None => self.revoked(),
        }
    }

    fn revoked(&mut self) {
        self.figures.revoked_at = Some(self.clock.now());
        self.event(Event::Revoked);
    }

    fn discard(&mut self) {
        if let Some(mut link) = self.link.take() {
            if let Err(error) = link.revoke() {
                self.errands.push_back(StandbyErrand::Fatal(error.to_string()));
            }
            while let Some(completion) = link.poll() {
                match completion {
                    Completion::Arrived(slab) | Completion::Written(slab) => self.store.put(slab.recycle()),
                    Completion::Returned(slab) => self.store.put(slab),
                    Completion::Received(_) | Completion::Down(_) => {}
                }
            }
        }
        self.posted = 0;
        self.store.clear();
        self.store.image = None;
        if std::mem::take(&mut self.rehearsing) {
            self.errands.push_back(StandbyErrand::EndRehearsal);
        }
        self.errands.push_back(StandbyErrand::Discard);
    }
}
