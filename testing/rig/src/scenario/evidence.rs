//! What was observed after a fault, and the verdict.
//!
//! The sidecars' own words decide nothing in favour of them: a survivor must also execute according to QEMU and be
//! heard by the client; a loser must also not execute, and have let no frame out.
//!
//! On a machine that is busy with other things a side may suspect the other though nothing was done to it yet, and
//! rightly so: it was silent for longer than is allowed. Such a round proves nothing about its scenario, so it neither
//! passes nor fails: it is *spoilt*, if nothing unsafe was seen, and told and counted as such. The machine must have
//! been late then by the rig's own clock ([`crate::metronome`]): a suspicion on a calm machine excuses nothing. Nothing
//! else does, and no verdict rests on how long something took.

use super::{
    Scenario,
    report::Reply,
    suspicion::{Due, Suspicion, excuses},
};
use crate::{client::Summary, hosts::Place, timeline::Entry};
use mc_core::id::Generation;
use node::events::Event;
use serde_json::Value;

/// What was seen of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// QEMU says that the VM executes.
    pub executes: bool,
    /// Frames that came out of its TAP device after the outcome was known; of a frozen host: since it was frozen.
    pub frames_out: u64,
    /// Its sidecar said that it is fenced, or discarded what it held.
    pub fenced: bool,
}

/// What a round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it must be.
    Pass,
    /// Nothing is proven: roles changed for a reason of the machine's, and nothing unsafe was seen.
    Spoilt,
    /// Something is wrong.
    Fail,
}

impl Verdict {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Spoilt => "spoilt",
            Self::Fail => "fail",
        }
    }
}

/// Everything that the verdict rests on.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What was done.
    pub scenario: Scenario,
    /// When, in unix milliseconds.
    pub fault_at_ms: f64,
    /// When the outcome was known.
    pub quiet_from_ms: f64,
    /// Who said first that it goes on.
    pub survivor: Option<Place>,
    /// The host where the VM ran.
    pub primary: Side,
    /// The other one.
    pub standby: Side,
    /// All replies of the client, from its start.
    pub replies: Vec<Reply>,
    /// The client's books; None if it ended without any.
    pub summary: Option<Summary>,
    /// What else should have been otherwise.
    pub complaints: Vec<String>,
    /// What else was seen that must never be, whatever the machine does.
    pub violations: Vec<String>,
    /// Who had a reason to suspect the other side, and when.
    pub due: Vec<Due>,
    /// `afterimage status` of the primary, just before the fault.
    pub status: Value,
    /// `afterimage why` of both hosts, for people.
    pub stories: Vec<String>,
    /// What the processes said since the VM was protected.
    pub events: Vec<Entry>,
}

impl Evidence {
    /// Replies before and after the fault was dealt with.
    #[must_use]
    pub fn reply_counts(&self) -> (usize, usize) {
        let before = self.replies.iter().filter(|r| r.at_ms < self.fault_at_ms).count();
        let after = self.replies.iter().filter(|r| r.at_ms >= self.quiet_from_ms).count();
        (before, after)
    }

    /// The verdict, and its reasons. None: passed.
    #[must_use]
    pub fn verdict(&self) -> (Verdict, Vec<String>) {
        let (dangers, mut other) = (self.dangers(), self.other());
        if dangers.is_empty() && other.is_empty() {
            return (Verdict::Pass, Vec::new());
        }
        let mut excuses = if dangers.is_empty() { excuses(&self.events, |s| self.is_undue(s)) } else { Vec::new() };
        if excuses.is_empty() {
            other.splice(0..0, dangers);
            return (Verdict::Fail, other);
        }
        excuses.append(&mut other);
        (Verdict::Spoilt, excuses)
    }

    /// Whether nothing that was done explains it.
    fn is_undue(&self, s: &Suspicion) -> bool {
        let explains = |due: &Due| due.source == s.source && (due.from_ms..=due.until_ms).contains(&s.at_ms);
        !self.due.iter().any(explains)
    }

