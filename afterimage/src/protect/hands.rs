//! The data path's hands on QEMU: its supervisor, or, when that died, its own control connection.
//!
//! A supervisor that is killed must not take protection with it. The data path goes on; should it need QEMU's control
//! connection later, it opens one itself (QEMU serves one client at a time, and the dead supervisor's place is free).

use super::{
    channel::{Channel, ToDataPath, ToSupervisor},
    supervisor::{Qemu, Task},
};
use crate::config::ProtectConfig;
use anyhow::Result;
use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Hands {
    channel: Option<Channel>,
    qmp: PathBuf,
    answers: VecDeque<ToDataPath>,
}

impl Hands {
    pub(super) fn new(channel: Channel, config: &ProtectConfig) -> Self {
        Self { channel: Some(channel), qmp: config.qmp.clone(), answers: VecDeque::new() }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The next thing that the supervisor says.
    pub(super) fn hear(&mut self) -> Result<Option<ToDataPath>> {
        if let Some(answer) = self.answers.pop_front() {
            return Ok(Some(answer));
        }
        let Some(channel) = &mut self.channel else { return Ok(None) };
        let message = channel.hear()?;
        if channel.is_closed() {
            tracing::warn!("the supervisor died; this data path goes on without it");
            self.channel = None;
        }
        Ok(message)
    }

    /// Has something done to QEMU.
    pub(super) fn say(&mut self, message: &ToSupervisor) -> Result<()> {
        if let Some(channel) = &mut self.channel {
            if channel.say(message).is_ok() {
                return Ok(());
            }
            self.channel = None;
        }
        let Some(task) = Task::of(message) else { return Ok(()) };
        let answer = Qemu::connect(&self.qmp).and_then(|mut qemu| qemu.perform(&task));
        match answer {
            Ok(answer) => self.answers.extend(answer),
            Err(error) => tracing::error!(error = format!("{error:#}"), "QEMU could not be told to {task:?}"),
        }
        Ok(())
    }
}
