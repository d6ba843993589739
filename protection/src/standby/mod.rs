//! The host that stands by: waits with a stock QEMU in `-incoming`, and takes over.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | starts it |
//! | [`needs`] | what has to be there |
//! | [`main_loop`] | what is done in a turn of [`node::standby`], which has the loop itself |
//! | [`offer`] | a primary that wants to be protected: whether its VM fits, and a QEMU that waits for it |
//! | [`vm`] | the waiting QEMU, its RAM file, and the image over it |
//! | [`waiting`], [`revival`] | it is looked after: started again, or said that it cannot be |
//! | [`ram_file`] | that file: made, locked, removed, kept; one standby of a VM per directory |
//! | [`rehearsing`] | a QEMU that is thrown away loads the image |
//! | [`takeover`] | the VM is ours: tried until it runs |
//! | [`operator`] | an operator's word: `takeover` |
//! | [`abandon`] | or until it is another copy's |
//! | [`running`], [`network`] | after the takeover, also of an earlier process: the VM runs here, and a keeper has its network |
//! | [`state`], [`export`] | all but the main memory, copied out; the VM as files for a stock QEMU |
//! | [`leave`] | an orderly end, by a signal |
//! | [`task`] | work on a thread, heard by the loop |
//! | [`report`] | status and events |

mod abandon;
mod export;
mod leave;
mod main_loop;
mod needs;
mod network;
mod offer;
mod operator;
mod ram_file;
mod rehearsing;
mod report;
mod revival;
mod running;
mod settings;
mod state;
mod takeover;
mod task;
mod vm;
mod waiting;
mod why_not;

use crate::{keeper, processes::Program};
use anyhow::{Context, Result};
use api::{Side, socket_path};
pub use needs::twice;
use node::{
    beats,
    events::{self, Process},
    exit::{Code, ExitError},
    paths, scope,
};
pub use settings::Settings;
use std::os::{fd::AsFd, unix::net::UnixStream};
use vmm_qemu::{mending::peer, standby::check_command};

/// Runs until the VM that it took over is gone, or handed over. Returns the exit code.
pub fn run(config: Settings, program: Program) -> Result<Code> {
    paths::check(&config.paths)?;
    check_command(&config.qemu).map_err(ExitError::usage)?;
    beats::check(&config.wish())?;
    needs::check_names(&config.nics)?;
    needs::check_sockets(&config)?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    refuse_beside_another(&config)?; // before anything is written into that one's journal
    // Asked now, and not when a takeover waits for the answer.
    let _ = scope::Means::here();
    let record = events::record(config.vm, events::Side::Standby, config.node, Process::Standby, &config.state_dir);
    record.context("threads for events")?;
    if let Some(vm) = running::find(&config)? {
        return running::after_restart(config, program, vm);
    }
    refuse_beside_a_keeper(&config)?;
    needs::check_program(&config)?;
    main_loop::Node::new(config, program)?.run()
}

/// One that waits has its QEMU's control socket: it is to be found before that is taken for one that was left over.
fn refuse_beside_another(config: &Settings) -> Result<()> {
    let path = socket_path(&config.run_dir, config.vm, Side::Standby);
    let Ok(stream) = UnixStream::connect(path) else { return Ok(()) };
    let process = peer(stream.as_fd()).map_or_else(String::new, |pid| format!(" (process {pid})"));
    let what = format!("another standby of {} runs here{process}", config.vm);
    let remedy = format!(
        "a VM can have one standby per host: keep that one, or stop it first (`afterimage status --vm {0}` shows \
         it); if it is another VM, use another --vm",
        config.vm
    );
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into())
}

/// A VM whose network is kept here, and which is none that a standby took over, was left here by `protect`.
fn refuse_beside_a_keeper(config: &Settings) -> Result<()> {
    let Some(keeper) = keeper::running(&config.run_dir, config.vm) else { return Ok(()) };
    let what = format!("{} runs on this host: process {} keeps its network", config.vm, keeper.pid());
    let remedy = "a standby belongs on another host; `afterimage protect` protects the VM, and relieves that process";
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into())
}
