//! The supervisor's decisions: a value that is fed what happened and the time, and says what is to be done. `supervisor/mod.rs`
//! carries that out against a real host; a simulator may do it against any order of events.
//!
//! ```text
//!               spawn                   it dies                     Ours: (G+1, solo)
//!  (register ───────> Watching the ───────────> Claiming: QEMU is ──────────────────> leave checkpoints, see that the
//!   is solo)          data path                 asked, then the arbiter               VM runs, spawn a solo data path
//!                       │ "Ending"                │ Theirs: fence QEMU, exit 4
//!                       v                         v VmGone, Silent: nothing is touched, the standby may take over
//!              QEMU leaves its checkpoints,      exit
//!              exit
//! ```
//!
//! The rule: a data path's death may leave the VM stopped in the middle of a checkpoint, with output that was never released. Before
//! the VM may run again the register must say (solo, self): else the standby may be running it already. So after a death
//! [`Action::Leave`] and [`Action::Spawn`] follow [`Supervisor::owned`] only, with the register that says so: one that was won
//! ([`super::claim`]), or one that the dead data path cannot have changed ([`super::alone`]).
//!
//! While there is no data path the VM has no network. So nothing but an end that was meant ends the supervisor: what goes wrong is
//! tried again.
//!
//! QEMU serves one control connection at a time. Whoever holds it is the VM's supervisor: one that made way for a successor takes it up
//! again only when nobody else has it.

use super::{
    super::{channel::Brief, stop, vm_health::Health},
    alone::Alone,
    claim::Claim,
    event::{Action, Event},
    leaving::Leaving,
    watching::LOOK,
};
use mc_core::{
    id::{Generation, Time},
    machine::Machine,
    register::Register,
};
use node::{
    events::Event as Told,
    exit::{Code, ExitError},
};
use std::{collections::VecDeque, time::Duration};
use tracing::Level;

/// What the supervisor does.
#[derive(Debug)]
pub(super) enum State {
    /// A data path works. `gone`: QEMU does not any more.
    Watching { gone: bool },
    /// It said that it ends.
    Ending { code: Code, why: String },
    /// It is being killed, for this.
    Killing(String),
    /// QEMU's control connection is taken up.
    Connecting,
    /// QEMU is asked whether it is there; nobody else need be.
    AskingQemu(Register),
    /// The arbiter is asked whose the VM is.
    Claiming(Box<Claim>),
    /// It is ours, and the next data path begins unless it was shut down.
    Owning,
    /// It is another node's, and is stopped.
    Fencing,
    /// Waits.
    Resting { until: Time, then: Next },
    /// The data path has ended on purpose, and QEMU has not left its checkpoints: nobody else would tell it to.
    LeavingQemu { code: Code, why: String },
    /// Nothing is to be done any more.
    Over,
}

/// After a rest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    Connect,
    Claim,
    Spawn,
}

/// The signals that the data path was told of.
#[derive(Debug, Default)]
pub(super) struct Signalled {
    pub(super) times: u32,
    /// Since when it owes a word about one.
    pub(super) since: Option<Time>,
    /// One came while there was none.
    pub(super) untold: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    pub(super) state: State,
    /// What the next data path begins with.
    pub(super) brief: Brief,
    /// When the newest data path was started.
    pub(super) born: Time,
    /// Whether QEMU's control connection is held here; not while a successor may take it.
    pub(super) connected: bool,
    /// When it is tried again, after way was made.
    pub(super) retake_at: Option<Time>,
    pub(super) signalled: Signalled,
    /// When QEMU was asked last how its VM is, and what the data path knows.
    pub(super) looked: Time,
    pub(super) health: Health,
    /// The last generation in which the VM was protected: see [`super::super::channel::ToSupervisor::Protected`].
    pub(super) proven: Option<Generation>,
    /// QEMU has to leave its checkpoints.
    pub(super) leaving: Leaving,
    pub(super) alone: Alone,
    /// Why the fenced VM could not be stopped.
    pub(super) unfenced: Option<String>,
    /// What came to nothing last while the VM was claimed.
    pub(super) said: Option<String>,
    pub(super) actions: VecDeque<Action>,
}

