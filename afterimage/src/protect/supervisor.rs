//! The supervisor: holds QEMU's control connection, and outlives the data path.
//!
//! ```text
//!               spawn                     dies                      Ours: (G+1, solo)
//!  (register ───────> Watching the ─────────────> Asking QEMU, then the ──────────────> leave checkpoints, see that the
//!   is solo)          data path                   arbiter (claim.rs)                    VM runs, spawn a solo data path
//!                       │ "Ending"                  │ Theirs: fence QEMU, exit 4
//!                       v                           v VmGone, Silent: nothing is touched, the standby may take over
//!                     exit                        exit
//! ```
//!
//! The rule: a data path's death may leave the VM stopped in the middle of a checkpoint, with output that was never
//! released. Before the VM may run again the register must say (solo, self): else the standby may be running it already. Of a data
//! path that has asked for nothing since the register said so, it still does ([`super::alone`]).
//!
//! While there is no data path the VM has no network. So nothing but an end that was meant ends the supervisor: what goes wrong is tried
//! again.
//!
//! QEMU serves one control connection at a time. Whoever holds it is the VM's supervisor: one that made way for a successor
//! takes it up again only when nobody else has it.

use super::{
    alone::Alone,
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    claim::{Verdict, claim},
    commanded::{ANSWER, Condition, Qemu, Task},
    leaving::Leaving,
    vm_health::Health,
};
use crate::predecessor;
use anyhow::{Context, Result};
use mc_core::id::{Generation, Time};
use node::primary::seek::Seek;
use node::{
    events::{DataPathDied, Ended as Over, Event, Fenced, emit},
    exit::{self, Code, ExitError},
    inbox::{readable, wait},
    program,
    signals::Signals,
    sys::child::in_its_own_session,
};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use vmm_qemu::qmp::{Qmp, QmpError, has_ended};

/// How often QEMU is asked how its VM is.
const LOOK: Duration = Duration::from_secs(1);
/// A data path that lived for so long has not died of what it found at its start.
const LIVED: Duration = Duration::from_secs(60);
/// Between two attempts to ask the arbiter that came to nothing here.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a data path may take to obey a second signal.
const OBEY: Duration = Duration::from_secs(3);
/// How long a successor may take to get hold of QEMU's control connection, and how often it is tried again afterwards.
const MAKE_WAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(1));

/// Watches over one VM until it is gone, fenced, or handed over. Returns the exit code.
pub(super) fn supervise(qmp: Qmp, brief: Brief, signals: Signals) -> Result<Code> {
    let qemu = Some(Qemu::new(qmp, brief.qemu_process(), brief.config.nic_sockets()));
    let (looked, health) = (Instant::now(), Health::Runs);
    let (told, retake_at, proven, leaving) = (Told::default(), None, None, Leaving::default());
    let (alone, unfenced) = (Alone::default(), None);
    Supervisor { qemu, brief, signals, told, retake_at, looked, health, proven, leaving, alone, unfenced }.run()
}

/// The signals that the data path was told of.
#[derive(Debug, Default)]
struct Told {
    times: u32,
    /// Since when it owes a word about one.
    since: Option<Instant>,
    /// One came while there was none.
    untold: bool,
}

struct Supervisor {
    /// None while a successor may take it.
    qemu: Option<Qemu>,
    /// What the next data path begins with.
    brief: Brief,
    signals: Signals,
    told: Told,
    /// When QEMU's control connection is tried again, after way was made.
    retake_at: Option<Instant>,
    /// When QEMU was asked last how its VM is, and what the data path knows.
    looked: Instant,
    health: Health,
    /// The last generation in which the VM was protected: see [`ToSupervisor::Protected`].
    proven: Option<Generation>,
    /// QEMU has to leave its checkpoints.
    leaving: Leaving,
    alone: Alone,
    /// Why the fenced VM could not be stopped.
    unfenced: Option<String>,
}

