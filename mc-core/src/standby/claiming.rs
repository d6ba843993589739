//! Whose the VM is: what the register says is judged, the arbiter is asked, and an operator heard.

use super::{Action, Role, Standby};
use crate::{
    id::Generation,
    register::{CasOutcome, Mode, Owner, Register, Swap},
    sabotage::Sabotage,
};

impl Standby {
    pub(super) fn claim(&mut self) {
        if self.sabotage.is(Sabotage::SwapUnnamed) {
            return self.ask();
        }
        self.actions.push_back(Action::ReadRegister);
    }

    fn ask(&mut self) {
        self.asking = true;
        self.actions.push_back(Action::Cas(Swap::contested(self.from, self.config.owner, Mode::Solo)));
    }

    fn renounce(&mut self, held: &Register) {
        if !std::mem::replace(&mut self.asking, true) {
            self.actions.push_back(Action::Renounce(Swap::new(held.generation, held.owner, Mode::Solo)));
        }
    }

    /// Whose is the VM, by what the register holds?
    pub(super) fn register_read(&mut self, held: Option<&Register>) {
        if let Some(held) = held.filter(|held| self.is_named_in_vain(held)) {
            return self.renounce(held);
        }
        if !matches!(self.role, Role::Claiming | Role::Lost | Role::Disputed | Role::TakingOver) {
            return;
        }
        let above = held.filter(|r| r.generation > self.from);
        let copy = Owner { instance: self.instance, ..self.config.owner };
        let named = held.is_some_and(|r| r.generation == self.generation && r.names_standby(&copy));
        let ours = |r: &Register| r.mode == Mode::Solo && (r.owner.names(&copy) || r.owner.names(&self.config.owner));
        match above {
            // An operator says once more what was won already.
            Some(r) if ours(r) && self.role == Role::TakingOver => self.from = r.generation,
            Some(r) if ours(r) => self.ask_from(r.generation), // handed to us
            Some(_) if self.role == Role::TakingOver => self.abandon(),
            Some(_) => self.lose(),
            None if self.role == Role::TakingOver => {}
            None if self.asking => {} // its answer says more
            None if named && self.sabotage.is(Sabotage::RenounceHeld) => {
                held.into_iter().for_each(|held| self.renounce(held));
            }
            None if named && self.entitled => self.ask_from(self.generation),
            None if named || self.entitled => self.dispute(),
            None => self.discard(),
        }
    }

    fn ask_from(&mut self, from: Generation) {
        self.role = Role::Claiming;
        self.from = from;
        self.ask();
    }

    fn lose(&mut self) {
        if self.left {
            return self.discard();
        }
        self.role = Role::Lost;
    }

    /// The VM does not run here yet, and an operator has given it to another node meanwhile.
    fn abandon(&mut self) {
        self.role = Role::Lost;
        self.actions.push_back(Action::Abandon);
    }

    pub(super) fn dispute(&mut self) {
        if self.sabotage.is(Sabotage::BelieveLess) {
            return self.discard();
        }
        self.role = Role::Disputed;
    }

    pub(super) fn operator_takes_over(&mut self) {
        match self.role {
            Role::Protecting => self.suspect(),
            Role::Disputed => self.ask_from(self.from),
            // The arbiter does not even say what the register holds.
            Role::Claiming if self.asking => {}
            Role::Claiming if self.entitled || self.sabotage.is(Sabotage::DecideUnheld) => {
                self.ask_from(self.from);
            }
            Role::Claiming => self.dispute(), // it lacks what the VM has said: that takes another word
            _ => {}
        }
    }

    pub(super) fn cas(&mut self, outcome: CasOutcome) {
        let asked = std::mem::take(&mut self.asking);
        if asked && self.role == Role::Idle {
            self.gone = None; // renounced; or the register changed, or an older witness does not know of this
        }
        match outcome {
            // A fault of the arbiter may be told of before the answer to what was asked.
            _ if self.role != Role::Claiming && !(asked && self.role == Role::Disputed) => {}
            // Of an earlier session, and late: what it won was lost since.
            CasOutcome::Won(register) if register.generation <= self.generation => {}
            // What was not asked for gives no right to the VM.
            CasOutcome::Won(register) if register != Swap::new(self.from, self.config.owner, Mode::Solo).new => {
                self.dispute();
            }
            CasOutcome::Won(register) => {
                (self.role, self.from) = (Role::TakingOver, register.generation);
                self.actions.push_back(Action::TakeOver { generation: register.generation, epoch: self.committed });
            }
            CasOutcome::Lost(held) if held.is_some_and(|r| r.generation > self.from) => {
                self.register_read(held.as_ref());
            }
            CasOutcome::Lost(_) => self.dispute(),
        }
    }
}
