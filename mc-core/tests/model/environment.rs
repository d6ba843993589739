//! Everything that can happen, and what the machines make of it.

use crate::{
    register::{Answer, Step},
    world::{Bounds, Down, REFUSAL, Seat, Source, Up, World, standby as new_standby, standby_name},
};
use mc_core::{
    id::{Epoch, Time},
    machine::Machine,
    primary::{self, Primary},
    standby,
    wire::{arbiter::Body as Ask, control},
};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Happening {
    /// A session with this standby comes up.
    Session(usize),
    /// A message reaches a standby.
    ToStandby(usize, Down),
    /// A message reaches the primary.
    ToPrimary(Up),
    /// The primary hears of something other than a message.
    Primary(primary::Event),
    /// A standby hears of something other than a message.
    Standby(usize, standby::Event),
    /// A standby's deadline comes.
    Timeout(usize),
    PrimaryCrashes,
    StandbyCrashes(usize),
    StandbyRestarts(usize),
    Arbiter(Step),
}

/// The only time there is.
const NOW: Time = Time(0);

impl World {
    /// Everything that may happen now.
    pub(crate) fn happenings(&self, bounds: &Bounds, out: &mut Vec<Happening>) {
        if let Some(primary) = &self.primary {
            self.at_primary(primary, bounds, out);
        }
        for (i, seat) in self.seats.iter().enumerate() {
            self.at_standby(i, seat, bounds, out);
        }
        let mut steps = Vec::new();
        self.registry.steps(bounds.arbiter_crashes, &mut steps);
        out.extend(steps.into_iter().map(Happening::Arbiter));
    }

    fn at_primary(&self, primary: &Primary, bounds: &Bounds, out: &mut Vec<Happening>) {
        use primary::{Event, Role};
        let role = primary.role();
        if matches!(role, Role::Fenced | Role::Ended) {
            return;
        }
        if role == Role::Solo && self.sessions < bounds.sessions {
            let next = usize::from(self.sessions) % self.seats.len(); // they take turns
            let idle = self.seats[next].role() == Some(standby::Role::Idle);
            out.extend(idle.then_some(Happening::Session(next)));
        }
        out.extend(self.outbox.iter().copied().map(Happening::ToPrimary));
        let source = match self.source {
            Source::Copying | Source::Stopped => Some(Event::Captured),
            Source::Running if primary.epochs().0.0 < bounds.epochs => Some(Event::SourceReady),
            _ => None,
        };
        out.extend(source.map(Happening::Primary));
        if role != Role::Solo {
            out.push(Happening::Primary(Event::LinkDown));
        }
        if role != Role::Solo && self.stalls < bounds.stalls {
            out.push(Happening::Primary(Event::Stalled));
        }
        if bounds.trouble {
            out.push(Happening::Primary(Event::Suspect)); // the same as LinkDown, as far as this machine knows
            out.push(Happening::Primary(Event::Unprotect(control::GoodbyeReason::Unprotected)));
            out.push(Happening::Primary(Event::SourceLost));
            out.extend((self.source == Source::Stopped).then_some(Happening::Primary(Event::Full)));
        }
        out.push(Happening::PrimaryCrashes);
    }

    fn at_standby(&self, i: usize, seat: &Seat, bounds: &Bounds, out: &mut Vec<Happening>) {
        use standby::{Event, Role};
        let (Some(machine), Some(role)) = (&seat.machine, seat.role()) else {
            let useful = bounds.standby_restarts && self.role().is_some() && self.sessions < bounds.sessions;
            return out.extend(useful.then_some(Happening::StandbyRestarts(i)));
        };
        out.extend(seat.inbox.iter().map(|m| Happening::ToStandby(i, *m)));
        if matches!(role, Role::Syncing | Role::Protecting) {
            out.push(Happening::Standby(i, Event::LinkDown));
            if bounds.trouble {
                out.extend([Event::Suspect, Event::BadSlab, Event::StagingFull].map(|e| Happening::Standby(i, e)));
            }
        }
        match role {
            Role::Idle => return,
            Role::Revoking => out.push(Happening::Standby(i, Event::Revoked)),
            Role::TakingOver => out.push(Happening::Standby(i, Event::Running)),
            Role::Claiming if machine.deadline().is_some() => out.push(Happening::Timeout(i)),
            _ => {}
        }
        out.push(Happening::StandbyCrashes(i));
    }

