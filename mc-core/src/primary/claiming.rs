//! What the primary asks the arbiter for, and what it makes of the answers.

use super::{Action, Primary, Role, Vm};
use crate::{
    register::{Mode, Register, Swap},
    sabotage::Sabotage,
    wire::control::GoodbyeReason,
};

impl Primary {
    /// The standby is lost, or to be left: go on alone if the arbiter agrees. A standby that is merely left keeps its
    /// session until then: were it closed now, it would rightly ask for the VM itself.
    pub(super) fn give_up_standby(&mut self, lost: bool) {
        if lost && self.replicates() {
            self.actions.push_back(Action::CloseLink(None));
        }
        match self.role {
            Role::Syncing => self.solo(),
            Role::Registering => self.broken = true,
            Role::Protected => self.claim(),
            _ => {}
        }
    }

    pub(super) fn claim(&mut self) {
        self.role = Role::Claiming;
        (self.disputed, self.waiting_since) = (false, None);
        if self.sabotage.is(Sabotage::ReleaseBeforeSolo) {
            self.actions.push_back(Action::Release(self.captured));
        }
        let swap = Swap::contested(self.register.generation, self.owner(), Mode::Solo);
        self.actions.push_back(Action::Cas(swap));
    }

    /// I4: the register says (solo, self).
    pub(super) fn solo(&mut self) {
        self.role = Role::Solo;
        (self.standby, self.held_from, self.proving, self.waiting_since) = (None, None, None, None);
        self.vm = Vm::Running;
        self.actions.push_back(Action::CloseLink(Some(self.ending.unwrap_or(GoodbyeReason::Unprotected))));
        self.actions.push_back(Action::Solo);
        if self.ending.take() == Some(GoodbyeReason::GuestGone) {
            self.end();
        }
    }

    pub(super) fn fence(&mut self) {
        self.role = Role::Fenced;
        self.actions.clear();
        self.actions.push_back(Action::Fence);
        self.actions.push_back(Action::CloseLink(None));
    }

    /// What a swap that is won makes of the register, in a role that acts on it.
    fn wanted(&self) -> Option<Register> {
        let mode = match self.role {
            Role::Registering => Mode::Protected { standby: self.standby? },
            Role::Claiming => Mode::Solo,
            _ => return None,
        };
        Some(Register { generation: self.register.generation.next(), owner: self.owner(), mode })
    }

    pub(super) fn won(&mut self, register: Register) {
        match self.role {
            // What was not asked for lets no output go.
            _ if self.wanted().is_some_and(|wanted| wanted != register) => self.held(None, true),
            Role::Registering => self.registered(register),
            Role::Claiming => {
                self.register = register;
                self.solo();
            }
            Role::HandingBack if register.owner == self.owner() => self.hand_back(register),
            Role::HandingBack => self.fence(),
            _ => {}
        }
    }

    /// Whether it names another copy, be it one of this host: an earlier process that lives on has lost to a later one.
    pub(super) fn is_anothers(&self, held: &Register) -> bool {
        match self.sabotage.is(Sabotage::CompareHosts) {
            true => held.owner.node.id != self.owner().node.id,
            false => !held.owner.names(&self.owner()),
        }
    }

    /// What the register holds, from a swap that was lost, or a read. A read below what this node has seen never comes here.
    pub(super) fn held(&mut self, held: Option<Register>, lost: bool) {
        let above = held.filter(|held| held.generation > self.register.generation);
        match (self.role, above) {
            (Role::Fenced | Role::Ended, _) => {}
            (_, Some(held)) if self.is_anothers(&held) => {
                self.overtaken_by = Some(held.owner);
                self.fence();
            }
            // Protected by nobody any more, whatever the standby ACKs.
            (Role::Solo | Role::Protected, Some(held)) => self.go_on_from(held),
            (Role::Claiming, Some(held)) if lost || self.disputed => self.go_on_from(held),
            (Role::Claiming, None) if !lost && self.disputed && held == Some(self.register) => self.claim(),
            (Role::Registering, above) if lost => {
                self.actions.push_back(Action::CloseLink(None));
                self.role = Role::Claiming;
                match above {
                    Some(held) => self.go_on_from(held),
                    None => self.dispute(),
                }
            }
            (Role::Claiming | Role::HandingBack, _) if lost => self.dispute(),
            _ => {}
        }
    }

    /// The register is ours, from before: by a request of this copy's that was late, or by an operator's word.
    pub(super) fn go_on_from(&mut self, held: Register) {
        self.register = Register { owner: self.owner(), ..held };
        self.claim();
    }

    pub(super) fn dispute(&mut self) {
        match self.sabotage.is(Sabotage::BelieveLess) {
            true => self.fence(),
            false => self.disputed = true,
        }
    }

    /// Only with a held epoch has the standby everything that the outside saw. (Found by the model check: output that was held
    /// from the registration on is not enough, the standby lacks what was said before.)
    pub(super) fn may_hand_back(&self) -> bool {
        self.held_from.is_some_and(|e| self.acked >= e) || self.sabotage.is(Sabotage::HandBackOpen)
    }

    /// We won, and have no VM any more; the standby still has it, and nobody has heard anything since.
    pub(super) fn hand_back(&mut self, register: Register) {
        let Some(standby) = self.standby else { return self.fence() };
        // Just that copy: the standby may have been started anew, and have another.
        self.register = register;
        self.actions.push_back(Action::Cas(Swap::new(register.generation, standby, Mode::Solo)));
    }
}
