//! Whether the standby has proven that it could run the VM as it is now.

use super::{Action, Primary, Role};
use crate::{
    id::{Epoch, Time},
    sabotage::Sabotage,
    wire::control::NackReason,
};

impl Primary {
    /// The standby is not to call itself a standby either before it has proven that it is one.
    pub(super) fn tell_unproven(&mut self) {
        if let Some(epoch) = self.proving.filter(|_| self.role == Role::Protected) {
            self.actions.push_back(Action::AskRehearsal { epoch });
        }
    }

    /// The VM's make has changed: nobody knows whether the standby could load the next epoch.
    pub(super) fn outputs_changed(&mut self) {
        if self.replicates() {
            self.proving = Some(self.captured.next());
        }
        self.tell_unproven();
    }

    /// To end protection takes the arbiter, and is for whoever knows whether that is there to ask
    /// ([`super::Event::Unprotect`]). Until then output is let out by ACKs as before: a claim that nobody answers would hold
    /// all of it.
    pub(super) fn unfit(&mut self) {
        if self.replicates() {
            self.proving = Some(Epoch::NEVER);
        }
    }

    pub(super) fn nack(&mut self, reason: NackReason) {
        match (self.role, reason) {
            (Role::Protected, NackReason::Rehearsal) => self.unfit(), // and the standby goes on
            _ => self.give_up_standby(false),
        }
    }

    pub(super) fn rehearsed(&mut self, now: Time, epoch: Epoch) {
        // What waited in its staging is applied now, and then there is room for the next epoch.
        self.waiting_since = self.waiting_since.map(|_| now);
        let any = self.sabotage.is(Sabotage::ProvenByAny);
        let counts = |wanted: Epoch| any || (wanted <= epoch && wanted != Epoch::NEVER);
        self.proving = self.proving.filter(|wanted| !counts(*wanted));
    }
}
