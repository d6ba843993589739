//! Runs rehearsals from the standby's loop, and reports their results.

use super::main_loop::Node;
use mc_core::id::Epoch;
use node::{
    events::{Event, Rehearsed, Rehearsing, emit, ms},
    exit,
};
use vmm_qemu::standby::Rehearsal;

impl Node {
    /// The image stands still until the outcome is heard.
    pub(super) fn begin_rehearsal(&mut self, epoch: Epoch) {
        emit(Event::Rehearsing(Rehearsing { epoch }));
        let (Some(vm), Some(image)) = (&self.vm, self.run.driver.image()) else {
            return self.run.driver.rehearsed(Err("there is no image".to_owned()));
        };
        match vm.rehearse(image) {
            Ok(rehearsal) => self.rehearsal = Some(rehearsal),
            Err(error) => self.rehearsed(Err(exit::words(&error))),
        }
    }

    pub(super) fn hear_rehearsal(&mut self) {
        let Some(outcome) = self.rehearsal.as_ref().and_then(Rehearsal::take) else { return };
        self.rehearsal = None;
        let outcome = outcome.map_err(|error| error.to_string());
        // It has a QEMU and TAP devices of its own: that these work says nothing of those that the VM would have.
        let outcome = outcome.and_then(|passed| self.would_run().map(|()| passed));
        if let Ok(passed) = &outcome {
            emit(Event::Rehearsed(Rehearsed { took_ms: ms(passed.took), private_bytes: passed.private_bytes }));
        }
        self.rehearsed(outcome.map(drop));
    }

    fn rehearsed(&mut self, outcome: Result<(), String>) {
        if let Err(why) = &outcome {
            tracing::error!(why, "this host's QEMU could not load the VM: no protection");
            emit(Event::RehearsalFailed(why.as_str().into()));
        }
        self.unloadable = outcome.as_ref().err().cloned();
        self.run.driver.rehearsed(outcome);
    }
}
