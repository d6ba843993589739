//! `afterimage protect`: keeps an after-image of a running VM.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | attaches: QEMU, its profile, the register |
//! | [`supervisor`] | the process that stays: QEMU's control connection, and the VM's fate when the data path dies |
//! | [`claim`] | what the supervisor does when the data path died: asks the arbiter |
//! | [`data_path`] | the process that works: the loop around `mc_core`'s primary |
//! | [`errands`] | what the driver asks of it |
//! | [`hands`] | the data path's way to QEMU, with and without its supervisor |
//! | [`outputs`] | whether the VM's outputs are held |
//! | [`session`] | finds the standby |
//! | [`channel`] | what the two processes say to each other |
//! | [`commands`] | the control socket: status, solo, handover |
//! | [`live`] | and what it changes while the pair runs |

pub mod channel;
mod claim;
mod commands;
pub mod data_path;
mod errands;
mod hands;
mod live;
mod outputs;
mod session;
mod supervisor;

use crate::{
    arbiter::{self, Answer, Ask},
    config::ProtectConfig,
    control,
    events::{self, Who, emit},
    exit::{Code, ExitError},
    paths,
    qemu::{
        control::{self as qemu, ControlError, Found},
        inventory,
        profile::Profile,
        qmp::{Qmp, QmpError, instance_id},
    },
    report::{self, ms},
};
use anyhow::{Context, Result};
use channel::Brief;
use mc_core::register::{CasOutcome, Mode, Owner, Register, generation_of};
use serde_json::json;
use std::time::Duration;

/// Runs until the VM is gone, fenced, or handed over. Returns the exit code.
pub fn run(config: ProtectConfig) -> Result<Code> {
    paths::check(&config.paths)?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    let handed_over = control::hand_over(&config.run_dir, config.vm)?;
    let mut qmp = Qmp::connect(&config.qmp, Duration::from_secs(5)).map_err(no_qmp)?;
    let found = qemu::look(&mut qmp).map_err(not_to_be_protected)?;
    let profile = Profile::query(&mut qmp)?;
    let outputs = inventory::take(&mut qmp, &config.nic_sockets())?;
    outputs::refuse(&config.forced(), &outputs)?;
    let owner = Owner { node: config.node, instance: instance_id(qmp.peer_pid()?)? };
    record(&config, "supervisor")?;
    let register = own_the_vm(&config, owner)?;
    emit(
        "attached",
        json!({
            "vm": config.vm, "machine": profile.machine, "generation": register.generation,
            "version": env!("CARGO_PKG_VERSION"), "to": config.to.to_string(), "arbiter": config.arbiter.to_string(),
            "epoch_ms": ms(config.epoch), "beats": { "interval_ms": ms(config.beat_interval), "multiplier": config.detect_multiplier },
        }),
    );
    for note in report::standing_notes() {
        tracing::warn!("{note}");
    }
    if found == Found::LeftOver {
        tracing::warn!("QEMU is still in checkpoint mode: an earlier `protect` died. Leaving it");
        qemu::leave_colo(&mut qmp, None)?;
    }
    supervisor::supervise(qmp, Brief { config, register, profile, outputs, protect: true, stay: handed_over })
}

/// From here on what happens is kept.
fn record(config: &ProtectConfig, process: &'static str) -> Result<()> {
    let who = Who { vm: config.vm, side: "primary", node: config.node, process };
    events::record(who, &config.state_dir).context("threads for events")
}

/// Nobody listens at the QMP socket, or nobody that speaks QMP.
fn no_qmp(error: QmpError) -> anyhow::Error {
    if !matches!(error, QmpError::Connect { .. } | QmpError::NotQmp { .. }) {
        return error.into();
    }
    let remedy = "start QEMU with `-qmp unix:SOCKET,server=on,wait=off`, and name that socket with --qmp";
    ExitError::new(Code::Prerequisite, error).remedy(remedy).into()
}

/// It was looked at, and is left as it was found.
fn not_to_be_protected(error: ControlError) -> anyhow::Error {
    let remedy = match &error {
        ControlError::NotRunning { status } if matches!(status.as_str(), "paused" | "prelaunch") => {
            "let it run (`cont` at its monitor), then protect it; nothing was changed"
        }
        ControlError::NotRunning { .. } => "protect it when it runs; nothing was changed",
        ControlError::Busy(_) => {
            "wait for that migration, or cancel it (`migrate_cancel` at the VM's monitor); nothing was changed"
        }
        _ => return error.into(),
    };
    ExitError::new(Code::Prerequisite, error).remedy(remedy).into()
}

/// Makes the register say (solo, self), or explains why it cannot. It swaps even when the register says so already: see
/// [`claim`] for what an earlier process of ours may have left under way.
fn own_the_vm(config: &ProtectConfig, owner: Owner) -> Result<Register> {
    let ask = |ask| {
        let answer = arbiter::ask_once(&config.arbiter, config.vm, &config.run_dir, ask, Duration::from_secs(3));
        answer.map_err(|e| arbiter_unreachable(config, &e.into()))
    };
    let Answer::Read(mut held) = ask(Ask::Read)? else { anyhow::bail!("the arbiter answered a swap to a read") };
    loop {
        refuse_foreign(config, owner, held.as_ref())?;
        let contested = held.is_some_and(|h| h.mode != Mode::Solo);
        let expect = generation_of(held.as_ref());
        let new = Register { generation: expect.next(), owner, mode: Mode::Solo };
        match ask(Ask::Cas { expect, new, contested })? {
            Answer::Cas(CasOutcome::Won(register)) => return Ok(register),
            Answer::Cas(CasOutcome::Lost(newer)) => held = newer,
            Answer::Read(_) => anyhow::bail!("the arbiter answered a read to a swap"),
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

fn arbiter_unreachable(config: &ProtectConfig, error: &anyhow::Error) -> anyhow::Error {
    let what = format!("the arbiter {} cannot be reached: {error:#}", config.arbiter);
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
