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
//! | [`session`], [`proving`] | finds the standby; proves that beats come both ways |
//! | [`channel`] | what the two processes say to each other |
//! | [`commands`] | the control socket: status, solo, handover |
//! | [`vm_health`], [`yielding`] | whether the VM runs, and what is done when it does not |
//! | [`live`] | and what it changes while the pair runs |

pub mod channel;
mod claim;
mod commands;
pub mod data_path;
mod errands;
mod hands;
mod live;
mod proving;
mod session;
mod supervisor;
pub mod vm_health;
mod yielding;

use crate::{
    arbiter::{self, Answer, Ask},
    beats,
    config::ProtectConfig,
    control,
    events::{self, Who, emit},
    exit::{Code, ExitError},
    identity, paths,
    qemu::{
        control as qemu,
        profile::{self, Profile},
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
pub fn run(mut config: ProtectConfig) -> Result<Code> {
    paths::check(&config.paths)?;
    beats::check(&config.wish())?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    let handed_over = control::hand_over(&config.run_dir, config.vm)?;
    let mut qmp = Qmp::connect(&config.qmp, Duration::from_secs(5)).map_err(no_qmp)?;
    let profile = Profile::query(&mut qmp)?;
    refuse_writable_disks(&config, &mut qmp)?;
    let qemu_pid = qmp.peer_pid()?;
    record(&config, "supervisor")?;
    let node = identity::node(&config.state_dir, config.node)?;
    let owner = Owner { node, instance: instance_id(qemu_pid)? };
    let register = own_the_vm(&config, owner)?;
    config.accept_witness = false; // once
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
    if qemu::colo_state(&mut qmp)? == qemu::MigrationState::Colo {
        tracing::warn!("QEMU is still in checkpoint mode: an earlier `protect` died. Leaving it");
        qemu::leave_colo(&mut qmp)?;
    }
    supervisor::supervise(qmp, Brief { config, register, profile, qemu_pid, protect: true, stay: handed_over })
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

/// Disk writes are not held: after a takeover the disk would be ahead of RAM.
fn refuse_writable_disks(config: &ProtectConfig, qmp: &mut Qmp) -> Result<()> {
    let disks = profile::writable_disks(qmp)?;
    if disks.is_empty() || config.force_writable_disks {
        return Ok(());
    }
    let what = format!("the VM has writable disks: {}", disks.join(", "));
    let remedy = "disk writes are not held yet, so a takeover would find the disk ahead of RAM; attach disks \
                  read-only, or accept that with --force-writable-disks";
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into())
}

/// Makes the register say (solo, self), or explains why it cannot. It swaps even when the register says so already: see
/// [`claim`] for what an earlier process of ours may have left under way.
fn own_the_vm(config: &ProtectConfig, owner: Owner) -> Result<Register> {
    let ask = |ask| {
        let answer = arbiter::ask_once(&config.asks(owner.node), ask, Duration::from_secs(3));
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
            Answer::Read(_) | Answer::Fault(_) => anyhow::bail!("the arbiter answered a read to a swap"),
        }
    }
}

/// A VM that another node owns, or of which a standby holds more than this QEMU knows, is not ours to run.
fn refuse_foreign(config: &ProtectConfig, owner: Owner, held: Option<&Register>) -> Result<()> {
    match held {
        Some(held) if held.owner.node.id != owner.node.id => Err(owned_elsewhere(config, held)),
        Some(Register { mode: Mode::Protected { standby }, owner: other, .. }) if !other.names(&owner) => {
            Err(other_instance(config, &standby.node.to_string()))
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
    let remedy = "stop this QEMU and protect the VM on that node; if that node is gone for good and had no standby, \
                  `afterimage witness assign` on the witness's host gives the VM to another";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}

fn other_instance(config: &ProtectConfig, standby: &str) -> anyhow::Error {
    let what = format!(
        "{} was protected as another QEMU process of this node, which is gone; node {standby} holds its last commit",
        config.vm
    );
    let remedy = "let the standby take over; if its state is to be given up, stop it, and `afterimage witness \
                  assign` on the witness's host";
    ExitError::new(Code::Fenced, what).remedy(remedy).into()
}
