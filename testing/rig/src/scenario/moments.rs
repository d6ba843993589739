//! The moments of a takeover, from the last commit to the first reply, as numbers.

use super::evidence::Evidence;
use crate::{hosts::Place, stats::round, timeline::Entry};
use node::events::{Epochs, Event};
use serde_json::{Value, json};

/// How long before the fault, and after the first reply, the client's replies are listed, ms.
const MARGIN_MS: f64 = 60.0;

/// The moments of a takeover by the standby in order, and the replies around it; times in milliseconds from the fault.
/// Null if the standby did not take over, or something of it was not seen.
pub(super) fn moments(evidence: &Evidence) -> Value {
    try_moments(evidence).unwrap_or(Value::Null)
}

fn try_moments(evidence: &Evidence) -> Option<Value> {
    let from = evidence.fault_at_ms;
    let after = |e: &&Entry| evidence.survivor == Some(Place::Standby) && e.source == "standby" && e.at_ms >= from;
    let find = |wanted: fn(&Entry) -> bool| evidence.events.iter().filter(after).find(|e| wanted(e));
    let suspect = find(|e| matches!(e.told, Some(Event::Suspect(_))))?;
    let Epochs::Standby { last_commit_ago_ms, .. } = suspect.told.as_ref()?.standing()?.epochs else { return None };
    let won = find(|e| e.won().is_some())?;
    let asked = find(|e| matches!(e.told, Some(Event::Asking(_))))?;
    let ran = find(|e| matches!(e.told, Some(Event::Running(_))))?;
    let replied = evidence.replies.iter().find(|r| r.at_ms >= won.at_ms)?.at_ms;
    let listed = [
        ("last commit", "standby", suspect.at_ms - last_commit_ago_ms?),
        ("host dies", "primary", from),
        ("suspected", "standby", suspect.at_ms),
        ("arbiter asked", "standby", asked.at_ms),
        ("swap won", "arbiter", won.at_ms),
        ("VM runs", "standby", ran.at_ms),
        ("first reply", "client", replied),
    ];
    let ms = |at_ms: f64| round(at_ms - from);
    let near = from - MARGIN_MS..=replied + MARGIN_MS;
    let replies = evidence.replies.iter().filter(|r| near.contains(&r.at_ms));
    Some(json!({
        "moments": listed.map(|(what, who, at_ms)| json!({ "what": what, "who": who, "ms": ms(at_ms) })),
        "replies_ms": replies.map(|r| ms(r.at_ms)).collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::{Scenario, evidence::Side, report::Reply};
    use super::*;
    use crate::timeline::sample;

    fn taken_over() -> Evidence {
        let event = |json: Value| Entry::parse("standby", &json.to_string());
        Evidence {
            scenario: Scenario::KillPrimary,
            fault_at_ms: 1000.0,
            quiet_from_ms: 1100.0,
            survivor: Some(Place::Standby),
            primary: Side::default(),
            standby: Side::default(),
            replies: [900.0, 990.0, 1070.0, 1500.0].map(|at_ms| Reply { at_ms, latency_us: 1 }).to_vec(),
            summary: None,
            complaints: Vec::new(),
            violations: Vec::new(),
            due: Vec::new(),
            status: Value::Null,
            stories: Vec::new(),
            events: vec![
                sample::standing("standby", json!({ "event": "suspect", "at_ms": 1050.0, "why": "missed beats" })),
                event(
                    json!({ "event": "asking", "at_ms": 1051.0, "expect": 2, "new": sample::register(3), "contested": true }),
                ),
                event(sample::won(3, 1054.0)),
                event(
                    json!({ "event": "running", "at_ms": 1064.0, "generation": 3, "epoch": 7, "since_suspicion": {} }),
                ),
            ],
        }
    }

    #[test]
    fn they_are_counted_from_the_fault() {
        let told = moments(&taken_over());
        let ms: Vec<f64> = told["moments"].as_array().unwrap().iter().map(|m| m["ms"].as_f64().unwrap()).collect();
        assert_eq!(ms, [-5.0, 0.0, 50.0, 51.0, 54.0, 64.0, 70.0]);
        assert_eq!(told["replies_ms"], json!([-10.0, 70.0]));
    }

    #[test]
    fn a_takeover_that_was_not_one_has_none() {
        let mut evidence = taken_over();
        evidence.survivor = Some(Place::Primary);
        assert_eq!(moments(&evidence), Value::Null);
        let mut evidence = taken_over();
        evidence.events.pop();
        assert_eq!(moments(&evidence), Value::Null);
    }
}
