//! What was known at the time, in numbers: the machine's half of a story.

use super::incident::Incident;
use node::journal::Entry;
use serde::Serialize;
use serde_json::{Value, json};

/// Times in ms; epochs and generations as their numbers. What no event says is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// The other host.
    pub peer: Option<String>,
    /// Whom this side suspected of having died, and why: the fields of the event `suspect`, or of `link-lost`.
    pub suspicion: Value,
    /// How the other side beats, as it said: `{interval_ms, multiplier}`.
    pub peer_beats: Value,
    /// How long this side itself was away just before, or meanwhile, at most.
    pub stalled_ms: Option<f64>,
    /// The swap: what was expected, what was asked for, the outcome, what the register holds since, how long it took.
    pub swap: Value,
    /// What the register held when it was read last.
    pub read: Value,
    /// `{captured, acked}` on the primary, `{generation, committed}` on the standby, as far as known last.
    pub epochs: Value,
    /// The epoch that the VM runs from, after a takeover.
    pub from_epoch: Option<u64>,
    /// Packets `{held, released, dropped}`: held when it began; let out and dropped from there to its end.
    pub output: Value,
    /// What a takeover took, µs since the suspicion, and QEMU's part of it.
    pub takeover: Value,
    /// The arbiter, as known last before the outcome.
    pub arbiter: Value,
    /// The last exit code, and its reason.
    pub exit: Value,
}

/// A field of one of our newtypes or a plain number.
fn number(value: Option<&Value>) -> Option<u64> {
    value.and_then(Value::as_u64)
}

impl Facts {
    /// Of one incident.
    #[must_use]
    pub fn of(incident: &Incident) -> Self {
        let newest =
            |field: &str| incident.entries.iter().rev().find_map(|e| e.fields.get(field).filter(|v| !v.is_null()));
        let syncing = incident.before("syncing");
        let peer = syncing.and_then(|e| named(e.fields.get("standby").or_else(|| e.fields.get("primary"))?));
        let takeover = incident.find("running").map_or(
            Value::Null,
            |e| json!({ "since_suspicion": e.fields.get("since_suspicion"), "qemu": e.fields.get("qemu") }),
        );
        let reads =
            incident.entries.iter().rev().filter(|e| matches!(e.event.as_str(), "register" | "lost" | "fenced"));
        let read = reads.filter_map(|e| e.fields.get("register")).find(|register| !register.is_null());
        let exits = incident.entries.iter().rev().filter(|e| e.event == "exit");
        let exit = exits.max_by_key(|e| e.text("process") == Some("supervisor"));
        Self {
            peer: peer.map(str::to_owned),
            suspicion: suspicion(incident),
            peer_beats: syncing.and_then(|e| e.fields.get("peer_beats")).cloned().unwrap_or_default(),
            stalled_ms: incident
                .entries
                .iter()
                .filter(|e| e.event == "stalled")
                .filter_map(|e| e.number("away_ms"))
                .reduce(f64::max),
            swap: swap(incident),
            read: read.cloned().unwrap_or_default(),
            epochs: newest("epochs").cloned().unwrap_or_default(),
            from_epoch: number(incident.find("running").and_then(|e| e.fields.get("epoch"))),
            output: output(incident),
            takeover,
            arbiter: newest("arbiter").cloned().unwrap_or_default(),
            exit: exit.map_or(Value::Null, |e| json!({ "code": e.fields.get("code"), "why": e.fields.get("why") })),
        }
    }
}

/// The name of a node, or of the node of a copy.
pub(super) fn named(of: &Value) -> Option<&str> {
    let node = of.get("node").unwrap_or(of);
    node.get("name").unwrap_or(node).as_str()
}

fn suspicion(incident: &Incident) -> Value {
    let Some(entry) = incident.find("suspect").or_else(|| incident.find("link-lost")) else { return Value::Null };
    let mut told = json!({ "at_ms": entry.at_ms, "event": entry.event });
    for name in ["why", "silent_ms", "missed", "detection_ms", "interval_ms", "paths", "own_late", "received"] {
        if let Some(value) = entry.fields.get(name) {
            told[name] = value.clone();
        }
    }
    told
}

/// The last one; a claim may need several, when the register moved on meanwhile.
fn swap(incident: &Incident) -> Value {
    let Some(asking) = incident.entries.iter().rev().find(|e| e.event == "asking") else { return Value::Null };
    let answer = incident.swap().filter(|(e, _)| e.after_ms(asking) >= 0.0).map(|(e, _)| e);
    let of = |entry: Option<&Entry>, name: &str| entry.and_then(|e| e.fields.get(name)).cloned().unwrap_or_default();
    json!({
        "asked_at_ms": asking.at_ms,
        "expect": asking.fields.get("expect"),
        "before": register_before(incident, asking.fields.get("expect")),
        "new": asking.fields.get("new"),
        "outcome": of(answer, "outcome"),
        "holds": of(answer, "register"),
        "took_ms": of(answer, "took_ms"),
    })
}

/// What the register held, if this side's own swap had made that.
fn register_before(incident: &Incident, expect: Option<&Value>) -> Value {
    let won = incident.before("cas").filter(|e| e.text("outcome") == Some("won"));
    let register = won.and_then(|e| e.fields.get("register"));
    register.filter(|register| register.get("generation") == expect).cloned().unwrap_or_default()
}

fn output(incident: &Incident) -> Value {
    let stands: Vec<&Value> = incident.entries.iter().filter_map(|e| e.fields.get("output")).collect();
    let (Some(first), Some(last)) = (stands.first(), stands.last()) else { return Value::Null };
    let of = |stand: &Value, name: &str| number(stand.get(name)).unwrap_or(0);
    let grown = |name: &str| of(last, name).saturating_sub(of(first, name));
    json!({ "held": of(first, "held"), "released": grown("released"), "dropped": grown("dropped") })
}
