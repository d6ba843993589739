//! Everything that can happen, and what the machines make of it.

use crate::{
    register::{Answer, Looks, Step},
    world::{
        Bounds, Down, Flaw, REFUSAL, Seat, Source, Up, World, primary as new_primary, primary_owner,
        standby as new_standby, standby_owner,
    },
};
use mc_core::{
    claim::{self, Claim, Verdict},
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::{self, Primary},
    register::{Mode, Owner, Register},
    standby::{self, Standby},
    wire::{arbiter::Ask, control},
};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Happening {
    /// A session with this standby comes up.
    Session(usize),
    /// A stranger plays a session of this generation to a standby that waits, and hangs up.
    Stranger(usize, Generation),
    /// A message reaches a standby.
    ToStandby(usize, Down),
    /// A message reaches the primary.
    ToPrimary(Up),
    /// The primary hears of something other than a message.
    Primary(primary::Event),
    /// A standby hears of something other than a message.
    Standby(usize, standby::Event),
    /// The primary's process dies; with its VM, or not.
    PrimaryCrashes {
        vm: bool,
    },
    /// Another process wants to run the VM: the one that lives, or a new one.
    PrimaryRestarts,
    /// The primary's data path dies alone, and its supervisor starts the next one with what the register says, without asking.
    DataPathFollows,
    /// A second one does, with a QEMU of its own, beside the first.
    SecondStarts,
    /// The old process hears of something other than a message.
    Old(primary::Event),
    StandbyCrashes(usize),
    StandbyRestarts(usize),
    Arbiter(Step),
}

/// The only time there is.
const NOW: Time = Time(0);

impl World {
    /// Everything that may happen now.
    pub(crate) fn happenings(&self, bounds: &Bounds, out: &mut Vec<Happening>) {
        match &self.primary {
            Some(primary) => self.at_primary(primary, bounds, out),
            None if self.primary_restarts < bounds.primary_restarts && self.claim.is_none() && !self.fenced => {
                out.push(Happening::PrimaryRestarts);
            }
            None => {}
        }
        for (i, seat) in self.seats.iter().enumerate() {
            self.at_standby(i, seat, bounds, out);
        }
        self.at_old(bounds, out);
        let mut steps = Vec::new();
        self.registry.steps(|client| self.looks(client), &mut steps);
        out.extend(steps.into_iter().map(Happening::Arbiter));
    }

    /// Whether this client of the arbiter lives, and whether it would do something about what it reads.
    pub(crate) fn looks(&self, client: usize) -> Looks {
        use primary::Role;
        use standby::Role as Copy;
        if client > self.seats.len() {
            return self.old_looks();
        }
        let Some(i) = client.checked_sub(1) else {
            let lives = self.claim.is_some() || !matches!(self.role(), None | Some(Role::Fenced | Role::Ended));
            let owner = self.primary.as_ref().map_or(primary_owner(0), |primary| primary.register().owner);
            let overtaken = self.registry.disk.is_some_and(|r| match owner.instance {
                Owner::ANY => r.owner.node.id != owner.node.id,
                _ => !r.owner.names(&owner),
            });
            let cares = overtaken || self.primary.as_ref().is_some_and(Primary::is_disputed);
            return Looks { lives, cares, disputes: false };
        };
        let machine = self.seats[i].machine.as_ref();
        let cares = matches!(self.seats[i].role(), Some(Copy::Claiming | Copy::Lost | Copy::Disputed));
        let disputes = machine.is_some_and(|m| m.role() == Copy::Disputed && m.is_entitled() && self.is_named(m));
        Looks { lives: machine.is_some(), cares, disputes }
    }

    /// The VM runs nowhere: what an operator makes sure of.
    fn is_nowhere(&self) -> bool {
        self.vm.is_none() && self.claim.is_none() && self.seats.iter().all(|seat| seat.taken.is_none())
    }

    /// Whether the register names this copy.
    fn is_named(&self, copy: &Standby) -> bool {
        self.registry
            .disk
            .is_some_and(|r| r.generation == copy.committed().0 && matches!(r.mode, Mode::Protected { .. }))
    }

