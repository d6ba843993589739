//! Runs the primary's machine against a source, staging, a gate and a link.

use super::{Clock, awake::Awake, words::Words};
use crate::{
    gate::OutputGate,
    histogram::Histogram,
    id::{Epoch, Generation, Incarnation, Time},
    machine::Machine,
    primary::{Action, Event, OnCap, Primary, Role},
    register::{Owner, Swap},
    slab::PoolStats,
    source::{CheckpointSource, SourceError, SourceEvent},
    staging::{Staging, Totals},
    transport::{Completion, LinkError, Op, RejectReason, Transport},
    wire::control::{Body, Control, GoodbyeReason, NackReason},
};
use std::{collections::VecDeque, io, time::Duration};

/// Between two attempts to open a gate.
const OPEN_AGAIN: Duration = Duration::from_millis(100);

/// What the driver's caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryErrand {
    /// Ask the arbiter; answer with [`Event::Cas`].
    Cas(Swap),
    /// Tell the VM to begin sending checkpoints to the source.
    StartSource,
    /// The register says (solo, self): tell the VM to send no more checkpoints, and see that it runs.
    LeaveSource,
    /// Another node owns the VM: stop this copy for good.
    Fence,
    /// The VM is gone for good.
    End,
    /// For the log: a checkpoint outgrew staging, and the operator would rather lose protection than have the VM held.
    GaveUp,
    /// For the log: the link is gone.
    LinkLost(String),
    /// For the log: the standby refused an epoch; and what it said of it, if anything.
    Refused(NackReason, String),
    /// For the log: an ACK is overdue.
    Late,
    /// For the log: the VM died while the arbiter was asked; what is won is handed to the standby.
    HandsBack,
    /// For the log: the source failed.
    SourceFailed(String),
    /// For the log: the gate had trouble. It keeps or drops output meanwhile.
    GateFailed(String),
}

/// A captured epoch that was not ACKed yet.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    epoch: Epoch,
    captured_at: Time,
    totals: Totals,
    /// Output was held when it was captured.
    held: bool,
    /// The commit record still has to be sent, after the epoch's slabs.
    unsent: bool,
}

/// The primary's loop.
#[derive(Debug)]
pub struct PrimaryDriver<S, G, C> {
    machine: Primary,
    staging: Staging,
    source: Option<S>,
    /// The gate, for its figures and file descriptors.
    pub gate: G,
    clock: C,
    link: Option<Box<dyn Transport>>,
    incarnation: Incarnation,
    in_flight: VecDeque<InFlight>,
    errands: VecDeque<PrimaryErrand>,
    /// The VM was told to stop, and has not been told to run on.
    paused_at: Option<Time>,
    room: bool,
    /// The gate could not be opened; then it is tried again.
    open_at: Option<Time>,
    figures: Figures,
    awake: Awake,
    /// What the standby says of an epoch that it is about to refuse.
    words: Words,
}

/// What the primary's loop has measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From asking the VM to stop until it was told to run on.
    pub pause: Histogram,
    /// From the end of the pause to the ACK.
    pub commit: Histogram,
    /// When the newest ACK came.
    pub last_ack_at: Option<Time>,
    /// How often a checkpoint had to be sent with the VM held, since staging was too small for it.
    pub streamed_while_held: u64,
    /// How often it found itself away for longer than the stall limit, and waited for a fresh ACK.
    pub stalls: u64,
    /// Pages captured since the session began, the full synchronisation not counted.
    pub pages: u64,
    /// Bytes sent likewise.
    pub bytes: u64,
    /// Bytes of device state in the newest epoch.
    pub device_bytes: u64,
}

impl<S: CheckpointSource, G: OutputGate, C: Clock> PrimaryDriver<S, G, C> {
    /// A driver without a session: the VM runs solo, its gate is open.
    #[must_use]
    pub fn new(machine: Primary, staging: Staging, gate: G, clock: C) -> Self {
        Self {
            awake: Awake::new(clock.now()),
            machine,
            staging,
            source: None,
            gate,
            clock,
            link: None,
            incarnation: Incarnation(0),
            in_flight: VecDeque::with_capacity(64),
            errands: VecDeque::with_capacity(16),
            paused_at: None,
            room: true,
            open_at: None,
            figures: Figures::default(),
            words: Words::default(),
        }
    }

