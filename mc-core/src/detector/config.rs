//! What a detector is told at its start, and the limits of it.

use crate::id::Incarnation;
use std::time::Duration;

/// Neither interval is shorter: below it the detector would measure the scheduler.
pub const MIN_INTERVAL: Duration = Duration::from_micros(100);
/// Neither interval is longer: at the largest multiplier, a dead peer is found within 43 minutes.
pub const MAX_INTERVAL: Duration = Duration::from_secs(10);
/// The start-up limit is never shorter: processes start one after the other.
pub const MIN_STARTUP: Duration = Duration::from_secs(1);

/// A parameter that no detector accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// An interval out of bounds.
    #[error("{name} is {} us: beats are {} us to {} s apart", given.as_micros(), MIN_INTERVAL.as_micros(), MAX_INTERVAL.as_secs())]
    Interval {
        /// Which one.
        name: &'static str,
        /// What was given.
        given: Duration,
    },
    /// A multiplier of zero: suspicion without a missed beat (RFC 5880 6.8.6 discards such packets).
    #[error("the detect multiplier is 0: it is 1 to 255")]
    Multiplier,
}

/// How often beats go out and come in, and how many may be missed. Always within the limits; whole µs, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parameters {
    pub(super) tx_us: u32,
    pub(super) rx_us: u32,
    pub(super) multiplier: u8,
}

impl Parameters {
    /// Every 10 ms, suspect after 5: a dead host is declared within 60 ms.
    pub const DEFAULT: Self = Self { tx_us: 10_000, rx_us: 10_000, multiplier: 5 };

    /// Checks: both intervals from [`MIN_INTERVAL`] to [`MAX_INTERVAL`], the multiplier not 0. Fractions of a µs are cut
    /// off.
    pub fn new(desired_tx: Duration, required_rx: Duration, detect_multiplier: u8) -> Result<Self, ParameterError> {
        if detect_multiplier == 0 {
            return Err(ParameterError::Multiplier);
        }
        Ok(Self {
            tx_us: micros("the desired transmit interval", desired_tx)?,
            rx_us: micros("the required receive interval", required_rx)?,
            multiplier: detect_multiplier,
        })
    }

    /// How often this side would like to send.
    #[must_use]
    pub fn desired_tx(&self) -> Duration {
        Duration::from_micros(self.tx_us.into())
    }

    /// How often this side is willing to receive.
    #[must_use]
    pub fn required_rx(&self) -> Duration {
        Duration::from_micros(self.rx_us.into())
    }

    /// After this many missed beats the *peer* suspects this side (RFC 5880's `bfd.DetectMult`, K).
    #[must_use]
    pub fn detect_multiplier(&self) -> u8 {
        self.multiplier
    }
}

fn micros(name: &'static str, given: Duration) -> Result<u32, ParameterError> {
    let error = ParameterError::Interval { name, given };
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&given) {
        return Err(error);
    }
    u32::try_from(given.as_micros()).map_err(|_| error)
}

/// What a detector is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The session; beats of any other are ignored.
    pub incarnation: Incarnation,
    /// Our number in the group; beats that bear it are our own, come back.
    pub member: u8,
    /// What we start with.
    pub parameters: Parameters,
    /// A peer that was never heard is suspected after this long. Default: see [`Config::startup_limit`].
    pub startup: Option<Duration>,
}

impl Config {
    /// [`Config::startup`], but at least what we would grant a peer like ourselves; by default ten times that, and at least
    /// [`MIN_STARTUP`].
    #[must_use]
    pub fn startup_limit(&self) -> Duration {
        let Parameters { tx_us, rx_us, multiplier } = self.parameters;
        let detection = Duration::from_micros(tx_us.max(rx_us).into()) * multiplier.into();
        self.startup.map_or((detection * 10).max(MIN_STARTUP), |given| given.max(detection))
    }
}
