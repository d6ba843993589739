//! The commands to QEMU over its control connection, for the supervisor and the acting supervisor.

use super::{
    channel::{ToDataPath, ToSupervisor},
    vm_health::Health,
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};
use vmm_qemu::{
    control::{self, Before, ControlError, MigrationState},
    inventory::Watcher,
    qmp::{Qmp, QmpError, kill_instance},
};

/// How soon a QEMU that is well says how its VM is.
pub(super) const ANSWER: Duration = Duration::from_millis(500);

/// QEMU's pid, and its instance.
pub(super) type Process = (u32, u64);

/// QEMU, as far as we may command it.
#[derive(Debug)]
pub(super) struct Qemu {
    qmp: Qmp,
    process: Process,
    /// QEMU said that its VM shuts down, or was told to.
    shut_down: bool,
    watcher: Watcher,
    /// QEMU's settings before the migration that was begun here.
    before: Option<Before>,
    /// QEMU was told to send checkpoints, and nothing has been heard of their end.
    sending: bool,
}

/// How a QEMU is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It answers.
    Answers,
    /// Its VM was shut down, by its guest or its operator.
    ShutDown,
    /// It closed its control connection: it died.
    Gone,
    /// It is there, and does not answer in time.
    Silent,
}

/// One thing to do to QEMU.
#[derive(Debug)]
pub(super) enum Task {
    /// QEMU's end of the stream; without it there is none.
    Start(Option<OwnedFd>),
    Look,
    Leave,
    Fence,
    Explain(String),
}

impl Task {
    /// `stream`: what comes with [`ToSupervisor::StartSource`].
    pub(super) fn of(message: &ToSupervisor, stream: Option<OwnedFd>) -> Option<Self> {
        Some(match message {
            ToSupervisor::StartSource => Self::Start(stream),
            ToSupervisor::LookAgain => Self::Look,
            ToSupervisor::LeaveSource => Self::Leave,
            ToSupervisor::Fence => Self::Fence,
            ToSupervisor::SourceFailed { why } => Self::Explain(why.clone()),
            ToSupervisor::Wanted { .. }
            | ToSupervisor::Protected { .. }
            | ToSupervisor::Alone { .. }
            | ToSupervisor::Changed(_)
            | ToSupervisor::Stopping
            | ToSupervisor::MakeWay
            | ToSupervisor::Ending { .. } => return None,
        })
    }

    /// What QEMU is to do.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::Start(_) => "begin checkpoints",
            Self::Look => "say what the VM is made of",
            Self::Leave => "leave its checkpoints",
            Self::Fence => "stop the VM",
            Self::Explain(_) => "say why its checkpoints broke",
        }
    }
}

impl Qemu {
    /// `nics`: the sockets of `--nic`.
    pub(super) fn connect(path: &Path, process: Process, nics: Vec<PathBuf>) -> Result<Self, QmpError> {
        Ok(Self::new(Qmp::connect(path, Duration::from_secs(5))?, process, nics))
    }

    pub(super) fn new(qmp: Qmp, process: Process, nics: Vec<PathBuf>) -> Self {
        Self { qmp, process, shut_down: false, watcher: Watcher::new(nics), before: None, sending: false }
    }

    /// Does it; the data path may want to hear how it went.
    pub(super) fn perform(&mut self, task: &Task) -> Result<Option<ToDataPath>> {
        match task {
            Task::Start(stream) => Ok(Some(self.start(stream.as_ref()))),
            Task::Look => {
                self.watcher.look_again();
                Ok(None)
            }
            Task::Leave => self.leave().map(|()| None),
            Task::Fence => self.fence().map(|()| None),
            Task::Explain(why) => Ok(Some(self.explain(why))),
        }
    }

    fn start(&mut self, stream: Option<&OwnedFd>) -> ToDataPath {
        let Some(stream) = stream else {
            let error = Some("the stream for checkpoints is missing".into());
            return ToDataPath::Started { error, unsupported: false };
        };
        let started = control::start_colo(&mut self.qmp, stream.as_fd());
        // What was asked before says nothing of this migration.
        self.watcher.start_over(&mut self.qmp);
        match started {
            Ok(before) => {
                (self.before, self.sending) = (Some(before), true);
                ToDataPath::Started { error: None, unsupported: false }
            }
            Err(error) => {
                use ControlError::{NoColo, NoDescription, ReturnPath};
                let unsupported = matches!(error, NoColo { .. } | NoDescription | ReturnPath { .. });
                ToDataPath::Started { error: Some(error.to_string()), unsupported }
            }
        }
    }

