//! What an embedder's runners of both sides are told alike.

use crate::{
    arbiter::{ArbiterClient, ArbiterConfig, ArbiterSpec},
    beats::Wish,
    identity,
    paths::PathsConfig,
    place::Place,
};
use anyhow::{Context, Result, ensure};
use mc_core::{
    id::{Name, Node},
    wire::slab::MIN_SLAB,
};
use std::{fmt::Debug, ops::RangeInclusive, path::PathBuf, time::Duration};

/// Bytes of staging that make sense: two slabs, and what no host has.
const STAGING: RangeInclusive<usize> = 2 * MIN_SLAB..=1 << 40;
/// The loop looks ten times a second.
const STALL_AFTER: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// An error that names `field` unless its value is one of `allowed`.
pub(crate) fn within<T: PartialOrd + Debug>(field: &str, value: &T, allowed: &RangeInclusive<T>) -> Result<()> {
    let (least, most) = (allowed.start(), allowed.end());
    ensure!(allowed.contains(value), "{field} is {value:?}: expected {least:?} to {most:?}");
    Ok(())
}

/// Of a host, whichever side it is. What is not named in [`HostSettings::new`] is as `afterimage` has it.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// The VM.
    pub vm: Name,
    /// This host, as people call it.
    pub node: Name,
    /// Who arbitrates.
    pub arbiter: ArbiterSpec,
    /// Where this node keeps its identity, its last copy's record, and what it has seen of the register. Of one node, and not copied to
    /// another place: two of them are not kept apart.
    pub state_dir: PathBuf,
    /// Which way checkpoints and beats go. How much RDMA may pin follows from `staging_bytes`.
    pub paths: PathsConfig,
    /// How this side beats.
    pub beats: Wish,
    /// After so long without a turn of the loop its beats are withheld; `None`: after the usual time.
    pub stall_after: Option<Duration>,
    /// Bytes of staging, in a session.
    pub staging_bytes: usize,
}

impl HostSettings {
    /// With the defaults: beats every 10 ms of which five may be missed, 64 MiB of staging; over RDMA where both sides have it, else
    /// over TCP.
    #[must_use]
    pub fn new(vm: Name, node: Name, arbiter: ArbiterSpec, state_dir: impl Into<PathBuf>) -> Self {
        let (state_dir, staging_bytes) = (state_dir.into(), 64 << 20);
        let (paths, beats, stall_after) = (PathsConfig::auto(staging_bytes as u64), Wish::default(), None);
        Self { vm, node, arbiter, state_dir, paths, beats, stall_after, staging_bytes }
    }

    /// With a beat in every `interval`: the peer that misses `multiplier` of them suspects this side.
    #[must_use]
    pub fn beating(mut self, interval: Duration, multiplier: u8) -> Self {
        (self.beats.interval, self.beats.multiplier) = (interval, multiplier);
        self
    }

    /// Before anything is asked for, or made.
    pub(crate) fn check(&self) -> Result<()> {
        self.beats.parameters().context("beats")?;
        within("staging_bytes", &self.staging_bytes, &STAGING)?;
        self.stall_after.map_or(Ok(()), |after| within("stall_after", &after, &STALL_AFTER))
    }

    pub(crate) fn paths(&self) -> PathsConfig {
        PathsConfig { staging_bytes: self.staging_bytes as u64, ..self.paths.clone() }
    }

    /// This node, with the identity that it keeps.
    pub(crate) fn this(&self) -> Result<Node> {
        identity::node(&self.state_dir, self.node)
    }

    /// This VM's place on this node.
    pub(crate) fn place(&self) -> Result<Place> {
        Place::take(&self.state_dir, self.vm)
    }

    /// A client of the arbiter.
    pub(crate) fn ask(&self) -> Result<ArbiterClient> {
        Ok(ArbiterClient::spawn(&ArbiterConfig {
            spec: self.arbiter.clone(),
            vm: self.vm,
            node: self.this()?,
            run_dir: self.state_dir.clone(),
            state_dir: self.state_dir.clone(),
            accept_witness: false,
        })?)
    }
}
