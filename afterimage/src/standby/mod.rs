//! `afterimage standby`: waits with a stock QEMU in `-incoming`, and takes over.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | starts it |
//! | [`node`] | the loop around `mc_core`'s standby |
//! | [`offer`] | a primary that wants to be protected: taken on, or refused with words |
//! | [`vm`] | the waiting QEMU, its RAM file, the image over it, and the takeover |
//! | [`report`] | status and events |

mod node;
mod offer;
mod report;
mod vm;

use crate::{
    beats,
    config::StandbyConfig,
    events::{self, Who},
    exit::Code,
    paths,
};
use anyhow::{Context, Result};

/// Runs until the VM that it took over is gone, or handed over. Returns the exit code.
pub fn run(config: StandbyConfig) -> Result<Code> {
    paths::check(&config.paths)?;
    beats::check(&config.wish())?;
    std::fs::create_dir_all(&config.run_dir).with_context(|| format!("run directory {}", config.run_dir.display()))?;
    let who = Who { vm: config.vm, side: "standby", node: config.node, process: "standby" };
    events::record(who, &config.state_dir).context("threads for events")?;
    node::Node::new(config)?.run()
}
