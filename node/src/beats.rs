//! A session's beats, the same on both sides: what the hello says of them, and the thread that sends and hears them.

use crate::{
    clock::Clock,
    events::{BeatsWish, ms},
    exit::{Code, ExitError},
    keepalive::{
        self, BeatHandle, BeatThread, Watched,
        fit::{self, Unfit},
    },
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

/// A host that is busy as it boots may be late for some milliseconds: its timers are measured so often, before it is refused.
const TRIES: u32 = 5;
/// Between two of them.
const BETWEEN: Duration = Duration::from_millis(100);

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

impl Default for Wish {
    /// A beat every 10 ms; five may be missed.
    fn default() -> Self {
        Self { interval: Duration::from_millis(10), min_rx: None, multiplier: 5 }
    }
}

impl Wish {
    /// As events have it.
    #[must_use]
    pub fn told(&self) -> BeatsWish {
        BeatsWish { interval_ms: ms(self.interval), multiplier: self.multiplier }
    }

    /// As the detector takes it.
    pub fn parameters(&self) -> Result<Parameters, ParameterError> {
        Parameters::new(self.interval, self.min_rx.unwrap_or(self.interval), self.multiplier)
    }
}

/// An interval as the hello and beats carry it, µs.
pub fn interval_us(interval: Duration) -> Result<u32> {
    u32::try_from(nanos(interval) / 1000).context("the beat interval is longer than an hour")
}

/// How a peer says that it beats.
#[must_use]
pub fn told(hello: &Hello) -> BeatsWish {
    BeatsWish { interval_ms: f64::from(hello.desired_tx_us) / 1e3, multiplier: hello.detect_multiplier }
}

/// Before a process begins that will beat so: whether its machine can time it, and whether it would bear what live hosts do.
///
/// # Errors
/// In words, with what to do. A usage error: nothing was started.
pub fn check(wish: &Wish) -> Result<(), ExitError> {
    let refuse = |unfit: Unfit| ExitError::usage(unfit.what).remedy(unfit.remedy);
    fit::can_bear(wish.interval.max(wish.min_rx.unwrap_or_default()), wish.multiplier).map_err(refuse)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let timer = keepalive::measure_timer().map_err(|error| ExitError::new(Code::Failed, error))?;
        match fit::can_time(wish.interval, timer) {
            Err(unfit) if tries == TRIES => return Err(refuse(unfit)),
            Err(_) => std::thread::sleep(BETWEEN),
            Ok(()) => return Ok(()),
        }
    }
}

/// Starts the thread for a side whose loop is `watched`: see [`crate::keepalive`]. Without a loop, for a probe, it beats on
/// whatever happens.
///
/// # Errors
/// Parameters out of bounds; no thread; a machine that cannot time the interval any more ([`Unfit`]).
pub fn start(
    keepalive: Box<dyn Keepalive>,
    (incarnation, key): (Incarnation, BeatKey),
    member: u8,
    wish: Wish,
    watched: Option<Watched>,
) -> Result<BeatHandle> {
    let parameters = wish.parameters()?;
    let config = Config { incarnation, member, parameters, startup: None };
    let is_probe = watched.is_none();
    let beats = BeatThread::spawn_for(watched, keepalive, key, config, Clock).context("the beat thread")?;
    if !is_probe {
        fit::can_time(wish.interval, beats.timer())?;
    }
    Ok(beats)
}
