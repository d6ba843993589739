//! The supervisor: holds QEMU's control connection, and outlives the data path.
//!
//! ```text
//!               spawn                     dies                      Cas won: (G+1, solo)
//!  (register ───────> Watching the ─────────────> Asking the ────────────────────────────> leave checkpoints, see that the
//!   is solo)          data path                   arbiter          or it said solo already  VM runs, spawn a solo data path
//!                        │ "Ending"                  │ Cas lost
//!                        v                           v
//!                      exit                        fence QEMU, exit 4
//! ```
//!
//! The rule: a data path's death may leave the VM stopped in the middle of a checkpoint, with output that was never
//! released. Before the VM may run again the register must say (solo, self): else the standby may be running it already.

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    claim::claim,
    vm_health::Health,
};
use crate::{
    events::emit,
    exit::{self, Code, ExitError},
    inbox::{readable, wait},
    qemu::{
        control::{self, ControlError, MigrationState},
        qmp::{Qmp, QmpError, kill_instance},
    },
};
use anyhow::{Context, Result};
use mc_core::id::Time;
use serde_json::{Value, json};
use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// For a QEMU that is asked how its VM is.
const GLANCE: Duration = Duration::from_millis(500);
/// How often it is.
const LOOK: Duration = Duration::from_secs(1);

/// QEMU's pid, and its instance.
pub(super) type Process = (u32, u64);

/// QEMU, as far as we may command it.
#[derive(Debug)]
pub(super) struct Qemu {
    qmp: Qmp,
    process: Process,
    /// QEMU said that its VM shuts down, or was told to.
    shut_down: bool,
}

/// One thing to do to QEMU.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Start(PathBuf),
    Leave,
    Fence,
    Explain(String),
}

impl Task {
    pub(super) fn of(message: &ToSupervisor) -> Option<Self> {
        Some(match message {
            ToSupervisor::StartSource { path } => Self::Start(path.clone()),
            ToSupervisor::LeaveSource => Self::Leave,
            ToSupervisor::Fence => Self::Fence,
            ToSupervisor::SourceFailed { why } => Self::Explain(why.clone()),
            ToSupervisor::Ending { .. } => return None,
        })
    }
}

impl Qemu {
    pub(super) fn connect(path: &Path, process: Process) -> Result<Self, QmpError> {
        Ok(Self::new(Qmp::connect(path, Duration::from_secs(5))?, process))
    }

    pub(super) fn new(qmp: Qmp, process: Process) -> Self {
        Self { qmp, process, shut_down: false }
    }

    /// Does it; the data path may want to hear how it went.
    pub(super) fn perform(&mut self, task: &Task) -> Result<Option<ToDataPath>> {
        match task {
            Task::Start(path) => {
                let refused = control::start_colo(&mut self.qmp, path).err();
                let unsupported = matches!(refused, Some(ControlError::NoColo { .. } | ControlError::NoDescription));
                Ok(Some(ToDataPath::Started { error: refused.map(|e| e.to_string()), unsupported }))
            }
            Task::Leave => control::leave_colo(&mut self.qmp).map(|()| None).context("leaving checkpoint mode"),
            Task::Fence => self.fence().map(|()| None),
            Task::Explain(why) => Ok(Some(self.explain(why))),
        }
    }

    /// How the VM is, by QEMU's word. One that does not answer at once is asked again later: that proves nothing.
    fn health(&mut self) -> Option<Health> {
        let said = self.qmp.execute("query-status", Value::Null, GLANCE).ok()?;
        said["status"].as_str().map(Health::by_run_state)
    }

    /// Ends the VM for good. A QEMU that does not answer (a signal stopped it) is killed: another node owns the VM.
    fn fence(&mut self) -> Result<()> {
        let (pid, instance) = self.process;
        match control::fence(&mut self.qmp) {
            Err(ControlError::Qmp(QmpError::Timeout { .. })) => {
                kill_instance(pid, instance).with_context(|| format!("killing the fenced VM's QEMU, process {pid}"))
            }
            ended => ended.context("stopping the fenced VM"),
        }
    }

    /// A broken stream: is the VM gone, or is this QEMU unable to do what is asked of it?
    fn explain(&mut self, why: &str) -> ToDataPath {
        match control::colo_state(&mut self.qmp) {
            Err(_) => {
                // Its stream often ends before its last words are read here; and a question that could not be sent has
                // read none of them.
                let _ = self.qmp.poll_events();
                ToDataPath::VmGone { orderly: self.said_shutdown() }
            }
            Ok(MigrationState::Completed) => {
                ToDataPath::SourceBroken { why: UNSUPPORTED.to_owned(), unsupported: true }
            }
            Ok(state) => ToDataPath::SourceBroken { why: format!("{why}; QEMU says {state:?}"), unsupported: false },
        }
    }

