//! What may happen at the primary, and what comes of what it does.

use crate::{
    environment::{Happening, NOW},
    world::{Bounds, Down, Flaw, Source, World, primary as new_primary},
};
use mc_core::{
    id::Epoch,
    machine::Machine,
    primary::{self, Primary},
    register::{Mode, Register},
    standby,
    wire::{arbiter::Ask, control},
};

impl World {
    pub(crate) fn at_primary(&self, primary: &Primary, bounds: &Bounds, out: &mut Vec<Happening>) {
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
        if bounds.changes > 0 && matches!(role, Role::Syncing | Role::Registering | Role::Protected) {
            out.extend((self.changes < bounds.changes).then_some(Happening::Primary(Event::OutputsChanged)));
            out.extend(self.unfit.is_none().then_some(Happening::Primary(Event::Unfit)));
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

    pub(crate) fn primary_event(&mut self, bounds: &Bounds, event: primary::Event) {
        match event {
            primary::Event::Captured => self.source = Source::Waiting,
            primary::Event::SourceReady => self.source = Source::Offered,
            primary::Event::SourceLost => (self.source, self.vm) = (Source::Off, None),
            primary::Event::OutputsChanged => (self.changes, self.unfit) = (self.changes + 1, None),
            primary::Event::Unfit => self.unfit = self.primary.as_ref().map(|primary| primary.epochs().0),
            primary::Event::Stalled => {
                self.stalls += 1;
                self.overtaken = self.seats.iter().any(|s| s.taken.is_some());
            }
            _ => {}
        }
        self.tell_primary(bounds, event);
    }

    pub(crate) fn tell_primary(&mut self, bounds: &Bounds, event: primary::Event) {
        if let Some(primary) = &mut self.primary {
            primary.handle(NOW, event);
        }
        self.primary_acts(bounds);
    }

    pub(crate) fn primary_acts(&mut self, bounds: &Bounds) {
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
            Action::Barrier(_) | Action::GaveUp | Action::Late | Action::Dead => {}
            Action::AskRehearsal { epoch } => {
                let generation = self.primary.as_ref().expect("acts").generation();
                self.send(Down::Rehearse { generation, epoch });
            }
            Action::Resume => self.source = Source::Running,
            Action::Commit { epoch, held } => self.commit(slabs, epoch, held),
            Action::Release(epoch) => self.release(epoch),
            Action::Cas(swap) => self.registry.ask(0, Ask::Cas(swap)),
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
            self.seats[i].makes.push(self.changes);
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
    pub(crate) fn go_solo(&mut self) {
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

    pub(crate) fn primary_gone(&mut self, vm: bool) {
        self.primary = None;
        self.vm = self.vm.filter(|_| !vm);
        self.source = Source::Off;
        self.link = None;
        self.outbox.clear();
        self.registry.forget(0);
    }

    pub(crate) fn data_path_follows(&mut self, bounds: &Bounds) {
        let known = *self.primary.as_ref().expect("enabled").register();
        self.primary_gone(false);
        self.primary_restarts += 1;
        self.primary = Some(new_primary(bounds, Register { mode: Mode::Solo, ..known }));
        self.go_solo();
    }
}