    /// The way to protection on which nothing goes wrong, and one epoch whose output is out.
    pub(crate) fn become_protected(&mut self, bounds: &Bounds) {
        self.happen(bounds, Happening::Session(0));
        self.happen(bounds, Happening::Primary(primary::Event::Captured));
        self.deliver(bounds);
        self.happen(bounds, Happening::Standby(0, standby::Event::Rehearsed { passed: true }));
        self.deliver(bounds);
        self.happen(bounds, Happening::Primary(primary::Event::BeatsProven));
        while let Some(step) = self.registry.fair(|client| Looks { cares: client > 0, ..self.looks(client) }) {
            self.happen(bounds, Happening::Arbiter(step));
        }
        self.happen(bounds, Happening::Primary(primary::Event::SourceReady));
        self.happen(bounds, Happening::Primary(primary::Event::Captured));
        self.deliver(bounds);
    }

    fn deliver(&mut self, bounds: &Bounds) {
        for message in self.seats[0].inbox.clone() {
            self.happen(bounds, Happening::ToStandby(0, message));
        }
        self.seats[0].inbox.clear();
        for message in self.outbox.clone() {
            self.happen(bounds, Happening::ToPrimary(message));
        }
        self.outbox.clear();
    }

    fn at_primary(&self, primary: &Primary, bounds: &Bounds, out: &mut Vec<Happening>) {
        use primary::{Event, Role};
        let role = primary.role();
        if matches!(role, Role::Fenced | Role::Ended) {
            return;
        }
        if role == Role::Solo && self.sessions < bounds.sessions {
            let next = usize::from(self.sessions) % self.seats.len(); // they take turns
            let free = matches!(self.seats[next].role(), Some(standby::Role::Idle | standby::Role::Lost));
            out.extend(free.then_some(Happening::Session(next)));
        }
        out.extend(self.outbox.iter().copied().map(Happening::ToPrimary));
        let source = match self.source {
            Source::Copying | Source::Stopped => Some(Event::Captured),
            Source::Running if primary.epochs().0.0 < bounds.epochs => Some(Event::SourceReady),
            _ => None,
        };
        out.extend(source.map(Happening::Primary));
        out.extend((role == Role::Syncing).then_some(Happening::Primary(Event::BeatsProven)));
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
        out.push(Happening::PrimaryCrashes { vm: true });
        if bounds.primary_restarts > 0 {
            out.push(Happening::PrimaryCrashes { vm: false });
        }
        // Nothing was asked for since the register said (solo, self).
        let alone = role == Role::Solo || bounds.flaw == Some(Flaw::NextWithoutAsking);
        if alone && self.primary_restarts < bounds.primary_restarts {
            out.push(Happening::DataPathFollows);
        }
    }

    fn at_standby(&self, i: usize, seat: &Seat, bounds: &Bounds, out: &mut Vec<Happening>) {
        use standby::{Event, Role};
        let (Some(_), Some(role)) = (&seat.machine, seat.role()) else {
            let useful = bounds.standby_restarts && self.role().is_some() && self.sessions <= bounds.sessions;
            return out.extend((useful && seat.taken.is_none()).then_some(Happening::StandbyRestarts(i)));
        };
        out.extend(seat.inbox.iter().map(|m| Happening::ToStandby(i, *m)));
        if role == Role::Idle && self.strangers < bounds.strangers {
            let held = self.registry.disk.map_or(Generation(0), |r| r.generation);
            out.extend([held, held.next()].map(|generation| Happening::Stranger(i, generation)));
        }
        if matches!(role, Role::Syncing | Role::Rehearsing | Role::Protecting) {
            out.push(Happening::Standby(i, Event::LinkDown));
            if bounds.trouble {
                out.extend([Event::Suspect, Event::BadSlab, Event::StagingFull].map(|e| Happening::Standby(i, e)));
            }
        }
        match role {
            Role::Idle => return,
            Role::Rehearsing => {
                out.push(Happening::Standby(i, Event::Rehearsed { passed: true }));
                out.extend(bounds.trouble.then_some(Happening::Standby(i, Event::Rehearsed { passed: false })));
            }
            Role::Revoking => out.push(Happening::Standby(i, Event::Revoked)),
            Role::TakingOver => out.push(Happening::Standby(i, Event::Running)),
            // Of a copy that it said to lack something it takes another word.
            Role::Claiming if bounds.operator && self.is_nowhere() => {
                out.push(Happening::Standby(i, Event::OperatorTakesOver));
            }
            _ => {}
        }
        out.push(Happening::StandbyCrashes(i));
    }

