//! Why the other side is taken for dead, and how punctual this side was.

use super::{Standing, ms};
use crate::{keepalive::BeatHandle, paths::Watch};
use mc_core::id::Time;
use serde::{Deserialize, Serialize};

/// The other side was silent for too long, or its link broke.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// In words.
    #[serde(default)]
    pub why: String,
    /// The silence, where beats told of it.
    #[serde(flatten)]
    pub silence: Option<Silence>,
    /// When it was heard last, by each path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<PathSilence>>,
    /// How late this side was itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_late: Option<OwnLate>,
    /// Beats that came in this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Beats never went both ways: what has to be let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// A silence that was too long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// For how long, ms.
    pub silent_ms: f64,
    /// Beats that were due, this side's own lateness discounted.
    pub missed: u32,
    /// What is allowed, ms.
    pub detection_ms: f64,
    /// Between two beats, as in force when it fell silent, ms.
    #[serde(default)]
    pub interval_ms: Option<f64>,
}

/// When the other side was heard last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathSilence {
    /// "ud" or "udp"; empty where it is not known.
    pub name: String,
    /// Beats that came by it.
    pub heard: u64,
    /// When the last one came, ms ago; null: none did.
    pub ago_ms: Option<f64>,
}

/// This side's own beats that were late.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnLate {
    /// How many.
    pub times: u64,
    /// By how much at most, ms.
    pub max_ms: f64,
}

impl Suspect {
    /// A suspicion that beats raised: how long by which path, what was allowed, and how late this side was itself.
    #[must_use]
    pub fn by_beats(beats: &BeatHandle, watch: &Watch, now: Time, standing: Standing) -> Self {
        let (times, worst, received) = beats.lateness();
        let why = if beats.is_running() { "missed beats" } else { "the thread that hears beats has died" };
        let proof = beats.proof();
        // They never worked: no host has died, the network drops them.
        let unproven = (proof.heard == 0 || proof.echoed == 0).then(|| watch.unproven(beats, "the other side", now));
        let silence = beats.suspicion().map(|report| Silence {
            silent_ms: ms(report.silent_for),
            missed: report.missed,
            detection_ms: ms(report.detection_time),
            // In force when it fell silent: an operator may have changed what the session began with.
            interval_ms: beats.negotiation().0.receive.map(ms),
        });
        Self {
            why: why.to_owned(),
            silence,
            paths: Some(watch.heard(beats, now)),
            own_late: Some(OwnLate { times, max_ms: ms(worst) }),
            received: Some(received),
            unproven: unproven.flatten(),
            standing: Some(standing),
        }
    }
}

/// This process's own loop was away for so long that it had to ask whether the VM is still its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stalled {
    /// For how long, ms.
    pub away_ms: f64,
    /// From when on it asks, ms.
    #[serde(default)]
    pub limit_ms: f64,
    /// How often that has been so, told or not.
    #[serde(default)]
    pub times: u64,
}
