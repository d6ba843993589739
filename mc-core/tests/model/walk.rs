//! From any state to rest, by fair steps only: what is asked is answered, what is written arrives, and nothing else fails.

use crate::{
    environment::Happening,
    world::{Bounds, World, primary_owner},
};
use mc_core::{
    primary,
    register::Register,
    standby::{self, Standby},
};

/// Far more than any walk takes.
const LIMIT: usize = 100;

impl World {
    /// The primary dies. Whether the standby gets where it should.
    pub(crate) fn survives_the_primary(&self, bounds: &Bounds) -> bool {
        let mut world = self.clone();
        if world.primary.is_some() {
            world.happen(bounds, Happening::PrimaryCrashes { vm: true });
        }
        let seat = &self.seats[0];
        // A swap of the dead primary's may still win: then its VM died with it.
        let hears = !self.registry.is_writing() && !self.registry.waits_for_the_primary();
        // Nor what was won before the arbiter went back.
        let newest = self.registry.disk.as_ref() == self.registry.newest();
        let ours = self.protected_by(bounds).is_some() && hears && newest;
        let holds = seat.machine.as_ref().is_some_and(|m| {
            m.is_entitled() && self.registry.disk.as_ref().is_some_and(|r: &Register| r.generation == m.committed().0)
        });
        use standby::Role;
        let ready = matches!(seat.role(), Some(Role::Protecting | Role::Revoking | Role::Claiming));
        let settled = world.settle(bounds);
        let role = world.seats[0].role();
        let asks = role == Some(Role::Claiming) && world.registry.waits_for_the_primary();
        let rests = asks || matches!(role, None | Some(Role::Idle | Role::Active | Role::Lost | Role::Disputed));
        settled && rests && (!(ours && ready && holds) || role == Some(Role::Active))
    }

    /// The link dies. Whether exactly one side runs the VM in the end, if both lived; or none, and an operator has to decide.
    pub(crate) fn one_side_survives_the_link(&self, bounds: &Bounds) -> bool {
        if self.primary.is_none() || self.seats[0].machine.is_none() || self.sessions == 0 {
            return true;
        }
        let mut world = self.clone();
        world.happen(bounds, Happening::Primary(primary::Event::LinkDown));
        let settled = world.settle(bounds);
        let here = matches!(world.role(), Some(primary::Role::Solo | primary::Role::Ended));
        let there = world.seats[0].role() == Some(standby::Role::Active);
        let fenced = world.role() == Some(primary::Role::Fenced);
        // The primary heard what the arbiter lost then, and does not tell it.
        let asks = fenced && matches!(world.seats[0].role(), Some(standby::Role::Claiming | standby::Role::Disputed));
        let decides = asks && world.registry.waits_for_the_primary();
        settled && (decides || here != there && (here || fenced))
    }

    /// Everything dies at once, with its memory, and starts again. Whether the VM runs in the end where it was; unless the standby
    /// had won it, and an operator decides.
    pub(crate) fn comes_back_after_a_power_cut(&self, bounds: &Bounds) -> bool {
        let mut world = self.clone();
        world.power_fails(bounds);
        let there = world.registry.newest().is_some_and(|r| r.owner.node.id != primary_owner(0).node.id);
        let settled = world.settle(bounds);
        let here = matches!(world.role(), Some(primary::Role::Solo));
        settled && (here && !world.fenced || there)
    }

    /// Until nothing is left to do; false if that never comes.
    fn settle(&mut self, bounds: &Bounds) -> bool {
        for _ in 0..LIMIT {
            let Some(next) = self.fair() else { return true };
            self.happen(bounds, next);
        }
        false
    }

    fn fair(&self) -> Option<Happening> {
        use standby::{Event, Role};
        let at = |e| Some(Happening::Standby(0, e));
        match self.seats[0].machine.as_ref().map(Standby::role) {
            Some(Role::Syncing | Role::Rehearsing | Role::Protecting) => return at(Event::LinkDown),
            Some(Role::Revoking) => return at(Event::Revoked),
            Some(Role::TakingOver) => return at(Event::Running),
            _ => {}
        }
        self.registry.fair(|client| self.looks(client)).map(Happening::Arbiter)
    }
}
