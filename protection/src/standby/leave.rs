//! A standby that is told to end, by SIGTERM or ^C, gives its copy up in order.
//!
//! ```text
//!             arbiter there?   yes: the session ends        the register says that the primary
//!  Protecting ───────────────> (Revoking, Claiming) ───────> goes on alone: image given up, exit 0
//!       │ no                        │ it does not say so for 5 s
//!       v                           v
//!  refused, and said why        this standby asks for the VM itself, as after any silence: refused.
//!                               Told for the second time, it asks for nothing, and leaves: exit 3
//! ```
//!
//! The copy is given up only when the register shows that nobody needs it. A primary whose session ends asks the arbiter at once; one
//! that died in the same moment is taken over. What was refused once is obeyed the second time: the image is kept then, and its path
//! said. Who leaves asks for nothing any more.

use super::main_loop::Node;
use anyhow::Result;
use mc_core::{
    id::Time,
    register::Swap,
    standby::{Event, Role},
};
use node::{
    arbiter::{ArbiterSpec, Ask},
    events::{Event as Told, Goodbye, ImageKept, Signal, emit},
    exit::{self, Code},
    standby::StandbyLoop,
};
use std::time::Duration;

/// For the arbiter to say a word.
const FRESH: Duration = Duration::from_millis(1500);
/// For the primary to go on alone, once its session has ended.
const HEAD_START: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// An orderly end that has taken so long is cut short by another signal.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
enum State {
    #[default]
    Stays,
    /// Waits for a word of the arbiter.
    Asks {
        since: Time,
        until: Time,
    },
    /// The session was ended, and the primary has its head start.
    GaveUp {
        since: Time,
        look_at: Time,
    },
    Refused(String),
}

/// What became of the signals so far.
#[derive(Debug, Default)]
pub(super) struct Leave {
    state: State,
    /// The next refusal is none: it is obeyed.
    last: bool,
    /// The swap that the machine wants, while the primary has its head start.
    deferred: Option<Swap>,
}

impl Leave {
    /// Whether no primary is taken on any more.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.state, State::Asks { .. } | State::GaveUp { .. })
    }

    /// For the status.
    pub(super) fn note(&self) -> Option<String> {
        match &self.state {
            State::Refused(why) => Some(format!("refused to end: {why}. The next signal ends this process")),
            _ => None,
        }
    }
}

impl Node {
    pub(super) fn hear_signals(&mut self) {
        for _ in 0..self.signals.take() {
            let role = self.run.role().into();
            emit(Told::Signal(Signal { role, times: None }));
            let now = self.run.host.now();
            match &self.leave.state {
                State::Asks { since, .. } | State::GaveUp { since, .. } if now.since(*since) < PATIENCE => {
                    tracing::info!("ending already");
                }
                State::Asks { .. } | State::GaveUp { .. } => {
                    self.obey("an orderly end was under way, and took too long");
                }
                State::Refused(_) => self.try_to_leave(true),
                State::Stays => self.try_to_leave(false),
            }
        }
    }

    fn try_to_leave(&mut self, last: bool) {
        self.leave.last = last;
        let now = self.run.host.now();
        match self.run.role() {
            // A copy that was lost is another node's VM, which runs there.
            Role::Idle | Role::Lost => self.ending = Some(Code::Done),
            Role::Syncing | Role::Rehearsing => self.give_up(),
            Role::Protecting if self.config.arbiter == ArbiterSpec::Manual => {
                self.refuse_to_leave("the arbiter is an operator: the primary could not go on alone without one");
            }
            Role::Protecting => {
                self.leave.state = State::Asks { since: now, until: now.after(FRESH) };
                self.run.host.arbiter.ask(Ask::Read);
            }
            Role::Revoking | Role::Claiming => {
                self.refuse_to_leave("this standby asks the arbiter for the VM, whose primary is suspect");
            }
            Role::Disputed => {
                self.refuse_to_leave(
                    "the arbiter cannot be believed, and this may be the VM's last copy: an operator decides",
                );
            }
            // It may run at any moment.
            Role::TakingOver if self.is_attempting() => {
                self.leave.last = false;
                self.refuse_to_leave("the takeover is being tried at this moment");
            }
            Role::TakingOver => self.refuse_to_leave("the VM is this node's, and does not run yet"),
            Role::Active => {} // heard where it runs
        }
    }

    /// Ends the session. The primary sees that at once, and goes on alone through the arbiter.
    fn give_up(&mut self) {
        let now = self.run.host.now();
        emit(Told::Goodbye(Goodbye { role: self.run.role().into() }));
        self.leave.state = State::GaveUp { since: now, look_at: now };
        self.run.suspect(); // nobody is: whatever falls silent now does so with a reason
    }

    /// The machine wants to ask for the VM. True if it has to wait.
    pub(super) fn defer(&mut self, swap: Swap) -> bool {
        let defers = matches!(self.leave.state, State::GaveUp { .. });
        if defers {
            self.leave.deferred = Some(swap);
        }
        defers
    }