impl Supervisor {
    /// Of a VM whose register says (solo, self), and whose QEMU's control connection is held. The data path is spawned at once.
    pub fn new(now: Time, brief: Brief) -> Self {
        let mut supervisor = Self {
            state: State::Over,
            brief,
            born: now,
            connected: true,
            retake_at: None,
            signalled: Signalled::default(),
            looked: now,
            health: Health::Runs,
            proven: None,
            leaving: Leaving::default(),
            alone: Alone::default(),
            unfenced: None,
            said: None,
            actions: VecDeque::new(),
        };
        supervisor.spawn(now);
        supervisor
    }

    /// What the next data path begins with.
    pub fn brief(&self) -> &Brief {
        &self.brief
    }

    /// Whether QEMU's end is to be told.
    pub fn watches_qemu(&self) -> bool {
        self.connected
            && match &self.state {
                State::Watching { gone } => !gone,
                State::Claiming(claim) => claim.watches_qemu(),
                State::LeavingQemu { .. } => true,
                _ => false,
            }
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn exit(&mut self, how: Result<Code, ExitError>) {
        self.state = State::Over;
        self.act(Action::Exit(how));
    }

    pub(super) fn obey(&mut self, why: &str) {
        self.exit(Err(ExitError::new(Code::Degraded, stop::obeyed(why))));
    }

    pub(super) fn rest(&mut self, now: Time, pause: Duration, then: Next) {
        if self.signalled.times > 1 {
            return self.obey("the data path had died");
        }
        self.state = State::Resting { until: now.after(pause), then };
    }

    pub(super) fn spawn(&mut self, now: Time) {
        (self.state, self.born) = (State::Watching { gone: false }, now);
        self.act(Action::Spawn(Box::new(self.brief.clone())));
    }

    pub(super) fn emit(&mut self, event: Told) {
        self.actions.push_back(Action::Emit(Box::new(event)));
    }

    pub(super) fn log(&mut self, what: &str, why: Option<String>) {
        self.act(Action::Log { level: Level::ERROR, what: what.to_owned(), why });
    }
}

impl Machine for Supervisor {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Spawned(Ok(())) => self.spawned(),
            Event::Spawned(Err(how)) => self.died(now, how),
            Event::Said(message) => self.serve(now, message),
            Event::Closed => self.act(Action::AwaitEnd),
            Event::Broken(why) => self.broken(why),
            Event::DataPathEnded(how) => self.data_path_ended(now, how),
            Event::QemuGone { orderly } => self.qemu_gone(now, orderly),
            Event::QemuSays(news) => self.tell(news),
            Event::Connected(outcome) => self.connect_answered(now, outcome),
            Event::QemuIs(condition) => self.qemu_is(now, condition),
            Event::VmIs(health) => self.vm_is(health),
            Event::Left(error) => self.left(now, error),
            Event::Fenced(error) => self.fenced(error),
            Event::NoClaim(why) => self.ask_again(now, why),
            Event::Arbiter(heard) => {
                if let State::Claiming(claim) = &mut self.state {
                    claim.hear(now, heard);
                    self.drive_claim(now);
                }
            }
            Event::Signals(count) => self.signals(now, count),
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        let leaving = self.leaving.deadline().filter(|_| self.connected);
        match &self.state {
            State::Watching { .. } => {
                let look = Some(self.looked.after(LOOK));
                [leaving, look, self.retake_at, self.kill_at()].into_iter().flatten().min()
            }
            State::Resting { until, .. } => leaving.into_iter().chain([*until]).min(),
            State::Claiming(claim) => claim.deadline(),
            State::LeavingQemu { .. } => leaving,
            _ => None,
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        match &mut self.state {
            State::Watching { gone } => {
                let gone = *gone;
                self.attend_to_leaving(now);
                self.watch(now, gone);
            }
            State::Resting { until, then } if *until <= now => match then {
                Next::Connect => self.connect(now),
                Next::Claim => self.ask(now),
                Next::Spawn => self.spawn(now),
            },
            State::Resting { .. } | State::LeavingQemu { .. } => self.attend_to_leaving(now),
            State::Claiming(claim) => {
                claim.handle_timeout(now);
                self.drive_claim(now);
            }
            _ => {}
        }
    }
}