    /// Looks at the VM's outputs, and whether the migration still goes on, without waiting: what the data path should hear.
    pub(super) fn look(&mut self) -> Vec<ToDataPath> {
        // A QEMU that cannot be asked is gone: `gone` says so.
        let Ok(look) = self.watcher.turn(&mut self.qmp, self.sending) else { return Vec::new() };
        let over = |state: &MigrationState| !matches!(state, MigrationState::Active | MigrationState::Colo);
        let broken = look.migration.filter(|state| self.sending && over(state)).map(|state| self.broken(&state, ""));
        let changed = look.changed.map(|changed| ToDataPath::Changed(Box::new(changed)));
        changed.into_iter().chain(broken).collect()
    }

    /// How long nothing has to be looked at.
    pub(super) fn patience(&self) -> Duration {
        self.watcher.patience()
    }

    /// Ends checkpoints, and sees that the VM runs. Repeated until it succeeds: see [`super::supervisor`]. A QEMU that does not answer
    /// holds nobody up. A VM that its guest or QEMU itself has stopped has left its checkpoints, and says so itself.
    fn leave(&mut self) -> Result<()> {
        self.sending = false;
        if self.condition() == Condition::Silent {
            bail!("QEMU does not answer on its control connection");
        }
        match control::leave_colo(&mut self.qmp, self.before.as_ref()) {
            Err(ControlError::NotRunning { status }) => {
                tracing::warn!(status, "QEMU has left its checkpoints, and its VM does not run");
            }
            left => left.context("leaving checkpoint mode")?,
        }
        self.before = None;
        Ok(())
    }

    /// How the VM is, by QEMU's word. One that does not answer at once is asked again later: that proves nothing.
    pub(super) fn health(&mut self) -> Option<Health> {
        let said = self.qmp.execute("query-status", Value::Null, ANSWER).ok()?;
        said["status"].as_str().map(Health::by_run_state)
    }

    /// Ends the VM for good. A QEMU that does not answer (a signal stopped it), or refuses, is killed: another node owns the VM.
    fn fence(&mut self) -> Result<()> {
        let (pid, instance) = self.process;
        let Err(error) = control::fence(&mut self.qmp) else { return Ok(()) };
        tracing::warn!(%error, pid, "the fenced VM's QEMU does not exit; killing it");
        kill_instance(pid, instance).with_context(|| format!("killing the fenced VM's QEMU, process {pid} ({error})"))
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
            Ok(state) => self.broken(&state, why),
        }
    }

    /// The migration is over, or its stream is; `why`: as seen from the data path.
    fn broken(&mut self, state: &MigrationState, why: &str) -> ToDataPath {
        self.sending = false;
        let unsupported = *state == MigrationState::Completed;
        let qemu = match state {
            MigrationState::Completed => UNSUPPORTED.to_owned(),
            MigrationState::None => "QEMU did not begin to send checkpoints".to_owned(),
            MigrationState::Cancelled => {
                "the VM's migration, which carries the checkpoints, was cancelled from outside".to_owned()
            }
            MigrationState::Failed(error) => format!("QEMU failed to send checkpoints: {error}"),
            state => format!("QEMU says {state:?}"),
        };
        let why = if unsupported || why.is_empty() { qemu } else { format!("{why}; {qemu}") };
        ToDataPath::SourceBroken { why, unsupported }
    }

    /// Whether QEMU said that the VM is gone: `Some(orderly)`.
    pub(super) fn gone(&mut self) -> Option<bool> {
        let closed = self.qmp.poll_events().is_err();
        let orderly = self.said_shutdown();
        (closed || orderly).then_some(orderly)
    }

    /// Asks it; takes [`ANSWER`] at most. Nothing is changed by it.
    pub(super) fn condition(&mut self) -> Condition {
        let asked = self.qmp.execute("query-status", Value::Null, ANSWER);
        let _ = self.qmp.poll_events();
        match asked {
            _ if self.said_shutdown() => Condition::ShutDown,
            Ok(_) | Err(QmpError::Command { .. }) => Condition::Answers,
            Err(QmpError::Timeout { .. }) => Condition::Silent,
            Err(_) => Condition::Gone,
        }
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

const UNSUPPORTED: &str = "this QEMU ended the migration instead of entering checkpoint mode (COLO), as 10.0.2 does. The VM \
     runs on, unprotected. Use QEMU 7.2 (Debian 12) or 10.0.13 (Debian 13), or another one of which `query-migrate` says \
     \"colo\"";