    /// The arbiter answered a read, and the machine has heard it: it gives its copy up when the register names the primary alone.
    pub(super) fn leave_hears(&mut self) {
        if !matches!(self.leave.state, State::Asks { .. }) {
            return;
        }
        match self.run.role() {
            Role::Protecting if self.run.host.arbiter.health().failover_possible().is_ok() => self.give_up(),
            Role::Protecting => {} // it would not answer the primary's swap; refused when it is late
            Role::Idle | Role::Lost => self.ending = Some(Code::Done),
            // What was asked for may be won any moment.
            _ => {
                self.leave.last = false;
                self.refuse_to_leave("the primary became suspect meanwhile");
            }
        }
    }

    /// What is due.
    pub(super) fn leave_in_order(&mut self) {
        let now = self.run.host.now();
        match &mut self.leave.state {
            State::Asks { until, .. } if now >= *until => {
                let health = self.run.host.arbiter.health();
                let said = health.last_error.clone().or(health.failover_possible().err());
                let said = said.unwrap_or_else(|| "no answer".to_owned());
                let spec = self.run.host.arbiter.spec();
                self.refuse_to_leave(&format!(
                    "the arbiter {spec} does not answer or cannot decide ({said}); if this standby ended now, the \
                     primary would have to hold the VM's output"
                ));
            }
            State::GaveUp { .. } if matches!(self.run.role(), Role::Idle | Role::Lost) => {
                self.ending = Some(Code::Done);
            }
            State::GaveUp { since, .. } if now.since(*since) > HEAD_START => {
                if let Some(swap) = self.leave.deferred.take() {
                    self.refuse_to_leave(match self.leave.last {
                        true => "the primary does not go on alone, and this may be the VM's last copy",
                        false => "the primary does not go on alone: this standby asks for the VM",
                    });
                    // Told twice, it leaves: a VM that it wins now would run nowhere.
                    if self.ending.is_none() {
                        self.claim(swap);
                    }
                }
            }
            State::GaveUp { look_at, .. } if self.leave.deferred.is_some() && now >= *look_at => {
                *look_at = now.after(LOOK);
                self.run.host.arbiter.ask(Ask::Read);
            }
            _ => {}
        }
    }

    /// When something is due.
    pub(super) fn leave_deadline(&self) -> Option<Time> {
        match &self.leave.state {
            State::Asks { until, .. } => Some(*until),
            State::GaveUp { look_at, .. } => Some(*look_at),
            State::Stays | State::Refused(_) => None,
        }
    }

    fn refuse_to_leave(&mut self, why: &str) {
        if self.leave.last {
            return self.obey(why);
        }
        self.leave.state = State::Refused(why.to_owned());
        tracing::error!(why, "refused to end on this signal; the next signal ends this process");
        emit(Told::StopRefused(why.into()));
    }

    /// Told twice. What this node may be entitled to is kept.
    fn obey(&mut self, why: &str) {
        let kept = match self.keep_image() {
            Ok(kept) => kept,
            // This process has it still.
            Err(error) => {
                self.leave.last = false;
                return self.refuse_to_leave(&format!("{why}, and the image cannot be kept: {}", exit::words(&error)));
            }
        };
        let words = format!("ended by a second signal although {why}. {kept}");
        emit(Told::StopObeyed(words.as_str().into()));
        (self.ending, self.last_words) = (Some(Code::Degraded), Some(words));
    }

    /// An error ends this process. The image of a VM that may be this node's outlives it.
    pub(super) fn save_image(&mut self, error: anyhow::Error) -> anyhow::Error {
        // While it is tried, its guest may have written to the image.
        if !self.run.may_be_the_last() || self.is_attempting() {
            return error;
        }
        if !self.run.driver.is_whole() {
            return error.context("The image is of no whole epoch, and is not kept");
        }
        let kept = self
            .keep_image_at_the_end()
            .unwrap_or_else(|error| format!("The image could not be kept: {}", exit::words(&error)));
        error.context(kept)
    }

    /// Keeps it, if it can be put on record that it is kept: else a later process might take it for lost.
    fn keep_image(&mut self) -> Result<String> {
        if let Some(vm) = &self.vm {
            self.run.last_copy.is_kept(vm.ram_path())?;
        }
        self.write_image()
    }

    /// Keeps it, whatever can be put on record: this process ends, and has it no longer.
    pub(super) fn keep_image_at_the_end(&mut self) -> Result<String> {
        if let Some(vm) = &self.vm
            && let Err(error) = self.run.last_copy.is_kept(vm.ram_path())
        {
            tracing::error!(error = exit::words(&error), "could not record that the image is kept");
        }
        self.write_image()
    }

    fn write_image(&mut self) -> Result<String> {
        let (generation, epoch) = self.run.driver.machine().committed();
        // What was committed while a throw-away QEMU loads the image belongs to it. Should it not be kept, a later one is rehearsed.
        self.rehearsal = None;
        if self.run.driver.is_rehearsing() {
            self.run.driver.event(Event::RehearsalAsked { generation, epoch: epoch.next() });
        }
        let copy = self.run.named();
        let (Some(vm), Some(image)) = (self.vm.as_mut(), self.run.driver.image()) else {
            return Ok("There is no image to keep".to_owned());
        };
        let held = format!("the image of {generation}, {epoch}");
        let ram = vm.keep(copy, image, (generation, epoch))?;
        emit(Told::ImageKept(ImageKept { ram: ram.clone(), generation, epoch }));
        Ok(format!("Kept {held}: its RAM in {}, and the rest beside that file", ram.display()))
    }
}
