//! What supervisor and data path say to each other: lines of JSON over a socket pair.

use crate::{
    config::ProtectConfig,
    pass,
    qemu::{inventory::Inventory, profile::Profile},
};
use mc_core::register::Register;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
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
    /// Its outputs.
    pub outputs: Inventory,
    /// Whether to seek a standby at once; a data path that follows one that died does not.
    pub protect: bool,
    /// Whether to stay when no standby is found: the VM's network already passed through a process that left for us.
    pub stay: bool,
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
    /// The VM's outputs, or its devices, are others than before.
    Outputs(Box<Inventory>),
}

/// From the data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToSupervisor {
    /// Tell QEMU to send checkpoints into the stream whose end comes with this message.
    StartSource,
    /// The device state has another size than usual: look at once whether the VM's outputs have changed.
    LookAgain,
    /// The register says (solo, self): end checkpoints, see that the VM runs.
    LeaveSource,
    /// The arbitration is lost: stop the VM for good.
    Fence,
    /// The source's stream broke; what happened?
    SourceFailed {
        /// As seen from the data path.
        why: String,
    },
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
    /// That came and were not taken, in order.
    fds: Vec<OwnedFd>,
    closed: bool,
}

impl Channel {
    /// Over one end of a socket pair.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: Vec::new(), fds: Vec::new(), closed: false })
    }

    /// Whether the other end is gone, and everything it had said was taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed && !self.buffer.contains(&b'\n')
    }

    /// Says something. An error means that the other end is gone.
    pub fn say<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.say_with(message, None)
    }

    /// Says something, and hands over a copy of `fd`.
    pub fn say_with<T: Serialize>(&mut self, message: &T, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        // Messages are few and small, and the other end reads promptly: waiting here is waiting for a live process.
        self.stream.set_nonblocking(false)?;
        let sent = fd.map_or(Ok(0), |fd| pass::send(&self.stream, &line, fd));
        let sent = sent.and_then(|sent| self.stream.write_all(&line[sent..]));
        self.stream.set_nonblocking(true)?;
        sent
    }

    /// The file descriptor that came with the message that was heard last: one that is to have one.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        (!self.fds.is_empty()).then(|| self.fds.remove(0))
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
            match pass::receive(&self.stream, &mut chunk, &mut self.fds) {
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
