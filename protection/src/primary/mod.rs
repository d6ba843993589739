//! The host where the VM runs: keeps an after-image of it.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | attaches: QEMU, its profile, the register |
//! | [`supervisor`] | the process that stays: QEMU's control connection, and the VM's fate when the data path dies |
//! | [`commanded`] | QEMU, as whoever holds that connection commands it |
//! | [`own`], [`waiting`] | waits for the arbiter before anything begins, and answers meanwhile |
//! | [`namesake`] | no second name for a VM of this host |
//! | [`stop`] | an orderly end, by a signal |
//! | [`rejoin`] | what a fenced primary becomes, with `--rejoin` |
//! | [`data_path`] | the process that works |
//! | [`mod@turn`], [`errands`] | what it does in a turn of [`node::primary`], which has the loop itself, and what the driver asks of it |
//! | [`qemu_controller`], [`acting_supervisor`] | the data path's way to QEMU, with and without its supervisor |
//! | [`supervisor_watchdog`] | whether somebody watches QEMU and its outputs for the data path; that QEMU has ended |
//! | [`left`] | what is said while QEMU has not left its checkpoints |
//! | [`nics`], [`standstill`] | NICs that come back; why the VM, or this side, does not get on |
//! | [`mod@look`] | makes way for a successor; says why no standby protects the VM |
//! | [`orders`] | what an operator or a signal wants, and needs the arbiter for |
//! | [`outputs`], [`unfit`] | whether the VM's outputs are held; what is done when the VM cannot be protected as it is |
//! | [`channel`] | what the two processes say to each other |
//! | [`commands`] | the control socket: status, solo, handover |
//! | [`vm_health`], [`yielding`] | whether the VM runs, and what is done when it does not |
//! | [`live`] | and what it changes while the pair runs |

mod acting_supervisor;
pub mod channel;
pub mod commanded;
mod commands;
pub mod data_path;
mod errands;
mod left;
mod live;
mod look;
mod namesake;
mod nics;
mod orders;
mod outputs;
mod own;
mod qemu_controller;
mod rejoin;
mod settings;
mod standstill;
mod stop;
pub mod supervisor;
mod supervisor_watchdog;
mod turn;
mod unfit;
pub mod vm_health;
mod waiting;
mod yielding;

use crate::{
    predecessor::{self, Predecessor},
    processes::{Program, Rejoin},
};
use anyhow::{Context, Result};
use api::{metrics, report};
use channel::Brief;
use mc_core::register::{Owner, Register};
use node::{
    beats,
    events::{self, Attached, Ended, Event, Process, Side, emit, ms},
    exit::{self, Code, ExitError},
    identity, paths,
    signals::Signals,
};
use own::{Owned, own_the_vm};
pub use settings::{Settings, least_commit_deadline};
use std::time::Duration;
use vmm_qemu::{
    control::{self as qemu, ControlError, Found},
    inventory,
    profile::Profile,
    qmp::{Qmp, QmpError, instance_id},
};

