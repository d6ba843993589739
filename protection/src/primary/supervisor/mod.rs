//! The supervisor: holds QEMU's control connection, and outlives the data path.
//!
//! | file | |
//! |---|---|
//! | [`machine`] | decides; a value, with the state diagram and the rule |
//! | [`event`] | what it is told, and what it wants |
//! | [`watching`], [`death`] | what it does while a data path works, and when that died |
//! | [`claim`] | whose the VM is then, by the arbiter |
//! | [`alone`], [`leaving`] | when nobody need be asked; QEMU leaves its checkpoints, however long that takes |
//! | [`ending`] | what is said at the end |
//! | `mod.rs` | carries out: the data path's process and channel, QEMU, the arbiter and the control socket while the VM is claimed |

mod alone;
mod claim;
mod death;
mod ending;
pub mod event;
pub(super) mod leaving;
pub mod machine;
#[cfg(test)]
mod tests;
mod watching;

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    commanded::{ANSWER, Qemu, Task},
    waiting::{Heard, Waiting, What},
};
use crate::{predecessor, processes::Program};
use anyhow::{Context, Result};
use event::{Action, Arbiter, Event, NotConnected};
use machine::Supervisor;
use mc_core::{id::Time, machine::Machine};
use node::{
    events::{Role, emit},
    exit::{Code, ExitError, words},
    inbox::{readable, wait},
    signals::Signals,
    sys::child::in_its_own_session,
};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Stdio},
    time::Instant,
};
use tracing::Level;
use vmm_qemu::qmp::{Qmp, QmpError, has_ended};
use watching::LOOK;

/// Watches over one VM until it is gone, fenced, or handed over. Returns the exit code.
pub(super) fn supervise(qmp: Qmp, brief: Brief, signals: Signals, program: Program) -> Result<Code> {
    let qemu = Some(Qemu::new(qmp, brief.qemu_process(), brief.config.nic_sockets()));
    let machine = Supervisor::new(Time(0), brief);
    Runner { machine, start: Instant::now(), program, signals, qemu, data_path: None, claimant: None, over: None }.run()
}

/// What carries the machine's decisions out.
struct Runner {
    machine: Supervisor,
    /// The machine's time begins here.
    start: Instant,
    program: Program,
    signals: Signals,
    qemu: Option<Qemu>,
    data_path: Option<DataPathProcess>,
    /// Who asks the arbiter while the VM is claimed.
    claimant: Option<Waiting>,
    over: Option<Result<Code, ExitError>>,
}

impl Runner {
    fn run(mut self) -> Result<Code> {
        self.carry_out();
        loop {
            if let Some(over) = self.over.take() {
                return Ok(over?);
            }
            match self.sleep() {
                Err(error) if self.data_path.is_some() => self.tell(Event::Broken(words(&error))),
                slept => slept?,
            }
            self.turn();
        }
    }

    fn now(&self) -> Time {
        Time(0).after(self.start.elapsed())
    }

