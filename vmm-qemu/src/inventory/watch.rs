//! Looks at the inventory again and again, without ever waiting for QEMU.
//!
//! ```text
//!        due                    as before
//! Rest ──────> six commands ────────────────> Rest
//!                   │ something is different              all there
//!                   └──────────> the slow ones ────────────────────> a new inventory, Rest
//! ```

use super::{
    Changed, Inventory, InventoryError,
    collect::{Host, Quick, Slow, judge, quick_commands, slow_commands},
};
use crate::{
    control::{MigrationState, migration_state},
    qmp::{Qmp, QmpError},
};
use serde_json::Value;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What the VM is, if its inventory is another one than at the look before.
    pub changed: Option<Changed>,
    /// Where QEMU's migration stands, if that was asked for.
    pub migration: Option<MigrationState>,
}

/// See the module.
#[derive(Debug)]
pub struct Watcher {
    nics: Vec<PathBuf>,
    due: Instant,
    stage: Stage,
    known: Option<Quick>,
    told: Option<Inventory>,
}

#[derive(Debug)]
enum Stage {
    Rest,
    Quick { asked: Vec<u64>, migration: Option<u64> },
    Slow { quick: Quick, asked: Vec<u64> },
}

impl Watcher {
    /// The first look is due at once. `nics`: the sockets of `--nic`.
    #[must_use]
    pub fn new(nics: Vec<PathBuf>) -> Self {
        Self { nics, due: Instant::now(), stage: Stage::Rest, known: None, told: None }
    }

    /// Looks again as soon as it can: something may have changed.
    pub fn look_again(&mut self) {
        self.due = Instant::now();
    }

    /// How long it has nothing to ask.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self.stage {
            Stage::Rest => self.due.saturating_duration_since(Instant::now()),
            _ => PERIOD,
        }
    }

    /// Drops what is being asked: its answers are from before something that was done to QEMU since.
    pub fn start_over(&mut self, qmp: &mut Qmp) {
        match std::mem::replace(&mut self.stage, Stage::Rest) {
            Stage::Rest => {}
            Stage::Quick { asked, migration } => asked.into_iter().chain(migration).for_each(|id| qmp.forget(id)),
            Stage::Slow { asked, .. } => asked.into_iter().for_each(|id| qmp.forget(id)),
        }
        self.look_again();
    }

    /// Asks what is due, and takes what was answered. `migration`: ask where the migration stands, too.
    ///
    /// # Errors
    /// QEMU cannot be asked. That it *answers* nothing of use is an inventory of its own ([`Inventory::unknown`]).
    pub fn turn(&mut self, qmp: &mut Qmp, migration: bool) -> Result<Look, QmpError> {
        if matches!(self.stage, Stage::Rest) && Instant::now() >= self.due {
            self.due = Instant::now() + PERIOD;
            let migration = if migration { Some(qmp.ask("query-migrate", Value::Null)?) } else { None };
            self.stage = Stage::Quick { asked: ask(qmp, quick_commands())?, migration };
        }
        self.take(qmp)
    }

    fn take(&mut self, qmp: &mut Qmp) -> Result<Look, QmpError> {
        let mut look = Look::default();
        match std::mem::replace(&mut self.stage, Stage::Rest) {
            Stage::Rest => {}
            // The migration was asked for first, so it is answered first.
            Stage::Quick { asked, migration: Some(id) } => {
                let answer = qmp.answer(id)?;
                let migration = if answer.is_none() { Some(id) } else { None };
                look.migration = answer.and_then(Result::ok).as_ref().map(migration_state);
                self.stage = Stage::Quick { asked, migration };
            }
            Stage::Quick { asked, migration: None } => match answers(qmp, &asked, false)? {
                Some(answers) => look.changed = self.quick(qmp, answers)?,
                None => self.stage = Stage::Quick { asked, migration: None },
            },
            Stage::Slow { quick, asked } => match answers(qmp, &asked, true)? {
                Some(answers) => look.changed = self.slow(qmp, quick, answers)?,
                None => self.stage = Stage::Slow { quick, asked },
            },
        }
        Ok(look)
    }

    fn quick(&mut self, qmp: &mut Qmp, answers: Answers) -> Result<Option<Changed>, QmpError> {
        match answers.and_then(|answers| Quick::read(&answers)) {
            Ok(quick) if self.known.as_ref() == Some(&quick) => {}
            Ok(quick) => self.stage = Stage::Slow { quick, asked: ask(qmp, slow_commands())? },
            Err(error) => return Ok(self.failed(&error)),
        }
        Ok(None)
    }

    fn slow(&mut self, qmp: &Qmp, quick: Quick, answers: Answers) -> Result<Option<Changed>, QmpError> {
        let slow = match answers.and_then(|answers| Slow::read(&answers)) {
            Ok(slow) => slow,
            Err(error) => return Ok(self.failed(&error)),
        };
        let outputs = judge(&quick, &slow, &Host::look(qmp.peer_pid()?, &quick, &self.nics));
        self.known = Some(quick);
        Ok(self.told(Changed { outputs, make: Some(slow.make) }))
    }

    fn failed(&mut self, error: &InventoryError) -> Option<Changed> {
        self.known = None;
        self.told(Changed { outputs: Inventory::unknown(error), make: None })
    }

    fn told(&mut self, changed: Changed) -> Option<Changed> {
        if self.told.as_ref() == Some(&changed.outputs) {
            return None;
        }
        self.told = Some(changed.outputs.clone());
        Some(changed)
    }
}

fn ask(qmp: &mut Qmp, commands: Vec<(&'static str, Value)>) -> Result<Vec<u64>, QmpError> {
    commands.into_iter().map(|(name, arguments)| qmp.ask(name, arguments)).collect()
}

type Answers = Result<Vec<Value>, InventoryError>;

/// `None` while one is missing. QEMU answers in order: the last one comes last. `optional`: a command that this QEMU does
/// not know answers nothing.
fn answers(
    qmp: &mut Qmp,
    asked: &[u64],
    optional: bool,
) -> Result<Option<Result<Vec<Value>, InventoryError>>, QmpError> {
    if !qmp.has_answered(*asked.last().expect("one command at least"))? {
        return Ok(None);
    }
    let mut values = Vec::with_capacity(asked.len());
    let mut failed = None;
    for id in asked {
        match qmp.answer(*id)? {
            Some(Ok(value)) => values.push(value),
            Some(Err(_)) if optional => values.push(Value::Null),
            Some(Err(error)) => failed = failed.or(Some(error)),
            None => {}
        }
    }
    Ok(Some(failed.map_or(Ok(values), |error| Err(error.into()))))
}