    /// Lets it happen.
    pub(crate) fn happen(&mut self, bounds: &Bounds, happening: Happening) {
        match happening {
            Happening::Session(i) => self.session(bounds, i),
            Happening::Stranger(i, generation) => self.stranger(bounds, i, generation),
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
            Happening::PrimaryCrashes { vm } => self.primary_gone(vm),
            Happening::PrimaryRestarts => self.primary_restarts(bounds),
            Happening::DataPathFollows => self.data_path_follows(bounds),
            Happening::SecondStarts => self.second_starts(bounds),
            Happening::Old(event) => self.tell_old(event),
            Happening::StandbyCrashes(i) => {
                self.seats[i].machine = None;
                self.shut(i);
                self.registry.forget(1 + i);
            }
            Happening::StandbyRestarts(i) => {
                (self.seats[i].machine, self.seats[i].kept) = (Some(new_standby(bounds, i, 2)), 0);
            }
            Happening::Arbiter(step) => self.arbiter(bounds, step),
        }
        self.check_register(bounds);
    }

    /// What a standby draws for its newest session.
    fn draw(&self, bounds: &Bounds) -> u64 {
        let sessions = u64::from(self.sessions) + 10 * u64::from(self.strangers);
        if bounds.flaw == Some(Flaw::SameDraw) { 0 } else { sessions }
    }

    fn session(&mut self, bounds: &Bounds, i: usize) {
        let generation = self.registry_generation().next();
        self.sessions += 1;
        self.link = Some(i);
        self.outbox.clear();
        let instance = self.draw(bounds);
        self.tell_standby(bounds, i, standby::Event::MakeRoom, None);
        let seat = &mut self.seats[i];
        (seat.open, seat.kept, seat.forged) = (true, 0, false);
        seat.captures.clear();
        seat.inbox.clear();
        seat.machine.as_mut().expect("enabled").handle(NOW, standby::Event::Session { generation, instance });
        let primary = self.primary.as_mut().expect("enabled");
        let standby = standby_owner(bounds, i, instance);
        primary.handle(NOW, primary::Event::Protect { standby });
        self.primary_acts(bounds);
    }

    /// As much as a standby takes for a whole copy of a VM; none of it is ours.
    fn stranger(&mut self, bounds: &Bounds, i: usize, generation: Generation) {
        use standby::Event;
        self.strangers += 1;
        let instance = self.draw(bounds);
        let seat = &mut self.seats[i];
        (seat.open, seat.kept, seat.forged) = (false, 0, true);
        seat.captures.clear();
        self.tell_standby(bounds, i, Event::Session { generation, instance }, None);
        for epoch in [Epoch(1), Epoch(2)] {
            for index in 0..bounds.slabs {
                let bit = bit(bounds.slabs, epoch, index);
                self.tell_standby(bounds, i, Event::Slab { generation, epoch, index }, Some(bit));
            }
            let held = true;
            self.tell_standby(bounds, i, Event::Commit { generation, epoch, slabs: bounds.slabs, held }, None);
            self.tell_standby(bounds, i, Event::Rehearsed { passed: true }, None);
        }
        self.tell_standby(bounds, i, Event::LinkDown, None);
    }

    fn registry_generation(&self) -> Generation {
        self.primary.as_ref().expect("a session needs a primary").register().generation
    }

    fn arbiter(&mut self, bounds: &Bounds, step: Step) {
        let Some((client, answer)) = self.registry.step(step) else { return };
        if client > self.seats.len() {
            return self.old_hears(answer);
        }
        let Some(i) = client.checked_sub(1) else { return self.primary_hears(bounds, answer) };
        let event = match answer {
            Answer::Cas(outcome) => standby::Event::Cas(outcome),
            Answer::Held(held) => standby::Event::RegisterRead(held),
            Answer::Fault => standby::Event::ArbiterFault,
        };
        self.tell_standby(bounds, i, event, None);
    }

