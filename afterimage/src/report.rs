//! What both sides report in the same words.

use crate::{
    arbiter::{ArbiterClient, Health},
    config,
    events::emit,
    gate,
    keepalive::BeatHandle,
    status::{ArbiterStatus, Beats, Status},
};
use mc_core::{gate::GateStats, register::CasOutcome, slab::PoolStats};
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
        "the serial console and other character devices are not held: a takeover may take back what they printed"
            .into(),
    ]
}

/// The NICs, as the gate wants them.
#[must_use]
pub fn nics(nics: &[config::NicSpec]) -> Vec<gate::NicSpec> {
    nics.iter().map(|n| gate::NicSpec { socket: n.socket.clone(), tap: n.tap.clone() }).collect()
}

/// Fills in what the gate knows.
pub fn fill_gate(status: &mut Status, stats: GateStats, gate: &gate::NicGate) {
    status.held_packets = stats.held_packets;
    status.held_bytes = stats.held_bytes;
    status.released_packets = stats.released_packets;
    status.dropped_packets = stats.dropped_packets;
    status.hold_us = gate.hold_histogram().percentiles();
}

/// Fills in what the staging pool knows.
pub fn fill_staging(status: &mut Status, stats: PoolStats) {
    status.staging_used_bytes = stats.used_bytes;
    status.staging_live_bytes = stats.live_bytes;
    status.staging_cap_bytes = stats.cap_bytes;
    status.staging_limit_bytes = stats.limit_bytes;
    status.staging_most_bytes = stats.most_bytes;
    status.staging_cap_hits = stats.cap_hits;
}

/// Fills in what the arbiter's client knows.
pub fn fill_arbiter(status: &mut Status, arbiter: &ArbiterClient) {
    let health = arbiter.health();
    status.arbiter =
        ArbiterStatus { spec: arbiter.spec().to_string(), reachable: health.reachable, last_error: health.last_error };
}

/// Fills in what the beat thread knows.
pub fn fill_beats(status: &mut Status, beats: &BeatHandle) {
    let stats = beats.stats();
    status.beats = Beats {
        sent: stats.sent,
        received: stats.received,
        missed: stats.missed,
        self_late: stats.self_late,
        gap_us: stats.gap_us,
        rtt_us: stats.rtt_us,
        detection_time_us: stats.detection_time_us,
    };
    status.notes.extend(beats.notes().iter().cloned());
}
