//! What supervisor and data path say to each other: lines of JSON over a socket pair.

use super::settings::Settings;
use super::vm_health::Health;
use mc_core::{id::Generation, register::Register};
use node::pass;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::VecDeque,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};
use vmm_qemu::{
    inventory::{Changed, Inventory},
    profile::Profile,
};

/// All that a data path must know to begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Brief {
    /// The operator's wishes.
    pub config: Settings,
    /// What the register holds: (solo, self).
    pub register: Register,
    /// Profile of the VM.
    pub profile: Profile,
    /// Its outputs.
    pub outputs: Inventory,
    /// The VM's QEMU; its instance is the register's.
    pub qemu_pid: u32,
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

impl Brief {
    /// The VM's QEMU: pid and instance.
    pub(super) fn qemu_process(&self) -> (u32, u64) {
        (self.qemu_pid, self.register.owner.instance)
    }
}

/// From the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToDataPath {
    /// The first thing said.
    Begin(Box<Brief>),
    /// What came of [`ToSupervisor::StartSource`].
    Started {
        /// The error, if QEMU did not do it.
        error: Option<String>,
        /// This QEMU, or this VM, cannot do it at all.
        unsupported: bool,
    },
    /// The VM is gone: it shut down (`orderly`), or its QEMU died.
    VmGone {
        /// A shutdown that the guest or the operator asked for.
        orderly: bool,
    },
    /// Somebody is here, and looks at the VM's outputs once a second. Said as often: see [`super::supervisor_watchdog`].
    Here,
    /// How the VM is, by QEMU's own word. Said when it changes.
    VmIs(Health),
    /// The stream broke, and the VM is still there.
    SourceBroken {
        /// What QEMU says about it.
        why: String,
        /// This QEMU cannot do it at all.
        unsupported: bool,
    },
    /// What came of [`ToSupervisor::LeaveSource`]. While it fails it is tried again.
    Left {
        /// Why QEMU was not brought to leave its checkpoints.
        error: Option<String>,
    },
    /// A signal asks for an orderly end.
    Stop,
    /// The successor that was made way for did not come: QEMU's control connection is held again.
    Resume,
    /// The VM's outputs, or its devices, are others than before.
    Changed(Box<Changed>),
}

/// From the data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum ToSupervisor {
    /// Tell QEMU to send checkpoints into the stream whose end comes with this message.
    StartSource,
    /// The device state has another size than usual: look at once whether the VM's outputs have changed.
    LookAgain,
    /// The register says (solo, self), and nothing that was asked for can change that: what the next data path begins with, if this
    /// one dies before it has begun another session.
    Alone {
        /// What it holds.
        register: Register,
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
        /// True: look for a standby; false: end protection.
        protect: bool,
    },
    /// An operator has changed what this side runs with: so will the next data path.
    Changed(Box<Settings>),
    /// The VM is protected, in this generation: the standby that the register names then has ACKed an epoch whose output was held.
    Protected {
        /// Generation of the register.
        generation: Generation,
    },
    /// A [`ToDataPath::Stop`] was heard, and what becomes of it will be said.
    Stopping,
    /// A successor prepares itself: give up QEMU's control connection, which QEMU grants to one at a time.
    MakeWay,
    /// This data path ends on purpose, with this exit code.
    Ending {
        /// An exit code.
        code: u8,
        /// The reason, for the operator.
        why: String,
    },
}

/// Bytes that may wait for the other end. A brief has some thousands, with a profile of many NICs some tens of thousands.
const MOST_WAITING: usize = 1 << 20;

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Said, and not taken by the socket yet.
    waiting: Vec<u8>,
    /// What goes with the byte of `waiting` at that place, in order.
    passing: VecDeque<(usize, OwnedFd)>,
    /// That came and were not taken, in order.
    fds: VecDeque<OwnedFd>,
    closed: bool,
}

