//! What both sides report in the same words.

use crate::{keepalive::BeatHandle, paths::Watch};
use mc_core::{
    id::Time,
    register::{CasOutcome, Swap},
};
use serde_json::{Value, json};
use std::time::Duration;

/// A swap's outcome, as an event's fields.
#[must_use]
pub fn outcome(outcome: &CasOutcome) -> Value {
    match outcome {
        CasOutcome::Won(register) => json!({ "outcome": "won", "register": register }),
        CasOutcome::Lost(held) => json!({ "outcome": "lost", "register": held }),
    }
}

/// A swap that the arbiter is asked for, as an event's fields.
#[must_use]
pub fn asked(Swap { expect, new, contested }: &Swap) -> Value {
    json!({ "expect": expect, "new": new, "contested": contested })
}

/// ms, to the microsecond.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A suspicion raised by the beats, as an event's fields: how long by which path, what was allowed, and how late this side
/// was itself.
#[must_use]
pub fn suspicion(beats: &BeatHandle, watch: &Watch, now: Time) -> Value {
    let (times, worst, received) = beats.lateness();
    let mut fields = json!({
        "why": if beats.is_running() { "missed beats" } else { "the thread that hears beats has died" },
        "paths": watch.heard(beats, now),
        "own_late": { "times": times, "max_ms": ms(worst) },
        "received": received,
    });
    let proof = beats.proof();
    if proof.heard == 0 || proof.echoed == 0 {
        // They never worked: no host has died, the network drops them.
        fields["unproven"] = json!(watch.unproven(beats, "the other side", now));
    }
    if let Some(report) = beats.suspicion() {
        fields["silent_ms"] = json!(ms(report.silent_for));
        fields["missed"] = json!(report.missed);
        fields["detection_ms"] = json!(ms(report.detection_time));
        // In force when it fell silent: an operator may have changed what the session began with.
        fields["interval_ms"] = json!(beats.negotiation().0.receive.map(ms));
    }
    fields
}

/// Adds all fields of `more`.
#[must_use]
pub fn with(mut fields: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