/// Runs until the VM is gone, fenced, handed over, or a signal ends it. Returns the exit code; after a fence it
/// does not return, but becomes what `rejoin` says.
pub fn run(mut config: Settings, program: Program, rejoin: Option<&Rejoin>) -> Result<Code> {
    paths::check(&config.paths)?;
    beats::check(&config.wish())?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    if predecessor::is_anybody_here(&config.run_dir, config.vm) {
        nics::look(&config)?; // before anybody is told anything
    } else if let Some(listen) = config.metrics {
        metrics::look(listen)?; // who has the VM here, or its network, may have that address, and makes way
    }
    let predecessor = predecessor::ask_to_make_way(&config.run_dir, config.vm)?;
    let relieves = predecessor == Predecessor::MadeWay;
    let told = |_: &anyhow::Error| tell_who_goes_on(predecessor);
    let Looked { mut qmp, found, profile, outputs } = look(&config).inspect_err(told)?;
    let qemu_pid = qmp.peer_pid()?;
    record(&config, Process::Supervisor)?;
    let node = identity::node(&config.state_dir, config.node)?;
    let owner = Owner { node, instance: instance_id(qemu_pid)? };
    let signals = Signals::catch().context("catching signals")?;
    let Owned::Ours(register) = own_the_vm(&config, owner, &signals, relieves).inspect_err(told)? else {
        let why = "ended by a signal before the arbiter had said who owns the VM; nothing had been started";
        emit(Event::Ended(Ended { vm: None, code: Some(Code::Done as u8), why: why.to_owned() }));
        return Ok(Code::Done);
    };
    config.accept_witness = false; // once
    if predecessor == Predecessor::Tells {
        predecessor::relieve_teller(&config.run_dir, config.vm)?;
    }
    tell_attached(&config, &profile, register);
    if found == Found::LeftOver {
        tracing::warn!("QEMU is still in checkpoint mode: an earlier `protect` died. Leaving it");
        qemu::leave_colo(&mut qmp, None)?;
    }
    let stay = !config.once || predecessor != Predecessor::Nobody;
    let relieve = relieves;
    let brief = Brief { config, register, profile, outputs, qemu_pid, protect: true, stay, relieve, deaths: 0 };
    let ended = supervisor::supervise(qmp, brief, signals, program);
    match (ended, rejoin) {
        (Err(error), Some(next)) if exit::explain(&error).0 == Code::Fenced => {
            rejoin::stand_by(program, next, (qemu_pid, owner.instance), &error)
        }
        (ended, _) => ended,
    }
}

/// A VM that can be protected.
struct Looked {
    qmp: Qmp,
    found: Found,
    profile: Profile,
    outputs: inventory::Inventory,
}

fn look(config: &Settings) -> Result<Looked> {
    let connected = Qmp::connect(&config.qmp, Duration::from_secs(5));
    let mut qmp = connected.map_err(|error| namesake::explain(config, &error).unwrap_or_else(|| no_qmp(error)))?;
    namesake::refuse(config, qmp.peer_pid()?)?;
    let found = qemu::look(&mut qmp).map_err(not_to_be_protected)?;
    let profile = Profile::query(&mut qmp)?;
    let outputs = inventory::take(&mut qmp, &config.nic_sockets())?;
    outputs::refuse(&config.forced(), &outputs)?;
    Ok(Looked { qmp, found, profile, outputs })
}

/// After a refusal: what becomes of whoever has the VM.
fn tell_who_goes_on(predecessor: Predecessor) {
    let who = match predecessor {
        Predecessor::Nobody => return,
        Predecessor::MadeWay => "the `protect` that has the VM goes on, and commands QEMU again within seconds",
        Predecessor::Tells => "the standby that took the VM over goes on, and so does its network",
        Predecessor::Kept => "the keeper goes on: it has the VM's network",
    };
    tracing::warn!("this `protect` did not start; {who}");
}

fn tell_attached(config: &Settings, profile: &Profile, register: Register) {
    emit(Event::Attached(Attached {
        vm: config.vm,
        machine: profile.machine.clone(),
        generation: register.generation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        to: config.to.to_string(),
        arbiter: config.arbiter.to_string(),
        epoch_ms: ms(config.epoch),
        beats: config.wish().told(),
    }));
    for note in report::standing_notes() {
        tracing::warn!("{note}");
    }
}

/// From here on what happens is kept.
fn record(config: &Settings, process: Process) -> Result<()> {
    events::record(config.vm, Side::Primary, config.node, process, &config.state_dir).context("threads for events")
}

/// Nobody listens at the QMP socket, or nobody that speaks QMP.
fn no_qmp(error: QmpError) -> anyhow::Error {
    let remedy = match error {
        QmpError::Connect { .. } | QmpError::NotQmp { .. } => {
            "start QEMU with `-qmp unix:SOCKET,server=on,wait=off`, and name that socket with --qmp"
        }
        QmpError::Busy { .. } => {
            "end that client (`ss -xp` shows it), or give QEMU a second `-qmp` socket, and name that with --qmp"
        }
        _ => return error.into(),
    };
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
