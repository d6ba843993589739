//! The supervisor's decisions: a value that is fed what happened and the time, and says what is to be done. `supervisor/mod.rs` carries
//! that out against a real host; a simulator may do it against any order of events.
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
//! [`Action::Leave`] and [`Action::Spawn`] come from `owned` only, with the register that says so: one that was won ([`super::claim`]),
//! or one that the dead data path cannot have changed ([`super::alone`]).
//!
//! While there is no data path the VM has no network. So nothing but an end that was meant ends the supervisor: what goes wrong is
//! tried again.
//!
//! QEMU serves one control connection at a time. Whoever holds it is the VM's supervisor: one that made way for a successor takes it up
//! again only when nobody else has it.

use super::{
    super::{
        channel::{Brief, ToDataPath, ToSupervisor},
        commanded::Condition,
        stop,
        vm_health::Health,
    },
    alone::Alone,
    claim::{Claim, Verdict},
    ending,
    leaving::{self, Leaving},
};
use mc_core::{
    id::{Generation, Time},
    machine::Machine,
    register::{CasOutcome, Register},
};
use node::{
    arbiter::Ask,
    events::{DataPathDied, Ended, Event as Told, Fenced},
    exit::{Code, ExitError},
    primary::seek::Seek,
};
use std::{collections::VecDeque, time::Duration};
use tracing::Level;

/// How often QEMU is asked how its VM is.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A data path that lived for so long has not died of what it found at its start.
const LIVED: Duration = Duration::from_secs(60);
/// Between two attempts to ask the arbiter that came to nothing here.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a data path may take to obey a second signal.
const OBEY: Duration = Duration::from_secs(3);
/// How long a successor may take to get hold of QEMU's control connection, and how often it is tried again afterwards.
const MAKE_WAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// What came of [`Action::Spawn`]; why not.
    Spawned(Result<(), String>),
    /// The data path said this.
    Said(ToSupervisor),
    /// The channel to the data path is closed, and everything that it had said was heard.
    Closed,
    /// The channel to the data path broke: why. The process may be there.
    Broken(String),
    /// What came of [`Action::AwaitEnd`] and [`Action::Kill`]: how the data path's process ended.
    DataPathEnded(String),
    /// QEMU shut down (`orderly`), or died. Heard while [`Supervisor::watches_qemu`].
    QemuGone {
        /// A shutdown that the guest or the operator asked for.
        orderly: bool,
    },
    /// What the data path should hear of QEMU.
    QemuSays(ToDataPath),
    /// What came of [`Action::Connect`].
    Connected(Result<(), NotConnected>),
    /// What came of [`Action::AskCondition`].
    QemuIs(Condition),
    /// What came of [`Action::AskHealth`]. A QEMU that does not answer at once says nothing.
    VmIs(Health),
    /// What came of [`Action::Leave`]: why not.
    Left(Option<String>),
    /// What came of [`Action::Fence`]: why not.
    Fenced(Option<String>),
    /// What came of [`Action::BeginClaim`], if it failed.
    NoClaim(String),
    /// From [`Action::BeginClaim`] on.
    Arbiter(Arbiter),
    /// So many signals to end.
    Signals(u32),
}

/// The arbiter, while the VM is claimed.
#[derive(Clone, Debug)]
pub enum Arbiter {
    /// What the register holds; also once a second, unasked.
    Read(Option<Register>),
    /// What came of a swap.
    Cas(CasOutcome),
    /// An operator's word that this node goes on, while the arbiter cannot answer; and the newest register that this host has seen.
    Operator {
        /// As it was read or won.
        seen: Option<Register>,
    },
    /// It cannot be asked: why; or it can again.
    Fails(Option<String>),
}

/// Somebody else may have QEMU's control connection.
#[derive(Clone, Copy, Debug)]
pub struct NotConnected {
    /// QEMU's process has ended.
    pub ended: bool,
    /// Another process on this host is the VM's way to its network. Not asked while there is a data path.
    pub relieved: bool,
}

