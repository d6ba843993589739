//! What the rig reads from `afterimage status --json`. The field names are in this file only.

use serde_json::{Value, json};

/// `{p50, p99, max}` of how long the VM stood still for a checkpoint, in microseconds.
#[must_use]
pub fn pause_us(status: &Value) -> Value {
    percentiles(status.pointer("/pause_us"))
}

/// `{p50, p99, max}` of how long output was held, in microseconds.
#[must_use]
pub fn hold_us(status: &Value) -> Value {
    percentiles(status.pointer("/hold_us"))
}

/// The last epoch that was captured.
#[must_use]
pub fn epoch(status: &Value) -> Option<u64> {
    status.pointer("/epoch")?.as_u64()
}

/// How far staging is over its cap, in bytes: of what is allocated, not only of what is in use.
#[must_use]
pub fn staging_over_cap_bytes(status: &Value) -> Option<u64> {
    let bytes = |name: &str| status.get(name)?.as_u64();
    let live = bytes("staging_live_bytes")?.max(bytes("staging_used_bytes")?);
    Some(live.saturating_sub(bytes("staging_cap_bytes")?))
}

/// How checkpoints travel now.
#[must_use]
pub fn transport(status: &Value) -> Option<&str> {
    status.pointer("/transport")?.as_str()
}

/// Whether the VM is protected now.
#[must_use]
pub fn is_protected(status: &Value) -> bool {
    status.pointer("/protected").and_then(Value::as_bool) == Some(true)
}

/// How often checkpoints had to take the second path.
#[must_use]
pub fn fallbacks(status: &Value) -> Option<u64> {
    status.pointer("/counters/fallbacks")?.as_u64()
}

/// Whether the sidecar reaches its arbiter.
#[must_use]
pub fn arbiter_reachable(status: &Value) -> Option<bool> {
    status.pointer("/arbiter/reachable")?.as_bool()
}

fn percentiles(histogram: Option<&Value>) -> Value {
    let Some(histogram) = histogram.filter(|h| h.is_object()) else { return Value::Null };
    json!({ "p50": histogram["p50"], "p99": histogram["p99"], "max": histogram["max"] })
}
