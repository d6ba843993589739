//! At the start: makes the register say (solo, self), or explains why it cannot.

use super::settings::Settings;
use super::waiting::{Heard, Waiting, What};
use crate::keeper;
use anyhow::{Context, Result};
use mc_core::{
    claim::{Action, Claim, Event, Verdict},
    id::{Generation, Name, Time},
    machine::Machine,
    register::{Mode, Owner, Register},
};
use node::{
    arbiter::Ask,
    events::{Event as Told, Role, WaitingForStandby, emit},
    exit::{Code, ExitError},
    signals::Signals,
    units::spoken,
};
use std::time::{Duration, Instant};
use vmm_qemu::qmp::find_instance;

/// How long the arbiter may take to answer where nobody can wait for it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Outcome of claiming the register at the start.
#[derive(Debug)]
pub(super) enum Owned {
    /// The register says (solo, self).
    Ours(Register),
    /// A signal, or a successor, ended the wait: nothing had begun.
    Left,
}

/// Asks the arbiter, however long that takes: when everything boots at once after a power cut, it may come last. Until it has
/// answered the VM's gate stays closed, since the register may name another node. An answer that cannot be believed is none.
///
/// It swaps even when the register says (solo, self) already: see [`super::supervisor`] for what an earlier process of ours may have left
/// under way. `relieves`: one that lives is to be relieved. It has nothing under way, and goes on if this comes to nothing, so the
/// register stays as it knows it; and nobody waits here while it is the VM's way to its network.
///
/// A VM that was protected as another QEMU process, before its host started again, waits likewise: its standby has the last commit
/// and takes over; or it has lost that, too, and renounces.
pub(super) fn own_the_vm(config: &Settings, owner: Owner, signals: &Signals, relieves: bool) -> Result<Owned> {
    let mut waiting = Waiting::new(config, owner.node, what(config), !relieves)?;
    let waits = !config.once && !relieves;
    let mut claim = Claim::new(owner);
    let mut until = None;
    let mut awaited = None;
    loop {
        while let Some(action) = claim.poll_action() {
            let ask = match action {
                Action::ReadRegister => Ask::Read,
                Action::Cas(swap) => Ask::Cas(swap),
                Action::LookFor { instance } => {
                    let lives =
                        find_instance(instance).context("looking for the VM's other QEMU among the processes")?;
                    claim.handle(Time(0), Event::Looked { lives: lives.is_some() });
                    continue;
                }
            };
            until = (!waits).then(|| Instant::now() + PATIENCE);
            waiting.ask(ask);
        }
        match claim.verdict() {
            Verdict::Open => {
                waiting.notes.clear();
                waiting.undecidable = None;
            }
            Verdict::Ours(register) => return Ok(Owned::Ours(register)),
            Verdict::Foreign(held) => return Err(owned_elsewhere(config, &held)),
            Verdict::OtherInstance(held) if waits && matches!(find_instance(held.owner.instance), Ok(None)) => {
                if awaited.replace(held) != Some(held) || waiting.undecidable.is_none() {
                    let why = tell_awaited(config, &held);
                    waiting.notes = vec![why.clone()];
                    waiting.cannot_be_decided(why);
                }
            }
            Verdict::OtherInstance(held) | Verdict::Beside(held) => return Err(other_instance(config, &held)),
        }
        match waiting.hear(signals, until)? {
            Heard::Read(Some(held)) if relieves && held.mode == Mode::Solo && held.owner == owner => {
                return Ok(Owned::Ours(held));
            }
            Heard::Read(held) => claim.handle(Time(0), Event::RegisterRead(held)),
            Heard::Operator => claim.handle(Time(0), Event::RegisterRead(waiting.arbiter.seen())),
            Heard::Cas(outcome) => claim.handle(Time(0), Event::Cas(outcome)),
            Heard::Signal | Heard::Successor => return Ok(Owned::Left),
            Heard::Late => return Err(arbiter_unreachable(&waiting)),
        }
    }
}