/// What is to be done, in order. What comes of one is told before anything else.
#[derive(Debug)]
pub enum Action {
    /// Start a data path.
    Spawn(Box<Brief>),
    /// Tell the data path. It may be dead: then that is heard soon.
    Say(ToDataPath),
    /// Wait until the data path's process has ended.
    AwaitEnd,
    /// End it.
    Kill,
    /// Take QEMU's control connection up.
    Connect,
    /// Let go of it.
    Disconnect,
    /// Have QEMU do what the data path wants of it.
    Perform(ToSupervisor),
    /// Have QEMU leave its checkpoints, and see that the VM runs.
    Leave,
    /// Stop the VM for good.
    Fence,
    /// Ask QEMU whether it is there.
    AskCondition,
    /// Ask QEMU how its VM is.
    AskHealth,
    /// Serve the control socket, and get ready to ask the arbiter.
    BeginClaim,
    /// Ask the arbiter.
    Ask(Ask),
    /// For whoever asks for the status meanwhile.
    Note(String),
    /// Leave the control socket to the next data path.
    EndClaim,
    /// Tell the journal.
    Emit(Told),
    /// Tell the log.
    Log {
        /// Whether it is a warning, or an error.
        level: Level,
        /// What is wrong.
        what: String,
        /// And why.
        why: Option<String>,
    },
    /// End.
    Exit(Result<Code, ExitError>),
}

/// What the supervisor does.
#[derive(Debug)]
enum State {
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
enum Next {
    Connect,
    Claim,
    Spawn,
}

/// The signals that the data path was told of.
#[derive(Debug, Default)]
struct Signalled {
    times: u32,
    /// Since when it owes a word about one.
    since: Option<Time>,
    /// One came while there was none.
    untold: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    state: State,
    /// What the next data path begins with.
    brief: Brief,
    /// When the newest data path was started.
    born: Time,
    /// Whether QEMU's control connection is held here; not while a successor may take it.
    connected: bool,
    /// When it is tried again, after way was made.
    retake_at: Option<Time>,
    signalled: Signalled,
    /// When QEMU was asked last how its VM is, and what the data path knows.
    looked: Time,
    health: Health,
    /// The last generation in which the VM was protected: see [`ToSupervisor::Protected`].
    proven: Option<Generation>,
    /// QEMU has to leave its checkpoints.
    leaving: Leaving,
    alone: Alone,
    /// Why the fenced VM could not be stopped.
    unfenced: Option<String>,
    /// What came to nothing last while the VM was claimed.
    said: Option<String>,
    actions: VecDeque<Action>,
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

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn exit(&mut self, how: Result<Code, ExitError>) {
        self.state = State::Over;
        self.act(Action::Exit(how));
    }

    fn obey(&mut self, why: &str) {
        self.exit(Err(ExitError::new(Code::Degraded, stop::obeyed(why))));
    }

    fn rest(&mut self, now: Time, pause: Duration, then: Next) {
        if self.signalled.times > 1 {
            return self.obey("the data path had died");
        }
        self.state = State::Resting { until: now.after(pause), then };
    }

    fn spawn(&mut self, now: Time) {
        (self.state, self.born) = (State::Watching { gone: false }, now);
        self.act(Action::Spawn(Box::new(self.brief.clone())));
    }

    fn spawned(&mut self) {
        if let Some(news) = self.leaving.news() {
            self.act(Action::Say(news));
        }
        if std::mem::take(&mut self.signalled.untold) {
            self.act(Action::Say(ToDataPath::Stop));
        }
        self.health = Health::Runs;
        self.alone.begins(self.brief.register);
    }

    /// One that dies again and again of what it finds is told now and then.
    fn died(&mut self, now: Time, how: String) {
        self.brief.deaths = if now.since(self.born) > LIVED { 1 } else { self.brief.deaths + 1 };
        let Brief { config, register, deaths, .. } = &self.brief;
        if deaths.is_power_of_two() {
            let died = DataPathDied { vm: config.vm, how, began_with: *register, in_a_row: *deaths };
            self.act(Action::Emit(Told::DataPathDied(Box::new(died))));
        }
        self.connect(now);
    }

    /// A successor may hold QEMU's control connection for a while, and refuse the VM all the same.
    fn connect(&mut self, now: Time) {
        if self.connected {
            return self.ask(now);
        }
        self.state = State::Connecting;
        self.retake(now);
    }

    fn retake(&mut self, now: Time) {
        self.retake_at = Some(now.after(MAKE_WAY.1));
        self.act(Action::Connect);
    }

