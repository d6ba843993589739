//! The supervisor died, and the data path goes on: a thread of it is the acting supervisor, over a channel as before. It may wait for
//! QEMU, whose answers take seconds when it is stuck; the loop, which passes the VM's packets, may not.

use super::{
    channel::{Channel, ToDataPath, ToSupervisor},
    commanded::{Process, Qemu, Task},
    supervisor::leaving::{self, Leaving},
    vm_health::Health,
};
use anyhow::Result;
use mc_core::id::Time;
use node::{
    exit,
    inbox::{readable, wait},
};
use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use vmm_qemu::qmp::{has_ended, kill_instance};

/// Between two looks at the VM, and between two attempts to reach QEMU.
const LOOK: Duration = Duration::from_secs(1);
/// For QEMU to leave its checkpoints when the data path ends meanwhile, and between two looks then.
const LAST: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);
/// For a successor that way was made for to take QEMU's control connection.
const MAKE_WAY: Duration = Duration::from_secs(10);

struct ActingSupervisor {
    channel: Channel,
    qmp: PathBuf,
    process: Process,
    /// The sockets of `--nic`.
    nics: Vec<PathBuf>,
    qemu: Option<Qemu>,
    /// When QEMU is tried again, while there is no connection.
    connect_at: Instant,
    looked: Instant,
    /// The times of `leaving` begin here.
    began: Instant,
    health: Health,
    leaving: Leaving,
    /// The data path knows that the VM is gone.
    gone: bool,
    trouble: Option<String>,
}

/// Starts the thread; it ends with the channel's other end, when it has done what was said until then.
pub(super) fn start(qmp: PathBuf, process: Process, nics: Vec<PathBuf>) -> io::Result<(Channel, JoinHandle<()>)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (ours, theirs) = (Channel::new(ours)?, Channel::new(theirs)?);
    let now = Instant::now();
    let acting = ActingSupervisor {
        channel: theirs,
        qmp,
        process,
        nics,
        qemu: None,
        connect_at: now,
        looked: now,
        began: now,
        health: Health::Runs,
        leaving: Leaving::default(),
        gone: false,
        trouble: None,
    };
    let thread = std::thread::Builder::new().name("acting-super".to_owned()).spawn(move || {
        if let Err(error) = acting.run() {
            tracing::error!(error = exit::words(&error), "there is no longer a control connection to QEMU");
        }
    })?;
    Ok((ours, thread))
}

impl ActingSupervisor {
    fn run(mut self) -> Result<()> {
        let mut closed_at = None;
        while closed_at.is_none_or(|at: Instant| self.may_still_leave() && at.elapsed() < LAST) {
            self.connect();
            self.sleep()?;
            self.look_whether_gone();
            while let Some(message) = self.channel.hear::<ToSupervisor>()? {
                self.serve(&message);
            }
            self.attend_to_leaving();
            self.look_at_vm();
            self.look_at_outputs();
            if self.channel.is_closed() {
                closed_at.get_or_insert_with(Instant::now);
                std::thread::sleep(STEP);
            }
        }
        Ok(())
    }

    fn may_still_leave(&self) -> bool {
        self.leaving.is_pending() && self.qemu.is_some()
    }

    fn now(&self) -> Time {
        Time(0).after(self.began.elapsed())
    }

    fn attend_to_leaving(&mut self) {
        let now = self.now();
        let Some(qemu) = self.qemu.as_mut().filter(|_| self.leaving.is_due(now)) else { return };
        let error = qemu.perform(&Task::Leave).err().map(|error| exit::words(&error));
        if self.leaving.told(self.now(), error.as_deref()) {
            tracing::error!(why = error, "{}", leaving::FAILED);
        }
        self.tell(&ToDataPath::Left { error });
    }

    fn tell(&mut self, news: &ToDataPath) {
        let _ = self.channel.say(news); // it ends with its other end
    }

    fn sleep(&self) -> Result<()> {
        let mut fds = vec![readable(self.channel.as_fd())];
        fds.extend(self.qemu.as_ref().map(|qemu| readable(qemu.as_fd())));
        let leaving = self.leaving.deadline().filter(|_| self.qemu.is_some());
        let longest = self.qemu.as_ref().map_or(LOOK, |qemu| qemu.patience().min(LOOK));
        wait(&mut fds, self.now(), leaving, longest)?;
        Ok(())
    }

    /// QEMU serves one client at a time, and the dead supervisor's place is free.
    fn connect(&mut self) {
        if self.gone || self.qemu.is_some() || Instant::now() < self.connect_at {
            return;
        }
        match Qemu::connect(&self.qmp, self.process, self.nics.clone()) {
            Ok(qemu) => (self.qemu, self.trouble) = (Some(qemu), None),
            Err(error) => {
                self.connect_at = Instant::now() + LOOK;
                let why = error.to_string();
                if self.trouble.as_ref() != Some(&why) {
                    tracing::error!(why, "no control connection to QEMU; trying again");
                    self.trouble = Some(why);
                }
            }
        }
    }

    /// Whatever a connection says, or refuses to say: a process that has ended runs no VM.
    fn look_whether_gone(&mut self) {
        if self.gone {
            return;
        }
        let said = self.qemu.as_mut().and_then(Qemu::gone);
        if let Some(orderly) = said.or_else(|| has_ended(self.process.0, self.process.1).then_some(false)) {
            (self.gone, self.qemu) = (true, None);
            self.leaving.give_up();
            self.tell(&ToDataPath::VmGone { orderly });
        }
    }

    fn serve(&mut self, message: &ToSupervisor) {
        match message {
            ToSupervisor::LeaveSource if self.gone => return, // it has left everything
            ToSupervisor::LeaveSource => return self.leaving.begin(self.now()),
            ToSupervisor::MakeWay => (self.qemu, self.connect_at) = (None, Instant::now() + MAKE_WAY),
            ToSupervisor::Fence => self.leaving.give_up(),
            _ => {}
        }
        let stream = matches!(message, ToSupervisor::StartSource).then(|| self.channel.take_fd()).flatten();
        let Some(task) = Task::of(message, stream) else { return };
        let done = match &mut self.qemu {
            Some(qemu) => qemu.perform(&task),
            None => self.without_qemu(&task),
        };
        match done {
            Ok(answer) => answer.into_iter().for_each(|answer| self.tell(&answer)),
            Err(error) => tracing::error!(error = exit::words(&error), "QEMU did not {}", task.words()),
        }
    }

    fn without_qemu(&self, task: &Task) -> Result<Option<ToDataPath>> {
        let (why, unsupported) = ("there is no control connection to QEMU".to_owned(), false);
        Ok(match task {
            Task::Start(_) => Some(ToDataPath::Started { error: Some(why), unsupported }),
            Task::Explain(_) if self.gone => None, // that was said
            Task::Explain(seen) => Some(ToDataPath::SourceBroken { why: format!("{seen}; {why}"), unsupported }),
            Task::Leave | Task::Look => None,
            Task::Fence => {
                kill_instance(self.process.0, self.process.1)?;
                None
            }
        })
    }

    fn look_at_vm(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if self.qemu.is_some() || self.gone {
            self.tell(&ToDataPath::Here);
        }
        let said = self.qemu.as_mut().and_then(Qemu::health);
        if let Some(news) = said.filter(|now| *now != self.health) {
            self.health = news.clone();
            self.tell(&ToDataPath::VmIs(news));
        }
    }

    fn look_at_outputs(&mut self) {
        let news = self.qemu.as_mut().map(Qemu::look).unwrap_or_default();
        news.iter().for_each(|news| self.tell(news));
    }
}
