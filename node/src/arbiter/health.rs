//! The arbiter's health: whether a failover would succeed now, and if not, why and what to do.

use mc_core::{id::WitnessId, seen::Fault, wire::arbiter::Standing};
use std::time::{Duration, Instant};

/// A witness that could store nothing for this long is not able: its next write may fail too.
const STALE: Duration = Duration::from_secs(5);

/// How the arbiter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the last try was answered.
    pub reachable: bool,
    /// Since when that has been so.
    pub since: Instant,
    /// Why an ask waits, if the last try did not settle it: unreachable, a full disk there, an operator who has to decide.
    pub last_error: Option<String>,
    /// Why it cannot be believed.
    pub fault: Option<Fault>,
    /// What `last_error` says is this host's own trouble, not the arbiter's: its name service, its disk.
    pub own_trouble: bool,
    /// The witness that this node knows; [`WitnessId::NONE`] before the first, and with `manual`.
    pub witness: WitnessId,
    /// What the last answer said of the witness; `None` before the first, and with `manual`.
    pub told: Option<Told>,
}

/// What a witness says of itself with every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which process of it.
    pub boot: u64,
    /// Whether it tries swaps of this VM's register.
    pub standing: Standing,
    /// Milliseconds since it last stored something for a test, when it said so; `None`: it never could.
    pub probe_age_ms: Option<u32>,
}

impl Told {
    /// The standing, for people.
    #[must_use]
    pub fn standing_word(&self) -> &'static str {
        match self.standing {
            Standing::Settled => "settled",
            Standing::Waiting => "waiting",
            Standing::Disputed => "disputed",
        }
    }
}

impl Health {
    /// Whether a swap would be answered, as far as is known; else why not.
    pub fn failover_possible(&self) -> Result<(), String> {
        if let Some(fault) = self.fault {
            return Err(format!("the arbiter cannot be believed: {fault}"));
        }
        if !self.reachable {
            return Err(format!("the arbiter cannot be reached: {}", self.last_error.as_deref().unwrap_or("not yet")));
        }
        if let Some(why) = self.last_error.as_ref().filter(|_| self.own_trouble) {
            return Err(why.clone());
        }
        let Some(told) = self.told else { return Ok(()) };
        // The age as the witness told it. What has passed since is a matter of who was silent: see `worker::Turns`.
        match (told.standing, told.probe_age_ms) {
            (Standing::Waiting, _) => {
                Err("the witness has started, and waits for what the VM's nodes have seen".to_owned())
            }
            (Standing::Disputed, _) => Err("the VM's nodes have seen what the witness does not hold".to_owned()),
            (Standing::Settled, None) => Err("the witness cannot store, and never could since it started".to_owned()),
            (Standing::Settled, Some(age)) if u128::from(age) > STALE.as_millis() => {
                Err("the witness cannot store any more".to_owned())
            }
            (Standing::Settled, Some(_)) => Ok(()),
        }
    }

    /// What to do about it, if something has to be done.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        const ASSIGN: &str = "when the VM's other host is back it mends itself; if that host is gone for good, or this does not \
                              pass: stop every other copy for certain, and run `afterimage witness assign VM NODE` on the \
                              witness's host";
        match (self.fault, self.told.map(|told| told.standing)) {
            (Some(Fault::Foreign { .. }), _) => Some(
                "if the witness was replaced on purpose, run `afterimage accept-witness --vm VM` on both hosts; if not, --arbiter \
                 leads to the wrong one",
            ),
            (Some(Fault::Behind { .. } | Fault::Contradicts { .. }), _) => Some(ASSIGN),
            (Some(Fault::OtherQuestion | Fault::WonAnother { .. }), _) => Some(
                "this is a bug in the arbiter, or in the program that asks it: nothing is done until it answers what it is asked",
            ),
            (None, _) if self.own_trouble => {
                Some("look at this host's name service, and at the disk of its --state-dir")
            }
            (None, _) if !self.reachable => Some("look at the witness, and at the network to it"),
            (None, Some(Standing::Waiting | Standing::Disputed)) => Some(ASSIGN),
            (None, _) => self
                .failover_possible()
                .err()
                .map(|_| "look at the disk of the witness's --state: its log says what fails"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(standing: Standing, probe_age_ms: Option<u32>) -> Health {
        let now = Instant::now();
        let (told, witness) = (Some(Told { boot: 1, standing, probe_age_ms }), WitnessId([1; 16]));
        Health { reachable: true, since: now, last_error: None, fault: None, own_trouble: false, witness, told }
    }

    #[test]
    fn a_failover_needs_a_witness_that_answers_stores_and_tries() {
        let good = health(Standing::Settled, Some(1200));
        assert_eq!((good.failover_possible(), good.remedy()), (Ok(()), None));
        let no = |health: Health, expected: &str, remedy: &str| {
            let why = health.failover_possible().unwrap_err();
            assert!(why.contains(expected), "{why}");
            assert!(health.remedy().unwrap().contains(remedy), "{:?}", health.remedy());
        };
        no(health(Standing::Settled, Some(5001)), "cannot store any more", "disk");
        no(health(Standing::Settled, None), "never could", "disk");
        no(health(Standing::Waiting, Some(1)), "waits", "witness assign");
        no(health(Standing::Disputed, Some(1)), "does not hold", "witness assign");
        no(Health { reachable: false, last_error: Some("refused".into()), ..good.clone() }, "refused", "network");
        let own = Health { own_trouble: true, last_error: Some("cannot store".into()), ..good.clone() };
        no(own, "cannot store", "this host's");
        let fault = Fault::Foreign { known: WitnessId([1; 16]), found: WitnessId([2; 16]) };
        no(Health { fault: Some(fault), ..good }, "another witness", "accept-witness");
    }
}
