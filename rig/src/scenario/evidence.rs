//! What was observed after a fault, and the verdict.
//!
//! The sidecars' own words decide nothing in favour of them: a survivor must also execute according to QEMU and be heard
//! by the client; a loser must also not execute, and have let no frame out.

use super::{Scenario, report::Reply};
use crate::{client::Summary, hosts::Place, timeline::Entry};
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
    /// What else was found wrong on the way.
    pub complaints: Vec<String>,
    /// `afterimage status` of the primary, just before the fault.
    pub status: Value,
    /// `afterimage why` of both hosts, for people.
    pub stories: Vec<String>,
    /// What the processes said since the fault.
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

    /// What is wrong. Nothing: passed.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = self.complaints.clone();
        self.judge_survivor(&mut reasons);
        self.judge_swaps(&mut reasons);
        self.judge_client(&mut reasons);
        reasons
    }

    fn judge_survivor(&self, reasons: &mut Vec<String>) {
        let Some(survivor) = self.survivor else {
            reasons.push("nobody went on".to_owned());
            return;
        };
        let ((winner, loser), (won, lost)) = match survivor {
            Place::Standby => ((self.standby, self.primary), ("standby", "primary")),
            _ => ((self.primary, self.standby), ("primary", "standby")),
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
            reasons.push(format!("the VM of the {lost} executes as well"));
        }
        if loser.frames_out > 0 {
            reasons.push(format!("{} frames of the {lost}'s VM came out after it had lost", loser.frames_out));
        }
        if self.scenario.has_loser() && !loser.fenced {
            reasons.push(format!("the {lost} did not say that it is fenced"));
        }
    }

    /// At the arbiter one side wins, or nobody asks.
    fn judge_swaps(&self, reasons: &mut Vec<String>) {
        let won = |source: &str| self.events.iter().any(|e| e.is(source, "cas") && e.text("outcome") == Some("won"));
        if won("protect") && won("standby") {
            reasons.push("both sides won a compare-and-swap".to_owned());
        }
        let asked = self.events.iter().any(|e| e.event == "cas");
        if asked && !self.scenario.is_arbitrated() {
            reasons.push("a compare-and-swap was tried, though both sides were well".to_owned());
        }
    }

    fn judge_client(&self, reasons: &mut Vec<String>) {
        let (before, after) = self.reply_counts();
        if before == 0 {
            reasons.push("the client had no reply before the fault".to_owned());
        }
        if after == 0 {
            reasons.push("the client had no reply after the fault".to_owned());
        }
        let Some(summary) = &self.summary else {
            reasons.push("the client ended without a summary".to_owned());
            return;
        };
        let counts = [("lost", summary.lost), ("duplicated", summary.duplicated), ("corrupt", summary.corrupt)];
        reasons.extend(
            counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what} according to the client")),
        );
        if summary.stuck {
            reasons.push("the client was stuck".to_owned());
        }
        if summary.same_connection == Some(false) {
            reasons.push("the client's connection broke".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            status: Value::Null,
            stories: Vec::new(),
            events: vec![cas("standby", "won")],
        }
    }

    fn cas(source: &str, outcome: &str) -> Entry {
        Entry::parse(source, &format!(r#"{{"event":"cas","at_ms":150,"outcome":"{outcome}"}}"#))
    }

    #[test]
    fn all_is_well() {
        assert_eq!(good().reasons(), [""; 0]);
        assert_eq!(good().reply_counts(), (1, 1));
    }

    #[test]
    fn everything_that_can_be_wrong_is_a_reason() {
        type Spoil = fn(&mut Evidence);
        let spoils: &[(Spoil, &str)] = &[
            (|e| e.survivor = None, "nobody went on"),
            (|e| e.scenario = Scenario::KillStandby, "no right"),
            (|e| e.standby.executes = false, "does not execute"),
            (|e| e.standby.fenced = true, "was fenced as well"),
            (|e| e.primary.executes = true, "executes as well"),
            (|e| e.primary.frames_out = 1, "1 frames of the primary's VM came out"),
            (|e| e.scenario = Scenario::CutLink, "did not say that it is fenced"),
            (|e| e.events.push(cas("protect", "won")), "both sides won"),
            (|e| e.scenario = Scenario::KillWitness, "both sides were well"),
            (|e| e.replies.truncate(1), "no reply after"),
            (|e| e.replies[0].at_ms = 150.0, "no reply before"),
            (|e| e.summary = None, "without a summary"),
            (|e| e.summary.as_mut().unwrap().lost = 3, "3 lost"),
            (|e| e.summary.as_mut().unwrap().duplicated = 1, "1 duplicated"),
            (|e| e.summary.as_mut().unwrap().corrupt = 1, "1 corrupt"),
            (|e| e.summary.as_mut().unwrap().stuck = true, "stuck"),
            (|e| e.summary.as_mut().unwrap().same_connection = Some(false), "connection broke"),
            (|e| e.complaints.push("odd".to_owned()), "odd"),
        ];
        for (spoil, expected) in spoils {
            let mut evidence = good();
            spoil(&mut evidence);
            let reasons = evidence.reasons();
            assert!(reasons.iter().any(|r| r.contains(expected)), "{expected}: {reasons:?}");
        }
    }

    #[test]
    fn a_lost_swap_is_no_reason_and_udp_has_no_connection() {
        let mut evidence = good();
        evidence.scenario = Scenario::FreezePrimary;
        evidence.primary.fenced = true;
        evidence.events.push(cas("protect", "lost"));
        evidence.summary.as_mut().unwrap().same_connection = None;
        assert_eq!(evidence.reasons(), [""; 0]);
    }
}
