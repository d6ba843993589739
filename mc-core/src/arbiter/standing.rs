//! What nodes told an arbiter since it started, and whether that is enough to try swaps: see the module above.

use crate::{
    id::{Generation, NodeId},
    register::{Register, generation_of},
    wire::arbiter::{Asker, Standing},
};
use std::collections::BTreeMap;

/// Of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Told {
    /// The highest value that each node said it has seen; `None`: it has seen none.
    values: BTreeMap<NodeId, Option<Register>>,
    /// Everybody who had to tell has told, or an operator has decided.
    settled: bool,
}

impl Told {
    pub(super) fn hear(&mut self, asker: Asker) {
        let value = self.values.entry(asker.node).or_default();
        if generation_of(asker.seen.as_ref()) >= generation_of(value.as_ref()) {
            *value = asker.seen;
        }
    }

    /// An operator's word is durable: it is above all that was told.
    pub(super) fn decided(&mut self) {
        self.settled = true;
    }

    /// The highest value there is, stored or told.
    fn top(&self, held: Option<&Register>) -> Option<Register> {
        let told = self.values.values().flatten();
        held.into_iter().chain(told).max_by_key(|r| r.generation).copied()
    }

    /// The highest generation there is.
    pub(super) fn highest(&self, held: Option<&Register>) -> Generation {
        generation_of(self.top(held).as_ref())
    }

    /// Those that top names and that have not told it.
    pub(super) fn awaited(&self, held: Option<&Register>) -> Vec<NodeId> {
        let Some(top) = self.top(held).filter(|_| !self.settled) else { return Vec::new() };
        top.nodes().filter(|node| self.values.get(node) != Some(&Some(top))).collect()
    }

    pub(super) fn standing(&self, held: Option<&Register>) -> Standing {
        let Some(top) = self.top(held) else { return Standing::Settled };
        let everything = held.into_iter().chain(self.values.values().flatten());
        if everything.filter(|r| r.generation == top.generation).any(|r| *r != top) {
            return Standing::Disputed;
        }
        match (self.settled, held == Some(&top)) {
            (true, true) => Standing::Settled,
            (true, false) => Standing::Disputed,
            (false, _) => Standing::Waiting,
        }
    }

    /// Looks whether enough was told. `Some`: the register is to become this first.
    pub(super) fn settle(&mut self, held: Option<&Register>) -> Option<Register> {
        let Some(top) = self.top(held) else {
            self.settled = true; // vacant, and nobody has seen anything
            return None;
        };
        let told = |node| self.values.get(&node) == Some(&Some(top));
        if self.standing(held) == Standing::Settled || !top.nodes().all(told) || self.contradicts(&top, held) {
            return None;
        }
        if held == Some(&top) {
            self.settled = true;
            return None;
        }
        (!self.settled || self.is_step(held, &top)).then_some(top)
    }

    fn contradicts(&self, top: &Register, held: Option<&Register>) -> bool {
        let mut everything = held.into_iter().chain(self.values.values().flatten());
        everything.any(|r| r.generation == top.generation && r != top)
    }

    /// A node that is entitled to the next swap has taken it without us, on its operator's word.
    fn is_step(&self, held: Option<&Register>, top: &Register) -> bool {
        let Some(held) = held else { return true };
        let mut tellers = self.values.iter().filter(|(_, value)| **value == Some(*top)).map(|(node, _)| *node);
        held.generation.next() == top.generation && tellers.any(|node| held.may_become(node, top))
    }
}
