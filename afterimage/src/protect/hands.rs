//! The data path's hands on QEMU: its supervisor, or, when that died, its own control connection.
//!
//! ```text
//! Supervisor ──it died──> Own (QEMU serves one client at a time, and the dead supervisor's place is free)
//!                 └─────> Nobody (no connection came about; tried again when something has to be done)
//! ```
//!
//! A supervisor that is killed must not take protection with it: the data path goes on, and hears from QEMU itself when the
//! VM shuts down.

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    commanded::{Process, Qemu, Task},
};
use crate::{exit, qemu::qmp::QmpError};
use anyhow::Result;
use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

/// For the supervisor to take what a data path that ends has said.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Reach {
    Supervisor(Channel),
    Own(Box<Qemu>),
    Nobody,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hands {
    reach: Reach,
    qmp: PathBuf,
    process: Process,
    nics: Vec<PathBuf>,
    answers: VecDeque<ToDataPath>,
}

impl Hands {
    pub(super) fn new(channel: Channel, brief: &Brief) -> Self {
        let (qmp, process, nics) = (brief.config.qmp.clone(), brief.qemu_process(), brief.config.nic_sockets());
        Self { reach: Reach::Supervisor(channel), qmp, process, nics, answers: VecDeque::new() }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.reach {
            Reach::Supervisor(channel) => Some(channel.as_fd()),
            Reach::Own(qemu) => Some(qemu.as_fd()),
            Reach::Nobody => None,
        }
    }

    /// The next thing that the supervisor says, or would say.
    pub(super) fn hear(&mut self) -> Result<Option<ToDataPath>> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(answer));
        }
        match &mut self.reach {
            Reach::Supervisor(channel) => {
                let message = channel.hear()?;
                if message.is_none() && channel.is_closed() {
                    self.orphaned();
                }
                Ok(message)
            }
            Reach::Own(qemu) => {
                if let Some(orderly) = qemu.gone() {
                    self.reach = Reach::Nobody;
                    return Ok(Some(ToDataPath::VmGone { orderly }));
                }
                self.answers.extend(qemu.look());
                Ok(self.answers.pop_front())
            }
            Reach::Nobody => Ok(None),
        }
    }

    /// Has something done to QEMU.
    pub(super) fn say(&mut self, message: &ToSupervisor) -> Result<()> {
        self.say_with(message, None)
    }

    /// The same; `stream` goes with it.
    pub(super) fn say_with(&mut self, message: &ToSupervisor, stream: Option<OwnedFd>) -> Result<()> {
        if let Reach::Supervisor(channel) = &mut self.reach {
            let copy = stream.as_ref().map(OwnedFd::try_clone).transpose()?;
            if channel.say_with(message, copy).is_ok() {
                return Ok(());
            }
            self.orphaned();
        }
        if matches!(message, ToSupervisor::MakeWay) {
            self.reach = Reach::Nobody;
        }
        let Some(task) = Task::of(message, stream) else { return Ok(()) };
        if matches!(self.reach, Reach::Nobody) {
            self.reach_out();
        }
        let Reach::Own(qemu) = &mut self.reach else { return Ok(()) };
        match qemu.perform(&task) {
            Ok(answer) => self.answers.extend(answer),
            Err(error) => tracing::error!(error = exit::words(&error), "QEMU could not be told to {task:?}"),
        }
        Ok(())
    }

    /// Whether the supervisor is there.
    pub(super) fn is_supervised(&self) -> bool {
        matches!(self.reach, Reach::Supervisor(_))
    }

    /// Before this process ends: what was said to the supervisor leaves.
    pub(super) fn finish(&mut self) {
        if let Reach::Supervisor(channel) = &mut self.reach
            && let Err(error) = channel.finish(LAST_WORDS)
        {
            tracing::debug!(%error, "the supervisor did not hear the last words");
        }
    }

    fn orphaned(&mut self) {
        tracing::warn!("the supervisor died; this data path goes on without it");
        crate::events::emit("supervisor-died", serde_json::json!({}));
        self.reach_out();
    }

    fn reach_out(&mut self) {
        self.reach = match Qemu::connect(&self.qmp, self.process, self.nics.clone()) {
            Ok(qemu) => Reach::Own(Box::new(qemu)),
            Err(error) => {
                tracing::error!(%error, "no control connection to QEMU");
                if matches!(error, QmpError::Connect { .. }) {
                    // Nobody listens: it is gone, and nobody heard why.
                    self.answers.push_back(ToDataPath::VmGone { orderly: false });
                }
                Reach::Nobody
            }
        };
    }
}