    /// Lets it happen.
    pub(crate) fn happen(&mut self, bounds: &Bounds, happening: Happening) {
        match happening {
            Happening::Session(i) => self.session(i),
            Happening::ToStandby(i, message) => self.reach_standby(i, message, bounds),
            Happening::ToPrimary(Up::Ack { generation, epoch }) => {
                self.tell_primary(bounds, primary::Event::Ack { generation, epoch });
            }
            Happening::ToPrimary(Up::Nack { generation }) => {
                self.tell_primary(bounds, primary::Event::Nack { generation, reason: REFUSAL });
            }
            Happening::Primary(event) => self.primary_event(bounds, event),
            Happening::Standby(i, event) => {
                if event == standby::Event::Revoked {
                    self.shut(i);
                }
                self.tell_standby(bounds, i, event, None);
            }
            Happening::Timeout(i) => {
                let seat = &mut self.seats[i];
                seat.retried = true;
                seat.machine.as_mut().expect("enabled").handle_timeout(NOW);
                self.standby_acts(bounds, i, None);
            }
            Happening::PrimaryCrashes => self.primary_gone(),
            Happening::StandbyCrashes(i) => {
                self.seats[i].machine = None;
                self.shut(i);
                self.registry.forget(1 + i);
            }
            Happening::StandbyRestarts(i) => self.seats[i].machine = Some(new_standby(bounds, i, 2)),
            Happening::Arbiter(step) => self.arbiter(bounds, step),
        }
        self.check_register();
    }

    fn session(&mut self, i: usize) {
        let generation = self.registry_generation().next();
        self.sessions += 1;
        self.link = Some(i);
        self.base = self.progress;
        self.outbox.clear();
        let seat = &mut self.seats[i];
        (seat.open, seat.base, seat.kept, seat.retried) = (true, self.progress, 0, false);
        seat.inbox.clear();
        seat.machine.as_mut().expect("enabled").handle(NOW, standby::Event::Session { generation });
        let primary = self.primary.as_mut().expect("enabled");
        primary.handle(NOW, primary::Event::Protect { standby: standby_name(i) });
        self.primary_acts(0);
    }

    fn registry_generation(&self) -> mc_core::id::Generation {
        self.primary.as_ref().expect("a session needs a primary").register().generation
    }

    fn arbiter(&mut self, bounds: &Bounds, step: Step) {
        let Some((client, answer)) = self.registry.step(step) else { return };
        match (client, answer) {
            (0, Answer::Cas(outcome)) => self.tell_primary(bounds, primary::Event::Cas(outcome)),
            (0, Answer::Held(_)) => {} // it never reads
            (i, Answer::Cas(outcome)) => self.tell_standby(bounds, i - 1, standby::Event::Cas(outcome), None),
            (i, Answer::Held(held)) => self.tell_standby(bounds, i - 1, standby::Event::RegisterRead(held), None),
        }
    }

    /// I5, whenever the disk changes.
    fn check_register(&mut self) {
        if let Some((i, generation)) = self.protected_by() {
            self.wrong.registered |= self.seats[i].synced != Some((generation, self.sessions));
        }
    }

    // The primary.

    fn primary_event(&mut self, bounds: &Bounds, event: primary::Event) {
        match event {
            primary::Event::Captured => {
                self.progress += 1;
                self.source = Source::Waiting;
            }
            primary::Event::SourceReady => self.source = Source::Offered,
            primary::Event::SourceLost => self.source = Source::Off,
            primary::Event::Stalled => {
                self.stalls += 1;
                self.overtaken = self.seats.iter().any(|s| s.taken.is_some());
            }
            _ => {}
        }
        self.tell_primary(bounds, event);
    }

    fn tell_primary(&mut self, bounds: &Bounds, event: primary::Event) {
        if let Some(primary) = &mut self.primary {
            primary.handle(NOW, event);
        }
        self.primary_acts(bounds.slabs);
    }

    fn primary_acts(&mut self, slabs: u32) {
        while let Some(action) = self.primary.as_mut().and_then(Machine::poll_action) {
            self.primary_act(slabs, action);
        }
    }

    fn primary_act(&mut self, slabs: u32, action: primary::Action) {
        use primary::Action;
        if matches!(action, Action::Release(_) | Action::Solo | Action::Resume) {
            self.wrong.after_fence |= self.fenced;
        }
        match action {
            Action::BeginSync { .. } => self.source = Source::Copying,
            Action::Pause { .. } => self.source = Source::Stopped,
            Action::Hold => self.show(self.progress), // until here it all went out
            Action::Barrier(_) | Action::GaveUp => {}
            Action::Resume => self.source = Source::Running,
            Action::Commit { epoch } => self.commit(slabs, epoch),
            Action::Release(epoch) => {
                self.wrong.after_stall |= self.overtaken;
                self.show(self.base + u8::try_from(epoch.0).unwrap());
            }
            Action::Cas { expect, new, .. } => self.registry.ask(0, Ask::Cas { expect, new }),
            Action::TellRegistered => {
                let generation = self.primary.as_ref().expect("acts").generation();
                self.send(Down::Registered { generation });
            }
            Action::CloseLink(goodbye) => self.close_link(goodbye.is_some()),
            Action::Solo => self.go_solo(),
            Action::Fence => {
                self.fenced = true;
                self.source = Source::Off;
                self.registry.forget(0);
            }
            Action::End => self.source = Source::Off,
        }
    }

