//! An orderly end, by SIGTERM or ^C.
//!
//! ```text
//!                  Solo                      Err: no keeper
//!  signal ──┬───────────────> hand the network to its keeper ────────┐
//!           │ Protected, …          │ Ok                              v
//!           └──> arbiter there? ─> Unprotect ─> Solo ─┘ (above)    refused, and said why; the next signal
//!                  │ no             exit 0: the VM runs on,        tries again, and is obeyed if that fails: exit 3,
//!                  └──────────────> with its network               the gate closes
//! ```
//!
//! A signal that only ended the process would take the VM's network along, and would look like a death to the standby: a
//! failover that nobody asked for.

use super::{channel::ToSupervisor, data_path::DataPath, orders::Wanted};
use crate::keeper::{self, Charge};
use anyhow::Result;
use mc_core::{
    id::Time,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::{
    events::{Event as Told, KeeperStarted, Signal, emit},
    exit::{self, Code},
};
use std::time::Duration;

/// An orderly end that has taken so long is cut short by another signal.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who heard the signal. systemd tells every process of a unit, and the supervisor tells us as well: that is one signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Here,
    BySupervisor,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Runs,
    Ending(Time),
    Refused(String),
}

/// What became of the signals so far.
#[derive(Debug, Default)]
pub(super) struct Stop {
    here: u32,
    by_supervisor: u32,
    /// As many as were acted upon.
    acted: u32,
    state: State,
    /// The next refusal is none: it is obeyed.
    last: bool,
}

impl Stop {
    /// Counts a signal; false if the other process told of the same one.
    fn counts(&mut self, heard: Heard) -> bool {
        let count = match heard {
            Heard::Here => &mut self.here,
            Heard::BySupervisor => &mut self.by_supervisor,
        };
        *count += 1;
        let is_new = *count > self.acted;
        self.acted = self.acted.max(*count);
        is_new
    }

    /// Whether the process is on its way out: it looks for no standby.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.state, State::Ending(_))
    }

    /// For the status.
    pub(super) fn note(&self) -> Option<String> {
        match &self.state {
            State::Refused(why) => Some(note(why)),
            _ => None,
        }
    }
}

/// A refused signal, as a note of the status.
pub(super) fn note(why: &str) -> String {
    format!("refused to end: {why}. The next signal ends this process and closes the VM's gate")
}

/// A refused signal, in the log.
pub(super) const REFUSED: &str =
    "refused to end on this signal; the next signal ends this process and closes the VM's gate";

/// A refused signal, as an event and in the log.
pub(super) fn tell_refused(why: &str) {
    tracing::error!(why, "{REFUSED}");
    emit(Told::StopRefused(why.into()));
}

/// What it means that a second signal was obeyed.
pub(super) fn obeyed(why: &str) -> String {
    format!(
        "ended by a second signal although {why}. The VM's gate is closed, and its QEMU runs without a network. A \
         standby that has the last commit takes over when the arbiter answers; else `afterimage protect` on this \
         host opens the gate again"
    )
}

impl DataPath {
    pub(super) fn hear_signals(&mut self) {
        for _ in 0..self.signals.take() {
            self.told_to_stop(Heard::Here);
        }
    }

    /// A signal came.
    pub(super) fn told_to_stop(&mut self, heard: Heard) {
        if heard == Heard::BySupervisor {
            let _ = self.supervisor.say(&ToSupervisor::Stopping);
        }
        if !self.stop.counts(heard) {
            return;
        }
        let role = self.run.driver.machine().role().into();
        emit(Told::Signal(Signal { role, times: Some(self.stop.acted) }));
        let now = self.run.host.now();
        match &self.stop.state {
            State::Ending(since) if now.since(*since) < PATIENCE => tracing::info!("ending already"),
            State::Ending(_) => self.obey("an orderly end took too long"),
            State::Refused(_) => self.try_to_stop(true),
            State::Runs => self.try_to_stop(false),
        }
    }

    fn try_to_stop(&mut self, last: bool) {
        (self.stop.state, self.stop.last) = (State::Ending(self.run.host.now()), last);
        self.run.look_no_more();
        match self.run.driver.machine().role() {
            Role::Solo | Role::Syncing => self.stop_now(),
            // As soon as the arbiter answers.
            Role::HandingBack => self.refuse_stop(
                "the VM's QEMU is gone, and the arbiter is being asked to give the VM to its standby, which has the last commit",
            ),
            Role::Fenced | Role::Ended => {} // it ends by itself
            Role::Registering | Role::Protected | Role::Claiming => self.order(Wanted::Stop),
        }
    }

    /// The arbiter is there, or is not needed: ends the session, if there is one, and then this process.
    pub(super) fn stop_now(&mut self) {
        match self.run.driver.machine().role() {
            Role::Solo => self.leave_network(),
            _ => self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected)), // comes back here as Solo
        }
    }

    /// The VM runs solo: whoever keeps its network from now on takes over from this gate.
    pub(super) fn leave_network(&mut self) {
        match self.hand_network_over() {
            Ok(kept) => self.ending = Some((Code::Done, format!("told to end; {kept}"))),
            Err(error) => {
                self.refuse_stop(&format!("the VM's network has nobody else to keep it: {}", exit::words(&error)));
            }
        }
    }

    /// `--once`, and there is nothing left to do: ends as after a signal, but with this code. Without a keeper it stays.
    pub(super) fn end_once(&mut self, code: Code, why: &str) {
        match self.hand_network_over() {
            Ok(kept) => self.ending = Some((code, format!("{why}; {kept}"))),
            Err(error) => {
                self.brief.stay = true;
                let error = exit::words(&error);
                let note =
                    format!("staying despite --once, because no keeper for the VM's network could be started: {error}");
                tracing::error!(why = note);
                emit(Told::StopRefused(note.as_str().into()));
                self.notes.push(note);
            }
        }
    }

    fn hand_network_over(&mut self) -> Result<&'static str> {
        let generation = self.run.driver.machine().register().generation;
        let charge = Charge::of_primary(&self.brief.config, generation, self.program);
        let Some(keeper) = keeper::take_network(&charge, Some(&mut self.run.driver.gate))? else {
            return Ok("the VM runs on, unprotected");
        };
        emit(Told::KeeperStarted(KeeperStarted { keeper: keeper.pid(), generation, handed_over: true }));
        Ok("the VM runs on, unprotected; a keeper passes its packets")
    }

    /// The end that a signal asked for cannot be an orderly one.
    pub(super) fn refuse_stop(&mut self, why: &str) {
        if self.stop.last {
            return self.obey(why);
        }
        self.stop.state = State::Refused(why.to_owned());
        tell_refused(why);
    }

    fn obey(&mut self, why: &str) {
        let why = obeyed(why);
        emit(Told::StopObeyed(why.as_str().into()));
        self.ending = Some((Code::Degraded, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_both_processes_heard_counts_once() {
        use Heard::{BySupervisor, Here};
        let count = |signals: &[Heard]| {
            let mut stop = Stop::default();
            signals.iter().filter(|heard| stop.counts(**heard)).count()
        };
        assert_eq!(count(&[Here, BySupervisor]), 1, "systemd tells the whole unit");
        assert_eq!(count(&[BySupervisor, Here, Here, BySupervisor]), 2, "twice");
        assert_eq!(count(&[BySupervisor, BySupervisor]), 2, "^C twice");
        assert_eq!(count(&[Here, Here]), 2, "an operator tells the data path");
    }
}
