//! What may happen at a standby, and what comes of what it does.

use crate::{
    environment::{Happening, NOW},
    world::{Bounds, Down, Flaw, Refusal, Seat, Up, World, standby_owner},
};
use mc_core::{
    id::{Epoch, Generation},
    machine::Machine,
    register::Mode,
    standby,
    wire::{
        arbiter::Ask,
        control::{self, NackReason},
    },
};

impl World {
    pub(crate) fn at_standby(&self, i: usize, seat: &Seat, bounds: &Bounds, out: &mut Vec<Happening>) {
        use standby::{Event, Role};
        let (Some(_), Some(role)) = (&seat.machine, seat.role()) else {
            let awaited = self.role().is_some() || self.claim.is_some();
            let useful = bounds.standby_restarts && awaited && self.sessions <= bounds.sessions;
            return out.extend((useful && seat.taken.is_none()).then_some(Happening::StandbyRestarts(i)));
        };
        if bounds.flaw == Some(Flaw::TwoProcesses) && i > 0 && role == Role::Idle {
            out.push(Happening::StandbyRestarts(i));
        }
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
            Role::Protecting if seat.rehearsing.is_some() => {
                out.extend([true, false].map(|passed| Happening::Standby(i, Event::Rehearsed { passed })));
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

    pub(crate) fn reach_standby(&mut self, i: usize, message: Down, bounds: &Bounds) {
        use standby::Event;
        let slabs = bounds.slabs;
        let (event, slab) = match message {
            Down::Slab { generation, epoch, index } => {
                (Event::Slab { generation, epoch, index }, Some(bit(slabs, epoch, index)))
            }
            Down::Commit { generation, epoch, held } => (Event::Commit { generation, epoch, slabs, held }, None),
            Down::Rehearse { generation, epoch } => (Event::RehearsalAsked { generation, epoch }, None),
            Down::Goodbye => (Event::Goodbye, None),
        };
        self.tell_standby(bounds, i, event, slab);
    }

    pub(crate) fn tell_standby(&mut self, bounds: &Bounds, i: usize, event: standby::Event, slab: Option<u32>) {
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
            Action::Rehearse(epoch) => seat.rehearsing = Some(epoch),
            Action::EndRehearsal => seat.rehearsing = None,
            Action::Send { generation, epoch, body } => self.answer(bounds, i, generation, epoch, body),
            Action::Apply(epoch) if epoch == Epoch::FULL_SYNC && !seat.forged => {
                seat.synced = Some((generation, self.sessions));
            }
            Action::Apply(_) => {}
            Action::DiscardStaged => seat.kept &= bit(bounds.slabs, committed.next(), 0) - 1,
            Action::ReadRegister => self.registry.ask(1 + i, Ask::Read),
            Action::Cas(swap) | Action::Renounce(swap) => self.registry.ask(1 + i, Ask::Cas(swap)),
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
            control::Body::Rehearsed => Up::Rehearsed { generation, epoch },
            control::Body::Nack(NackReason::Rehearsal) => Up::Nack { generation, reason: Refusal::Rehearsal },
            _ => Up::Nack { generation, reason: Refusal::Other },
        };
        if self.link == Some(i) && self.seats[i].open {
            self.outbox.insert(message);
        }
    }

    /// A throw-away copy of the VM loads the image.
    pub(crate) fn loads(&mut self, i: usize) {
        let seat = &mut self.seats[i];
        let index = seat.rehearsing.map_or(0, |epoch| usize::try_from(epoch.0 - 1).unwrap());
        seat.loaded |= seat.makes.get(index).map_or(0, |make| 1 << make);
    }

    /// Whether this standby has loaded the VM as it is, and nothing else is wrong with that.
    pub(crate) fn is_loaded(&self, i: usize) -> bool {
        self.unfit.is_none() && self.seats[i].loaded & (1 << self.changes) != 0
    }

    /// Nothing from the primary reaches this standby any more.
    pub(crate) fn shut(&mut self, i: usize) {
        self.seats[i].open = false;
        self.seats[i].inbox.clear();
    }
}

pub(crate) fn bit(slabs: u32, epoch: Epoch, index: u32) -> u32 {
    1 << (u32::try_from(epoch.0 - 1).unwrap() * slabs + index)
}

impl Seat {
    /// Whether every slab of every epoch up to this one was kept.
    fn holds(&self, slabs: u32, epoch: Epoch) -> bool {
        let all = bit(slabs, epoch.next(), 0) - 1;
        self.kept & all == all
    }
}
