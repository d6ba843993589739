//! Everything that can happen, and what the machines make of it.

use crate::{
    at_standby::bit,
    register::{Answer, Looks, Step},
    world::{
        Bounds, Down, Flaw, Seat, Up, World, primary as new_primary, primary_owner, standby as new_standby,
        standby_owner,
    },
};
use mc_core::{
    claim::{self, Claim, Verdict},
    id::{Epoch, Generation, Time},
    machine::Machine,
    primary::{self, Primary},
    register::{Mode, Owner, Register},
    standby::{self, Standby},
    wire::arbiter::Ask,
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
pub(crate) const NOW: Time = Time(0);

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
            let above = |p: &Primary| self.registry.disk.is_some_and(|r| r.generation > p.register().generation);
            let alone = self.primary.as_ref().is_some_and(|p| p.role() == Role::Protected && above(p));
            let disputed = self.primary.as_ref().is_some_and(Primary::is_disputed);
            return Looks { lives, cares: overtaken || alone || disputed || self.claim.is_some(), again: false };
        };
        let machine = self.seats[i].machine.as_ref();
        let cares = matches!(self.seats[i].role(), Some(Copy::Claiming | Copy::Lost | Copy::Disputed));
        let disputes = machine.is_some_and(|m| m.role() == Copy::Disputed && m.is_entitled() && self.is_named(m));
        let vain = machine.is_some_and(|m| self.registry.disk.is_some_and(|held| m.is_named_in_vain(&held)));
        Looks { lives: machine.is_some(), cares: cares || vain, again: disputes || vain }
    }

    /// The VM runs nowhere: what an operator makes sure of.
    pub(crate) fn is_nowhere(&self) -> bool {
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

    /// Lets it happen.
    pub(crate) fn happen(&mut self, bounds: &Bounds, happening: Happening) {
        match happening {
            Happening::Session(i) => self.session(bounds, i),
            Happening::Stranger(i, generation) => self.stranger(bounds, i, generation),
            Happening::ToStandby(i, message) => self.reach_standby(i, message, bounds),
            Happening::ToPrimary(Up::Ack { generation, epoch }) => {
                self.tell_primary(bounds, primary::Event::Ack { generation, epoch });
            }
            Happening::ToPrimary(Up::Rehearsed { generation, epoch }) => {
                self.tell_primary(bounds, primary::Event::Rehearsed { generation, epoch });
            }
            Happening::ToPrimary(Up::Nack { generation, reason }) => {
                self.tell_primary(bounds, primary::Event::Nack { generation, reason: reason.reason() });
            }
            Happening::Primary(event) => self.primary_event(bounds, event),
            Happening::Standby(i, event) => {
                match event {
                    standby::Event::Revoked => self.shut(i),
                    standby::Event::Rehearsed { passed: true } => self.loads(i),
                    _ => {}
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
            Happening::StandbyRestarts(i) => self.standby_restarts(bounds, i),
            Happening::Arbiter(step) => self.arbiter(bounds, step),
        }
        self.check_register(bounds);
    }

    fn standby_restarts(&mut self, bounds: &Bounds, i: usize) {
        let disk = if bounds.flaw == Some(Flaw::TwoProcesses) { 0 } else { i };
        let machine = new_standby(bounds, i, 2, self.seats[disk].drawn);
        (self.seats[i].machine, self.seats[i].kept) = (Some(machine), 0);
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
        (seat.open, seat.kept, seat.forged, seat.drawn) = (true, 0, false, Some(instance));
        (seat.loaded, seat.rehearsing, self.unfit) = (0, None, None);
        seat.captures.clear();
        seat.makes.clear();
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
        (seat.open, seat.kept, seat.forged, seat.drawn) = (false, 0, true, Some(instance));
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
        let before = self.registry.disk;
        let heard = self.registry.step(step);
        self.check_renounced(bounds, before);
        let Some((client, answer)) = heard else { return };
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
                claim::Action::Cas(swap) => self.registry.ask(0, Ask::Cas(swap)),
            }
        }
        match self.claim.as_ref().expect("acts").verdict() {
            Verdict::Open => {}
            Verdict::Ours(register) => {
                self.claim = None;
                self.primary = Some(new_primary(bounds, register));
                self.go_solo();
            }
            // It waits, with its gate closed.
            Verdict::OtherInstance(_) => {}
            // It is told to look again later; here it is gone.
            Verdict::Foreign(_) | Verdict::Beside(_) => {
                self.claim = None;
                self.fenced = true;
                self.registry.forget(0);
            }
        }
    }

    /// Both hosts and the arbiter lose what they had in memory, and start again.
    pub(crate) fn power_fails(&mut self, bounds: &Bounds) {
        self.happen(bounds, Happening::PrimaryCrashes { vm: true });
        (self.claim, self.fenced) = (None, false);
        self.registry.power_fails();
        for i in 0..self.seats.len() {
            self.happen(bounds, Happening::StandbyCrashes(i));
            self.happen(bounds, Happening::StandbyRestarts(i));
        }
        self.happen(bounds, Happening::PrimaryRestarts);
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

    /// What a standby renounced nobody had: the owner had not asked for it, and no other standby has the copy.
    fn check_renounced(&mut self, bounds: &Bounds, before: Option<Register>) {
        let (Some(before), Some(now)) = (before, self.registry.disk) else { return };
        if !self.registry.renounces(&before, &now) {
            return;
        }
        let has = |(i, seat): (usize, &Seat)| {
            let copy = standby_owner(bounds, i, seat.drawn.unwrap_or(0));
            let kept = seat.machine.as_ref().is_some_and(|m| m.is_entitled() && m.role() != standby::Role::Idle);
            kept && !seat.forged && before.names_standby(&copy)
        };
        self.wrong.given_up |= self.seats.iter().enumerate().any(has);
    }
}
