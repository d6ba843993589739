//! What nodes told an arbiter since it started, and whether that is enough to try swaps: see the module above.

use crate::{
    id::{Generation, NodeId},
    register::{Register, generation_of},
    wire::arbiter::{Asker, Standing},
};
use std::collections::BTreeMap;

/// Nodes of one VM that are listened to. A VM has two, and former ones; the rest is somebody who makes up identities.
const TELLERS: usize = 32;

/// Of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Told {
    /// The highest value that each node said it has seen; `None`: it has seen none.
    values: BTreeMap<NodeId, Option<Register>>,
    /// What is stored has been confirmed since the start: by the nodes, by a swap that followed, or by an operator.
    settled: bool,
    /// Something was stored that cannot be read.
    lost: bool,
}

impl Told {
    /// Of a VM whose register is damaged.
    pub(super) fn lost() -> Self {
        Self { lost: true, ..Self::default() }
    }

    pub(super) fn hear(&mut self, asker: Asker, held: Option<&Register>) {
        let value = self.values.entry(asker.node).or_default();
        if generation_of(asker.seen.as_ref()) >= generation_of(value.as_ref()) {
            *value = asker.seen;
        }
        if self.values.len() > TELLERS {
            self.drop_one(held);
        }
    }

    /// Of those that do not matter, the one that knows least.
    fn drop_one(&mut self, held: Option<&Register>) {
        let top = self.top(held);
        let matters = |node: &NodeId| top.iter().chain(held).flat_map(Register::nodes).any(|named| named == *node);
        let spare = self.values.iter().filter(|(node, _)| !matters(node));
        if let Some(node) = spare.min_by_key(|(_, value)| generation_of(value.as_ref())).map(|(node, _)| *node) {
            self.values.remove(&node);
        }
    }

    /// A swap is durable. Only who is entitled swaps, so whoever else has to tell has told before.
    pub(super) fn swapped(&mut self, by: NodeId, new: Register) {
        self.values.insert(by, Some(new));
        (self.settled, self.lost) = (true, false);
    }

    /// What the nodes had told is durable.
    pub(super) fn mended(&mut self) {
        self.lost = false;
    }

    /// An operator's word is durable: it is above all that was told.
    pub(super) fn decided(&mut self) {
        (self.settled, self.lost) = (true, false);
    }

    /// The highest value there is, stored or told.
    fn top(&self, held: Option<&Register>) -> Option<Register> {
        self.everything(held).max_by_key(|r| r.generation).copied()
    }

    fn everything<'a>(&'a self, held: Option<&'a Register>) -> impl Iterator<Item = &'a Register> {
        held.into_iter().chain(self.values.values().flatten())
    }

    /// The highest generation there is.
    pub(super) fn highest(&self, held: Option<&Register>) -> Generation {
        generation_of(self.top(held).as_ref())
    }

    /// What is known by name: for an operator who says who shall own the VM.
    pub(super) fn values<'a>(&'a self, held: Option<&'a Register>) -> impl Iterator<Item = &'a Register> {
        self.everything(held)
    }

    /// Those that have to tell, and have not.
    pub(super) fn awaited(&self, held: Option<&Register>) -> Vec<NodeId> {
        let Some(top) = self.top(held).filter(|_| !self.settled) else { return Vec::new() };
        let held = held.filter(|held| **held != top && !self.is_step(held, &top));
        let mut nodes: Vec<_> = top.nodes().chain(held.into_iter().flat_map(Register::nodes)).collect();
        nodes.retain(|node| !self.values.contains_key(node));
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    pub(super) fn standing(&self, held: Option<&Register>) -> Standing {
        let Some(top) = self.top(held) else {
            return if self.lost { Standing::Waiting } else { Standing::Settled };
        };
        match (self.settled, held == Some(&top)) {
            _ if self.has_rival(&top, held) => Standing::Disputed,
            (true, true) => Standing::Settled,
            (true, false) => Standing::Disputed,
            (false, _) => Standing::Waiting,
        }
    }

    /// Looks whether enough was told. `Some`: the register is to become this first.
    pub(super) fn settle(&mut self, held: Option<&Register>) -> Option<Register> {
        let top = self.top(held)?;
        let all_told = |r: &Register| r.nodes().all(|node| self.values.contains_key(&node));
        if self.has_rival(&top, held) || !all_told(&top) {
            return None;
        }
        let Some(held) = held else { return Some(top) };
        if *held == top {
            self.settled = true;
            return None;
        }
        (self.is_step(held, &top) || !self.settled && all_told(held)).then_some(top)
    }

    /// Whether somebody stands by something else than top: another value of its generation; or, before anything is settled, a
    /// lower value that every node which it names holds for the highest. From that one nobody went on, so top is not what
    /// became of it: two VMs of one name, say, that were brought to one witness. (What is lower than what is held was
    /// replaced here.)
    fn has_rival(&self, top: &Register, held: Option<&Register>) -> bool {
        let mut others = self.everything(held).filter(|r| *r != top && r.generation >= generation_of(held));
        others.any(|r| r.generation == top.generation || !self.settled && self.is_upheld(r) && !leads(r, top))
    }

    fn is_upheld(&self, register: &Register) -> bool {
        register.nodes().all(|node| self.values.get(&node) == Some(&Some(*register)))
    }

    /// A node that is entitled to go on from what is held has done so without us, on its operator's word.
    fn is_step(&self, held: &Register, top: &Register) -> bool {
        let owner = top.owner.node.id;
        held.may_become(owner, top) && self.values.get(&owner) == Some(&Some(*top))
    }
}

/// Whether `next` is a swap from `before` by a node that `before` names, which may not know yet that it has won.
fn leads(before: &Register, next: &Register) -> bool {
    before.generation.next() == next.generation && before.may_become(next.owner.node.id, next)
}
