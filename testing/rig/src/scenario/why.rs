//! Whether `afterimage why` tells what the rig saw: on the host that went on, and on the one that did not.
//!
//! A story is wrong if its outcome is not the scenario's, if it names another winner, generation or epoch than the
//! events and the status that the rig kept itself, or if it says that output of the loser was let out. A missing one is
//! wrong too. What dies at once may tell anything of its last moment, for its processes die one after another, or
//! nothing: but not that it won.

use super::{Scenario, evidence::Evidence, round::Round};
use crate::{
    hosts::Place,
    timeline::{Entry, poll},
};
use anyhow::Result;
use node::events::Event;
use serde_json::Value;

/// Asks both hosts, until all is well or time is up; complaints and stories go into the evidence.
///
/// # Errors
/// Somebody interrupted the rig.
pub fn check(round: &Round<'_>, evidence: &mut Evidence) -> Result<()> {
    let mut complaints = Vec::new();
    poll(round.topology.patience(), || {
        complaints.clear();
        for place in [Place::Primary, Place::Standby] {
            let text = round.why(place, &["--json"]).unwrap_or_default();
            let report = serde_json::from_str(&text).unwrap_or(Value::Null);
            let ahead_ms = round.topology.host(place).clock_ahead_ms();
            complaints.extend(complaint(evidence, place, &report, ahead_ms).map(|what| format!("why, {what}")));
        }
        complaints.is_empty()
    })?;
    evidence.complaints.append(&mut complaints);
    let told = [Place::Primary, Place::Standby].map(|place| round.why(place, &["--last", "1"]));
    evidence.stories = told.into_iter().flatten().filter(|story| story.contains("ms  ")).collect();
    Ok(())
}

/// What a host must tell of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tale {
    /// An incident of one of these kinds, with everything in it.
    One(&'static [&'static str]),
    /// Anything but that it went on.
    Anything,
    /// The rig does not ask.
    Unasked,
}

fn expected(scenario: Scenario, survivor: Option<Place>, place: Place) -> Tale {
    use Scenario as S;
    let survives = survivor == Some(place);
    match (scenario, place) {
        (S::KillWitness, _) => Tale::One(&["arbiter-lost"]),
        (S::CutRdma, _) => Tale::One(&["fell-back"]),
        // What is told there is the beginning of another story, or part of several.
        (S::MuteBeats | S::UngatedNic | S::PowerCut | S::ForgetWitness | S::AssignWitness | S::SigtermPrimary, _)
        | (S::SigtermStandby, _) => Tale::Unasked,
        (S::StopQemu, _) if survivor == Some(Place::Primary) => Tale::Unasked,
        (S::KillPrimary | S::KillSurvivorSidecar | S::NoStandbyYet | S::KillSidecarAndVm, Place::Primary)
        | (S::KillStandby, Place::Standby) => Tale::Anything,
        (_, Place::Primary) if survives => Tale::One(&["went-solo"]),
        (_, Place::Primary) => Tale::One(&["fenced"]),
        _ if survives => Tale::One(&["took-over"]),
        _ => Tale::One(&["lost-swap", "lost", "discarded"]),
    }
}

/// The first thing that is wrong with what one host tells.
fn complaint(evidence: &Evidence, place: Place, report: &Value, ahead_ms: f64) -> Option<String> {
    let name = if place == Place::Standby { "standby" } else { "primary" };
    let at = |told: &Value, name: &str| told[name].as_f64().map(|ms| ms - ahead_ms);
    let since = |told: &&Value| at(told, "ended_ms").is_none_or(|ended| ended >= evidence.fault_at_ms);
    let incidents = report["incidents"].as_array().map_or(&[][..], Vec::as_slice);
    let told: Vec<&Value> = incidents.iter().filter(since).collect();
    let kinds = match expected(evidence.scenario, evidence.survivor, place) {
        Tale::Unasked => return None,
        Tale::Anything => {
            let wins = |t: &&&Value| matches!(t["kind"].as_str(), Some("took-over" | "went-solo"));
            return told.iter().find(wins).map(|t| format!("{name}: what died tells of {}", t["kind"]));
        }
        Tale::One(kinds) => kinds,
    };
    let Some(incident) = told.iter().find(|t| t["kind"].as_str().is_some_and(|kind| kinds.contains(&kind))) else {
        let kinds_told: Vec<&Value> = told.iter().map(|t| &t["kind"]).collect();
        return Some(format!("{name}: expected {kinds:?}, it tells {kinds_told:?}"));
    };
    if incident["ended_ms"].is_null() {
        return Some(format!("{name}: {} has no end", incident["kind"]));
    }
    let story = Story { evidence, place, facts: &incident["facts"], ahead_ms };
    story.complaint().map(|what| format!("{name}, {}: {what}", incident["kind"].as_str().unwrap_or("?")))
}

