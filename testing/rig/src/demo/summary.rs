//! What many rounds came to.

use crate::{
    hosts::Place,
    scenario::{
        Settings,
        evidence::Verdict,
        report::{Outcome, head, merge},
    },
    stats::Samples,
};
use serde_json::{Map, Value, json};

/// Reasons that are listed, of each kind.
const LISTED: usize = 20;

/// Outcomes of rounds, and what spoilt those that had to be repeated.
#[derive(Debug, Default)]
pub(super) struct Summary {
    outcomes: Vec<Outcome>,
    spoilt: Vec<String>,
}

impl Summary {
    /// Adds a round: its last outcome, and what spoilt the attempts before.
    pub(super) fn add(&mut self, outcome: Outcome, spoilt: Vec<String>) {
        self.outcomes.push(outcome);
        self.spoilt.extend(spoilt);
    }

    /// Whether every round passed, in the end.
    pub(super) fn passed(&self) -> bool {
        self.outcomes.iter().all(Outcome::passed)
    }

    /// The last line of output: of a single round all of it, of many the counts and the distribution of times.
    pub(super) fn json(&self, settings: &Settings, scenario: &str, busy: u32) -> Value {
        let mut json = match self.outcomes.as_slice() {
            [only] => only.json.clone(),
            _ => self.of_many(settings, scenario),
        };
        let listed: Vec<&String> = self.spoilt.iter().take(LISTED).collect();
        merge(&mut json, json!({ "spoilt_and_repeated": self.spoilt.len(), "spoilt_by": listed, "busy": busy }));
        json
    }

    fn of_many(&self, settings: &Settings, scenario: &str) -> Value {
        let mut reasons: Vec<String> = Vec::new();
        for (outcome, reason) in self.outcomes.iter().flat_map(|o| o.reasons.iter().map(move |r| (o, r))) {
            let told = format!("{}: {reason}", outcome.scenario);
            if !reasons.contains(&told) && reasons.len() < LISTED {
                reasons.push(told);
            }
        }
        let verdicts = self.outcomes.iter().map(|o| o.verdict);
        let worst = verdicts.max_by_key(|v| *v as u8).unwrap_or(Verdict::Fail);
        let mut json = head(settings, scenario, worst, &reasons);
        let sum = |of: fn(&Outcome) -> u64| self.outcomes.iter().map(of).sum::<u64>();
        merge(
            &mut json,
            json!({
                "rounds": self.outcomes.len(),
                "passed": self.count(&Outcome::passed),
                "failed": self.count(&|o| o.verdict == Verdict::Fail),
                "spoilt": self.count(&|o| o.verdict == Verdict::Spoilt),
                "takeovers": self.count(&|o| o.survivor == Some(Place::Standby)),
                "acknowledged": sum(|o| o.acknowledged),
                "lost": sum(|o| o.lost),
                "duplicated": sum(|o| o.duplicated),
                "stuck": self.count(&|o| o.stuck),
                "scenarios": self.by_scenario(),
            }),
        );
        let names = self.outcomes.first().map(|o| o.times.named().map(|(name, _)| name));
        for (index, name) in names.into_iter().flatten().enumerate() {
            let mut samples = Samples::default();
            self.outcomes.iter().for_each(|o| samples.add(o.times.named()[index].1));
            json[name] = samples.to_json();
        }
        json
    }

    fn count(&self, wanted: &dyn Fn(&Outcome) -> bool) -> usize {
        self.outcomes.iter().filter(|o| wanted(o)).count()
    }

    fn by_scenario(&self) -> Value {
        let mut told = Map::new();
        for outcome in &self.outcomes {
            let entry = told.entry(outcome.scenario).or_insert_with(|| json!({ "pass": 0, "spoilt": 0, "fail": 0 }));
            let count = &mut entry[outcome.verdict.name()];
            *count = (count.as_u64().unwrap_or(0) + 1).into();
        }
        Value::Object(told)
    }
}