impl Channel {
    /// Over one end of a socket pair.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (buffer, waiting) = (Vec::new(), Vec::new());
        Ok(Self { stream, buffer, waiting, passing: VecDeque::new(), fds: VecDeque::new(), closed: false })
    }

    /// Whether the other end is gone, and everything it had said was taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed && !self.buffer.contains(&b'\n')
    }

    /// Says something, and never waits: what the socket does not take now leaves with the next call of any kind. An error means
    /// that the other end is gone, or has taken nothing for [`MOST_WAITING`] bytes.
    pub fn say<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.say_with(message, None)
    }

    /// Says something, and hands `fd` over.
    pub fn say_with<T: Serialize>(&mut self, message: &T, fd: Option<OwnedFd>) -> io::Result<()> {
        self.passing.extend(fd.map(|fd| (self.waiting.len(), fd)));
        serde_json::to_writer(&mut self.waiting, message)?;
        self.waiting.push(b'\n');
        self.drain()?;
        if self.waiting.len() > MOST_WAITING {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other end of the channel takes nothing"));
        }
        Ok(())
    }

    /// Before this process ends: waits until all that was said has left, `patience` at most.
    pub fn finish(&mut self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        self.drain()?;
        while !self.waiting.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            self.drain()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match self.send_some() {
                Ok(sent) => self.sent(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn send_some(&mut self) -> io::Result<usize> {
        match self.passing.front() {
            Some((0, fd)) => {
                let end = self.passing.get(1).map_or(self.waiting.len(), |(at, _)| *at);
                let sent = pass::send(&self.stream, &self.waiting[..end], fd.as_fd())?;
                self.passing.pop_front();
                Ok(sent)
            }
            Some((at, _)) => self.stream.write(&self.waiting[..*at]),
            None => self.stream.write(&self.waiting),
        }
    }

    fn sent(&mut self, bytes: usize) {
        self.waiting.drain(..bytes);
        for (at, _) in &mut self.passing {
            *at -= bytes;
        }
    }

    /// The file descriptor that came with the message that was heard last: one that is to have one.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// The next thing said, if any.
    pub fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        if self.drain().is_err() {
            self.waiting.clear(); // it is gone; what it said before can still be read
            self.passing.clear();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// The other end is stopped: its socket fills, and whoever speaks goes on.
    #[test]
    fn an_end_that_takes_nothing_makes_nobody_wait() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut channel = Channel::new(ours).expect("a channel");
        let message = ToSupervisor::SourceFailed { why: "x".repeat(10_000) };
        let mut said = 0;
        let full = loop {
            match channel.say(&message) {
                Ok(()) => said += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        assert!(said > 100, "{said}");
        // It goes on: all of it is there, whole.
        let mut other = Channel::new(theirs).expect("a channel");
        let mut heard = 0;
        while heard <= said {
            channel.drain().expect("room again");
            while let Some(ToSupervisor::SourceFailed { why }) = other.hear().expect("whole lines") {
                assert_eq!(why.len(), 10_000);
                heard += 1;
            }
        }
        channel.finish(Duration::ZERO).expect("nothing waits");
    }

    /// Two descriptors behind words that the socket has no room for.
    #[test]
    fn a_descriptor_arrives_with_its_message_however_full_the_socket_is() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut channel = Channel::new(ours).expect("a channel");
        let long = ToSupervisor::SourceFailed { why: "x".repeat(300_000) };
        let mut near = Vec::new();
        for _ in 0..2 {
            channel.say(&long).expect("room to wait");
            let (mine, far) = UnixStream::pair().expect("a pair");
            channel.say_with(&ToSupervisor::StartSource, Some(far.into())).expect("room to wait");
            near.push(mine);
        }
        let mut other = Channel::new(theirs).expect("a channel");
        while !near.is_empty() {
            channel.drain().expect("room again");
            if matches!(other.hear().expect("whole lines"), Some(ToSupervisor::StartSource)) {
                let mut far = UnixStream::from(other.take_fd().expect("it came along"));
                far.write_all(b"x").expect("room");
                let mut byte = [0];
                near.remove(0).read_exact(&mut byte).expect("the right one");
            }
        }
        assert!(other.take_fd().is_none());
    }
}
