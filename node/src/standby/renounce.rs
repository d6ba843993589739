//! The register names this node as the standby, and this process has no copy.
//!
//! Where it is certain that the copy is no more (see [`super::LastCopy`]), the machine renounces: the register then says that the
//! primary is alone, and a VM that was booted anew there may run. Else an operator decides, and is told why.

use super::Standby;
use crate::events::{CopyMissed, Event, Renouncing, emit};
use mc_core::{
    id::Generation,
    register::{CasOutcome, Mode, Owner, Register, Swap},
    standby::Role,
};
use std::path::Path;

/// What became of that so far.
#[derive(Debug, Default)]
pub(super) struct Renounce {
    /// Why the register names a copy of this node that this process does not have, and it does not renounce.
    missed: Option<String>,
    /// The register's generation from which this node asks to renounce; and from which that was refused.
    asked: Option<Generation>,
    refused: Option<Generation>,
}

impl Renounce {
    pub(super) fn missed(&self) -> Option<&str> {
        self.missed.as_deref()
    }
}

impl Standby {
    pub(super) fn renounce(&mut self, swap: Swap) {
        let Swap { expect, new, .. } = swap;
        let owner = new.owner.node;
        tracing::warn!(
            generation = expect.0,
            "the register names this standby, whose copy was lost with its memory: telling the arbiter that {owner} is alone"
        );
        emit(Event::Renouncing(Box::new(Renouncing { vm: self.vm, expect, new })));
        (self.renounce.asked, self.renounce.refused) = (Some(expect), None);
        self.ask_for(swap);
    }

    /// What came of it, if that was asked for.
    pub(super) fn hear_renounced(&mut self, outcome: &CasOutcome) {
        self.renounce.refused = self.renounce.asked.take().filter(|asked| was_refused(*asked, outcome));
    }

    /// The register, as read now and heard by the machine, where it names a copy of this node that is not here.
    pub(super) fn misses(&self, held: Option<&Register>) -> Option<Register> {
        let machine = self.driver.machine();
        let names_us = |r: &&Register| matches!(r.mode, Mode::Protected { standby } if standby.node.id == self.this.id);
        held.filter(names_us).filter(|r| machine.role() == Role::Idle && !machine.is_named_in_vain(r)).copied()
    }

    /// Tells of it, if it is news. `kept`: where that copy may lie, beside what is on record.
    pub(super) fn tell_missed(&mut self, missed: Option<Register>, kept: Option<&Path>) {
        let why = missed.map(|r| match self.renounce.refused == Some(r.generation) {
            true => self.why_unrenounced(&r.owner),
            false => self.why_missed(&r.owner, kept),
        });
        if why.is_some() && why != self.renounce.missed {
            let why = why.clone().unwrap_or_default();
            tracing::error!("{why}");
            emit(Event::CopyMissed(Box::new(CopyMissed { vm: self.vm, register: missed, why })));
        }
        self.renounce.missed = why;
    }

    fn why_unrenounced(&self, owner: &Owner) -> String {
        let (vm, spec, owner) = (self.vm, self.host.arbiter.spec(), owner.node.name);
        format!(
            "the register says that this node has a copy of {vm}, which {owner} may not go on without; that copy was lost with its \
             memory, and the arbiter {spec} did not take this node's word for it: a witness of an older version does not know of that. \
             Start a witness of this version there, over the same state, and then this standby again; or run `afterimage witness assign \
             {vm} {owner}` on the witness's host"
        )
    }

    fn why_missed(&self, owner: &Owner, kept: Option<&Path>) -> String {
        let because = match self.last_copy.kept().or(kept) {
            Some(ram) => format!("it was kept in {}", ram.display()),
            None => "nothing here proves that the copy is lost".to_owned(),
        };
        let vm = self.vm;
        format!(
            "the register says that this node has a copy of {vm}, which {owner} may not go on without; this process has none, and \
             {because}. If nobody needs that copy: `afterimage witness assign {vm} {owner}`, on the witness's host",
            owner = owner.node.name
        )
    }
}

/// Whether the arbiter kept the register as it was, although that is what was expected.
fn was_refused(expected: Generation, outcome: &CasOutcome) -> bool {
    matches!(outcome, CasOutcome::Lost(Some(held)) if held.generation == expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::id::{Name, Node, NodeId};

    #[test]
    fn a_register_that_stays_as_it_is_was_not_renounced() {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        let held = Register { generation: Generation(3), owner: Owner { node, instance: 7 }, mode: Mode::Solo };
        assert!(was_refused(Generation(3), &CasOutcome::Lost(Some(held))));
        assert!(!was_refused(Generation(2), &CasOutcome::Lost(Some(held))), "somebody else was faster");
        assert!(
            !was_refused(Generation(2), &CasOutcome::Won(held)) && !was_refused(Generation(3), &CasOutcome::Lost(None))
        );
    }
}
