//! What supervisor and data path say to each other: lines of JSON over a socket pair.

use crate::{config::ProtectConfig, qemu::profile::Profile};
use mc_core::register::Register;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

/// All that a data path must know to begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Brief {
    /// The operator's wishes.
    pub config: ProtectConfig,
    /// What the register holds: (solo, self).
    pub register: Register,
    /// Of the VM.
    pub profile: Profile,
    /// Whether an operator wants protection: false after `unprotect`.
    pub protect: bool,
    /// Whether to stay when no standby is found: without `--once`, or because the VM's network already passed through a process
    /// that left for us.
    pub stay: bool,
    /// A process on this node is the VM's way to its network, and leaves when it is told that this one is ready.
    pub relieve: bool,
    /// Data paths of this supervisor that died in a row.
    pub deaths: u32,
}

/// From the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToDataPath {
    /// The first thing said.
    Begin(Box<Brief>),
    /// What came of [`ToSupervisor::StartSource`].
    Started {
        /// Why not.
        error: Option<String>,
        /// This QEMU, or this VM, cannot do it at all.
        unsupported: bool,
    },
    /// The VM is gone: it shut down (`orderly`), or its QEMU died.
    VmGone {
        /// A shutdown that the guest or the operator asked for.
        orderly: bool,
    },
    /// The stream broke, and the VM is still there.
    SourceBroken {
        /// What QEMU says about it.
        why: String,
        /// This QEMU cannot do it at all.
        unsupported: bool,
    },
    /// A signal asks for an orderly end.
    Stop,
    /// The successor that was made way for did not come: QEMU's control connection is held again.
    Resume,
}

/// From the data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToSupervisor {
    /// Tell QEMU to send checkpoints to this socket.
    StartSource {
        /// The socket.
        path: PathBuf,
    },
    /// The register says (solo, self): end checkpoints, see that the VM runs.
    LeaveSource,
    /// The arbitration is lost: stop the VM for good.
    Fence,
    /// The source's stream broke; what happened?
    SourceFailed {
        /// As seen from the data path.
        why: String,
    },
    /// An operator wants protection, or does not: what the next data path begins with.
    Wanted {
        /// Which.
        protect: bool,
    },
    /// A [`ToDataPath::Stop`] was heard, and what becomes of it will be said.
    Stopping,
    /// A successor prepares itself: give up QEMU's control connection, which QEMU grants to one at a time.
    MakeWay,
    /// This data path ends on purpose, with this exit code.
    Ending {
        /// An exit code.
        code: u8,
        /// For the operator.
        why: String,
    },
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    closed: bool,
}

impl Channel {
    /// Over one end of a socket pair.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: Vec::new(), closed: false })
    }

    /// Whether the other end is gone, and everything it had said was taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed && !self.buffer.contains(&b'\n')
    }

    /// Says something. An error means that the other end is gone.
    pub fn say<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // Messages are few and small, and the other end reads promptly: waiting here is waiting for a live process.
        self.stream.set_nonblocking(false)?;
        let sent = self.stream.write_all(&line);
        self.stream.set_nonblocking(true)?;
        sent
    }

    /// The next thing said, if any.
    pub fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.fill()?;
        let Some(end) = self.buffer.iter().position(|b| *b == b'\n') else { return Ok(None) };
        let message = serde_json::from_slice(&self.buffer[..end]);
        self.buffer.drain(..=end);
        Ok(Some(message?))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while !self.closed {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