impl Supervisor {
    fn run(mut self) -> Result<Code> {
        loop {
            let born = Instant::now();
            let how = match self.run_data_path() {
                Ok(Ended::OnPurpose(code)) => return Ok(code),
                Ok(Ended::Died(how)) => how,
                // An end that was meant. Anything else takes no network along: it is tried again.
                Err(error) if error.is::<ExitError>() => return Err(error),
                Err(error) => exit::words(&error),
            };
            self.brief.deaths = if born.elapsed() > LIVED { 1 } else { self.brief.deaths + 1 };
            self.tell_death(&how);
            // A successor may hold QEMU's control connection for a while, and refuse the VM all the same.
            while self.qemu.is_none() && self.retake().is_err() {
                if self.is_relieved() {
                    return Ok(Code::Done);
                }
                self.rest(AGAIN)?;
            }
            if let Some(code) = self.decide()? {
                return Ok(code);
            }
            if self.brief.deaths > 1 {
                self.rest(Seek::patience(self.brief.deaths - 1))?;
            }
        }
    }

    /// QEMU is gone, or another process on this host is the VM's way to its network.
    fn is_relieved(&self) -> bool {
        has_ended(self.brief.qemu_pid, self.brief.register.owner.instance)
            || predecessor::is_anybody_here(&self.brief.config.run_dir, self.brief.config.vm)
    }

    /// Starts one, and serves it until it ends, whatever the reason.
    fn run_data_path(&mut self) -> Result<Ended> {
        let mut child = DataPathProcess::spawn(&self.brief)?;
        if let Some(news) = self.leaving.news() {
            let _ = child.channel.say(&news);
        }
        if std::mem::take(&mut self.told.untold) {
            let _ = child.channel.say(&ToDataPath::Stop);
        }
        self.health = Health::Runs;
        self.alone.begins(self.brief.register);
        Ok(match self.watch(&mut child) {
            Ok(Some(code)) => Ended::OnPurpose(code),
            Ok(None) => Ended::Died(child.how_it_ended()),
            Err(error) if error.is::<ExitError>() => return Err(error),
            // It may be there: nobody else may start one beside it.
            Err(error) => {
                let _ = child.process.kill();
                Ended::Died(format!("{}: {}", exit::words(&error), child.how_it_ended()))
            }
        })
    }

    /// One that dies again and again of what it finds is told now and then.
    fn tell_death(&self, how: &str) {
        let Brief { register, deaths, .. } = &self.brief;
        if deaths.is_power_of_two() {
            emit(Event::DataPathDied(Box::new(DataPathDied {
                vm: self.brief.config.vm,
                how: how.to_owned(),
                began_with: *register,
                in_a_row: *deaths,
            })));
        }
    }

