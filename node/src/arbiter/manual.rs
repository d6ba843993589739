//! `manual`: no third party. Each node keeps the register as it knows it; whoever wants to go on alone waits for an operator.
//!
//! A swap that nobody else can want (a new VM, solo to protected) is won at once. A contested one waits for `afterimage
//! takeover` or `afterimage solo`: the operator is the arbiter, and has made sure that the other side is stopped. The
//! register is a file in the run directory (`RUN/<vm>.manual.reg`), gone after a reboot, like the VM.

use super::{
    Answer, Ask, Told,
    backend::{Attempt, Backend},
    file,
};
use mc_core::{
    id::{Name, WitnessId},
    register::{CasOutcome, Register, Swap, generation_of},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// One node's register.
#[derive(Debug)]
pub(super) struct Manual {
    dir: PathBuf,
    vm: Name,
}

impl Manual {
    pub(super) fn new(run_dir: &Path, vm: Name) -> Self {
        Self { dir: run_dir.to_owned(), vm }
    }

    fn stem(&self) -> String {
        format!("{}.manual", self.vm)
    }

    fn load(&self) -> Result<Option<Register>, String> {
        let path = self.dir.join(format!("{}.{}", self.stem(), file::EXTENSION));
        file::load(&path, self.vm).map_err(|e| e.to_string())
    }

    fn store(&self, register: Register) -> Result<(), String> {
        fs::create_dir_all(&self.dir).map_err(|e| format!("creating {}: {e}", self.dir.display()))?;
        file::store(&self.dir, &self.stem(), self.vm, register).map_err(|e| e.to_string())
    }

    fn swap(&self, Swap { expect, new, contested }: Swap, decided: bool) -> Result<Attempt, String> {
        let held = self.load()?;
        let generation = generation_of(held.as_ref());
        let outcome = if held == Some(new) {
            CasOutcome::Won(new)
        } else if generation > expect || (!contested && generation != expect) {
            CasOutcome::Lost(held)
        } else if contested && !decided {
            // What this node knows may be older than what it asks with: a standby learns generations from its primary.
            return Ok(Attempt::Operator(format!(
                "waiting for an operator: stop the other side of {vm} for certain, then run `afterimage takeover --vm {vm}` on \
                 the standby or `afterimage solo --vm {vm}` on the primary",
                vm = self.vm
            )));
        } else {
            self.store(new)?;
            CasOutcome::Won(new)
        };
        Ok(Attempt::Answer(Answer::Cas(outcome)))
    }
}

impl Backend for Manual {
    fn attempt(&mut self, ask: &Ask, decided: bool) -> Attempt {
        let tried = match *ask {
            Ask::Read => self.load().map(|held| Attempt::Answer(Answer::Read(held))),
            Ask::Cas(swap) => self.swap(swap, decided),
        };
        tried.unwrap_or_else(Attempt::Refused)
    }

    fn check_every(&self) -> Option<Duration> {
        None
    }

    fn witness(&self) -> WitnessId {
        WitnessId::NONE
    }

    fn seen(&self) -> Option<Register> {
        None
    }

    fn told(&self) -> Option<Told> {
        None
    }
}
