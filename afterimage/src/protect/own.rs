//! At the start: makes the register say (solo, self), or explains why it cannot.

use super::waiting::{Heard, Waiting, What};
use crate::{
    arbiter::{Answer, Ask},
    config::ProtectConfig,
    exit::{Code, ExitError},
    signals::Signals,
    status::WAITING,
};
use anyhow::{Result, bail};
use mc_core::{
    id::Generation,
    register::{CasOutcome, Mode, Owner, Register, generation_of},
};
use std::time::{Duration, Instant};

/// How long the arbiter may take to answer where nobody can wait for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// How it went.
#[derive(Debug)]
pub(super) enum Owned {
    /// The register says (solo, self).
    Ours(Register),
    /// A signal, or a successor, ended the wait: nothing had begun.
    Left,
}

/// Asks the arbiter, however long that takes: when everything boots at once after a power cut, it may come last. Until it has
/// answered the VM's gate stays closed, since the register may name another node.
///
/// It swaps even when the register says (solo, self) already: see [`super::claim`] for what an earlier process of ours may have left
/// under way. `relieves`: one that lives is to be relieved. It has nothing under way, and goes on if this comes to nothing, so the
/// register stays as it knows it; and nobody waits here while it is the VM's way to its network.
pub(super) fn own_the_vm(config: &ProtectConfig, owner: Owner, signals: &Signals, relieves: bool) -> Result<Owned> {
    let what = What {
        role: WAITING,
        generation: Generation(0),
        note: "the arbiter has not said yet whose the VM is: until it does, the VM's gate stays closed",
        busy: "the arbiter has not said yet whose the VM is; nothing is protected, and the VM's gate is closed",
        may_leave: true,
    };
    let mut waiting = Waiting::new(config, signals, what, !relieves)?;
    let waits = !config.once && !relieves;
    let mut held = match ask(&mut waiting, Ask::Read, waits)? {
        Some(Answer::Read(held)) => held,
        Some(Answer::Cas(_)) => bail!("the arbiter answered a swap to a read"),
        None => return Ok(Owned::Left),
    };
    loop {
        refuse_foreign(config, owner, held.as_ref())?;
        if let Some(held) = held.filter(|held| relieves && held.mode == Mode::Solo && held.owner == owner) {
            return Ok(Owned::Ours(held));
        }
        let contested = held.is_some_and(|h| h.mode != Mode::Solo);
        let expect = generation_of(held.as_ref());
        let new = Register { generation: expect.next(), owner, mode: Mode::Solo };
        match ask(&mut waiting, Ask::Cas { expect, new, contested }, waits)? {
            Some(Answer::Cas(CasOutcome::Won(register))) => return Ok(Owned::Ours(register)),
            Some(Answer::Cas(CasOutcome::Lost(newer))) => held = newer,
            Some(Answer::Read(_)) => bail!("the arbiter answered a read to a swap"),
            None => return Ok(Owned::Left),
        }
    }
}

fn ask(waiting: &mut Waiting<'_>, ask: Ask, waits: bool) -> Result<Option<Answer>> {
    let until = (!waits).then(|| Instant::now() + PATIENCE);
    match waiting.ask(ask, None, until)? {
        Heard::Answer(answer) => Ok(Some(answer)),
        Heard::Signal | Heard::Successor | Heard::VmGone(_) => Ok(None),
        Heard::Late => {
            let health = waiting.arbiter.health();
            let why = health.last_error.unwrap_or_else(|| format!("no answer within {PATIENCE:?}"));
            Err(arbiter_unreachable(waiting.config, &why))
        }
    }
}

/// A VM that another node owns, or of which a standby holds more than this QEMU knows, is not ours to run.
fn refuse_foreign(config: &ProtectConfig, owner: Owner, held: Option<&Register>) -> Result<()> {
    match held {
        Some(held) if held.owner.node != owner.node => Err(owned_elsewhere(config, held)),
        Some(Register { mode: Mode::Protected { standby }, owner: other, .. }) if *other != owner => {
            Err(other_instance(config, &standby.to_string()))
        }
        _ => Ok(()),
    }
}

fn arbiter_unreachable(config: &ProtectConfig, why: &str) -> anyhow::Error {
    let what = format!("the arbiter {} cannot be reached: {why}", config.arbiter);
    let remedy = "protection without an arbiter would risk two running copies. Start `afterimage witness` on a third \
                  machine, or use --arbiter manual, where an operator decides";
    ExitError::new(Code::Prerequisite, what).remedy(remedy).into()
}

fn owned_elsewhere(config: &ProtectConfig, held: &Register) -> anyhow::Error {
    let what = format!(
        "{} belongs to node {} since {}: this copy must not run visibly",
        config.vm, held.owner.node, held.generation
    );
    let remedy = "stop this QEMU and protect the VM on that node; if that node is gone for good and had no standby, remove \
                  the VM's register at the witness";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}

fn other_instance(config: &ProtectConfig, standby: &str) -> anyhow::Error {
    let what = format!(
        "{} was protected as another QEMU process of this node, which is gone; node {standby} holds its last commit",
        config.vm
    );
    let remedy = "let the standby take over; if its state is to be given up, stop it and remove the VM's register at the witness";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}