    /// Waits before another one is started; a second signal ends that.
    fn rest(&mut self, pause: Duration) -> Result<()> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if let Some(qemu) = &mut self.qemu {
                self.leaving.attend(qemu); // while it fails, the next data path hears of it
            }
            let left = until.saturating_duration_since(Instant::now()).min(LOOK);
            wait(&mut [readable(self.signals.as_fd())], Time(0), None, left)?;
            let heard = self.signals.take();
            self.told.times += heard;
            self.told.untold |= heard > 0;
            if self.told.times > 1 {
                return Err(ExitError::new(Code::Degraded, super::stop::obeyed("the data path had died")).into());
            }
        }
        Ok(())
    }

    /// The data path died: what becomes of the VM? None: it runs on, solo, and needs another data path.
    fn decide(&mut self) -> Result<Option<Code>> {
        let mut said = String::new();
        loop {
            match self.claim() {
                Err(error) if !error.is::<ExitError>() => {
                    let why = exit::words(&error);
                    if why != said {
                        tracing::error!(why, "the owner of the VM is not known yet; trying again");
                        said = why;
                    }
                    self.rest(AGAIN)?;
                }
                decided => return decided,
            }
        }
    }

    /// The register may name the standby: the arbiter says whose the VM is.
    fn claim(&mut self) -> Result<Option<Code>> {
        let Some(qemu) = &mut self.qemu else { return Ok(Some(Code::Done)) };
        tracing::error!("the data path died; checking whether the VM runs and who owns it");
        let verdict = match self.alone.register(qemu) {
            Some(register) => Verdict::Ours(register),
            None => claim(&self.brief, self.proven, qemu, &self.signals)?,
        };
        let (code, what) = match verdict {
            Verdict::Ours(register) => {
                self.brief.register = register;
                if self.alone.has_begun() {
                    self.leaving.begin();
                    self.leaving.attend(qemu); // while it fails, the next data path hears of it
                }
                return Ok((qemu.condition() == Condition::ShutDown).then_some(Code::Done));
            }
            // It was shut down, and no standby will run it again.
            Verdict::VmGone { orderly: true, .. } => return Ok(Some(Code::Done)),
            Verdict::VmGone { standby: Some(standby), .. } if self.proven.is_some() => (
                Code::Fenced,
                format!("QEMU and the data path died; the standby {standby} has the VM's last commit, and takes over"),
            ),
            Verdict::VmGone { standby: Some(standby), .. } => (
                Code::Fenced,
                format!(
                    "QEMU and the data path died; the standby {standby} takes over if it has a commit whose output was held: \
                     see `afterimage status` there"
                ),
            ),
            Verdict::VmGone { standby: None, .. } => {
                let what = match self.proven {
                    Some(_) => "QEMU and the data path died; the standby has the VM's last commit, and takes over",
                    None => "QEMU and the data path died; the standby, if there is one, asks for the VM",
                };
                (Code::Fenced, what.to_owned())
            }
            Verdict::Silent { standby } => (
                Code::Fenced,
                format!(
                    "the data path died, and QEMU does not answer: the VM is left to {standby}, which has its last commit. \
                     This QEMU was not touched; it has no network. End it before this host stands by"
                ),
            ),
            Verdict::Stranded(why) => (
                Code::Fenced,
                format!(
                    "QEMU and the data path died after the arbiter had given the VM to this host; {why}. Nobody runs it: \
                     `afterimage witness assign`, on the witness's host, gives it to a node that has a copy"
                ),
            ),
            Verdict::Theirs => self.fence(),
            Verdict::Told => (Code::Degraded, super::stop::obeyed("the data path had died")),
        };
        Err(ExitError::new(code, what).into())
    }

    fn fence(&mut self) -> (Code, String) {
        let why = "the data path died, and the arbiter gave the VM to another node";
        let (vm, words) = (Some(self.brief.config.vm), Some(why.to_owned()));
        emit(Event::Fenced(Box::new(Fenced { vm, why: words, ..Fenced::default() })));
        let fenced = self.qemu.as_mut().map_or(Ok(None), |qemu| qemu.perform(&Task::Fence));
        let what = "the data path died, and another node owns the VM now";
        let what = match fenced {
            Ok(_) => format!("{what}; this copy was stopped"),
            Err(error) => format!(
                "{what}; this copy has no network, and could not be stopped ({}): end its QEMU",
                exit::words(&error)
            ),
        };
        (Code::Fenced, what)
    }

    /// Serves the data path until it ends: `Some(code)` if on purpose, `None` if it died, the VM with it or not.
    fn watch(&mut self, child: &mut DataPathProcess) -> Result<Option<Code>> {
        let mut gone = false;
        loop {
            self.sleep(child, gone)?;
            self.attend_to_leaving(child);
            if let (false, Some(orderly)) = (gone, self.qemu.as_mut().and_then(Qemu::gone)) {
                gone = true;
                self.leaving.give_up();
                let _ = child.channel.say(&ToDataPath::VmGone { orderly });
            }
            while let Some(message) = child.channel.hear::<ToSupervisor>()? {
                if let ToSupervisor::Ending { code, why } = &message {
                    emit(Event::Ended(Over { vm: None, code: Some(*code), why: why.clone() }));
                    child.process.wait()?;
                    self.finish_leaving()?;
                    return match Code::from_number(*code) {
                        Code::Done => Ok(Some(Code::Done)),
                        code => Err(ExitError::new(code, self.fenced_or_not(why)).into()),
                    };
                }
                self.serve(child, &message);
            }
            if child.channel.is_closed() {
                child.process.wait()?;
                return Ok(None);
            }
            self.hear_signals(child)?;
            self.look_for_successor(child);
            self.look(child, gone);
        }
    }

    fn sleep(&self, child: &DataPathProcess, gone: bool) -> Result<()> {
        let mut fds = vec![readable(child.channel.as_fd()), readable(self.signals.as_fd())];
        if !gone {
            fds.extend(self.qemu.as_ref().map(|qemu| readable(qemu.as_fd())));
        }
        let qemu = self.qemu.as_ref().filter(|_| !gone).map(Qemu::patience);
        let leaving = self.leaving.patience().filter(|_| self.qemu.is_some());
        let patience = leaving.into_iter().chain(qemu).min();
        wait(&mut fds, Time(0), None, patience.map_or(LOOK, |patience| patience.min(LOOK)))?;
        Ok(())
    }

    fn attend_to_leaving(&mut self, child: &mut DataPathProcess) {
        if let Some(news) = self.qemu.as_mut().and_then(|qemu| self.leaving.attend(qemu)) {
            let _ = child.channel.say(&news);
        }
    }

    /// What the data path ends with, and what it cannot know.
    fn fenced_or_not(&self, why: &str) -> String {
        match &self.unfenced {
            Some(error) => format!("{why}; but its QEMU could not be stopped ({error}): it has no network; end it"),
            None => why.to_owned(),
        }
    }

    /// The data path has ended on purpose, and QEMU has not left its checkpoints: nobody else would tell it to.
    fn finish_leaving(&mut self) -> Result<()> {
        while let (true, Some(qemu)) = (self.leaving.is_pending(), &mut self.qemu) {
            if qemu.gone().is_some() {
                break;
            }
            self.leaving.attend(qemu);
            if self.signals.take() > 0 {
                let what = "ended by a second signal although QEMU has not left its checkpoint: the VM may stand still. `afterimage \
                            protect` on this host lets it go on";
                return Err(ExitError::new(Code::Degraded, what).into());
            }
            let patience = self.leaving.patience().unwrap_or_default();
            wait(&mut [readable(self.signals.as_fd())], Time(0), None, patience)?;
        }
        Ok(())
    }

    fn serve(&mut self, child: &mut DataPathProcess, message: &ToSupervisor) {
        self.brief.relieve = false; // it has begun: whoever was there before has left
        self.alone.hear(message);
        match message {
            ToSupervisor::Wanted { protect } => self.brief.protect = *protect,
            ToSupervisor::Protected { generation } => self.proven = Some(*generation),
            ToSupervisor::LeaveSource => {
                self.proven = None; // the register says (solo, self)
                if self.qemu.as_mut().and_then(Qemu::gone).is_none() {
                    self.leaving.begin();
                    self.attend_to_leaving(child);
                }
                return;
            }
            ToSupervisor::Changed(config) => self.brief.config = (**config).clone(),
            ToSupervisor::Fence => self.leaving.give_up(),
            ToSupervisor::Stopping => self.told.since = None,
            ToSupervisor::MakeWay => {
                self.qemu = None;
                self.retake_at = Some(Instant::now() + MAKE_WAY.0);
            }
            _ => {}
        }
        let stream = matches!(message, ToSupervisor::StartSource).then(|| child.channel.take_fd()).flatten();
        let (Some(task), Some(qemu)) = (Task::of(message, stream), &mut self.qemu) else { return };
        match qemu.perform(&task) {
            Ok(Some(answer)) => drop(child.channel.say(&answer)),
            Ok(None) => {}
            Err(error) => {
                let why = exit::words(&error);
                tracing::error!(why, ?task, "QEMU");
                if matches!(task, Task::Fence) {
                    self.unfenced = Some(why);
                }
            }
        }
    }

    /// Looks after the VM, while there is one, and tells the data path that somebody does.
    fn look(&mut self, child: &mut DataPathProcess, gone: bool) {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let _ = child.channel.say(&ToDataPath::Here);
            if !gone {
                self.look_at_vm(child);
            }
        }
        if !gone {
            self.look_at_outputs(child);
        }
    }

    /// Asks QEMU how its VM is, and tells news.
    fn look_at_vm(&mut self, child: &mut DataPathProcess) {
        let said = self.qemu.as_mut().and_then(Qemu::health);
        if let Some(news) = said.filter(|now| *now != self.health) {
            self.health = news;
            let _ = child.channel.say(&ToDataPath::VmIs(self.health.clone()));
        }
    }

    /// Tells what has changed of the VM, and whether its migration has ended; the next data path begins with that.
    fn look_at_outputs(&mut self, child: &mut DataPathProcess) {
        for news in self.qemu.as_mut().map(Qemu::look).unwrap_or_default() {
            if let ToDataPath::Changed(changed) = &news {
                self.brief.outputs = changed.outputs.clone();
                changed.make.clone().map(|make| self.brief.profile.remake(make));
            }
            let _ = child.channel.say(&news);
        }
    }

    /// Signals are the data path's to weigh: it knows what an orderly end takes. One that is stuck is killed after the second.
    fn hear_signals(&mut self, child: &mut DataPathProcess) -> Result<()> {
        for _ in 0..self.signals.take() {
            self.told.times += 1;
            self.told.since.get_or_insert_with(Instant::now);
            let _ = child.channel.say(&ToDataPath::Stop);
        }
        if self.told.times > 1 && self.told.since.is_some_and(|since| since.elapsed() > OBEY) {
            child.process.kill()?;
            child.process.wait()?;
            return Err(ExitError::new(Code::Degraded, super::stop::obeyed("the data path did not answer")).into());
        }
        Ok(())
    }

    /// A successor that was made way for and did not come: somebody has to command QEMU.
    fn look_for_successor(&mut self, child: &mut DataPathProcess) {
        if self.retake_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match self.retake() {
            Ok(()) => {
                tracing::warn!("the process that was to replace this one did not start; going on");
                let _ = child.channel.say(&ToDataPath::Resume);
            }
            // QEMU is gone, and nobody heard why.
            Err(_) if has_ended(self.brief.qemu_pid, self.brief.register.owner.instance) => {
                self.retake_at = None;
                let _ = child.channel.say(&ToDataPath::VmGone { orderly: false });
            }
            Err(_) => {}
        }
    }

    /// Takes QEMU's control connection up again, if nobody else has it.
    fn retake(&mut self) -> Result<(), QmpError> {
        self.retake_at = Some(Instant::now() + MAKE_WAY.1);
        let qmp = Qmp::connect(&self.brief.config.qmp, ANSWER)?;
        self.qemu = Some(Qemu::new(qmp, self.brief.qemu_process(), self.brief.config.nic_sockets()));
        self.retake_at = None;
        Ok(())
    }
}

/// How a data path ended.
enum Ended {
    OnPurpose(Code),
    Died(String),
}

/// The child, and the channel to it.
#[derive(Debug)]
struct DataPathProcess {
    process: Child,
    channel: Channel,
}

impl DataPathProcess {
    /// In words, once it has.
    fn how_it_ended(&mut self) -> String {
        self.process.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    fn spawn(brief: &Brief) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program::own());
        command.arg("data-path").stdin(Stdio::from(OwnedFd::from(theirs)));
        // A ^C at our terminal is the supervisor's to hear.
        in_its_own_session(&mut command);
        let process = command.spawn().context("starting the data path")?;
        let mut channel = Channel::new(ours)?;
        channel.say(&ToDataPath::Begin(Box::new(brief.clone())))?;
        Ok(Self { process, channel })
    }
}