    /// A session with a standby is up: starts the full synchronisation.
    pub fn attach(&mut self, link: impl Transport + 'static, incarnation: Incarnation, source: S, standby: Owner) {
        self.link = Some(Box::new(link));
        self.source = Some(source);
        self.incarnation = incarnation;
        self.in_flight.clear();
        self.figures = Figures::default();
        self.words = Words::default();
        self.event(Event::Protect { standby });
    }

    /// Call it first after every sleep, with the shortest time that the standby may bear this side's silence now: whoever was
    /// away for longer may have been declared dead meanwhile, and releases nothing until a fresh ACK (docs/adr/0003).
    ///
    /// The driver looks again while it captures, and before output leaves.
    pub fn notice_stall(&mut self, limit: Duration) {
        self.awake.set_limit(limit);
        self.was_away();
    }

    fn was_away(&mut self) -> bool {
        let away = self.awake.was_away(self.clock.now());
        if away {
            self.figures.stalls += 1;
            self.event(Event::Stalled);
        }
        away
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
        self.gate.tick(now);
        self.machine.handle_timeout(now);
        self.act();
        if let Err(error) = self.gate.poll() {
            self.gate_failed(&error);
        }
        if self.open_at.is_some_and(|at| now >= at) {
            self.open();
        }
        self.poll_link();
        self.poll_source();
        self.transmit();
        let room = self.staging.has_room();
        if room != self.room {
            self.room = room;
            self.event(Event::Staging { room });
        }
        self.staging.pool().shrink(now);
    }

    /// The next thing to do for the driver.
    pub fn errand(&mut self) -> Option<PrimaryErrand> {
        self.errands.pop_front()
    }

