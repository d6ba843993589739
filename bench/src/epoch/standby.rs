//! The standby's process: the core's standby, its image, and what became of it.

use super::clock::{Monotonic, cpu_seconds};
use crate::link::Poll;
use anyhow::{Context, Result, bail, ensure};
use mc_core::{
    driver::{Attachment, StandbyDriver, StandbyErrand},
    histogram::Histogram,
    id::{BlockId, Generation, Incarnation, Time},
    image::Image,
    ram::SharedRam,
    register::Owner,
    slab::SlabPool,
    standby::{Config, Standby},
    transport::Transport,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the standby must know.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StandSpec {
    /// Bytes of guest RAM.
    pub ram: usize,
    /// Bytes of staging.
    pub staging: usize,
    /// What is replicated.
    pub generation: u64,
}

/// What it has to say when the link is gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StandReport {
    /// The newest committed epoch.
    pub epoch: u64,
    /// Of the image: [`digest`].
    pub image: String,
    /// From the ACK of an epoch until the image was that epoch's.
    pub apply: Histogram,
    /// Of this process, since the link was there: the full synchronisation is in it.
    pub cpu_s: f64,
}

/// Tells one content of guest RAM from another.
#[must_use]
pub fn digest(ram: &[u8]) -> String {
    blake3::hash(ram).to_hex().to_string()
}

/// Stands by until the link is gone.
///
/// # Errors
/// An epoch is refused, or the image cannot be trusted.
pub fn run(
    link: Box<dyn Transport>,
    incarnation: Incarnation,
    spec: StandSpec,
    slab_bytes: usize,
) -> Result<StandReport> {
    let before = cpu_seconds();
    let owner = Owner { node: super::node("bench-standby", 2)?, instance: 1 };
    let config = Config { owner, rehearse: false };
    let pool = SlabPool::new(slab_bytes, spec.staging);
    let mut driver = StandbyDriver::new(Standby::new(config), Monotonic);
    let image = Image::new(vec![SharedRam::anonymous(spec.ram)?]);
    let generation = Generation(spec.generation);
    driver.attach(Attachment { link, incarnation, generation, instance: 1, image, pool, spill: None });
    while !lost(&mut driver)? {
        let now = mc_core::driver::Clock::now(&Monotonic);
        let left = driver.deadline().map_or(Duration::from_millis(50), |at: Time| at.since(now));
        if let Some(link) = driver.link() {
            Poll::Event.idle(link.as_ref(), left);
        }
    }
    let cpu_s = cpu_seconds() - before;
    let (_, epoch) = driver.machine().committed();
    let image = driver.image().context("the image is gone")?.block(BlockId(0));
    let apply = driver.figures().apply.clone();
    ensure!(epoch.0 > 0, "the link was lost before the first commit");
    Ok(StandReport { epoch: epoch.0, image: digest(&image), apply, cpu_s })
}

/// Pumps; whether the primary is gone. The image is that of the newest commit then: the machine has revoked and drained, and
/// wants to ask the arbiter, which is where we leave it.
fn lost(driver: &mut StandbyDriver<Box<dyn Transport>, Monotonic>) -> Result<bool> {
    driver.pump();
    while let Some(errand) = driver.errand() {
        match errand {
            StandbyErrand::Rehearse(_) | StandbyErrand::EndRehearsal | StandbyErrand::LinkLost(_) => {}
            StandbyErrand::ReadRegister | StandbyErrand::Cas(_) => return Ok(true),
            StandbyErrand::Refused(reason, why) => bail!("an epoch was refused: {reason:?}: {why}"),
            StandbyErrand::Fatal(why) => bail!("{why}"),
            StandbyErrand::TakeOver { .. }
            | StandbyErrand::Abandon
            | StandbyErrand::Renounce(_)
            | StandbyErrand::Discard => bail!("the session ended too early"),
        }
    }
    Ok(false)
}