    fn sides(&self) -> Option<[(Side, &'static str); 2]> {
        match self.survivor? {
            Place::Standby => Some([(self.standby, "standby"), (self.primary, "primary")]),
            _ => Some([(self.primary, "primary"), (self.standby, "standby")]),
        }
    }

    /// What must never be: two copies, something forgotten, something done twice.
    fn dangers(&self) -> Vec<String> {
        let mut reasons = self.violations.clone();
        if self.primary.executes && self.standby.executes {
            reasons.push("the VM executes on both hosts".to_owned());
        }
        if let Some([_, (loser, lost)]) = self.sides()
            && loser.frames_out > 0
        {
            reasons.push(format!("{} frames of the {lost}'s VM came out after it had lost", loser.frames_out));
        }
        let won = |source: &str| -> Vec<Generation> {
            let swaps = self.events.iter().filter(|e| e.source == source).filter_map(Entry::won);
            swaps.map(|register| register.generation).collect()
        };
        let standbys = won("standby");
        reasons.extend(
            won("protect")
                .iter()
                .filter(|g| standbys.contains(g))
                .map(|g| format!("both sides won generation {}", g.0)),
        );
        if let Some(summary) = &self.summary {
            let counts = [("lost", summary.lost), ("duplicated", summary.duplicated), ("corrupt", summary.corrupt)];
            let wrong = counts.iter().filter(|(_, n)| *n > 0);
            reasons.extend(wrong.map(|(what, n)| format!("{n} {what} according to the client")));
            if summary.same_connection == Some(false) {
                reasons.push("the client's connection broke".to_owned());
            }
        }
        reasons
    }

    /// What should have been otherwise.
    fn other(&self) -> Vec<String> {
        let mut reasons = self.complaints.clone();
        self.judge_survivor(&mut reasons);
        self.judge_swaps(&mut reasons);
        self.judge_client(&mut reasons);
        reasons
    }

    fn judge_survivor(&self, reasons: &mut Vec<String>) {
        let Some((survivor, [(winner, won), (loser, lost)])) = self.survivor.zip(self.sides()) else {
            reasons.push("nobody went on".to_owned());
            return;
        };
        if !self.scenario.allowed().contains(&survivor) {
            reasons.push(format!("the {won} went on, and had no right to"));
        }
        if !winner.executes {
            reasons.push(format!("the {won} says that it goes on, but its VM does not execute"));
        }
        if winner.fenced {
            reasons.push(format!("the {won} went on and was fenced as well"));
        }
        if loser.executes {
            reasons.push(format!("the VM of the {lost} executes"));
        }
        if self.scenario.has_loser() && !loser.fenced {
            reasons.push(format!("the {lost} did not say that it is fenced"));
        }
    }

    /// Who goes on alone has won at the arbiter; who has no reason to ask does not.
    fn judge_swaps(&self, reasons: &mut Vec<String>) {
        let asked = self.events.iter().any(|e| matches!(e.told, Some(Event::Cas(_))));
        if asked && !self.scenario.is_arbitrated() {
            reasons.push("a compare-and-swap was tried, though both sides were well".to_owned());
        }
    }

    fn judge_client(&self, reasons: &mut Vec<String>) {
        let (before, after) = self.reply_counts();
        if before == 0 && self.scenario.begins_protected() {
            reasons.push("the client had no reply before the fault".to_owned());
        }
        if after == 0 {
            reasons.push("the client had no reply after the fault".to_owned());
        }
        let Some(summary) = &self.summary else {
            reasons.push("the client ended without a summary".to_owned());
            return;
        };
        if summary.stuck {
            reasons.push("the client was stuck".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::sample;
    use serde_json::json;

    /// The primary died, the standby took over, and all is well.
    fn good() -> Evidence {
        let reply = |at_ms| Reply { at_ms, latency_us: 1 };
        Evidence {
            scenario: Scenario::KillPrimary,
            fault_at_ms: 100.0,
            quiet_from_ms: 200.0,
            survivor: Some(Place::Standby),
            primary: Side::default(),
            standby: Side { executes: true, frames_out: 9, fenced: false },
            replies: vec![reply(50.0), reply(250.0)],
            summary: Some(Summary { replies: 2, same_connection: Some(true), ..Summary::default() }),
            complaints: Vec::new(),
            violations: Vec::new(),
            due: vec![Due { source: "standby", from_ms: 100.0, until_ms: f64::INFINITY }],
            status: Value::Null,
            stories: Vec::new(),
            events: vec![suspect("standby", 149.0, 51.0), cas("standby", "won", 3)],
        }
    }

    fn cas(source: &str, outcome: &str, generation: u64) -> Entry {
        let mut event = sample::won(generation, 150.0);
        event["outcome"] = json!(outcome);
        Entry::parse(source, &event.to_string())
    }

    fn suspect(source: &str, at_ms: f64, silent_ms: f64) -> Entry {
        let event =
            json!({ "event": "suspect", "at_ms": at_ms, "silent_ms": silent_ms, "missed": 5, "detection_ms": 50.0 });
        Entry::parse(source, &event.to_string())
    }

    type Spoil = fn(&mut Evidence);

    const DANGERS: &[(Spoil, &str)] = &[
        (|e| e.primary.executes = true, "executes on both hosts"),
        (|e| e.primary.frames_out = 1, "1 frames of the primary's VM came out"),
        (|e| e.events.push(cas("protect", "won", 3)), "both sides won generation 3"),
        (|e| e.summary.as_mut().unwrap().lost = 3, "3 lost"),
        (|e| e.summary.as_mut().unwrap().duplicated = 1, "1 duplicated"),
        (|e| e.summary.as_mut().unwrap().corrupt = 1, "1 corrupt"),
        (|e| e.summary.as_mut().unwrap().same_connection = Some(false), "connection broke"),
        (|e| e.violations.push("two of them".to_owned()), "two of them"),
    ];

    const OTHER: &[(Spoil, &str)] = &[
        (|e| e.survivor = None, "nobody went on"),
        (|e| e.scenario = Scenario::KillStandby, "no right"),
        (|e| e.standby.executes = false, "does not execute"),
        (|e| e.standby.fenced = true, "was fenced as well"),
        (|e| e.scenario = Scenario::CutLink, "did not say that it is fenced"),
        (|e| e.scenario = Scenario::KillWitness, "both sides were well"),
        (|e| e.replies.truncate(1), "no reply after"),
        (|e| e.replies[0].at_ms = 150.0, "no reply before"),
        (|e| e.summary = None, "without a summary"),
        (|e| e.summary.as_mut().unwrap().stuck = true, "stuck"),
        (|e| e.complaints.push("odd".to_owned()), "odd"),
    ];

    fn verdict(evidence: &Evidence, expected: &str) -> Verdict {
        let (verdict, reasons) = evidence.verdict();
        assert!(reasons.iter().any(|r| r.contains(expected)), "{expected}: {reasons:?}");
        verdict
    }

    #[test]
    fn all_is_well() {
        assert_eq!(good().verdict(), (Verdict::Pass, vec![]));
        assert_eq!(good().reply_counts(), (1, 1));
    }

    #[test]
    fn everything_that_can_be_wrong_is_a_reason() {
        for (spoil, expected) in DANGERS.iter().chain(OTHER) {
            let mut evidence = good();
            spoil(&mut evidence);
            assert_eq!(verdict(&evidence, expected), Verdict::Fail);
        }
    }

    #[test]
    fn an_honest_suspicion_before_the_fault_spoils_a_round_and_excuses_nothing_unsafe() {
        let early = |at_ms, silent_ms| {
            let mut evidence = good();
            evidence.events.insert(0, suspect("protect", at_ms, silent_ms));
            evidence
        };
        assert_eq!(early(90.0, 51.0).verdict().0, Verdict::Pass, "it had no consequence");
        for (spoil, expected) in OTHER {
            let mut evidence = early(90.0, 51.0);
            spoil(&mut evidence);
            assert_eq!(verdict(&evidence, expected), Verdict::Spoilt);
            assert_eq!(verdict(&evidence, "after 51.0 ms of silence"), Verdict::Spoilt);
        }
        for (spoil, expected) in DANGERS {
            let mut evidence = early(90.0, 51.0);
            spoil(&mut evidence);
            assert_eq!(verdict(&evidence, expected), Verdict::Fail);
        }
        let mut dishonest = early(90.0, 49.0);
        dishonest.survivor = None;
        assert_eq!(verdict(&dishonest, "nobody went on"), Verdict::Fail, "49 ms are no reason");
    }

    #[test]
    fn a_suspicion_that_the_fault_explains_spoils_nothing() {
        let mut evidence = good();
        evidence.survivor = None;
        assert_eq!(verdict(&evidence, "nobody went on"), Verdict::Fail);
        // The same suspicion, when there was no reason for it any more.
        evidence.due[0].until_ms = 120.0;
        assert_eq!(verdict(&evidence, "nobody went on"), Verdict::Spoilt);
    }

    #[test]
    fn a_lost_swap_is_no_reason_and_udp_has_no_connection() {
        let mut evidence = good();
        evidence.scenario = Scenario::FreezePrimary;
        evidence.primary.fenced = true;
        evidence.events.push(cas("protect", "lost", 3));
        evidence.summary.as_mut().unwrap().same_connection = None;
        assert_eq!(evidence.verdict(), (Verdict::Pass, vec![]));
    }
}
