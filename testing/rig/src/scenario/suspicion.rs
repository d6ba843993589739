//! Suspicions that nothing which was done explains, and whether the machine's load does.

use crate::{metronome, timeline::Entry};
use node::events::{Event, Silence};

/// When a process has a reason to suspect the other side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// Which.
    pub source: &'static str,
    /// Since then, in unix milliseconds.
    pub from_ms: f64,
    /// Until then.
    pub until_ms: f64,
}

/// A side suspected the other, after a silence that was longer than it allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspicion {
    /// Who.
    pub source: String,
    /// When, in unix milliseconds.
    pub at_ms: f64,
    /// After how long a silence, in milliseconds.
    pub silent_ms: f64,
    /// How long is allowed, in milliseconds.
    pub allowed_ms: f64,
}

/// How long before and after a suspicion the machine's lateness may have been, ms: the event is written after the
/// suspicion, by a process that is late as well.
const AROUND_MS: f64 = 500.0;

impl Suspicion {
    /// In words, with how late the machine was then; None if it was not, and there was no reason. `worst`: as
    /// [`metronome::worst`].
    fn excuse(&self, worst: impl Fn(f64, f64) -> Option<f64>) -> Option<String> {
        let Self { source, at_ms, silent_ms, allowed_ms } = self;
        let late = worst(at_ms - silent_ms - AROUND_MS, at_ms + AROUND_MS);
        let told = format!(
            "{source} suspected the other side after {silent_ms:.1} ms of silence, {allowed_ms:.1} are allowed"
        );
        match late {
            // Hosts that are no part of this machine keep their own time, and have no rig to watch it.
            None => Some(told),
            Some(late) if late >= allowed_ms / 2.0 => {
                Some(format!("{told}; this machine was late by {late:.1} ms then"))
            }
            Some(_) => None,
        }
    }
}

/// What the machine's load explains among the events, in words: suspicions of a side that heard nothing for longer than
/// it allows, while the machine was late. `undue` chooses among them.
#[must_use]
pub fn excuses(events: &[Entry], undue: impl Fn(&Suspicion) -> bool) -> Vec<String> {
    honest_suspicions(events).iter().filter(|s| undue(s)).filter_map(|s| s.excuse(metronome::worst)).collect()
}

/// Those among the events. One after a shorter silence than is expected none of them: nothing excuses it.
fn honest_suspicions(events: &[Entry]) -> Vec<Suspicion> {
    let of = |e: &Entry| {
        let Some(Event::Suspect(suspect)) = &e.told else { return None };
        let Silence { silent_ms, detection_ms: allowed_ms, .. } = suspect.silence?;
        let is_honest = silent_ms >= allowed_ms;
        is_honest.then(|| Suspicion { source: e.source.clone(), at_ms: e.at_ms, silent_ms, allowed_ms })
    };
    events.iter().filter_map(of).collect()
}

/// A round that proves nothing, because of what the machine did.
#[derive(Debug)]
pub struct Spoilt {
    /// What was seen.
    pub reasons: Vec<String>,
}

impl std::fmt::Display for Spoilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reasons.join("; "))
    }
}

impl std::error::Error for Spoilt {}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn suspect(silent_ms: f64) -> Entry {
        let event =
            json!({ "event": "suspect", "at_ms": 90.0, "silent_ms": silent_ms, "missed": 5, "detection_ms": 50.0 });
        Entry::parse("standby", &event.to_string())
    }

    #[test]
    fn a_suspicion_after_a_shorter_silence_than_is_allowed_is_not_honest() {
        assert_eq!(honest_suspicions(&[suspect(49.0), suspect(50.0)]).len(), 1);
        assert_eq!(excuses(&[suspect(49.0)], |_| true), [""; 0]);
    }

    #[test]
    fn a_suspicion_on_a_calm_machine_is_no_excuse() {
        let suspicion = honest_suspicions(&[suspect(51.0)]).remove(0);
        assert_eq!(suspicion.excuse(|_, _| Some(24.0)), None);
        assert!(suspicion.excuse(|_, _| Some(26.0)).unwrap().contains("late by 26.0 ms"));
        assert!(suspicion.excuse(|_, _| None).is_some(), "nobody watches");
        let around = |from, to| Some(if (from, to) == (90.0 - 51.0 - 500.0, 590.0) { 30.0 } else { 0.0 });
        assert!(suspicion.excuse(around).is_some());
    }
}