    fn primary_hears(&mut self, bounds: &Bounds, answer: Answer) {
        if self.claim.is_some() {
            return self.claim_hears(bounds, answer);
        }
        match answer {
            Answer::Cas(outcome) => self.tell_primary(bounds, primary::Event::Cas(outcome)),
            Answer::Held(held) => self.tell_primary(bounds, primary::Event::RegisterRead(held)),
            Answer::Fault => {} // it goes on as it is
        }
    }

    fn claim_hears(&mut self, bounds: &Bounds, answer: Answer) {
        let event = match answer {
            Answer::Cas(outcome) => claim::Event::Cas(outcome),
            Answer::Held(held) => claim::Event::RegisterRead(held),
            Answer::Fault => return,
        };
        self.claim.as_mut().expect("hears").handle(NOW, event);
        self.claim_acts(bounds);
    }

    pub(crate) fn claim_acts(&mut self, bounds: &Bounds) {
        while let Some(action) = self.claim.as_mut().and_then(Machine::poll_action) {
            match action {
                claim::Action::LookFor { instance } => {
                    let lives = self.lives(bounds, instance);
                    self.claim.as_mut().expect("acts").handle(NOW, claim::Event::Looked { lives });
                }
                claim::Action::ReadRegister => self.registry.ask(0, Ask::Read),
                claim::Action::Cas { expect, new, .. } => self.registry.ask(0, Ask::Cas { expect, new }),
            }
        }
        match self.claim.as_ref().expect("acts").verdict() {
            Verdict::Open => {}
            Verdict::Ours(register) => {
                self.claim = None;
                self.primary = Some(new_primary(bounds, register));
                self.go_solo();
            }
            // It is told to look again later; here it is gone.
            Verdict::Foreign(_) | Verdict::OtherInstance(_) | Verdict::Beside(_) => {
                self.claim = None;
                self.fenced = true;
                self.registry.forget(0);
            }
        }
    }

    fn primary_restarts(&mut self, bounds: &Bounds) {
        self.primary_restarts += 1;
        let instance = *self.vm.get_or_insert(1 + u64::from(self.primary_restarts));
        self.claim = Some(Claim::new(primary_owner(instance)));
        self.claim_acts(bounds);
    }

    /// I5, whenever the disk changes. (A disk that goes back says what was.)
    fn check_register(&mut self, bounds: &Bounds) {
        if let Some((i, generation)) = self.protected_by(bounds).filter(|_| bounds.rewinds == 0) {
            self.wrong.registered |= self.seats[i].synced != Some((generation, self.sessions));
        }
    }

    // The primary.

