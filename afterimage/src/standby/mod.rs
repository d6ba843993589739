//! `afterimage standby`: waits with a stock QEMU in `-incoming`, and takes over.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | starts it |
//! | [`node`] | the loop around `mc_core`'s standby |
//! | [`offer`] | a primary that wants to be protected: taken on, or refused with words |
//! | [`vm`] | the waiting QEMU, its RAM file, the image over it, and the takeover |
//! | [`running`], [`network`] | after the takeover, also of an earlier process: the VM runs here, and a keeper has its network |
//! | [`report`] | status and events |

mod network;
mod node;
mod offer;
mod report;
mod running;
mod vm;

use crate::{
    config::StandbyConfig,
    events::{self, Who},
    exit::{Code, ExitError},
    keeper, paths, scope,
};
use anyhow::{Context, Result};

/// Runs until the VM that it took over is gone, or handed over. Returns the exit code.
pub fn run(config: StandbyConfig) -> Result<Code> {
    paths::check(&config.paths)?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    // Asked now, and not when a takeover waits for the answer.
    let _ = scope::Means::here();
    let who = Who { vm: config.vm, side: "standby", node: config.node, process: "standby" };
    events::record(who, &config.state_dir).context("threads for events")?;
    if let Some(vm) = running::find(&config)? {
        return running::after_restart(config, vm);
    }
    refuse_beside_a_keeper(&config)?;
    node::Node::new(config)?.run()
}

/// A VM whose network is kept here, and which is none that a standby took over, was left here by `protect`.
fn refuse_beside_a_keeper(config: &StandbyConfig) -> Result<()> {
    let Some(keeper) = keeper::running(&config.run_dir, config.vm) else { return Ok(()) };
    let what = format!("{} runs on this host: process {} keeps its network", config.vm, keeper.pid());
    let remedy = "a standby belongs on another host; `afterimage protect` protects the VM, and relieves that process";
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy).into())
}
