//! The VM as it is cannot be protected: an output that nobody holds has come, or the standby could not load what it has become.
//!
//! Protection ends through the arbiter. While that is away nothing is asked for: a claim that nobody answers would hold all of the
//! VM's output, and what the standby has is none the worse for it. Epochs go on, neither side calls the VM protected, and when the
//! arbiter answers protection ends; unless what was wrong has gone by then.

use super::data_path::DataPath;
use api::WhyNot;
use mc_core::{
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::primary::Trouble;
use node::{
    arbiter::{ArbiterSpec, Ask},
    clock::unix_ms,
    events::{Event as Told, emit},
};

/// What is wrong, and since when (ms since 1970).
#[derive(Debug)]
pub(super) struct Unfit {
    why: String,
    since_ms: u64,
}

impl DataPath {
    /// Protection has to end, as soon as the arbiter is there.
    pub(super) fn is_unfit(&mut self, why: String) {
        emit(Told::Unfit(why.as_str().into()));
        self.unfit = Some(Unfit { why, since_ms: unix_ms() });
        self.run.host.arbiter.ask(Ask::Read);
    }

    /// The arbiter answered just now, and could decide. (An operator who is the arbiter says `solo`.)
    pub(super) fn end_if_unfit(&mut self) {
        let decides =
            *self.run.host.arbiter.spec() != ArbiterSpec::Manual && self.run.driver.machine().role() == Role::Protected;
        // QEMU would not be told to leave its checkpoints.
        let decides = decides && !self.watchdog.is_silent();
        let Some(Unfit { why, .. }) = self.unfit.take_if(|_| decides) else { return };
        emit(Told::GaveUp(why.as_str().into()));
        self.run.because(Trouble::lasting(why));
        self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
    }

    /// The VM is another one than it was: the standby shows whether it can load it, and what was wrong before counts no more.
    pub(super) fn may_be_fit(&mut self) {
        if let Some(Unfit { why, .. }) = self.unfit.take() {
            emit(Told::MayBeFit(why.into()));
        }
        self.run.driver.event(Event::OutputsChanged);
    }

    /// For the status.
    pub(super) fn why_unfit(&self) -> Option<WhyNot> {
        let Unfit { why, since_ms } = self.unfit.as_ref()?;
        let end = match self.run.host.arbiter.spec() {
            ArbiterSpec::Manual => {
                "The arbiter is an operator: stop the standby, make sure that it is, and run `afterimage solo`"
                    .to_owned()
            }
            spec => format!("Protection ends as soon as the arbiter {spec} answers"),
        };
        let why = format!("{why}. {end}; until then output leaves as before");
        Some(WhyNot { why, since_ms: *since_ms, times: 1, next_try_in_ms: None, what_to_do: None })
    }
}

impl Unfit {
    /// Why there is no protection any more, when the session has ended before the arbiter answered.
    pub(super) fn trouble(self) -> Trouble {
        Trouble::lasting(self.why)
    }

    pub(super) fn is_for(&self, why: &str) -> bool {
        self.why == why
    }
}