    /// Whether QEMU said that the VM is gone: `Some(orderly)`.
    pub(super) fn gone(&mut self) -> Option<bool> {
        let closed = self.qmp.poll_events().is_err();
        let orderly = self.said_shutdown();
        (closed || orderly).then_some(orderly)
    }

    fn said_shutdown(&mut self) -> bool {
        self.shut_down |= self.qmp.take_events().iter().any(|e| e.name == "SHUTDOWN");
        self.shut_down
    }
}

impl AsFd for Qemu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.qmp.as_fd()
    }
}

const UNSUPPORTED: &str = "this QEMU ended the migration instead of entering checkpoint mode (COLO): 10.0 and 10.1 are \
     known to. The VM runs on, unprotected. Use QEMU 7.2 (Debian 12), or one of which `query-migrate` says \"colo\"";

/// Watches over one VM until it is gone, fenced, or handed over. Returns the exit code.
pub(super) fn supervise(qmp: Qmp, mut brief: Brief) -> Result<Code> {
    let mut qemu = Qemu::new(qmp, brief.qemu_process());
    loop {
        let mut child = DataPathProcess::spawn(&brief)?;
        if let Some(code) = watch(&mut qemu, &mut child)? {
            return Ok(code);
        }
        let register = brief.register;
        emit("data-path-died", json!({ "vm": brief.config.vm, "how": child.how_it_ended(), "began_with": register }));
        let gone = qemu.gone();
        if gone == Some(false) {
            let what = "QEMU and the data path died; the standby, if there is one, asks for the VM";
            return Err(ExitError::new(Code::Fenced, what).into());
        }
        tracing::error!("the data path died; asking the arbiter for the VM");
        let Some(register) = claim(&brief)? else {
            qemu.perform(&Task::Fence)?;
            emit(
                "fenced",
                json!({ "vm": brief.config.vm, "why": "the data path died, and the arbiter gave the VM to another node" }),
            );
            let what = "the data path died, and another node owns the VM now; this copy was stopped";
            return Err(ExitError::new(Code::Fenced, what).into());
        };
        if gone.is_some() {
            return Ok(Code::Done); // it was shut down, and no standby will run it again
        }
        qemu.perform(&Task::Leave)?;
        (brief.register, brief.protect) = (register, false);
    }
}

/// Serves the data path until it ends: `Some(code)` if on purpose, `None` if it died.
fn watch(qemu: &mut Qemu, child: &mut DataPathProcess) -> Result<Option<Code>> {
    let (mut told_gone, mut gone) = (false, false);
    let (mut looked, mut health) = (Instant::now(), Health::Runs);
    loop {
        {
            let mut fds = vec![readable(child.channel.as_fd())];
            if !gone {
                fds.push(readable(qemu.as_fd()));
            }
            wait(&mut fds, Time(0), None, Duration::from_secs(1))?;
        }
        if let (false, Some(orderly)) = (told_gone, qemu.gone()) {
            (told_gone, gone) = (true, true);
            let _ = child.channel.say(&ToDataPath::VmGone { orderly });
        }
        if !gone && looked.elapsed() >= LOOK {
            looked = Instant::now();
            if let Some(news) = qemu.health().filter(|now| *now != health) {
                health = news;
                let _ = child.channel.say(&ToDataPath::VmIs(health.clone()));
            }
        }
        while let Some(message) = child.channel.hear::<ToSupervisor>()? {
            if let ToSupervisor::Ending { code, why } = &message {
                emit("ended", json!({ "code": code, "why": why }));
                child.process.wait()?;
                return match Code::from_number(*code) {
                    Code::Done => Ok(Some(Code::Done)),
                    code => Err(ExitError::new(code, why).into()),
                };
            }
            serve(qemu, child, &message);
        }
        if child.channel.is_closed() {
            child.process.wait()?;
            return Ok(gone.then_some(Code::Done));
        }
    }
}

fn serve(qemu: &mut Qemu, child: &mut DataPathProcess, message: &ToSupervisor) {
    let Some(task) = Task::of(message) else { return };
    match qemu.perform(&task) {
        Ok(Some(answer)) => drop(child.channel.say(&answer)),
        Ok(None) => {}
        Err(error) => tracing::error!(error = exit::words(&error), ?task, "QEMU"),
    }
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
        let process = Command::new(std::env::current_exe()?)
            .arg("data-path")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("starting the data path")?;
        let mut channel = Channel::new(ours)?;
        channel.say(&ToDataPath::Begin(Box::new(brief.clone())))?;
        Ok(Self { process, channel })
    }
}