struct Story<'a> {
    evidence: &'a Evidence,
    place: Place,
    facts: &'a Value,
    ahead_ms: f64,
}

impl Story<'_> {
    fn complaint(&self) -> Option<String> {
        self.suspicion().or_else(|| self.swap()).or_else(|| self.outcome())
    }

    fn source(&self) -> &'static str {
        if self.place == Place::Standby { "standby" } else { "protect" }
    }

    fn number(&self, pointer: &str) -> Option<f64> {
        self.facts.pointer(pointer)?.as_f64()
    }

    /// Who suspected, when, after how long. (When the silence began is not looked at: the event is written a moment
    /// after the suspicion, and that moment is as long as the machine is busy.)
    fn suspicion(&self) -> Option<String> {
        let mut said = self
            .evidence
            .events
            .iter()
            .filter(|e| matches!(e.told_by(self.source()), Some(Event::Suspect(_))))
            .peekable();
        said.peek()?;
        let Some(at_ms) = self.number("/suspicion/at_ms").map(|ms| ms - self.ahead_ms) else {
            return Some("this side suspected the other, and why does not say so".to_owned());
        };
        let event = self.facts.pointer("/suspicion/event").and_then(Value::as_str);
        if event == Some("suspect") && !said.any(|e| (at_ms - e.at_ms).abs() <= 0.01) {
            return Some(format!("suspicion at {at_ms}, and no such event came then"));
        }
        let (silent, allowed) = (self.number("/suspicion/silent_ms")?, self.number("/suspicion/detection_ms")?);
        (silent < allowed).then(|| format!("suspicion after {silent} ms, and {allowed} ms are allowed"))
    }

    /// Who won, and which generation.
    fn swap(&self) -> Option<String> {
        if !self.evidence.scenario.is_arbitrated() {
            return (!self.facts["swap"].is_null()).then(|| "a swap, though nobody had a reason".to_owned());
        }
        let survives = self.evidence.survivor == Some(self.place);
        let winner = if self.evidence.survivor == Some(Place::Standby) { "host-b" } else { "host-a" };
        let outcome = self.facts.pointer("/swap/outcome").and_then(Value::as_str);
        if survives && outcome != Some("won") {
            return Some(format!("it went on, and its swap is {outcome:?}"));
        }
        if !survives && outcome == Some("won") {
            return Some("it did not go on, and won a swap".to_owned());
        }
        let holds = ["/swap/holds", "/read"].iter().find_map(|p| self.facts.pointer(p).filter(|h| !h.is_null()));
        let Some(holds) = holds else {
            // A standby that the primary released itself never asked.
            return (survives || self.place == Place::Primary).then(|| "no register".to_owned());
        };
        // (Nodes have an identity beside their name.)
        let owner = ["/owner/node/name", "/owner/node"].iter().find_map(|p| holds.pointer(p)?.as_str());
        if owner != Some(winner) || holds["mode"] != "solo" {
            return Some(format!("the register holds {holds}, and {winner} runs the VM"));
        }
        let won = self.evidence.events.iter().filter_map(Entry::won);
        let generations: Vec<u64> = won.map(|register| register.generation.0).collect();
        (!holds["generation"].as_u64().is_some_and(|generation| generations.contains(&generation)))
            .then(|| format!("generation {}, and the winner's event has {generations:?}", holds["generation"]))
    }

    /// Which epoch; what was let out, and what was not.
    fn outcome(&self) -> Option<String> {
        let survives = self.evidence.survivor == Some(self.place);
        if self.place == Place::Standby && survives && self.evidence.scenario.is_arbitrated() {
            let acked = self.evidence.status["last_ack_epoch"].as_u64();
            let from = self.facts["from_epoch"].as_u64();
            let said = self.evidence.events.iter().find_map(|e| match e.told_by("standby") {
                Some(Event::Running(running)) => Some(running.epoch.0),
                _ => None,
            });
            if from.is_none() || from < acked || from != said {
                return Some(format!(
                    "runs from epoch {from:?}; {acked:?} was ACKed before the fault, the event has {said:?}"
                ));
            }
        }
        if self.place == Place::Primary && !survives && self.evidence.survivor.is_some() {
            if let Some(released) = self.released_since_suspicion().filter(|n| *n > 0) {
                return Some(format!("{released} packets let out by the loser after its suspicion"));
            }
            if self.facts.pointer("/exit/code").and_then(Value::as_u64) != Some(4) {
                return Some(format!("exit {}, and a fenced one ends with 4", self.facts["exit"]));
            }
        }
        None
    }

    /// Packets that the primary counts as let out between its suspicion and its end as a loser.
    fn released_since_suspicion(&self) -> Option<u64> {
        let released = |wanted: fn(&Event) -> bool| {
            let mut told = self.evidence.events.iter().filter_map(|e| e.told_by("protect"));
            Some(told.find(|event| wanted(event))?.standing()?.output.released)
        };
        let end = released(|e| matches!(e, Event::Fenced(_)))?;
        Some(end.saturating_sub(released(|e| matches!(e, Event::Suspect(_)))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::sample;
    use serde_json::json;

    fn evidence(scenario: Scenario, survivor: Place) -> Evidence {
        let event = |source: &str, text: Value| Entry::parse(source, &text.to_string());
        let running =
            json!({ "event": "running", "at_ms": 1060.0, "generation": 3, "epoch": 41, "since_suspicion": {} });
        Evidence {
            scenario,
            fault_at_ms: 1000.0,
            quiet_from_ms: 2000.0,
            survivor: Some(survivor),
            primary: Default::default(),
            standby: Default::default(),
            replies: Vec::new(),
            summary: None,
            complaints: Vec::new(),
            violations: Vec::new(),
            due: Vec::new(),
            status: json!({ "last_ack_epoch": 40 }),
            stories: Vec::new(),
            events: vec![
                event("standby", json!({ "event": "suspect", "at_ms": 1055.0 })),
                event("standby", sample::won(3, 1057.0)),
                event("standby", running),
            ],
        }
    }

    fn took_over() -> Value {
        let facts = json!({
            "suspicion": { "event": "suspect", "at_ms": 1055.0, "silent_ms": 56.0, "detection_ms": 50.0 },
            "swap": { "outcome": "won", "holds": sample::register(3) }, "from_epoch": 41,
        });
        json!({ "incidents": [{ "kind": "took-over", "ended_ms": 1060.0, "facts": facts }] })
    }

    #[test]
    fn a_true_story_has_no_complaint() {
        let evidence = evidence(Scenario::KillPrimary, Place::Standby);
        assert_eq!(complaint(&evidence, Place::Standby, &took_over(), 0.0), None);
        assert_eq!(complaint(&evidence, Place::Primary, &Value::Null, 0.0), None);
    }

    #[test]
    fn what_died_may_tell_of_its_last_moment_but_not_that_it_won() {
        let evidence = evidence(Scenario::KillPrimary, Place::Standby);
        for kind in ["open", "fenced", "vm-gone"] {
            let report = json!({ "incidents": [{ "kind": kind, "ended_ms": 1060.0 }] });
            assert_eq!(complaint(&evidence, Place::Primary, &report, 0.0), None, "{kind}");
        }
        let report = json!({ "incidents": [{ "kind": "went-solo", "ended_ms": 1060.0 }] });
        assert!(complaint(&evidence, Place::Primary, &report, 0.0).is_some());
    }

    #[test]
    fn a_suspicion_among_several_is_found_however_late_it_was_written() {
        let mut evidence = evidence(Scenario::KillPrimary, Place::Standby);
        let later = json!({ "event": "suspect", "at_ms": 1900.0 });
        evidence.events.insert(0, Entry::parse("standby", &later.to_string()));
        assert_eq!(complaint(&evidence, Place::Standby, &took_over(), 0.0), None);
        let mut report = took_over();
        report["incidents"][0]["facts"]["suspicion"]["at_ms"] = json!(1900.0);
        assert_eq!(complaint(&evidence, Place::Standby, &report, 0.0), None);
    }

    #[test]
    fn every_lie_is_found() {
        let lies: [(&str, Value, &str); 9] = [
            ("/incidents/0/kind", json!("fenced"), "expected"),
            ("/incidents/0/ended_ms", Value::Null, "no end"),
            ("/incidents/0/facts/suspicion", Value::Null, "does not say so"),
            ("/incidents/0/facts/suspicion/at_ms", json!(1050.0), "no such event"),
            ("/incidents/0/facts/suspicion/silent_ms", json!(49.0), "are allowed"),
            ("/incidents/0/facts/swap/outcome", json!("lost"), "its swap is"),
            ("/incidents/0/facts/swap/holds/owner/node/name", json!("host-a"), "runs the VM"),
            ("/incidents/0/facts/swap/holds/generation", json!(4), "the winner's event"),
            ("/incidents/0/facts/from_epoch", json!(39), "runs from epoch"),
        ];
        for (pointer, value, expected) in lies {
            let mut report = took_over();
            *report.pointer_mut(pointer).unwrap() = value;
            let evidence = evidence(Scenario::KillPrimary, Place::Standby);
            let found = complaint(&evidence, Place::Standby, &report, 0.0).unwrap_or_default();
            assert!(found.contains(expected), "{pointer}: {found:?}");
        }
        let evidence = evidence(Scenario::KillPrimary, Place::Standby);
        assert!(complaint(&evidence, Place::Standby, &Value::Null, 0.0).is_some(), "a missing story");
        assert!(complaint(&evidence, Place::Primary, &took_over(), 0.0).unwrap().contains("what died"));
    }
}
