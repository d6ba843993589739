//! `afterimage standby`: waits with a stock QEMU in `-incoming`, and takes over.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | starts it |
//! | [`node`] | the loop around `mc_core`'s standby |
//! | [`offer`] | a primary that wants to be protected: taken on, or refused with words |
//! | [`vm`] | the waiting QEMU, its RAM file, and the image over it |
//! | [`ram_file`] | that file: made, locked, removed, kept; one standby of a VM per directory |
//! | [`takeover`] | the VM is ours: tried until it runs |
//! | [`state`], [`export`] | all but the main memory, copied out; the VM as files for a stock QEMU |
//! | [`task`] | work on a thread, heard by the loop |
//! | [`report`] | status and events |

mod export;
mod node;
mod offer;
mod ram_file;
mod report;
mod state;
mod takeover;
mod task;
mod vm;

use crate::{
    config::StandbyConfig,
    events::{self, Who},
    exit::{Code, ExitError},
    paths,
    qemu::standby::check_command,
};
use anyhow::{Context, Result};

/// Runs until the VM that it took over is gone, or handed over. Returns the exit code.
pub fn run(config: StandbyConfig) -> Result<Code> {
    paths::check(&config.paths)?;
    check_command(&config.qemu).map_err(ExitError::usage)?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    let who = Who { vm: config.vm, side: "standby", node: config.node, process: "standby" };
    events::record(who, &config.state_dir).context("threads for events")?;
    node::Node::new(config)?.run()
}
