//! The beats' measurements in full, as `keepalive probe` writes them and `keepalive tune` reads them.

use super::{MAX_PATHS, track::LossRuns};
use crate::units::spoken;
use mc_core::{
    detector::{MAX_INTERVAL, MIN_INTERVAL},
    histogram::Histogram,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::time::Duration;

/// What one end measured of the other's beats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How often the other end sends, before jitter, µs.
    #[serde(deserialize_with = "interval")]
    pub interval_us: u32,
    /// K: after how many missed beats it is suspect.
    pub detect_multiplier: u8,
    /// Beats that left here.
    pub sent: u64,
    /// Beats that came, each counted once however many ways it came.
    pub received: u64,
    /// Times this end's thread was late by more than a quarter of an interval; the detector discounts those.
    pub self_late: u64,
    /// Samples that found neither room nor a free lock.
    pub unrecorded: u64,
    /// Between two beats.
    pub gap: Histogram,
    /// There and back, less what the other end waited.
    pub rtt: Histogram,
    /// Silence in excess of what was due: of each gap, what is beyond the intervals that its sender drew (lost beats
    /// included), own lateness discounted as the detector does.
    pub excess: Histogram,
    /// How late this end's thread was whenever it woke for something due.
    pub lateness: Histogram,
    /// Beats that came by no way at all.
    pub losses: LossRuns,
    /// Each way by itself.
    #[serde(deserialize_with = "few_paths")]
    pub paths: Vec<PathMeasured>,
}

/// One way of the beats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathMeasured {
    /// "ud", "udp".
    pub name: String,
    /// Beats that left by it.
    pub sent: u64,
    /// Beats that came by it.
    pub heard: u64,
    /// Of those, how many came by it first.
    pub first: u64,
    /// Between two.
    pub gap: Histogram,
    /// From there to here, less the fastest one's time: see [`super::track`].
    pub one_way: Histogram,
    /// Beats that did not come by it.
    pub losses: LossRuns,
}

impl Measured {
    /// How often the other end sends, before jitter.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_micros(self.interval_us.into())
    }

    /// From the first beat heard to the last.
    #[must_use]
    pub fn observed(&self) -> Duration {
        self.gap.sum()
    }
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let us = u32::deserialize(deserializer)?;
    if (MIN_INTERVAL..=MAX_INTERVAL).contains(&Duration::from_micros(us.into())) {
        return Ok(us);
    }
    Err(D::Error::custom(format!(
        "an interval of {us} us: beats are {} to {} apart",
        spoken(MIN_INTERVAL),
        spoken(MAX_INTERVAL)
    )))
}

fn few_paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathMeasured>, D::Error> {
    at_most(MAX_PATHS, "ways of beats", deserializer)
}

/// A list that is refused as soon as it has one element too many: histograms take 240 KiB each, however short they are
/// written.
pub fn at_most<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    most: usize,
    what: &'static str,
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Few<T>(usize, &'static str, std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {} {}", self.0, self.1)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut few = Vec::new();
            while few.len() < self.0 {
                match list.next_element()? {
                    Some(element) => few.push(element),
                    None => return Ok(few),
                }
            }
            match list.next_element::<serde::de::IgnoredAny>()? {
                Some(_) => Err(A::Error::custom(format!("more than {} {}", self.0, self.1))),
                None => Ok(few),
            }
        }
    }
    deserializer.deserialize_seq(Few(most, what, std::marker::PhantomData))
}
