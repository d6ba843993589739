//! The register names this node as the standby, and this process has no copy.
//!
//! Where it is certain that the copy is no more (see [`super::last_copy`]), the machine renounces: the register then says that the
//! primary is alone, and a VM that was booted anew there may run. Else an operator decides, and is told why.

use super::main_loop::Node;
use mc_core::{
    id::Generation,
    register::{CasOutcome, Mode, Owner, Register, Swap},
    standby::Role,
};
use node::{
    arbiter::Ask,
    events::{CopyMissed, Event, Renouncing, emit},
};

impl Node {
    pub(super) fn renounce(&mut self, swap: Swap) {
        let Swap { expect, new, .. } = swap;
        let owner = new.owner.node;
        tracing::warn!(
            generation = expect.0,
            "the register names this standby, whose copy was lost with its memory: telling the arbiter that {owner} is alone"
        );
        emit(Event::Renouncing(Box::new(Renouncing { vm: self.config.vm, expect, new })));
        (self.renounces, self.unrenounced) = (Some(expect), None);
        self.swaps.asked(self.clock.now());
        self.arbiter.ask(Ask::Cas(swap));
    }

    /// What came of it, if that was asked for.
    pub(super) fn hear_renounced(&mut self, outcome: &CasOutcome) {
        self.unrenounced = self.renounces.take().filter(|asked| was_refused(*asked, outcome));
    }

    /// The register was read, and the machine has heard it.
    pub(super) fn look_whether_missed(&mut self, held: Option<&Register>) {
        let machine = self.driver.machine();
        let names_us = |r: &&Register| matches!(r.mode, Mode::Protected { standby } if standby.node.id == self.this.id);
        let missed = held.filter(names_us).filter(|r| machine.role() == Role::Idle && !machine.is_named_in_vain(r));
        let why = missed.map(|r| match self.unrenounced == Some(r.generation) {
            true => self.why_unrenounced(&r.owner),
            false => self.why_missed(&r.owner),
        });
        if why.is_some() && why != self.missed {
            let why = why.clone().unwrap_or_default();
            tracing::error!("{why}");
            emit(Event::CopyMissed(Box::new(CopyMissed { vm: self.config.vm, register: held.copied(), why })));
        }
        self.missed = why;
    }

    fn why_unrenounced(&self, owner: &Owner) -> String {
        let (vm, spec, owner) = (self.config.vm, self.arbiter.spec(), owner.node.name);
        format!(
            "the register says that this node has a copy of {vm}, which {owner} may not go on without; that copy was lost with its \
             memory, and the arbiter {spec} did not take this node's word for it: a witness of an older version does not know of that. \
             Start a witness of this version there, over the same state, and then this standby again; or run `afterimage witness assign \
             {vm} {owner}` on the witness's host"
        )
    }

    fn why_missed(&self, owner: &Owner) -> String {
        let beside = self.claim.as_ref().and_then(|claim| claim.kept(self.last_copy.instance()?));
        let because = match self.last_copy.kept().or(beside) {
            Some(ram) => format!("it was kept in {}", ram.display()),
            None => "nothing here proves that it is no more".to_owned(),
        };
        let vm = self.config.vm;
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
    use mc_core::id::{Name, NodeId};

    #[test]
    fn a_register_that_stays_as_it_is_was_not_renounced() {
        let node = mc_core::id::Node { name: Name::new("a").unwrap(), id: NodeId([1; 16]) };
        let held = Register { generation: Generation(3), owner: Owner { node, instance: 7 }, mode: Mode::Solo };
        assert!(was_refused(Generation(3), &CasOutcome::Lost(Some(held))));
        assert!(!was_refused(Generation(2), &CasOutcome::Lost(Some(held))), "somebody else was faster");
        assert!(
            !was_refused(Generation(2), &CasOutcome::Won(held)) && !was_refused(Generation(3), &CasOutcome::Lost(None))
        );
    }
}
