//! What stateright checks: the world's happenings, and what must hold in every state.

use crate::{
    environment::Happening,
    world::{Bounds, World},
};
use mc_core::{
    primary::{Primary, Role},
    standby,
};
use stateright::{Model, Property};

/// The outside has seen nothing that the standby which runs the VM now does not hold: neither before nor after its takeover.
pub(crate) const SURVIVOR: &str = "the survivor has whatever the outside saw";
/// See [`SURVIVOR`].
pub(crate) const I2: &str = "I2: an ACK is for a complete epoch, in order";
/// See [`SURVIVOR`].
pub(crate) const I5: &str = "I5: the register names a standby that is in step";

/// See [`SURVIVOR`].
pub(crate) const WINNER: &str = "one winner";
/// See [`SURVIVOR`].
pub(crate) const TAKEOVER: &str = "a takeover starts from a whole epoch of the true VM, once";
/// See [`SURVIVOR`].
pub(crate) const ONE: &str = "no copy is heard beside another, or again once it has lost the VM";
/// See [`SURVIVOR`].
pub(crate) const KEPT: &str = "a copy that the register named goes only when it names another owner above";
/// See [`SURVIVOR`].
pub(crate) const LOADED: &str = "what is called protected can be loaded as it is";

impl Model for Bounds {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happening>) {
        world.happenings(self, actions);
    }

    fn next_state(&self, world: &World, happening: Happening) -> Option<World> {
        let mut next = world.clone();
        next.happen(self, happening);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = never();
        properties.extend(seen(self));
        if self.walks {
            properties.extend(walks(self));
        }
        properties
    }
}

/// What no order of events may lead to.
fn never() -> Vec<Property<Bounds>> {
    vec![
        Property::always(SURVIVOR, |_, w: &World| {
            w.seats.iter().filter_map(|s| s.taken).all(|(_, progress)| w.visible <= progress)
        }),
        Property::always(WINNER, |_, w: &World| {
            let mut winners = w.seats.iter().filter_map(|s| s.taken);
            winners.next().is_none_or(|(g, _)| w.solo.is_none_or(|solo| solo < g)) && winners.next().is_none()
        }),
        Property::always(I2, |_, w: &World| !w.wrong.ack),
        Property::always(I5, |_, w: &World| !w.wrong.registered),
        Property::always("a fenced primary is silent", |_, w: &World| !w.wrong.after_fence),
        Property::always("a stalled primary that was overtaken is silent", |_, w: &World| !w.wrong.after_stall),
        Property::always(TAKEOVER, |_, w: &World| !w.wrong.takeover),
        Property::always(ONE, |_, w: &World| !w.wrong.two),
        Property::always(KEPT, |_, w: &World| !w.wrong.given_up),
        Property::always(LOADED, |b: &Bounds, w: &World| {
            b.changes == 0 || !is_protected(w) || w.link.is_none_or(|i| w.is_loaded(i))
        }),
    ]
}

/// What every state leads to, when nothing fails any more.
fn walks(bounds: &Bounds) -> Vec<Property<Bounds>> {
    if bounds.standby_restarts {
        let power = "after a power cut the VM comes back";
        return vec![Property::always(power, |b, w: &World| w.comes_back_after_a_power_cut(b))];
    }
    vec![
        Property::always("when the primary dies the standby takes over", |b, w: &World| w.survives_the_primary(b)),
        Property::always("when the link dies one side survives", |b, w: &World| w.one_side_survives_the_link(b)),
    ]
}

/// What some order of events leads to: without these the rest might hold because nothing ever happens.
fn seen(bounds: &Bounds) -> Vec<Property<Bounds>> {
    let mut seen = vec![
        Property::sometimes("takeover", |_, w: &World| w.seats.iter().any(|s| s.role() == Some(standby::Role::Active))),
        Property::sometimes("solo after protection", |_, w: &World| w.solo.is_some()),
        Property::sometimes("fence", |_, w: &World| w.fenced),
    ];
    if bounds.epochs > 1 {
        seen.push(Property::sometimes("epoch 2 released", |_, w: &World| released_held_epoch(w)));
    }
    if bounds.stalls > 0 && bounds.epochs > 1 {
        seen.push(Property::sometimes("epoch 2 released after a stall", |_, w: &World| {
            w.stalls > 0 && released_held_epoch(w)
        }));
    }
    if bounds.sessions > 1 {
        let again = |_: &Bounds, w: &World| {
            w.role() == Some(Role::Protected) && w.registry.disk.is_some_and(|r| r.generation.0 == 4)
        };
        seen.push(Property::sometimes("protected again", again));
        let after = |_: &Bounds, w: &World| w.solo.is_some() && w.seats.iter().any(|s| s.taken.is_some());
        seen.push(Property::sometimes("takeover in the second protection", after));
    }
    if bounds.primary_restarts > 0 {
        let follows = |_: &Bounds, w: &World| w.primary_restarts > 0 && w.role() == Some(Role::Solo);
        seen.push(Property::sometimes("a successor owns the VM", follows));
    }
    if bounds.standby_restarts && bounds.protected && bounds.primary_restarts > 0 {
        let alone = |_: &Bounds, w: &World| w.was_renounced() && w.vm == Some(2) && w.role() == Some(Role::Solo);
        seen.push(Property::sometimes("a VM whose copy was renounced is booted anew", alone));
    }
    if bounds.trouble {
        seen.push(Property::sometimes("a VM that died is handed back", |_, w: &World| w.was_handed_back()));
    }
    if bounds.changes > 0 {
        seen.push(Property::sometimes("protected as it has become", |_, w: &World| w.changes > 0 && is_protected(w)));
        let flows = |_: &Bounds, w: &World| {
            w.unfit.is_some_and(|since| w.primary.as_ref().is_some_and(|p| p.epochs().1 > since)) && released(w)
        };
        seen.push(Property::sometimes("output of a VM that is unfit is released", flows));
    }
    if bounds.beside.is_some() {
        seen.push(Property::sometimes("an old process is fenced", |_, w: &World| w.old_is_fenced));
    }
    if bounds.rewinds > 0 {
        seen.push(Property::sometimes("what went back is mended", |_, w: &World| w.registry.was_mended()));
    }
    seen
}

/// The newest captured epoch was captured while output was held, and it is out.
fn released_held_epoch(w: &World) -> bool {
    released(w) && is_protected(w)
}

fn released(w: &World) -> bool {
    w.role() == Some(Role::Protected) && w.holding && w.visible == w.progress
}

fn is_protected(w: &World) -> bool {
    w.primary.as_ref().is_some_and(Primary::is_protected)
}
