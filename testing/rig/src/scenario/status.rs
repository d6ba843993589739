//! What the rig reads from `afterimage status --json`. The field names are in this file only.

use crate::stats::round;
use serde_json::{Value, json};

/// What `afterimage status --json` says of one VM; null if that is nothing.
#[must_use]
pub fn parse(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Array(several)) => several.into_iter().find(is_told).unwrap_or_default(),
        Ok(value @ Value::Object(_)) if is_told(&value) => value,
        _ => Value::Null,
    }
}

/// Whether a process said it: of one that is dead or stopped only that is known.
fn is_told(status: &Value) -> bool {
    !matches!(role(status), Some("gone" | "does-not-answer"))
}

/// What this side is.
#[must_use]
pub fn role(status: &Value) -> Option<&str> {
    status.pointer("/role")?.as_str()
}

/// Why the VM makes no progress, if it does not.
#[must_use]
pub fn stalled(status: &Value) -> Option<&str> {
    status.pointer("/stalled")?.as_str()
}

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

/// What beats travel over.
#[must_use]
pub fn keepalive(status: &Value) -> Option<&str> {
    status.pointer("/keepalive")?.as_str()
}

/// `{device, timeout, retry, gives_up_ms}`: after how long RDMA itself reports a peer that is gone, as it is set. Null
/// without.
#[must_use]
pub fn rdma(status: &Value) -> Value {
    let number = |name: &str| u32::try_from(status.pointer("/rdma")?.get(name)?.as_u64()?).ok();
    let Some((timeout, retry)) = number("timeout").zip(number("retry")) else { return Value::Null };
    // The local ACK timeout is 4.096 us * 2^timeout (InfiniBand specification 9.7.6.1.3), for the first try and each
    // other.
    let gives_up_ms = 4.096e-3 * f64::from(timeout).exp2() * f64::from(retry + 1);
    json!({ "device": status["rdma"]["device"], "timeout": timeout, "retry": retry, "gives_up_ms": round(gives_up_ms) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vm_is_an_object_several_are_an_array() {
        assert_eq!(parse(r#"{"role":"solo"}"#)["role"], "solo");
        assert_eq!(parse(r#"[{"role":"solo"},{}]"#)["role"], "solo");
        for nothing in ["", "[]", "3", "no VM"] {
            assert_eq!(parse(nothing), Value::Null, "{nothing}");
        }
    }

    #[test]
    fn rdma_gives_up_after_all_tries() {
        let status = json!({ "rdma": { "device": "rxe0", "timeout": 18, "retry": 6 } });
        assert_eq!(rdma(&status)["gives_up_ms"], 7516.193);
        assert_eq!(rdma(&json!({ "rdma": null })), Value::Null);
    }
}
