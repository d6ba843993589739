//! A session's beats, the same on both sides: what the hello says of them, and the thread that sends and hears them.

use crate::{
    clock::MonotonicClock,
    keepalive::{BeatHandle, BeatThread},
};
use anyhow::{Context, Result};
use mc_core::{
    detector::{Config, Parameters},
    id::{Incarnation, nanos},
    transport::Keepalive,
    wire::beat::BeatKey,
};
use std::time::Duration;

/// The primary's number in the group.
pub const PRIMARY: u8 = 1;
/// The standby's.
pub const STANDBY: u8 = 2;

/// An interval as the hello and beats carry it, µs.
pub fn interval_us(interval: Duration) -> Result<u32> {
    u32::try_from(nanos(interval) / 1000).context("the beat interval is longer than an hour")
}

/// Starts the thread.
pub fn start(
    keepalive: Box<dyn Keepalive>,
    session: (Incarnation, BeatKey),
    member: u8,
    interval: Duration,
    multiplier: u8,
    clock: MonotonicClock,
) -> Result<BeatHandle> {
    let parameters = Parameters::new(interval, interval, multiplier)?;
    let config = Config { incarnation: session.0, member, parameters, startup: None };
    BeatThread::spawn(keepalive, session.1, config, clock).context("the beat thread")
}