    fn connect_answered(&mut self, now: Time, outcome: Result<(), NotConnected>) {
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
    fn ask(&mut self, now: Time) {
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
    fn claim(&mut self, now: Time) {
        self.act(Action::BeginClaim);
        self.state = State::Claiming(Box::new(Claim::new(now, self.brief.register, self.proven)));
        self.drive_claim(now);
    }

    fn drive_claim(&mut self, now: Time) {
        let State::Claiming(claim) = &mut self.state else { return };
        while let Some(action) = claim.poll_action() {
            self.actions.push_back(action);
        }
        if let Some(verdict) = claim.take_verdict() {
            self.act(Action::EndClaim);
            self.judged(now, verdict);
        }
    }

    fn judged(&mut self, now: Time, verdict: Verdict) {
        match verdict {
            Verdict::Ours(register) => self.owned(now, register),
            // It was shut down, and no standby will run it again.
            Verdict::VmGone { orderly: true, .. } => self.exit(Ok(Code::Done)),
            Verdict::Theirs => {
                let (vm, why) = (Some(self.brief.config.vm), Some(ending::GIVEN_AWAY.to_owned()));
                self.act(Action::Emit(Told::Fenced(Box::new(Fenced { vm, why, ..Fenced::default() }))));
                self.state = State::Fencing;
                self.act(Action::Fence);
            }
            Verdict::Unknown(why) => self.ask_again(now, why),
            Verdict::Told => self.obey("the data path had died"),
            left => self.exit(Err(ExitError::new(Code::Fenced, ending::left_to(&left, self.proven.is_some())))),
        }
    }

    fn ask_again(&mut self, now: Time, why: String) {
        if self.said.as_ref() != Some(&why) {
            self.log("the owner of the VM is not known yet; trying again", Some(why.clone()));
            self.said = Some(why);
        }
        self.rest(now, AGAIN, Next::Claim);
    }

    /// The register says (solo, self): the VM may run here.
    fn owned(&mut self, now: Time, register: Register) {
        self.brief.register = register;
        self.said = None;
        self.state = State::Owning;
        if self.alone.has_begun() {
            self.leaving.begin(now);
            self.act(Action::Leave); // while it fails, the next data path hears of it
        }
        self.act(Action::AskCondition);
    }

    fn qemu_is(&mut self, now: Time, condition: Condition) {
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

    fn qemu_gone(&mut self, now: Time, orderly: bool) {
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

    fn left(&mut self, now: Time, error: Option<String>) {
        if self.leaving.told(now, error.as_deref()) {
            self.log(leaving::FAILED, error.clone());
        }
        match self.state {
            State::Watching { .. } => self.act(Action::Say(ToDataPath::Left { error })),
            State::LeavingQemu { .. } => self.finish(),
            _ => {}
        }
    }

    fn fenced(&mut self, error: Option<String>) {
        if matches!(self.state, State::Fencing) {
            return self.exit(Err(ExitError::new(Code::Fenced, ending::fenced(error.as_deref()))));
        }
        self.unfenced = error.or(self.unfenced.take());
    }

    /// Once QEMU has left its checkpoints, or cannot: the end that the data path has said.
    fn finish(&mut self) {
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

    /// It may be there: nobody else may start one beside it.
    fn broken(&mut self, why: String) {
        if matches!(self.state, State::Watching { .. }) {
            self.state = State::Killing(why);
            self.act(Action::Kill);
        }
    }

    fn data_path_ended(&mut self, now: Time, how: String) {
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

    /// The data path wants something.
    fn serve(&mut self, now: Time, message: ToSupervisor) {
        let State::Watching { gone } = self.state else { return };
        if let ToSupervisor::Ending { code, why } = message {
            let ended = Ended { vm: None, code: Some(code), why: why.clone() };
            self.act(Action::Emit(Told::Ended(ended)));
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
                (self.connected, self.retake_at) = (false, Some(now.after(MAKE_WAY.0)));
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
    fn tell(&mut self, news: ToDataPath) {
        if let ToDataPath::Changed(changed) = &news {
            self.brief.outputs = changed.outputs.clone();
            changed.make.clone().map(|make| self.brief.profile.remake(make));
        }
        if matches!(self.state, State::Watching { .. }) {
            self.act(Action::Say(news));
        }
    }

    fn vm_is(&mut self, news: Health) {
        if news != self.health {
            self.health = news.clone();
            self.act(Action::Say(ToDataPath::VmIs(news)));
        }
    }

    /// Signals are the data path's to weigh: it knows what an orderly end takes.
    fn signals(&mut self, now: Time, count: u32) {
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
    fn kill_at(&self) -> Option<Time> {
        self.signalled.since.filter(|_| self.signalled.times > 1).map(|since| since.after(OBEY))
    }

    fn attend_to_leaving(&mut self, now: Time) {
        if self.connected && self.leaving.is_due(now) {
            self.act(Action::Leave);
        }
    }

    /// Looks after the VM, while there is one, and tells the data path that somebody does.
    fn watch(&mut self, now: Time, gone: bool) {
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

    fn log(&mut self, what: &str, why: Option<String>) {
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
