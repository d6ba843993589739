//! A throw-away copy of the VM loads the image, to see that this standby could run it: of epoch 1 before that is ACKed, and beside
//! the epochs that go on when the VM has changed.

use super::{Action, Role, Standby};
use crate::{
    id::Epoch,
    wire::control::{Body, NackReason},
};

/// A rehearsal beside the epochs that go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rehearsal {
    /// The primary wants one of this epoch, or a later one.
    Asked(Epoch),
    /// Of this epoch.
    UnderWay(Epoch),
}

impl Standby {
    /// One that is under way is of an older make.
    pub(super) fn rehearsal_asked(&mut self, epoch: Epoch) {
        if self.role != Role::Protecting {
            return;
        }
        if !self.config.rehearse && epoch != Epoch::NEVER {
            // Its operator does without; the primary need not wait for what never comes.
            self.rehearsal = None;
            let (generation, body) = (self.generation, Body::Rehearsed);
            return self.actions.push_back(Action::Send { generation, epoch, body });
        }
        if matches!(self.rehearsal, Some(Rehearsal::UnderWay(_))) {
            self.actions.push_back(Action::EndRehearsal);
        }
        self.rehearsal = Some(Rehearsal::Asked(epoch));
    }

    pub(super) fn rehearsed(&mut self, passed: bool) {
        match (self.role, self.rehearsal) {
            (Role::Rehearsing, _) if passed => {
                self.role = Role::Protecting;
                self.actions.push_back(Action::EndRehearsal);
                self.ack();
            }
            (Role::Rehearsing, _) => {
                let (generation, epoch, body) = (self.generation, self.committed, Body::Nack(NackReason::Rehearsal));
                self.actions.push_back(Action::Send { generation, epoch, body });
                self.discard();
            }
            (Role::Protecting, Some(Rehearsal::UnderWay(epoch))) => {
                if passed {
                    self.actions.push_back(Action::EndRehearsal);
                    self.rehearsal = None;
                    let (generation, body) = (self.generation, Body::Rehearsed);
                    self.actions.push_back(Action::Send { generation, epoch, body });
                } else {
                    self.unfit();
                }
            }
            _ => {}
        }
    }

    /// This host could not run the VM as it is. The primary ends protection through the arbiter; should that be away, epochs that it
    /// still sends are committed and ACKed, as its output waits for that. What is here may be all that is left of the VM: whether it
    /// can be run after all is tried when it has to be.
    pub(super) fn unfit(&mut self) {
        if self.role != Role::Protecting {
            return self.refuse(NackReason::Rehearsal);
        }
        if matches!(self.rehearsal, Some(Rehearsal::UnderWay(_))) {
            self.actions.push_back(Action::EndRehearsal);
        }
        self.rehearsal = Some(Rehearsal::Asked(Epoch::NEVER)); // until the VM changes again
        let (generation, epoch, body) = (self.generation, self.committed.next(), Body::Nack(NackReason::Rehearsal));
        self.actions.push_back(Action::Send { generation, epoch, body });
    }
}
