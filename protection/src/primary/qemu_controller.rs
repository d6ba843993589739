//! The data path's channel to whoever controls QEMU: its supervisor, or after that died a thread that replaces it ([`super::acting_supervisor`]).
//!
//! A supervisor that is killed must not take protection with it: the data path goes on, and hears from QEMU itself when the
//! VM shuts down. Neither of the two makes the data path's loop wait.

use super::{
    acting_supervisor,
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    commanded::Process,
};
use anyhow::Result;
use node::events::{Event, emit};
use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::parent_id,
    },
    path::PathBuf,
    thread::JoinHandle,
    time::Duration,
};

/// For the supervisor to take what a data path that ends has said.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The connection to the supervisor or the acting supervisor.
#[derive(Debug)]
pub(super) struct QemuController {
    /// To the supervisor, or the acting supervisor; `None`: no thread could be had.
    channel: Option<Channel>,
    supervised: bool,
    /// The supervisor's pid.
    supervisor: u32,
    /// QEMU was told to leave its checkpoints, and nobody has said that it has.
    leaving: bool,
    acting: Option<JoinHandle<()>>,
    qmp: PathBuf,
    process: Process,
    nics: Vec<PathBuf>,
}

impl QemuController {
    pub(super) fn new(channel: Channel, brief: &Brief) -> Self {
        let (qmp, process, nics) = (brief.config.qmp.clone(), brief.qemu_process(), brief.config.nic_sockets());
        let supervisor = parent_id();
        Self { channel: Some(channel), supervised: true, supervisor, leaving: false, acting: None, qmp, process, nics }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The next thing that the supervisor says, or would say.
    pub(super) fn hear(&mut self) -> Result<Option<ToDataPath>> {
        let Some(channel) = &mut self.channel else { return Ok(None) };
        let message = channel.hear()?;
        if message.is_none() && channel.is_closed() {
            self.orphaned();
        }
        self.leaving &= !matches!(message, Some(ToDataPath::Left { error: None }));
        Ok(message)
    }

    /// Has something done to QEMU.
    pub(super) fn say(&mut self, message: &ToSupervisor) -> Result<()> {
        self.say_with(message, None)
    }

    /// The same; `stream` goes with it.
    pub(super) fn say_with(&mut self, message: &ToSupervisor, stream: Option<OwnedFd>) -> Result<()> {
        match message {
            ToSupervisor::LeaveSource => self.leaving = true,
            ToSupervisor::StartSource | ToSupervisor::Fence => self.leaving = false,
            _ => {}
        }
        if self.channel.as_mut().is_some_and(|channel| channel.say_with(message, stream).is_ok()) {
            return Ok(());
        }
        self.orphaned();
        if let Some(channel) = &mut self.channel {
            channel.say(message)?; // a stream is lost with the supervisor: that session has failed
        }
        Ok(())
    }

    /// Whether the supervisor is there.
    pub(super) fn is_supervised(&self) -> bool {
        self.supervised
    }

    /// Its pid, while it is there.
    pub(super) fn supervisor(&self) -> Option<u32> {
        self.supervised.then_some(self.supervisor)
    }

    /// Before this process ends: what was said leaves. What the acting supervisor was told it also does; a fence above all.
    pub(super) fn finish(&mut self) {
        if let Some(channel) = &mut self.channel
            && let Err(error) = channel.finish(LAST_WORDS)
        {
            tracing::debug!(%error, "the last message did not reach the supervisor");
        }
        if let Some(acting) = self.acting.take() {
            self.channel = None;
            let _ = acting.join();
        }
    }

    fn orphaned(&mut self) {
        if std::mem::take(&mut self.supervised) {
            tracing::warn!("the supervisor died; this data path goes on without it");
            emit(Event::SupervisorDied);
        }
        match acting_supervisor::start(self.qmp.clone(), self.process, self.nics.clone()) {
            Ok((channel, thread)) => (self.channel, self.acting) = (Some(channel), Some(thread)),
            Err(error) => {
                tracing::error!(%error, "could not start the thread that controls QEMU");
                self.channel = None;
            }
        }
        // The dead one may not have brought it to an end.
        if let (true, Some(channel)) = (self.leaving, &mut self.channel) {
            let _ = channel.say(&ToSupervisor::LeaveSource);
        }
    }
}
