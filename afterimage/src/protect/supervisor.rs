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
};
use crate::{
    events::emit,
    exit::{self, Code, ExitError},
    inbox::{readable, wait},
    qemu::{
        control::{self, Before, ControlError, MigrationState},
        inventory::Watcher,
        qmp::{Qmp, QmpError},
    },
};
use anyhow::{Context, Result};
use mc_core::id::Time;
use serde_json::json;
use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// QEMU, as far as we may command it.
#[derive(Debug)]
pub(super) struct Qemu {
    qmp: Qmp,
    /// QEMU said that its VM shuts down, or was told to.
    shut_down: bool,
    watcher: Watcher,
    /// QEMU's settings before the migration that was begun here.
    before: Option<Before>,
    /// QEMU was told to send checkpoints, and nothing has been heard of their end.
    sending: bool,
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
            ToSupervisor::Ending { .. } => return None,
        })
    }
}

impl Qemu {
    /// `nics`: the sockets of `--nic`.
    pub(super) fn connect(path: &Path, nics: Vec<PathBuf>) -> Result<Self, QmpError> {
        Ok(Self::new(Qmp::connect(path, Duration::from_secs(5))?, nics))
    }

    pub(super) fn new(qmp: Qmp, nics: Vec<PathBuf>) -> Self {
        Self { qmp, shut_down: false, watcher: Watcher::new(nics), before: None, sending: false }
    }

    /// Does it; the data path may want to hear how it went.
    pub(super) fn perform(&mut self, task: &Task) -> Result<Option<ToDataPath>> {
        match task {
            Task::Start(stream) => Ok(Some(self.start(stream.as_ref()))),
            Task::Look => {
                self.watcher.look_again();
                Ok(None)
            }
            Task::Leave => {
                self.sending = false;
                let before = self.before.take();
                control::leave_colo(&mut self.qmp, before.as_ref()).map(|()| None).context("leaving checkpoint mode")
            }
            Task::Fence => control::fence(&mut self.qmp).map(|()| None).context("stopping the fenced VM"),
            Task::Explain(why) => Ok(Some(self.explain(why))),
        }
    }

    fn start(&mut self, stream: Option<&OwnedFd>) -> ToDataPath {
        let Some(stream) = stream else {
            return ToDataPath::Started {
                error: Some("the stream for checkpoints is missing".into()),
                unsupported: false,
            };
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
        let outputs = look.inventory.map(|inventory| ToDataPath::Outputs(Box::new(inventory)));
        let over = |state: &MigrationState| !matches!(state, MigrationState::Active | MigrationState::Colo);
        let broken = look.migration.filter(|state| self.sending && over(state)).map(|state| self.broken(&state, ""));
        outputs.into_iter().chain(broken).collect()
    }

    /// How long nothing has to be looked at.
    pub(super) fn patience(&self) -> Duration {
        self.watcher.patience()
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
                "somebody cancelled the VM's migration, by which checkpoints are sent".to_owned()
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

/// Watches over one VM until it is gone, fenced, or handed over. Returns the exit code.
pub(super) fn supervise(qmp: Qmp, mut brief: Brief) -> Result<Code> {
    let mut qemu = Qemu::new(qmp, brief.config.nic_sockets());
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
    loop {
        {
            let mut fds = vec![readable(child.channel.as_fd())];
            if !gone {
                fds.push(readable(qemu.as_fd()));
            }
            wait(&mut fds, Time(0), None, qemu.patience().min(Duration::from_secs(1)))?;
        }
        for news in if gone { Vec::new() } else { qemu.look() } {
            let _ = child.channel.say(&news);
        }
        if let (false, Some(orderly)) = (told_gone, qemu.gone()) {
            (told_gone, gone) = (true, true);
            let _ = child.channel.say(&ToDataPath::VmGone { orderly });
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
    let stream = matches!(message, ToSupervisor::StartSource).then(|| child.channel.take_fd()).flatten();
    let Some(task) = Task::of(message, stream) else { return };
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