fn what(config: &Settings) -> What {
    let (note, busy) = match keeper::running(&config.run_dir, config.vm) {
        Some(_) => (
            "the arbiter has not given the VM to this QEMU yet: until it does, a keeper goes on keeping the VM's network",
            "the arbiter has not said yet who owns the VM; nothing is protected, and a keeper has the VM's network",
        ),
        None => (
            "the arbiter has not given the VM to this QEMU yet: until it does, the VM's gate stays closed",
            "the arbiter has not said yet who owns the VM; nothing is protected, and the VM's gate is closed",
        ),
    };
    What { role: Role::WaitingForArbiter, generation: Generation(0), note, busy, may_leave: true }
}

pub(super) fn standby_of(held: &Register) -> Option<Name> {
    match held.mode {
        Mode::Protected { standby } => Some(standby.node.name),
        Mode::Solo => None,
    }
}

fn arbiter_unreachable(waiting: &Waiting) -> anyhow::Error {
    let health = waiting.arbiter.health();
    let spec = waiting.arbiter.spec();
    let what = match (health.failover_possible().err(), health.last_error) {
        (Some(why), _) if health.reachable => format!("the arbiter {spec} does not say who owns the VM: {why}"),
        (_, why) => {
            let why = why.unwrap_or_else(|| format!("no answer within {}", spoken(PATIENCE)));
            format!("the arbiter {spec} cannot be reached: {why}")
        }
    };
    let remedy = "protection without an arbiter would risk two running copies. Start `afterimage witness` on a third \
                  machine, or use --arbiter manual, where an operator decides";
    ExitError::new(Code::Prerequisite, what).remedy(remedy).into()
}

fn owned_elsewhere(config: &Settings, held: &Register) -> anyhow::Error {
    let what = format!(
        "{} belongs to node {} since {}, so this copy must not reach the network",
        config.vm, held.owner.node, held.generation
    );
    let remedy = "stop this QEMU and protect the VM on that node; if that node is gone for good and had no standby, \
                  `afterimage witness assign` on the witness's host gives the VM to another";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}

/// Says once for whom this waits; the words are for the status, too.
fn tell_awaited(config: &Settings, held: &Register) -> String {
    let standby = standby_of(held).map_or_else(|| "its node".to_owned(), |name| format!("node {name}"));
    let why = format!(
        "{} was protected as another QEMU process of this node, which is gone. Start the standby on {standby}: it \
         takes over if it has the last commit; if not, this VM runs. If that node never comes back: `afterimage \
         witness assign {} {}` on the witness's host",
        config.vm, config.vm, config.node
    );
    tracing::warn!("{why}. Until then the VM's gate stays closed");
    emit(Told::WaitingForStandby(WaitingForStandby { register: *held, why: why.clone() }));
    why
}

/// The register names another QEMU process of this host.
fn other_instance(config: &Settings, held: &Register) -> anyhow::Error {
    if let Ok(Some(pid)) = find_instance(held.owner.instance) {
        return beside(config, held, pid);
    }
    let standby = standby_of(held);
    let standby = standby.map_or_else(String::new, |name| format!("; node {name} holds its last commit"));
    let what = format!("{} was protected as another QEMU process of this node, which is gone{standby}", config.vm);
    let remedy = "let the standby take over; if its state is to be given up, stop it, and `afterimage witness \
                  assign` on the witness's host";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}

/// And that one lives, though it may be stopped: there would be two copies.
fn beside(config: &Settings, held: &Register, pid: u32) -> anyhow::Error {
    let what = format!(
        "{} is another QEMU process of this host, {pid}, and has been since {}: a second copy must not run visibly beside it",
        config.vm, held.generation
    );
    let remedy = format!(
        "end the QEMU that --qmp leads to, and protect process {pid} (--qmp its control socket); or give this VM a name of its own \
         with --vm; or end process {pid}, if its state is to be given up, and say this again"
    );
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}
