//! A process that lives on beside a later one of its host. It was frozen, and nobody has ended it: it may go on at any moment. To
//! the arbiter both are one node; they are two copies of the VM.

use crate::{
    environment::{Happening, NOW},
    register::{Answer, Looks, solo},
    world::{Bounds, Flaw, Source, World, primary_owner, standby_owner},
};
use mc_core::{
    claim::Claim,
    id::{Epoch, Generation},
    machine::Machine,
    primary::{Action, Event, Primary, Role},
    register::{CasOutcome, Mode, Owner, Register},
    wire::arbiter::Ask,
};

/// Its QEMU process.
const INSTANCE: u64 = 150;

/// Which two processes live beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// A primary whose VM was taken over, by the primary that this world begins with; its host stands by for that one.
    Overtaken,
    /// The primary of this world, and another QEMU that is started on its host.
    Second,
}

/// The old process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Old {
    machine: Primary,
    /// Its QEMU, while that lives.
    vm: Option<u64>,
}

impl Old {
    fn owner(&self) -> Owner {
        self.machine.register().owner
    }

    /// Whether its VM is heard.
    fn is_open(&self) -> bool {
        self.vm.is_some() && matches!(self.machine.role(), Role::Solo | Role::Syncing | Role::Registering)
    }
}

/// The register before this world begins: the old process ran the VM in generation 1, protected in 2, and it was taken over.
pub(crate) fn before(bounds: &Bounds) -> [Register; 2] {
    let owner = standby_owner(bounds, 0, INSTANCE);
    let mode = Mode::Protected { standby: primary_owner(1) };
    [solo(1, owner), Register { generation: Generation(2), owner, mode }]
}

impl World {
    /// The client of the arbiter that it is.
    fn old_client(&self) -> usize {
        1 + self.seats.len()
    }

    /// It was frozen as it held the output of its second epoch.
    pub(crate) fn was_overtaken_before(&mut self, bounds: &Bounds) {
        let [alone, protected] = before(bounds);
        let mut machine = crate::world::primary(bounds, alone);
        let (generation, epoch) = (Generation(2), Epoch(1));
        let events = [
            Event::Protect { standby: primary_owner(1) },
            Event::Captured,
            Event::Ack { generation, epoch },
            Event::BeatsProven,
            Event::Cas(CasOutcome::Won(protected)),
            Event::SourceReady,
            Event::Captured,
        ];
        events.into_iter().for_each(|event| machine.handle(NOW, event));
        while machine.poll_action().is_some() {}
        assert_eq!((machine.role(), machine.epochs()), (Role::Protected, (Epoch(2), Epoch(1))));
        self.registry.join(alone.owner.node.id, protected, &[alone, protected]);
        self.old = Some(Old { machine, vm: Some(INSTANCE) });
    }

    /// What may happen to it.
    pub(crate) fn at_old(&self, bounds: &Bounds, out: &mut Vec<Happening>) {
        let Some(old) = &self.old else {
            let calm = self.claim.is_none() && self.registry.is_quiet(0);
            let lives = !matches!(self.role(), None | Some(Role::Fenced | Role::Ended));
            return out
                .extend((bounds.beside == Some(Beside::Second) && calm && lives).then_some(Happening::SecondStarts));
        };
        match old.machine.role() {
            Role::Fenced | Role::Ended => return,
            Role::Solo | Role::Claiming | Role::HandingBack => {}
            Role::Syncing | Role::Registering | Role::Protected => out.push(Happening::Old(Event::LinkDown)),
        }
        out.extend(old.vm.map(|_| Happening::Old(Event::SourceLost)));
    }

    pub(crate) fn old_looks(&self) -> Looks {
        let old = self.old.as_ref().filter(|old| !matches!(old.machine.role(), Role::Fenced | Role::Ended));
        let theirs = |old: &Old| self.registry.disk.is_some_and(|r| !r.owner.names(&old.owner()));
        Looks { lives: old.is_some(), cares: old.is_some_and(theirs), again: false }
    }

    /// A second QEMU of the VM, and a process that wants to run it, where the first ones are.
    pub(crate) fn second_starts(&mut self, bounds: &Bounds) {
        let machine = self.primary.take().expect("enabled");
        self.old = Some(Old { machine, vm: self.vm.take() });
        self.registry.split();
        self.link = None;
        self.outbox.clear();
        self.source = Source::Off;
        self.vm = Some(2);
        self.claim = Some(Claim::new(primary_owner(2)));
        self.claim_acts(bounds);
    }

    /// Whether the QEMU process with this number lives.
    pub(crate) fn lives(&self, bounds: &Bounds, instance: u64) -> bool {
        let old = self.old.as_ref().and_then(|old| old.vm);
        bounds.flaw != Some(Flaw::LooksAtNothing) && [self.vm, old].contains(&Some(instance))
    }

    pub(crate) fn tell_old(&mut self, event: Event) {
        let Some(old) = &mut self.old else { return };
        if event == Event::SourceLost {
            old.vm = None;
        }
        old.machine.handle(NOW, event);
        while let Some(action) = self.old.as_mut().and_then(|old| old.machine.poll_action()) {
            self.old_acts(action);
        }
    }

    pub(crate) fn old_hears(&mut self, answer: Answer) {
        match answer {
            Answer::Cas(outcome) => self.tell_old(Event::Cas(outcome)),
            Answer::Held(held) => self.tell_old(Event::RegisterRead(held)),
            Answer::Fault => {}
        }
    }

    fn old_acts(&mut self, action: Action) {
        let client = self.old_client();
        match action {
            Action::Cas(swap) => self.registry.ask(client, Ask::Cas(swap)),
            Action::Solo => {
                self.wrong.two |= self.lost_by_old();
                self.progress += 1;
                self.show(self.progress);
                self.solo = self.old.as_ref().map(|old| old.machine.register().generation);
            }
            Action::Release(_) => self.wrong.two |= self.lost_by_old(),
            Action::Fence => {
                let overtaken = self.lost_by_old();
                self.wrong.given_up |= !overtaken && self.old.as_ref().is_some_and(|old| old.vm.is_some());
                self.old_is_fenced = true;
                self.registry.forget(client);
            }
            _ => {}
        }
    }

    /// Whether another copy was ever the owner after it.
    fn lost_by_old(&self) -> bool {
        let Some(old) = &self.old else { return false };
        let mut since = self.registry.history.iter().skip_while(|r| !r.owner.names(&old.owner()));
        since.any(|r| !r.owner.names(&old.owner()))
    }

    /// The primary lets everything out.
    pub(crate) fn shows_beside_old(&mut self) {
        self.wrong.two |= self.old.as_ref().is_some_and(Old::is_open);
    }
}