    fn commit(&mut self, slabs: u32, epoch: Epoch) {
        let generation = self.primary.as_ref().expect("acts").generation();
        for index in 0..slabs {
            self.send(Down::Slab { generation, epoch, index });
        }
        self.send(Down::Commit { generation, epoch });
    }

    fn send(&mut self, message: Down) {
        if let Some(seat) = self.link.map(|i| &mut self.seats[i]).filter(|s| s.open) {
            seat.inbox.insert(message);
        }
    }

    fn close_link(&mut self, goodbye: bool) {
        if goodbye {
            self.send(Down::Goodbye);
        }
        self.link = None;
        self.outbox.clear();
    }

    /// Everything held goes out, and the VM runs on in the open.
    fn go_solo(&mut self) {
        self.progress += 1;
        self.show(self.progress);
        self.source = Source::Off;
        let generation = self.primary.as_ref().expect("acts").register().generation;
        if generation.0 > 1 {
            self.solo = Some(generation);
        }
    }

    fn primary_gone(&mut self) {
        self.primary = None;
        self.source = Source::Off;
        self.link = None;
        self.outbox.clear();
        self.registry.forget(0);
    }

    // The standbys.

    fn reach_standby(&mut self, i: usize, message: Down, bounds: &Bounds) {
        use standby::Event;
        let slabs = bounds.slabs;
        let (event, slab) = match message {
            Down::Slab { generation, epoch, index } => {
                (Event::Slab { generation, epoch, index }, Some(bit(slabs, epoch, index)))
            }
            Down::Commit { generation, epoch } => (Event::Commit { generation, epoch, slabs }, None),
            Down::Registered { generation } => (Event::Registered { generation }, None),
            Down::Goodbye => (Event::Goodbye, None),
        };
        self.tell_standby(bounds, i, event, slab);
    }

    fn tell_standby(&mut self, bounds: &Bounds, i: usize, event: standby::Event, slab: Option<u32>) {
        if let Some(machine) = &mut self.seats[i].machine {
            machine.handle(NOW, event);
        }
        self.standby_acts(bounds, i, slab);
    }

    fn standby_acts(&mut self, bounds: &Bounds, i: usize, slab: Option<u32>) {
        while let Some(action) = self.seats[i].machine.as_mut().and_then(Machine::poll_action) {
            self.standby_act(bounds, i, slab, action);
        }
    }

    fn standby_act(&mut self, bounds: &Bounds, i: usize, slab: Option<u32>, action: standby::Action) {
        use standby::Action;
        let seat = &mut self.seats[i];
        let (generation, committed) = seat.machine.as_ref().expect("acts").committed();
        match action {
            Action::Stage | Action::ApplyNow => seat.kept |= slab.expect("answers a slab"),
            Action::Drop | Action::Revoke => {}
            Action::Send { generation, epoch, body } => self.answer(bounds, i, generation, epoch, body),
            Action::Apply(epoch) if epoch == Epoch::FULL_SYNC => seat.synced = Some((generation, self.sessions)),
            Action::Apply(_) => {}
            Action::DiscardStaged => seat.kept &= bit(bounds.slabs, committed.next(), 0) - 1,
            Action::ReadRegister => self.registry.ask(1 + i, Ask::Read),
            Action::Cas { expect, new } => self.registry.ask(1 + i, Ask::Cas { expect, new }),
            Action::TakeOver { generation, epoch } => {
                self.wrong.takeover |= seat.taken.is_some();
                seat.taken = Some((generation, seat.base + u8::try_from(epoch.0).unwrap()));
                self.wrong.takeover |= !seat.holds(bounds.slabs, epoch) || epoch == Epoch(0);
            }
            Action::Discard => self.shut(i),
        }
    }

    fn answer(
        &mut self,
        bounds: &Bounds,
        i: usize,
        generation: mc_core::id::Generation,
        epoch: Epoch,
        body: control::Body,
    ) {
        let message = match body {
            control::Body::Ack { .. } => {
                self.wrong.ack |= !self.seats[i].holds(bounds.slabs, epoch);
                Up::Ack { generation, epoch }
            }
            _ => Up::Nack { generation },
        };
        if self.link == Some(i) && self.seats[i].open {
            self.outbox.insert(message);
        }
    }

    /// Nothing from the primary reaches this standby any more.
    fn shut(&mut self, i: usize) {
        self.seats[i].open = false;
        self.seats[i].inbox.clear();
    }
}

fn bit(slabs: u32, epoch: Epoch, index: u32) -> u32 {
    1 << (u32::try_from(epoch.0 - 1).unwrap() * slabs + index)
}

impl Seat {
    /// Whether every slab of every epoch up to this one was kept.
    fn holds(&self, slabs: u32, epoch: Epoch) -> bool {
        let all = bit(slabs, epoch.next(), 0) - 1;
        self.kept & all == all
    }
}
