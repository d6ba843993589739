//! QEMU, as far as whoever holds its control connection may command it.

use super::{
    channel::{ToDataPath, ToSupervisor},
    vm_health::Health,
};
use crate::qemu::{
    control::{self, ControlError, MigrationState},
    qmp::{Qmp, QmpError, kill_instance},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    time::Duration,
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
}

/// How a QEMU is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
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
            ToSupervisor::Wanted { .. }
            | ToSupervisor::Protected { .. }
            | ToSupervisor::Alone { .. }
            | ToSupervisor::Changed(_)
            | ToSupervisor::Stopping
            | ToSupervisor::MakeWay
            | ToSupervisor::Ending { .. } => return None,
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
            Task::Leave => self.leave().map(|()| None),
            Task::Fence => self.fence().map(|()| None),
            Task::Explain(why) => Ok(Some(self.explain(why))),
        }
    }

    /// Ends checkpoints, and sees that the VM runs. Repeated until it succeeds: see [`super::leaving`]. A QEMU that does not answer
    /// holds nobody up. A VM that its guest or QEMU itself has stopped has left its checkpoints, and says so itself.
    fn leave(&mut self) -> Result<()> {
        if self.condition() == Condition::Silent {
            bail!("QEMU does not answer its control connection");
        }
        match control::leave_colo(&mut self.qmp) {
            Err(ControlError::NotRunning { status }) => {
                tracing::warn!(status, "QEMU has left its checkpoints, and its VM does not run");
                Ok(())
            }
            left => left.context("leaving checkpoint mode"),
        }
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
        tracing::warn!(%error, pid, "the fenced VM's QEMU does not end by itself; killing it");
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

    /// Whether it said so, as far as it was heard.
    pub(super) fn has_shut_down(&self) -> bool {
        self.shut_down
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
