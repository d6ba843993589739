//! The open connections, and which one is closed when there are too many.
//!
//! A node asks once a second over a connection that it keeps. It is *known* once it was told of a register: whoever asks about
//! a VM that nobody has protected yet, and whoever only connects, is a stranger. Strangers hold half of the places at most, so
//! that no crowd of them keeps the nodes out; and a newcomer, which is a stranger at first, gets the place of the one that has
//! been idle for longest.

use mc_core::{id::Time, wire::arbiter::Answer};
use std::{collections::BTreeMap, time::Duration};

/// Connections at a time: two nodes a VM, so 2,000 VMs.
pub(crate) const MAX_CLIENTS: usize = 4096;
/// Strangers among them.
const MAX_STRANGERS: usize = MAX_CLIENTS / 2;
/// A known node asks once a second: one that has been idle for so long gives its place up when all are taken.
const QUIET: Duration = Duration::from_secs(10);

/// What is known of one connection.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// Was told of a register.
    known: bool,
    /// Waits for an answer.
    asking: bool,
    /// Its last request, or its coming.
    heard: Time,
}

/// The connections that are open, by number: a value that is told what happens to them.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    open: BTreeMap<u64, Manners>,
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is taken in; this other one is closed for it, if any.
    InsteadOf(Option<u64>),
    /// All are taken by nodes that are at work.
    None,
}

impl Clients {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// A newcomer's place.
    pub(crate) fn take_in(&mut self, number: u64, now: Time) -> Place {
        let strangers = self.open.values().filter(|manners| !manners.known).count();
        let (full, crowded) = (self.open.len() >= MAX_CLIENTS, strangers >= MAX_STRANGERS);
        let given_up = if full || crowded { self.give_up_one(!crowded, now) } else { None };
        if (full || crowded) && given_up.is_none() {
            return Place::None;
        }
        self.open.insert(number, Manners { known: false, asking: false, heard: now });
        Place::InsteadOf(given_up)
    }

    /// There is no file descriptor for a newcomer: the place that would be given up for it is. Whose it was.
    pub(crate) fn make_room(&mut self, now: Time) -> Option<u64> {
        self.give_up_one(true, now)
    }

    /// It has asked something.
    pub(crate) fn asks(&mut self, number: u64, now: Time) {
        if let Some(manners) = self.open.get_mut(&number) {
            (manners.asking, manners.heard) = (true, now);
        }
    }

    /// It is told this.
    pub(crate) fn is_told(&mut self, number: u64, answer: &Answer) {
        if let Some(manners) = self.open.get_mut(&number) {
            manners.asking = false;
            manners.known |= answer.held.is_some();
        }
    }

    /// It has gone.
    pub(crate) fn forget(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// The stranger that has been idle for longest; if there is none, and if nodes may be given up, the one that has been silent for
    /// longest and for too long.
    fn give_up_one(&mut self, nodes_too: bool, now: Time) -> Option<u64> {
        let idle = |known: bool, for_long: Duration| {
            let idle =
                self.open.iter().filter(|(_, m)| m.known == known && !m.asking && now.since(m.heard) >= for_long);
            idle.min_by_key(|(_, m)| m.heard).map(|(number, _)| *number)
        };
        let victim = idle(false, Duration::ZERO).or_else(|| nodes_too.then(|| idle(true, QUIET)).flatten())?;
        self.open.remove(&victim);
        Some(victim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Generation, Name, Node, NodeId, WitnessId},
        register::{Mode, Owner, Register},
        wire::arbiter::{Outcome, Standing},
    };

    fn numbers(clients: &Clients) -> Vec<u64> {
        clients.open.keys().copied().collect()
    }

    fn at(seconds: u64) -> Time {
        Time(0).after(Duration::from_secs(seconds))
    }

    fn answer(held: Option<Register>) -> Answer {
        let (vm, witness) = (Name::new("web").unwrap(), WitnessId([1; 16]));
        let (standing, outcome) = (Standing::Settled, Outcome::Holds);
        Answer { id: 1, vm, witness, boot: 1, probe_age_ms: None, standing, outcome, held }
    }

    fn told() -> Answer {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        let owner = Owner { node, instance: 1 };
        answer(Some(Register { generation: Generation(1), owner, mode: Mode::Solo }))
    }

    #[test]
    fn the_idlest_stranger_goes_first_and_who_waits_for_an_answer_never() {
        let mut clients = Clients::default();
        let now = at(100);
        for (number, ago) in [5, 40, 30, 20].into_iter().enumerate() {
            assert_eq!(clients.take_in(number as u64, at(100 - ago)), Place::InsteadOf(None));
        }
        clients.asks(1, at(60));
        clients.is_told(2, &told());
        clients.is_told(3, &answer(None));
        let gone: Vec<u64> = std::iter::from_fn(|| clients.make_room(now)).collect();
        assert_eq!(gone, [3, 0, 2], "a stranger, the next, then the node that was silent for 30 s");
        clients.is_told(1, &told());
        clients.asks(1, at(91));
        clients.is_told(1, &told());
        assert_eq!(clients.make_room(now), None, "9 s are not too long for a node");
        assert_eq!(numbers(&clients), [1]);
    }

    #[test]
    fn strangers_hold_half_of_the_places_and_nodes_all_of_them() {
        let mut clients = Clients::default();
        let (places, strangers) = (MAX_CLIENTS as u64, MAX_STRANGERS as u64);
        for number in 0..strangers + 7 {
            assert_ne!(clients.take_in(number, Time(number)), Place::None);
        }
        assert_eq!(numbers(&clients), (7..strangers + 7).collect::<Vec<_>>());
        for number in places..2 * places {
            assert_ne!(clients.take_in(number, Time(number)), Place::None);
            clients.is_told(number, &told());
        }
        assert_eq!(numbers(&clients), (places..2 * places).collect::<Vec<_>>());
        assert_eq!(
            clients.take_in(2 * places, Time(2 * places)),
            Place::None,
            "all are nodes, and none was silent for long"
        );
    }
}
