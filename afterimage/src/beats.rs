//! A session's beats, the same on both sides: what the hello says of them, and the thread that sends and hears them.

use crate::{
    clock::Clock,
    keepalive::{BeatHandle, BeatThread},
};
use anyhow::{Context, Result};
use mc_core::{
    detector::{Config, ParameterError, Parameters},
    id::{Incarnation, nanos},
    transport::Keepalive,
    wire::{beat::BeatKey, session::Hello},
};
use std::time::Duration;

/// The primary's number in the group.
pub const PRIMARY: u8 = 1;
/// The standby's.
pub const STANDBY: u8 = 2;

/// How one side wants its beats.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Between two beats.
    pub interval: Duration,
    /// Never receive more often than this; `None`: than `interval`.
    pub min_rx: Option<Duration>,
    /// Missed beats until the other side suspects this one.
    pub multiplier: u8,
}

impl Wish {
    /// As the detector takes it.
    pub fn parameters(&self) -> Result<Parameters, ParameterError> {
        Parameters::new(self.interval, self.min_rx.unwrap_or(self.interval), self.multiplier)
    }
}

/// An interval as the hello and beats carry it, µs.
pub fn interval_us(interval: Duration) -> Result<u32> {
    u32::try_from(nanos(interval) / 1000).context("the beat interval is longer than an hour")
}

/// How a peer says that it beats, as an event's field.
#[must_use]
pub fn told(hello: &Hello) -> serde_json::Value {
    let interval_ms = f64::from(hello.desired_tx_us) / 1e3;
    serde_json::json!({ "interval_ms": interval_ms, "multiplier": hello.detect_multiplier })
}

/// Starts the thread.
pub fn start(
    keepalive: Box<dyn Keepalive>,
    (incarnation, key): (Incarnation, BeatKey),
    member: u8,
    wish: Wish,
    clock: Clock,
) -> Result<BeatHandle> {
    let parameters = wish.parameters()?;
    let config = Config { incarnation, member, parameters, startup: None };
    BeatThread::spawn(keepalive, key, config, clock).context("the beat thread")
}
