//! Errors of preparing, rehearsing and taking over on the standby.

use crate::{profile::ProfileError, qmp::QmpError, stream::StandbyStreamError};
use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

/// Errors of preparing, rehearsing and taking over on the standby.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyError {
    /// The command line does not go with ours.
    #[error("the standby's QEMU command must not have {found:?}: {why}")]
    Argument {
        /// What stands there.
        found: String,
        /// Why it cannot.
        why: &'static str,
    },
    /// No command.
    #[error("the standby's QEMU command is empty")]
    NoCommand,
    /// The RAM image has another size.
    #[error("RAM image {}: {found} bytes, the VM's main memory has {expected}", path.display())]
    RamFile {
        /// Which file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The block's.
        expected: u64,
    },
    /// Files and processes.
    #[error("{doing} {what}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU ended.
    #[error("the standby's QEMU ended ({status}): {stderr}")]
    Exited {
        /// How.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// QEMU does not answer as it should.
    #[error("the standby's QEMU: {source}; it said: {stderr}")]
    Qmp {
        /// What.
        source: QmpError,
        /// The end of what it said.
        stderr: String,
    },
    /// Its profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// What it should load is incomplete.
    #[error("takeover: {0}")]
    Feed(#[from] StandbyStreamError),
    /// QEMU did not take the stream.
    #[error("takeover: sending the VM to its QEMU: {source}; it said: {stderr}")]
    Stream {
        /// Why.
        source: io::Error,
        /// The end of what it said.
        stderr: String,
    },
    /// It does not even start.
    #[error("the QEMU that was started (process {pid}) does not answer: it was stopped by a signal")]
    Stopped {
        /// Its pid.
        pid: u32,
    },
    /// The command does not become QEMU.
    #[error(
        "the standby's QEMU command (process {started}) is not QEMU itself, which is process {qemu}: a wrapper has to `exec` it, or nobody \
         could end it, or know it again"
    )]
    Wrapped {
        /// What was started.
        started: u32,
        /// Who answers.
        qemu: u32,
    },
    /// It is there, and does nothing.
    #[error("the QEMU that waits here {0}; it was killed, and another one is started in its place")]
    Silent(String),
    /// The guest ran for a moment, and was ended.
    #[error("the VM ran for a moment and was ended, so its memory no longer matches the last commit: {0}")]
    Spoiled(Box<Self>),
}

impl StandbyError {
    /// Whether the RAM image is of no epoch any more.
    #[must_use]
    pub fn is_spoiled(&self) -> bool {
        matches!(self, Self::Spoiled(_))
    }

    /// An error of the operating system: `doing` what, to `what`.
    pub fn io(doing: &'static str, what: &Path, source: io::Error) -> Self {
        Self::Io { doing, what: what.display().to_string(), source }
    }

    pub(super) fn exited(status: ExitStatus, stderr: String) -> Self {
        Self::Exited { status: status.to_string(), stderr }
    }
}
