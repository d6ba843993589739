//! A data path works, or ends on purpose: it is served, and looked after.

use super::{
    ending,
    event::Action,
    leaving,
    machine::{State, Supervisor},
};
use crate::primary::{
    channel::{ToDataPath, ToSupervisor},
    vm_health::Health,
};
use mc_core::id::Time;
use node::{
    events::{Ended, Event as Told},
    exit::{Code, ExitError},
};
use std::time::Duration;

/// How often QEMU is asked how its VM is.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How long a data path may take to obey a second signal.
const OBEY: Duration = Duration::from_secs(3);
/// How long a successor may take to get hold of QEMU's control connection.
const MAKE_WAY: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(super) fn spawned(&mut self) {
        if let Some(news) = self.leaving.news() {
            self.act(Action::Say(news));
        }
        if std::mem::take(&mut self.signalled.untold) {
            self.act(Action::Say(ToDataPath::Stop));
        }
        self.health = Health::Runs;
        self.alone.begins(self.brief.register);
    }

    /// The data path wants something.
    pub(super) fn serve(&mut self, now: Time, message: ToSupervisor) {
        let State::Watching { gone } = self.state else { return };
        if let ToSupervisor::Ending { code, why } = message {
            let ended = Ended { vm: None, code: Some(code), why: why.clone() };
            self.emit(Told::Ended(ended));
            self.state = State::Ending { code: Code::from_number(code), why };
            return self.act(Action::AwaitEnd);
        }
        self.brief.relieve = false; // it has begun: whoever was there before has left
        self.alone.hear(&message);
        match &message {
            ToSupervisor::Wanted { protect } => self.brief.protect = *protect,
            ToSupervisor::Protected { generation } => self.proven = Some(*generation),
            ToSupervisor::LeaveSource => {
                self.proven = None; // the register says (solo, self)
                if !gone {
                    self.leaving.begin(now);
                    self.attend_to_leaving(now);
                }
            }
            ToSupervisor::Changed(config) => self.brief.config = (**config).clone(),
            ToSupervisor::Fence => {
                self.leaving.give_up();
                if self.connected {
                    self.act(Action::Fence);
                }
            }
            ToSupervisor::Stopping => self.signalled.since = None,
            ToSupervisor::MakeWay => {
                (self.connected, self.retake_at) = (false, Some(now.after(MAKE_WAY)));
                self.act(Action::Disconnect);
            }
            ToSupervisor::StartSource | ToSupervisor::LookAgain | ToSupervisor::SourceFailed { .. } => {
                if self.connected {
                    self.act(Action::Perform(message));
                }
            }
            ToSupervisor::Alone { .. } | ToSupervisor::Ending { .. } => {}
        }
    }

    /// Tells it on; the next data path begins with it.
    pub(super) fn tell(&mut self, news: ToDataPath) {
        if let ToDataPath::Changed(changed) = &news {
            self.brief.outputs = changed.outputs.clone();
            changed.make.clone().map(|make| self.brief.profile.remake(make));
        }
        if matches!(self.state, State::Watching { .. }) {
            self.act(Action::Say(news));
        }
    }

    pub(super) fn vm_is(&mut self, news: Health) {
        if news != self.health {
            self.health = news.clone();
            self.act(Action::Say(ToDataPath::VmIs(news)));
        }
    }

    pub(super) fn qemu_gone(&mut self, now: Time, orderly: bool) {
        match &mut self.state {
            State::Watching { gone } if !*gone => {
                *gone = true;
                self.leaving.give_up();
                self.act(Action::Say(ToDataPath::VmGone { orderly }));
            }
            State::Claiming(claim) => {
                claim.qemu_gone(orderly);
                self.drive_claim(now);
            }
            State::LeavingQemu { .. } => {
                self.leaving.give_up();
                self.finish();
            }
            _ => {}
        }
    }

    pub(super) fn left(&mut self, now: Time, error: Option<String>) {
        if self.leaving.told(now, error.as_deref()) {
            self.log(leaving::FAILED, error.clone());
        }
        match self.state {
            State::Watching { .. } => self.act(Action::Say(ToDataPath::Left { error })),
            State::LeavingQemu { .. } => self.finish(),
            _ => {}
        }
    }

    pub(super) fn fenced(&mut self, error: Option<String>) {
        if matches!(self.state, State::Fencing) {
            return self.exit(Err(ExitError::new(Code::Fenced, ending::fenced(error.as_deref()))));
        }
        self.unfenced = error.or(self.unfenced.take());
    }

    /// What it said cannot be read, and it may be there: it is killed, since nobody else may start one beside it. To pass over one message
    /// would not do. It may have been that the VM is to be fenced, or what the next data path begins with; and the stream that comes with
    /// one would go to a later one. What was missed costs at most a question: without `StartSource` QEMU was told nothing, so nothing was
    /// asked of the arbiter; without `Alone` the arbiter is asked before the VM goes on.
    pub(super) fn broken(&mut self, why: String) {
        if matches!(self.state, State::Watching { .. }) {
            self.state = State::Killing(why);
            self.act(Action::Kill);
        }
    }

    pub(super) fn data_path_ended(&mut self, now: Time, how: String) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Watching { .. } => self.died(now, how),
            State::Killing(why) => self.died(now, format!("{why}: {how}")),
            State::Ending { code, why } => {
                self.state = State::LeavingQemu { code, why };
                self.attend_to_leaving(now);
                self.finish();
            }
            other => self.state = other,
        }
    }

    /// Once QEMU has left its checkpoints, or cannot: the end that the data path has said.
    pub(super) fn finish(&mut self) {
        if self.leaving.is_pending() && self.connected {
            return;
        }
        let State::LeavingQemu { code, why } = &self.state else { return };
        let how = match code {
            Code::Done => Ok(Code::Done),
            // What the data path ends with, and what it cannot know.
            code => Err(ExitError::new(*code, ending::ended(why, self.unfenced.as_deref()))),
        };
        self.exit(how);
    }

    /// Signals are the data path's to weigh: it knows what an orderly end takes.
    pub(super) fn signals(&mut self, now: Time, count: u32) {
        match &mut self.state {
            State::Watching { .. } => {
                for _ in 0..count {
                    self.signalled.times += 1;
                    self.signalled.since.get_or_insert(now);
                    self.act(Action::Say(ToDataPath::Stop));
                }
            }
            State::Claiming(claim) => {
                claim.signal();
                self.drive_claim(now);
            }
            State::LeavingQemu { .. } => {
                self.exit(Err(ExitError::new(Code::Degraded, ending::STILL_IN_CHECKPOINT)));
            }
            State::Over => {}
            _ => {
                self.signalled.times += count;
                self.signalled.untold |= count > 0;
                if self.signalled.times > 1 {
                    self.obey("the data path had died");
                }
            }
        }
    }

    /// When a data path that is stuck, and was told twice to end, is killed.
    pub(super) fn kill_at(&self) -> Option<Time> {
        self.signalled.since.filter(|_| self.signalled.times > 1).map(|since| since.after(OBEY))
    }

    pub(super) fn attend_to_leaving(&mut self, now: Time) {
        if self.connected && self.leaving.is_due(now) {
            self.act(Action::Leave);
        }
    }

    /// Looks after the VM, while there is one, and tells the data path that somebody does.
    pub(super) fn watch(&mut self, now: Time, gone: bool) {
        if self.kill_at().is_some_and(|at| at <= now) {
            self.act(Action::Kill);
            return self.obey("the data path did not answer");
        }
        if self.retake_at.is_some_and(|at| at <= now) {
            self.retake(now);
        }
        if now.since(self.looked) >= LOOK {
            self.looked = now;
            self.act(Action::Say(ToDataPath::Here));
            if !gone && self.connected {
                self.act(Action::AskHealth);
            }
        }
    }
}
