//! What both sides report in the same words.

use crate::{arbiter::Health, events::emit, keepalive::BeatHandle};
use mc_core::register::CasOutcome;
use serde_json::{Value, json};

/// A swap's outcome, as an event's fields.
#[must_use]
pub fn outcome(outcome: &CasOutcome) -> Value {
    match outcome {
        CasOutcome::Won(register) => json!({ "outcome": "won", "register": register }),
        CasOutcome::Lost(held) => json!({ "outcome": "lost", "register": held }),
    }
}

/// A suspicion raised by missed beats, as an event's fields.
#[must_use]
pub fn suspicion(beats: &BeatHandle) -> Value {
    let Some(report) = beats.suspicion() else { return json!({ "why": "missed beats" }) };
    json!({
        "why": "missed beats",
        "silent_ms": report.silent_for.as_secs_f64() * 1e3,
        "missed": report.missed,
        "detection_ms": report.detection_time.as_secs_f64() * 1e3,
    })
}

/// The arbiter became reachable, or stopped being so. Its loss stops nothing but failover; that must be heard.
pub fn arbiter(health: &Health) {
    if health.reachable {
        tracing::info!("the arbiter can be reached: failover is possible");
        emit("arbiter-reachable", json!({}));
    } else {
        let why = health.last_error.as_deref().unwrap_or("no answer");
        tracing::warn!(why, "the arbiter cannot be reached: protection goes on, failover is impossible");
        emit("arbiter-unreachable", json!({ "why": why }));
    }
}

/// What is true of every protected VM, and an operator might not expect.
#[must_use]
pub fn standing_notes() -> Vec<String> {
    vec![
        "the serial console and other character devices are not held: what they print may be taken back by a takeover"
            .to_owned(),
    ]
}
