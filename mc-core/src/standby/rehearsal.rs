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
        if !self.config.rehearse {
            // Its operator does without; the primary need not wait for what never comes.
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
                self.actions.push_back(Action::EndRehearsal);
                if passed {
                    self.rehearsal = None;
                    let (generation, body) = (self.generation, Body::Rehearsed);
                    self.actions.push_back(Action::Send { generation, epoch, body });
                } else {
                    self.rehearsal = Some(Rehearsal::Asked(Epoch(u64::MAX))); // never proven in this session
                    self.refuse(NackReason::Rehearsal);
                }
            }
            _ => {}
        }
    }
}
