//! The data path died: what becomes of the VM.

use super::{
    claim::{Claim, Verdict},
    ending,
    event::{Action, NotConnected},
    machine::{Next, State, Supervisor},
};
use crate::primary::{
    channel::{Brief, ToDataPath},
    commanded::Condition,
};
use mc_core::{id::Time, register::Register};
use node::{
    events::{DataPathDied, Event as Told, Fenced},
    exit::{Code, ExitError},
    primary::seek::Seek,
};
use std::time::Duration;
use tracing::Level;

/// A data path that lived for so long has not died of what it found at its start.
const LIVED: Duration = Duration::from_secs(60);
/// Between two attempts to ask the arbiter that came to nothing here.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two attempts to take QEMU's control connection up again.
const RETAKE: Duration = Duration::from_secs(1);

impl Supervisor {
    /// One that dies again and again of what it finds is told now and then.
    pub(super) fn died(&mut self, now: Time, how: String) {
        self.brief.deaths = if now.since(self.born) > LIVED { 1 } else { self.brief.deaths + 1 };
        let Brief { config, register, deaths, .. } = &self.brief;
        if deaths.is_power_of_two() {
            let died = DataPathDied { vm: config.vm, how, began_with: *register, in_a_row: *deaths };
            self.emit(Told::DataPathDied(Box::new(died)));
        }
        self.connect(now);
    }

    /// A successor may hold QEMU's control connection for a while, and refuse the VM all the same.
    pub(super) fn connect(&mut self, now: Time) {
        if self.connected {
            return self.ask(now);
        }
        self.state = State::Connecting;
        self.retake(now);
    }

    pub(super) fn retake(&mut self, now: Time) {
        self.retake_at = Some(now.after(RETAKE));
        self.act(Action::Connect);
    }

    pub(super) fn connect_answered(&mut self, now: Time, outcome: Result<(), NotConnected>) {
        if outcome.is_ok() {
            (self.connected, self.retake_at) = (true, None);
        }
        match (&self.state, outcome) {
            (State::Connecting, Ok(())) => self.ask(now),
            (State::Connecting, Err(failed)) if failed.ended || failed.relieved => self.exit(Ok(Code::Done)),
            (State::Connecting, Err(_)) => self.rest(now, AGAIN, Next::Connect),
            // Somebody has to command QEMU.
            (State::Watching { .. }, Ok(())) => {
                let what = "the process that was to replace this one did not start; going on".to_owned();
                self.act(Action::Log { level: Level::WARN, what, why: None });
                self.act(Action::Say(ToDataPath::Resume));
            }
            // Nobody heard why.
            (State::Watching { .. }, Err(failed)) if failed.ended => {
                self.retake_at = None;
                self.act(Action::Say(ToDataPath::VmGone { orderly: false }));
            }
            _ => {}
        }
    }

    /// The data path died: what becomes of the VM?
    pub(super) fn ask(&mut self, now: Time) {
        self.log("the data path died; checking whether the VM runs and who owns it", None);
        match self.alone.register() {
            Some(register) => {
                self.state = State::AskingQemu(register);
                self.act(Action::AskCondition);
            }
            None => self.claim(now),
        }
    }

    /// The register may name the standby: the arbiter says whose the VM is.
    pub(super) fn claim(&mut self, now: Time) {
        self.act(Action::BeginClaim);
        self.state = State::Claiming(Box::new(Claim::new(now, self.brief.register, self.proven)));
        self.drive_claim(now);
    }

    pub(super) fn drive_claim(&mut self, now: Time) {
        let State::Claiming(claim) = &mut self.state else { return };
        while let Some(action) = claim.poll_action() {
            self.actions.push_back(action);
        }
        if let Some(verdict) = claim.take_verdict() {
            self.act(Action::EndClaim);
            self.judged(now, verdict);
        }
    }

    pub(super) fn judged(&mut self, now: Time, verdict: Verdict) {
        match verdict {
            Verdict::Ours(register) => self.owned(now, register),
            // It was shut down, and no standby will run it again.
            Verdict::VmGone { orderly: true, .. } => self.exit(Ok(Code::Done)),
            Verdict::Theirs => {
                let (vm, why) = (Some(self.brief.config.vm), Some(ending::GIVEN_AWAY.to_owned()));
                self.emit(Told::Fenced(Box::new(Fenced { vm, why, ..Fenced::default() })));
                self.state = State::Fencing;
                self.act(Action::Fence);
            }
            Verdict::Unknown(why) => self.ask_again(now, why),
            Verdict::Told => self.obey("the data path had died"),
            left => self.exit(Err(ExitError::new(Code::Fenced, ending::left_to(&left, self.proven.is_some())))),
        }
    }

    pub(super) fn ask_again(&mut self, now: Time, why: String) {
        if self.said.as_ref() != Some(&why) {
            self.log("the owner of the VM is not known yet; trying again", Some(why.clone()));
            self.said = Some(why);
        }
        self.rest(now, AGAIN, Next::Claim);
    }

    /// The register says (solo, self): the VM may run here.
    pub(super) fn owned(&mut self, now: Time, register: Register) {
        self.brief.register = register;
        self.said = None;
        self.state = State::Owning;
        if self.alone.has_begun() {
            self.leaving.begin(now);
            self.act(Action::Leave); // while it fails, the next data path hears of it
        }
        self.act(Action::AskCondition);
    }

    pub(super) fn qemu_is(&mut self, now: Time, condition: Condition) {
        match &mut self.state {
            // One that does not answer has not gone: its VM may run, and miss its network.
            State::AskingQemu(register) if matches!(condition, Condition::Answers | Condition::Silent) => {
                let register = *register;
                self.owned(now, register);
            }
            State::AskingQemu(_) => self.claim(now), // more has to be found out
            State::Claiming(claim) => {
                claim.qemu_is(now, condition);
                self.drive_claim(now);
            }
            State::Owning if condition == Condition::ShutDown => self.exit(Ok(Code::Done)),
            State::Owning if self.brief.deaths > 1 => {
                self.rest(now, Seek::patience(self.brief.deaths - 1), Next::Spawn);
            }
            State::Owning => self.spawn(now),
            _ => {}
        }
    }
}