    fn primary_event(&mut self, bounds: &Bounds, event: primary::Event) {
        match event {
            primary::Event::Captured => self.source = Source::Waiting,
            primary::Event::SourceReady => self.source = Source::Offered,
            primary::Event::SourceLost => (self.source, self.vm) = (Source::Off, None),
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
        self.primary_acts(bounds);
    }

    fn primary_acts(&mut self, bounds: &Bounds) {
        while let Some(action) = self.primary.as_mut().and_then(Machine::poll_action) {
            self.primary_act(bounds.slabs, action);
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
            Action::Hold => self.holding = true,
            Action::Barrier(_) | Action::GaveUp | Action::Late | Action::Dead | Action::AskRehearsal { .. } => {}
            Action::Resume => self.source = Source::Running,
            Action::Commit { epoch, held } => self.commit(slabs, epoch, held),
            Action::Release(epoch) => self.release(epoch),
            Action::Cas { expect, new, .. } => self.registry.ask(0, Ask::Cas { expect, new }),
            Action::CloseLink(goodbye) => self.close_link(goodbye.is_some()),
            Action::Solo => self.go_solo(),
            Action::Fence => self.fence(),
            Action::End => self.source = Source::Off,
        }
    }

    fn fence(&mut self) {
        let register = *self.primary.as_ref().expect("acts").register();
        let gone = self.vm.is_none();
        self.wrong.given_up |= !gone && !self.was_overtaken(register.generation, |o| !o.names(&register.owner));
        self.fenced = true;
        self.source = Source::Off;
        self.registry.forget(0);
    }

    fn release(&mut self, epoch: Epoch) {
        self.wrong.after_stall |= self.overtaken;
        let index = usize::try_from(epoch.0 - 1).unwrap();
        let captured = self.link.and_then(|i| self.seats[i].captures.get(index)).copied();
        self.show(captured.unwrap_or(self.progress));
    }

    /// Until output is held the VM says more right after each epoch, and everybody hears it.
    fn commit(&mut self, slabs: u32, epoch: Epoch, held: bool) {
        self.progress += 1;
        if let Some(i) = self.link {
            self.seats[i].captures.push(self.progress);
        }
        if !self.holding {
            self.progress += 1;
            self.show(self.progress);
        }
        let generation = self.primary.as_ref().expect("acts").generation();
        for index in 0..slabs {
            self.send(Down::Slab { generation, epoch, index });
        }
        self.send(Down::Commit { generation, epoch, held });
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
        self.shows_beside_old();
        self.holding = false;
        self.progress += 1;
        self.show(self.progress);
        self.source = Source::Off;
        let generation = self.primary.as_ref().expect("acts").register().generation;
        if generation.0 > 1 {
            self.solo = Some(generation);
        }
    }

    fn primary_gone(&mut self, vm: bool) {
        self.primary = None;
        self.vm = self.vm.filter(|_| !vm);
        self.source = Source::Off;
        self.link = None;
        self.outbox.clear();
        self.registry.forget(0);
    }

    fn data_path_follows(&mut self, bounds: &Bounds) {
        let known = *self.primary.as_ref().expect("enabled").register();
        self.primary_gone(false);
        self.primary_restarts += 1;
        self.primary = Some(new_primary(bounds, Register { mode: Mode::Solo, ..known }));
        self.go_solo();
    }

    // The standbys.

    fn reach_standby(&mut self, i: usize, message: Down, bounds: &Bounds) {
        use standby::Event;
        let slabs = bounds.slabs;
        let (event, slab) = match message {
            Down::Slab { generation, epoch, index } => {
                (Event::Slab { generation, epoch, index }, Some(bit(slabs, epoch, index)))
            }
            Down::Commit { generation, epoch, held } => (Event::Commit { generation, epoch, slabs, held }, None),
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
            Action::Drop | Action::Revoke | Action::Rehearse(_) | Action::EndRehearsal => {}
            Action::Send { generation, epoch, body } => self.answer(bounds, i, generation, epoch, body),
            Action::Apply(epoch) if epoch == Epoch::FULL_SYNC && !seat.forged => {
                seat.synced = Some((generation, self.sessions));
            }
            Action::Apply(_) => {}
            Action::DiscardStaged => seat.kept &= bit(bounds.slabs, committed.next(), 0) - 1,
            Action::ReadRegister => self.registry.ask(1 + i, Ask::Read),
            Action::Cas { expect, new } => self.registry.ask(1 + i, Ask::Cas { expect, new }),
            Action::TakeOver { generation, epoch } => self.take_over(bounds, i, generation, epoch),
            Action::Discard => self.discard(bounds, i, generation),
            Action::Abandon => unreachable!("an operator's word, and there is none here"),
        }
    }

    fn take_over(&mut self, bounds: &Bounds, i: usize, generation: Generation, epoch: Epoch) {
        let seat = &mut self.seats[i];
        self.wrong.takeover |= seat.taken.is_some() || seat.forged;
        self.wrong.takeover |= epoch == Epoch(0) || !seat.holds(bounds.slabs, epoch);
        let index = usize::try_from(epoch.0).unwrap().wrapping_sub(1);
        seat.taken = Some((generation, seat.captures.get(index).copied().unwrap_or(0)));
    }

    /// A copy that the register has named goes only when another owns the VM.
    fn discard(&mut self, bounds: &Bounds, i: usize, generation: Generation) {
        let seat = &self.seats[i];
        let entitled = seat.machine.as_ref().is_some_and(standby::Standby::is_entitled);
        let me = standby_owner(bounds, i, 0).node.id;
        let named = self.registry.history.iter().any(|r| {
            let standby = matches!(r.mode, Mode::Protected { standby } if standby.node.id == me);
            r.generation == generation && standby
        });
        self.wrong.given_up |=
            named && entitled && !seat.forged && !self.was_overtaken(generation, |owner| owner.node.id != me);
        self.shut(i);
    }

    fn answer(&mut self, bounds: &Bounds, i: usize, generation: Generation, epoch: Epoch, body: control::Body) {
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