    /// Tells the machine, and carries out what it wants.
    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.machine.handle(now, event);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let (true, Some(action)) = (self.over.is_none(), self.machine.poll_action()) {
            if let Some(came) = self.act(action) {
                let now = self.now();
                self.machine.handle(now, came);
            }
        }
    }

    /// Does one thing; what came of it.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn(brief) => return Some(Event::Spawned(self.spawn(&brief))),
            Action::Say(message) => {
                if let Some(data_path) = &mut self.data_path {
                    let _ = data_path.channel.say(&message);
                }
            }
            Action::AwaitEnd => return self.data_path.take().map(|mut one| Event::DataPathEnded(one.how_it_ended())),
            Action::Kill => {
                let mut data_path = self.data_path.take()?;
                let _ = data_path.process.kill();
                return Some(Event::DataPathEnded(data_path.how_it_ended()));
            }
            Action::Connect => return Some(Event::Connected(self.connect())),
            Action::Disconnect => self.qemu = None,
            Action::Perform(message) => return self.perform(&message),
            Action::Leave => {
                return Some(Event::Left(self.qemu.as_mut()?.perform(&Task::Leave).err().map(|e| words(&e))));
            }
            Action::Fence => return Some(Event::Fenced(self.fence())),
            Action::AskCondition => return Some(Event::QemuIs(self.qemu.as_mut()?.condition())),
            Action::AskHealth => return self.qemu.as_mut()?.health().map(Event::VmIs),
            Action::BeginClaim => return self.begin_claim().err().map(|error| Event::NoClaim(words(&error))),
            Action::Ask(ask) => self.claimant.iter().for_each(|claimant| claimant.ask(ask)),
            Action::Note(note) => self.claimant.iter_mut().for_each(|claimant| claimant.notes.push(note.clone())),
            Action::EndClaim => self.claimant = None,
            Action::Emit(event) => emit(*event),
            Action::Log { level, what, why } => log(level, &what, why.as_deref()),
            Action::Exit(how) => self.over = Some(how),
        }
        None
    }

    fn sleep(&self) -> Result<()> {
        let mut fds = vec![readable(self.signals.as_fd())];
        let mut longest = LOOK;
        if let Some(qemu) = self.qemu.as_ref().filter(|_| self.machine.watches_qemu()) {
            fds.push(readable(qemu.as_fd()));
            longest = qemu.patience().min(LOOK);
        }
        fds.extend(self.data_path.as_ref().map(|data_path| readable(data_path.channel.as_fd())));
        fds.extend(self.claimant.iter().flat_map(Waiting::fds));
        wait(&mut fds, self.now(), self.machine.deadline(), longest)?;
        Ok(())
    }

    /// Hears whoever has something to say, before anybody is late.
    fn turn(&mut self) {
        self.look_whether_qemu_is_gone();
        self.hear_data_path();
        self.hear_arbiter();
        match self.signals.take() {
            0 => {}
            count => self.tell(Event::Signals(count)),
        }
        let now = self.now();
        self.machine.handle_timeout(now);
        self.carry_out();
        self.look_at_outputs();
    }

    fn look_whether_qemu_is_gone(&mut self) {
        if self.machine.watches_qemu()
            && let Some(orderly) = self.qemu.as_mut().and_then(Qemu::gone)
        {
            self.tell(Event::QemuGone { orderly });
        }
    }

    fn hear_data_path(&mut self) {
        while let (None, Some(data_path)) = (&self.over, &mut self.data_path) {
            match data_path.channel.hear() {
                Ok(Some(message)) => self.hear(message),
                Ok(None) if data_path.channel.is_closed() => self.tell(Event::Closed),
                Ok(None) => return,
                Err(error) => self.tell(Event::Broken(error.to_string())),
            }
        }
    }

    fn hear(&mut self, message: ToSupervisor) {
        if let (ToSupervisor::StartSource, Some(data_path)) = (&message, &mut self.data_path) {
            data_path.stream = data_path.channel.take_fd();
        }
        self.look_whether_qemu_is_gone();
        self.tell(Event::Said(message));
        // Without QEMU's control connection it was not passed on: then its other end hears that.
        self.data_path.iter_mut().for_each(|data_path| data_path.stream = None);
    }

    fn hear_arbiter(&mut self) {
        while let Some(claimant) = &mut self.claimant {
            let heard = match claimant.take() {
                Some(Heard::Read(held)) => Arbiter::Read(held),
                Some(Heard::Cas(outcome)) => Arbiter::Cas(outcome),
                Some(Heard::Operator) => Arbiter::Operator { seen: claimant.arbiter.seen() },
                Some(Heard::Signal | Heard::Successor | Heard::Late) => continue, // not of a claim
                None => match claimant.trouble_changed() {
                    Some(trouble) => Arbiter::Fails(trouble),
                    None => return,
                },
            };
            self.tell(Event::Arbiter(heard));
        }
    }

    /// What has changed of the VM, and whether its migration has ended.
    fn look_at_outputs(&mut self) {
        if self.data_path.is_none() || !self.machine.watches_qemu() {
            return;
        }
        for news in self.qemu.as_mut().map(Qemu::look).unwrap_or_default() {
            self.tell(Event::QemuSays(news));
        }
    }

    fn spawn(&mut self, brief: &Brief) -> Result<(), String> {
        let spawned = DataPathProcess::spawn(self.program, brief).map_err(|error| words(&error))?;
        self.data_path = Some(spawned);
        Ok(())
    }

    /// Takes QEMU's control connection up, if nobody else has it.
    fn connect(&mut self) -> Result<(), NotConnected> {
        let brief = self.machine.brief();
        let (process, config) = (brief.qemu_process(), &brief.config);
        let qmp = Qmp::connect(&config.qmp, ANSWER).map_err(|_: QmpError| NotConnected {
            ended: has_ended(process.0, process.1),
            relieved: self.data_path.is_none() && predecessor::is_anybody_here(&config.run_dir, config.vm),
        })?;
        self.qemu = Some(Qemu::new(qmp, process, config.nic_sockets()));
        Ok(())
    }

    fn perform(&mut self, message: &ToSupervisor) -> Option<Event> {
        let stream = self.data_path.as_mut().and_then(|data_path| data_path.stream.take());
        let task = Task::of(message, stream)?;
        match self.qemu.as_mut()?.perform(&task) {
            Ok(answer) => answer.map(Event::QemuSays),
            Err(error) => {
                tracing::error!(why = words(&error), "QEMU did not {}", task.words());
                None
            }
        }
    }

    /// Why not.
    fn fence(&mut self) -> Option<String> {
        let error = words(&self.qemu.as_mut()?.perform(&Task::Fence).err()?);
        tracing::error!(why = error, "the VM could not be fenced");
        Some(error)
    }

    fn begin_claim(&mut self) -> Result<()> {
        let Brief { config, register, .. } = self.machine.brief();
        let what = What {
            role: Role::Claiming,
            generation: register.generation,
            note: "the data path died; the VM stands still until the arbiter answers",
            busy: "the data path died, and the arbiter has not answered yet who owns the VM",
            may_leave: false,
        };
        self.claimant = Some(Waiting::new(config, register.owner.node, what, true)?);
        Ok(())
    }
}

fn log(level: Level, what: &str, why: Option<&str>) {
    match (level == Level::WARN, why) {
        (true, _) => tracing::warn!("{what}"),
        (false, None) => tracing::error!("{what}"),
        (false, Some(why)) => tracing::error!(why, "{what}"),
    }
}

/// The child, and the channel to it.
#[derive(Debug)]
struct DataPathProcess {
    process: Child,
    channel: Channel,
    /// That came with [`ToSupervisor::StartSource`], while that is carried out.
    stream: Option<OwnedFd>,
}

impl DataPathProcess {
    /// In words, once it has.
    fn how_it_ended(&mut self) -> String {
        self.process.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    fn spawn(program: Program, brief: &Brief) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = program.data_path();
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        // A ^C at our terminal is the supervisor's to hear.
        in_its_own_session(&mut command);
        let process = command.spawn().context("starting the data path")?;
        let mut channel = Channel::new(ours)?;
        channel.say(&ToDataPath::Begin(Box::new(brief.clone())))?;
        Ok(Self { process, channel, stream: None })
    }
}
