//! Numbers and JSON of one round.

use super::{
    Settings,
    evidence::{Evidence, Verdict},
    moments::moments,
    status,
    suspicion::Spoilt,
};
use crate::{
    hosts::Place,
    stats::{Latencies, added, round},
    timeline::Entry,
};
use node::events::Event;
use serde_json::{Value, json};

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// A reply, as far as the report needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reply {
    /// When it came, in unix milliseconds.
    pub at_ms: f64,
    /// Since its request was sent.
    pub latency_us: u64,
}

impl Reply {
    /// None if the event is no reply.
    #[must_use]
    pub fn of(entry: &Entry) -> Option<Self> {
        let latency_us = entry.fields.get("latency_us").and_then(Value::as_u64);
        (entry.event == "reply").then_some(Self { at_ms: entry.at_ms, latency_us: latency_us? })
    }
}

/// When what happened, in milliseconds. What did not happen is None.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// From the fault to the survivor's suspicion.
    pub kill_to_declared: Option<f64>,
    /// From there to the swap that it won.
    pub declared_to_cas: Option<f64>,
    /// From there until its VM ran (alone).
    pub cas_to_running: Option<f64>,
    /// From the decision until the VM ran, as the sidecar itself measured it; else the same as `cas_to_running`.
    pub decided_to_running: Option<f64>,
    /// From the fault to the first reply that the survivor gave.
    pub kill_to_first_reply: Option<f64>,
}

impl Times {
    /// Reads them from the events.
    #[must_use]
    pub fn of(evidence: &Evidence) -> Self {
        let source = if evidence.survivor == Some(Place::Standby) { "standby" } else { "protect" };
        let from = evidence.fault_at_ms;
        let find = |wanted: fn(&Entry) -> bool| {
            evidence.events.iter().find(|e| e.source == source && wanted(e) && e.at_ms >= from)
        };
        let ran = find(|e| match e.source.as_str() {
            "standby" => matches!(e.told, Some(Event::Running(_))),
            _ => matches!(e.told, Some(Event::Solo(_))),
        });
        let own = match ran.and_then(|e| e.told.as_ref()) {
            Some(Event::Running(running)) => Some(running.since_suspicion),
            _ => None,
        };
        let own = own.map(|took| round((took.running_us as f64 - took.won_us as f64) / 1e3));
        let at = |entry: Option<&Entry>| entry.map(|e| e.at_ms);
        let declared = at(find(|e| matches!(e.told, Some(Event::Suspect(_)))));
        let (cas, ran) = (at(find(|e| e.won().is_some())), at(ran));
        let between = |a: Option<f64>, b: Option<f64>| Some(round(b? - a?));
        let replied = evidence.replies.iter().find(|r| cas.is_some_and(|cas| r.at_ms >= cas)).map(|r| r.at_ms);
        Self {
            kill_to_declared: between(Some(from), declared),
            declared_to_cas: between(declared, cas),
            cas_to_running: between(cas, ran),
            decided_to_running: own.or_else(|| between(cas, ran)),
            kill_to_first_reply: between(Some(from), replied),
        }
    }

    /// By the names of the JSON.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("kill_to_declared_ms", self.kill_to_declared),
            ("declared_to_cas_ms", self.declared_to_cas),
            ("cas_to_running_ms", self.cas_to_running),
            ("decided_to_running_ms", self.decided_to_running),
            ("kill_to_first_reply_ms", self.kill_to_first_reply),
        ]
    }
}

/// What a round came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it came to.
    pub verdict: Verdict,
    /// Why. Nothing: passed.
    pub reasons: Vec<String>,
    /// What was done, as on the command line.
    pub scenario: &'static str,
    /// When what happened.
    pub times: Times,
    /// Who went on.
    pub survivor: Option<Place>,
    /// Replies, according to the client; of a Redis, writes that were acknowledged.
    pub acknowledged: u64,
    /// According to the client.
    pub lost: u64,
    /// According to the client.
    pub duplicated: u64,
    /// The client was stuck, or had no books.
    pub stuck: bool,
    /// When the fault was, in unix milliseconds; 0 of a round that did not come to it.
    pub fault_at_ms: f64,
    /// What `afterimage why` says, host by host.
    pub stories: Vec<String>,
    /// What the processes said since.
    pub events: Vec<Entry>,
    /// Everything, for a single run.
    pub json: Value,
}