    /// When to pump at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let source = self.source.as_ref().and_then(CheckpointSource::deadline);
        [self.machine.deadline(), self.gate.deadline(), source, self.open_at].into_iter().flatten().min()
    }

    /// Whether the VM runs alone behind a gate that could not be opened yet.
    #[must_use]
    pub fn is_mute(&self) -> bool {
        self.open_at.is_some()
    }

    /// The machine, to look at.
    #[must_use]
    pub fn machine(&self) -> &Primary {
        &self.machine
    }

    /// Changes the epoch length.
    pub fn set_epoch(&mut self, epoch: std::time::Duration) {
        self.machine.set_epoch(epoch);
    }

    /// Changes how long an epoch may wait for its ACK.
    pub fn set_commit_deadline(&mut self, deadline: std::time::Duration) {
        self.machine.set_commit_deadline(deadline);
    }

    /// Changes staging's cap, and what a checkpoint that outgrows it means.
    pub fn set_cap(&mut self, cap_bytes: usize, on_cap: OnCap) {
        let extra = match on_cap {
            OnCap::Grow { bytes } => usize::try_from(bytes).unwrap_or(usize::MAX),
            OnCap::Throttle | OnCap::Unprotect => 0,
        };
        self.staging.pool().set_limit(cap_bytes, extra);
        self.machine.set_on_cap(on_cap);
    }

    /// The figures of this session.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The staging pool's figures.
    pub fn pool_stats(&mut self) -> PoolStats {
        self.staging.pool().stats()
    }

    /// The link, to wait on.
    #[must_use]
    pub fn link(&self) -> Option<&dyn Transport> {
        self.link.as_ref().map(|link| &**link as &dyn Transport)
    }

    /// The source, to wait on.
    #[must_use]
    pub fn source(&self) -> Option<&S> {
        self.source.as_ref()
    }

    /// The source, to tell it what no machine would.
    pub fn source_mut(&mut self) -> Option<&mut S> {
        self.source.as_mut()
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::BeginSync { generation } => self.begin_sync(generation),
            Action::Pause { epoch } => self.pause(epoch),
            Action::Hold => self.hold(),
            Action::Barrier(epoch) => self.barrier(epoch),
            Action::Resume => self.resume(),
            Action::Commit { epoch, held } => self.commit(epoch, held),
            Action::Release(epoch) => self.release(epoch),
            Action::GaveUp => self.errands.push_back(PrimaryErrand::GaveUp),
            Action::Cas(swap) => self.errands.push_back(PrimaryErrand::Cas(swap)),
            Action::AskRehearsal { epoch } => self.send(epoch, Body::Rehearse),
            Action::Late => self.errands.push_back(PrimaryErrand::Late),
            Action::Dead => self.errands.push_back(PrimaryErrand::HandsBack),
            Action::CloseLink(goodbye) => self.close_link(goodbye),
            Action::Solo => self.solo(),
            Action::Fence => self.fence(),
            Action::End => self.errands.push_back(PrimaryErrand::End),
        }
    }

    fn begin_sync(&mut self, generation: Generation) {
        self.staging.begin(self.incarnation, generation);
        match self.source.as_mut().map(CheckpointSource::begin) {
            Some(Err(error)) => self.source_failed(&error),
            _ => self.errands.push_back(PrimaryErrand::StartSource),
        }
    }

    fn pause(&mut self, epoch: Epoch) {
        self.staging.begin_epoch(epoch);
        self.paused_at = Some(self.clock.now());
        if let Some(Err(error)) = self.source.as_mut().map(CheckpointSource::pause) {
            return self.source_failed(&error);
        }
        self.poll_source();
    }

    fn hold(&mut self) {
        self.open_at = None;
        self.gate.hold();
    }

    /// I4. A gate that does not open is told, and tried again while the VM runs alone; no standby is looked for until it is open
    /// ([`PrimaryDriver::is_mute`]).
    fn open(&mut self) {
        self.open_at = None;
        if !matches!(self.machine.role(), Role::Solo | Role::Ended) {
            return;
        }
        if let Err(error) = self.gate.open() {
            self.open_at = Some(self.clock.now().after(OPEN_AGAIN));
            self.gate_failed(&error);
        }
    }

    /// I6: without its barrier an epoch's output cannot be told from the next one's. The gate keeps both then: a barrier
    /// that failed releases nothing, and a later one covers what it should have covered.
    fn barrier(&mut self, epoch: Epoch) {
        if let Err(error) = self.gate.barrier(epoch) {
            self.gate_failed(&error);
        }
    }

    /// A release that is put off is made up for by the next one, which covers it.
    fn release(&mut self, epoch: Epoch) {
        if self.was_away() {
            return;
        }
        if let Err(error) = self.gate.release(epoch) {
            self.gate_failed(&error);
        }
    }

    fn resume(&mut self) {
        if let Some(Err(error)) = self.source.as_mut().map(CheckpointSource::resume) {
            self.source_failed(&error);
        }
        if let Some(since) = self.paused_at.take() {
            self.figures.pause.record(self.clock.now().since(since));
        }
    }

    fn commit(&mut self, epoch: Epoch, held: bool) {
        let totals = self.staging.finish();
        self.figures.device_bytes = totals.device_bytes;
        if epoch != Epoch::FULL_SYNC {
            self.figures.pages += totals.pages;
            self.figures.bytes += totals.bytes;
            let pool = self.staging.pool();
            let bytes = u64::from(totals.slabs) * pool.slab_size() as u64;
            let cap = pool.stats().cap_bytes;
            self.event(Event::Measured { bytes, cap });
        }
        self.in_flight.push_back(InFlight { epoch, captured_at: self.clock.now(), totals, held, unsent: true });
        self.transmit();
    }

    fn poll_source(&mut self) {
        loop {
            let Some(source) = &mut self.source else { return };
            let polled = source.poll(&mut self.awake.watch(&mut self.staging, &self.clock));
            self.was_away(); // before it counts as captured
            match polled {
                Ok(SourceEvent::Idle) => return,
                Ok(SourceEvent::Ready) => return self.event(Event::SourceReady), // no more comes until it is paused
                Ok(SourceEvent::Captured) => self.event(Event::Captured),
                Ok(SourceEvent::NoRoom) => {
                    if self.paused_at.is_some() {
                        self.figures.streamed_while_held += u64::from(self.staging.waiting() > 0);
                        self.event(Event::Full);
                    }
                    return self.transmit();
                }
                Err(error) => return self.source_failed(&error),
            }
        }
    }

    /// Sends what is staged, in order: the slabs of an epoch, its commit record, the slabs of the next. While the VM is
    /// stopped nothing is sent, unless staging is exhausted: the network stays off the pause.
    fn transmit(&mut self) {
        if self.paused_at.is_some() && self.staging.pool().available() > 0 {
            return;
        }
        while let Some(slab) = self.staging.pop() {
            let epoch = slab.header().epoch;
            let sent = if self.commit_before(Some(epoch)) {
                self.staging.unpop(slab);
                self.send_commit()
            } else {
                self.submit_slab(slab)
            };
            if !sent {
                return; // the link is full; its next completion brings us back here
            }
        }
        if self.commit_before(None) {
            self.send_commit();
        }
    }

    /// Whether a commit record must go out before a slab of `epoch` (or, for `None`, before nothing: all slabs are sent).
    fn commit_before(&self, epoch: Option<Epoch>) -> bool {
        self.in_flight.iter().find(|f| f.unsent).is_some_and(|f| epoch.is_none_or(|e| f.epoch < e))
    }

    /// False when the link takes no more for now.
    fn send_commit(&mut self) -> bool {
        let Some(index) = self.in_flight.iter().position(|f| f.unsent) else { return true };
        let InFlight { epoch, totals, held, .. } = self.in_flight[index];
        let Totals { slabs, bytes, device_bytes, .. } = totals;
        let sent = self.submit_control(epoch, Body::Commit { slabs, bytes, device_bytes, held });
        self.in_flight[index].unsent = sent == Err(RejectReason::Full);
        sent != Err(RejectReason::Full)
    }

    /// False when the link takes no more for now.
    fn submit_slab(&mut self, slab: crate::slab::SealedSlab) -> bool {
        let Some(link) = &mut self.link else {
            self.staging.put(slab.recycle());
            return true;
        };
        match link.submit(Op::Write(slab)) {
            Ok(()) => true,
            Err(rejected) => {
                if let Op::Write(slab) = rejected.op {
                    match rejected.why {
                        RejectReason::Full => self.staging.unpop(slab),
                        RejectReason::Down => self.staging.put(slab.recycle()),
                    }
                }
                rejected.why == RejectReason::Down
            }
        }
    }

    fn submit_control(&mut self, epoch: Epoch, body: Body) -> Result<(), RejectReason> {
        let control = Control { incarnation: self.incarnation, generation: self.machine.generation(), epoch, body };
        let Some(link) = &mut self.link else { return Err(RejectReason::Down) };
        link.submit(Op::Send(control)).map_err(|rejected| rejected.why)
    }

    /// For the rare record that has nowhere to wait: if the link is full of it, the session is given up.
    fn send(&mut self, epoch: Epoch, body: Body) {
        if self.submit_control(epoch, body) == Err(RejectReason::Full) {
            self.lose_link("the link takes no more control records".to_owned());
        }
    }

    fn poll_link(&mut self) {
        while let Some(completion) = self.link.as_mut().and_then(|l| l.poll()) {
            match completion {
                Completion::Written(slab) => self.staging.put(slab.recycle()),
                Completion::Arrived(slab) => self.staging.put(slab.recycle()),
                Completion::Returned(slab) => self.staging.put(slab),
                Completion::Received(control) => self.received(control),
                Completion::Down(error) => self.link_down(&error),
            }
        }
    }

    fn received(&mut self, control: Control) {
        if control.incarnation != self.incarnation {
            return self.lose_link(format!("a control record of another session, {}", control.incarnation));
        }
        match control.body {
            Body::Ack { .. } => {
                self.acked(control.epoch);
                self.event(Event::Ack { generation: control.generation, epoch: control.epoch });
            }
            Body::Words(text) => self.words.hear(&text),
            Body::Rehearsed => self.event(Event::Rehearsed { generation: control.generation, epoch: control.epoch }),
            Body::Nack(reason) => {
                let words = self.words.take();
                self.errands.push_back(PrimaryErrand::Refused(reason, words));
                self.event(Event::Nack { generation: control.generation, reason });
            }
            Body::Goodbye(_) => self.event(Event::LinkDown),
            Body::Commit { .. } | Body::Rehearse => {
                self.lose_link("a record that only a primary sends".to_owned());
            }
            Body::Rerouted { .. } => self.lose_link("a record that only a link sends".to_owned()),
        }
    }

    fn acked(&mut self, epoch: Epoch) {
        let now = self.clock.now();
        while let Some(front) = self.in_flight.front().copied().filter(|f| f.epoch <= epoch && !f.unsent) {
            self.in_flight.pop_front();
            if front.epoch != Epoch::FULL_SYNC {
                self.figures.commit.record(now.since(front.captured_at));
            }
            self.figures.last_ack_at = Some(now);
        }
    }

    fn link_down(&mut self, error: &LinkError) {
        self.link = None;
        self.errands.push_back(PrimaryErrand::LinkLost(error.to_string()));
        self.event(Event::LinkDown);
    }

    fn lose_link(&mut self, why: String) {
        self.errands.push_back(PrimaryErrand::LinkLost(why));
        self.event(Event::LinkDown);
    }

    fn close_link(&mut self, goodbye: Option<GoodbyeReason>) {
        if let Some(reason) = goodbye {
            let control = Control {
                incarnation: self.incarnation,
                generation: self.machine.generation(),
                epoch: Epoch(0),
                body: Body::Goodbye(reason),
            };
            // Best effort: a standby that misses it asks the arbiter, and is told no.
            let _ = self.link.as_mut().map(|l| l.submit(Op::Send(control)));
            let _ = self.link.as_mut().and_then(|l| l.poll()).map(|c| self.reclaim(c));
        }
        if let Some(mut link) = self.link.take() {
            // A peer that may still write here harms nothing: the primary reads no slab that it did not fill itself.
            if let Err(error) = link.revoke() {
                self.errands.push_back(PrimaryErrand::LinkLost(error.to_string()));
            }
            while let Some(completion) = link.poll() {
                self.reclaim(completion);
            }
        }
        self.in_flight.clear();
    }

    fn reclaim(&mut self, completion: Completion) {
        match completion {
            Completion::Written(slab) | Completion::Arrived(slab) => self.staging.put(slab.recycle()),
            Completion::Returned(slab) => self.staging.put(slab),
            Completion::Received(_) | Completion::Down(_) => {}
        }
    }

    fn solo(&mut self) {
        debug_assert!(matches!(self.machine.role(), Role::Solo | Role::Ended));
        self.open();
        self.leave_source();
        self.errands.push_back(PrimaryErrand::LeaveSource);
    }

    fn leave_source(&mut self) {
        self.source = None;
        self.paused_at = None;
        self.staging.clear();
        self.in_flight.clear();
    }

    fn fence(&mut self) {
        self.open_at = None;
        self.gate.shut();
        self.leave_source();
        self.errands.push_back(PrimaryErrand::Fence);
    }

    fn source_failed(&mut self, error: &SourceError) {
        self.source = None;
        self.paused_at = None;
        self.errands.push_back(PrimaryErrand::SourceFailed(error.to_string()));
    }

    fn gate_failed(&mut self, error: &io::Error) {
        self.errands.push_back(PrimaryErrand::GateFailed(error.to_string()));
    }
}