impl Outcome {
    /// Of a round that came to its end.
    #[must_use]
    pub fn of(settings: &Settings, evidence: &Evidence, baseline: &Latencies, idle_cpu_percent: Option<f64>) -> Self {
        let (verdict, reasons) = evidence.verdict();
        let times = Times::of(evidence);
        let summary = evidence.summary.clone().unwrap_or_default();
        let (before, after) = evidence.reply_counts();
        let mut protected = Latencies::default();
        let calm = evidence.replies.iter().filter(|r| r.at_ms < evidence.fault_at_ms);
        calm.for_each(|r| protected.record(r.latency_us));
        let mut json = head(settings, settings.scenario.name(), verdict, &reasons);
        for (name, value) in times.named() {
            json[name] = json!(value);
        }
        merge(
            &mut json,
            json!({
                "survivor": evidence.survivor.map(name_of),
                "replies_before": before, "replies_after": after,
                "writes": summary.writes, "lost": summary.lost, "duplicated": summary.duplicated,
                "corrupt": summary.corrupt, "same_connection": summary.same_connection,
                "longest_gap_ms": round(summary.longest_gap_ms),
                "pause_us": status::pause_us(&evidence.status), "hold_us": status::hold_us(&evidence.status),
                "epochs": status::epoch(&evidence.status),
                "transport": status::transport(&evidence.status), "keepalive": status::keepalive(&evidence.status),
                "rdma": status::rdma(&evidence.status),
                "staging_over_cap_bytes": status::staging_over_cap_bytes(&evidence.status),
                "latency_us": protected.to_json(), "baseline_us": baseline.to_json(),
                "added_delay_us": added(&protected, baseline),
                "idle_cpu_percent": idle_cpu_percent.map(round),
                "takeover": moments(evidence),
            }),
        );
        let stuck = evidence.summary.as_ref().is_none_or(|s| s.stuck);
        Self {
            verdict,
            reasons,
            scenario: settings.scenario.name(),
            acknowledged: summary.replies.max(summary.writes),
            times,
            survivor: evidence.survivor,
            lost: summary.lost,
            duplicated: summary.duplicated,
            stuck,
            fault_at_ms: evidence.fault_at_ms,
            stories: evidence.stories.clone(),
            events: evidence.events.clone(),
            json,
        }
    }

    /// Of a round that did not.
    #[must_use]
    pub fn broken(settings: &Settings, error: &anyhow::Error) -> Self {
        let (verdict, reasons) = match error.downcast_ref::<Spoilt>() {
            Some(spoilt) => (Verdict::Spoilt, spoilt.reasons.clone()),
            None => (Verdict::Fail, vec![format!("{error:#}")]),
        };
        let json = head(settings, settings.scenario.name(), verdict, &reasons);
        Self {
            verdict,
            reasons,
            scenario: settings.scenario.name(),
            acknowledged: 0,
            times: Times::default(),
            survivor: None,
            lost: 0,
            duplicated: 0,
            stuck: true,
            fault_at_ms: 0.0,
            stories: Vec::new(),
            events: Vec::new(),
            json,
        }
    }

    /// Whether all was well.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }
}

/// What every report begins with.
#[must_use]
pub fn head(settings: &Settings, scenario: &str, verdict: Verdict, reasons: &[String]) -> Value {
    json!({
        "schema": SCHEMA,
        "scenario": scenario,
        "hosts": settings.hosts,
        "guest": settings.guest.kind.name(),
        "accel": settings.guest.accel.name(),
        "epoch": settings.epoch,
        "verdict": verdict.name(),
        "reasons": reasons,
    })
}

/// Adds all fields of `more`.
pub fn merge(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

fn name_of(place: Place) -> &'static str {
    if place == Place::Standby { "standby" } else { "primary" }
}
