//! QMP, QEMU's control connection: lines of JSON over a unix socket (docs/interop/qmp-spec.txt in QEMU's tree). Every wait
//! has a deadline; events that arrive meanwhile are kept.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::socket_peercred,
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Bytes of one line at most: `info qtree` of a large VM has a few hundred KB.
const MAX_LINE: usize = 16 << 20;
/// Events kept at most; older ones are dropped. Two come per checkpoint.
const MAX_EVENTS: usize = 1024;

/// Why QEMU could not be spoken to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// Nobody listens there.
    #[error("QMP socket {path}: {source}")]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something listens there that is not QMP.
    #[error("{path} is not a QMP socket: {found}")]
    NotQmp {
        /// Where.
        path: PathBuf,
        /// What was found instead of a greeting.
        found: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer {command} within {timeout:?}")]
    Timeout {
        /// Which command.
        command: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// QEMU closed the connection: it ended.
    #[error("QEMU closed its control connection during {command}")]
    Closed {
        /// Which command.
        command: String,
    },
    /// QEMU says no.
    #[error("QEMU refuses {command}: {message}")]
    Refused {
        /// Which command.
        command: String,
        /// Its words.
        message: String,
    },
    /// The connection broke.
    #[error("QMP during {command}: {source}")]
    Io {
        /// Which command.
        command: String,
        /// What the system says.
        source: io::Error,
    },
    /// QEMU answered something that makes no sense here.
    #[error("QEMU's answer to {command}: {what}")]
    Answer {
        /// Which command.
        command: String,
        /// What is wrong with it.
        what: String,
    },
}

/// An event of QEMU's.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `STOP`, `RESUME`, `SHUTDOWN`, …
    pub name: String,
    /// What came with it.
    pub data: Value,
    /// Microseconds since 1970, by QEMU's clock.
    pub at_us: u64,
}

/// A control connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Connects, checks the greeting, and negotiates.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + timeout;
        let connect = |source| QmpError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(connect)?;
        stream.set_nonblocking(true).map_err(connect)?;
        let mut qmp = Self { stream, path: path.to_owned(), buffer: Vec::new(), events: VecDeque::new() };
        qmp.greet(deadline, timeout)?;
        qmp.execute("qmp_capabilities", &json!({}), timeout)?;
        Ok(qmp)
    }

    fn greet(&mut self, deadline: Instant, timeout: Duration) -> Result<(), QmpError> {
        let not = |found: String| QmpError::NotQmp { path: self.path.clone(), found };
        let silent = not(format!(
            "no greeting within {timeout:?} (QEMU serves one client at a time: does another one hold the socket?)"
        ));
        let garbled = |e: &dyn std::fmt::Display| not(format!("{e}"));
        let garbled = garbled(&"its first line is no QMP greeting");
        match self.line("the greeting", deadline, timeout) {
            Ok(line) if line.get("QMP").is_some() => Ok(()),
            Ok(_) | Err(QmpError::Answer { .. }) => Err(garbled),
            Err(QmpError::Timeout { .. }) => Err(silent),
            Err(error) => Err(error),
        }
    }

    /// Runs a command.
    pub fn execute(&mut self, command: &str, arguments: &Value, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.write(command, line.as_bytes(), deadline, timeout)?;
        loop {
            let mut answer = self.line(command, deadline, timeout)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let message = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command: command.to_owned(), message });
            }
            self.keep(&answer);
        }
    }

    /// Runs a command of the human monitor, and returns its text.
    pub fn hmp(&mut self, line: &str) -> Result<String, QmpError> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }), Duration::from_secs(5))?;
        let what = "no text".to_owned();
        answer.as_str().map(str::to_owned).ok_or(QmpError::Answer { command: line.to_owned(), what })
    }

    /// The events since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Reads what has arrived, without waiting.
    pub fn poll_events(&mut self) -> Result<(), QmpError> {
        self.fill("events")?;
        while let Some(line) = self.parse("events")? {
            self.keep(&line);
        }
        Ok(())
    }

    /// Waits for an event of this name; earlier ones of other names are kept.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(index) = self.events.iter().position(|e| e.name == name) {
                return Ok(self.events.remove(index).expect("found at this index"));
            }
            let line = self.line(name, deadline, timeout)?;
            self.keep(&line);
        }
    }

    /// QEMU's process.
    pub fn peer_pid(&self) -> Result<u32, QmpError> {
        let io = |source: io::Error| QmpError::Io { command: "SO_PEERCRED".to_owned(), source };
        let credentials = socket_peercred(&self.stream).map_err(|e| io(e.into()))?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).map_err(|_| io(io::ErrorKind::InvalidData.into()))
    }

    fn keep(&mut self, line: &Value) {
        let Some(name) = line["event"].as_str() else { return };
        let stamp = &line["timestamp"];
        let at_us = stamp["seconds"].as_u64().unwrap_or(0) * 1_000_000 + stamp["microseconds"].as_u64().unwrap_or(0);
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { name: name.to_owned(), data: line["data"].clone(), at_us });
    }

    fn write(&mut self, command: &str, mut bytes: &[u8], deadline: Instant, timeout: Duration) -> Result<(), QmpError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, command, deadline, timeout)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(QmpError::Closed { command: command.to_owned() });
                }
                Err(source) => return Err(QmpError::Io { command: command.to_owned(), source }),
            }
        }
        Ok(())
    }

    fn line(&mut self, command: &str, deadline: Instant, timeout: Duration) -> Result<Value, QmpError> {
        loop {
            if let Some(line) = self.parse(command)? {
                return Ok(line);
            }
            self.wait(PollFlags::IN, command, deadline, timeout)?;
            self.fill(command)?;
        }
    }

    fn parse(&mut self, command: &str) -> Result<Option<Value>, QmpError> {
        let answer = |what: String| QmpError::Answer { command: command.to_owned(), what };
        let Some(end) = self.buffer.iter().position(|b| *b == b'\n') else {
            let too_long = self.buffer.len() > MAX_LINE;
            return if too_long { Err(answer(format!("a line of more than {MAX_LINE} bytes"))) } else { Ok(None) };
        };
        let line = serde_json::from_slice(&self.buffer[..end]);
        self.buffer.drain(..=end);
        line.map(Some).map_err(|e| answer(format!("no JSON: {e}")))
    }

    fn fill(&mut self, command: &str) -> Result<(), QmpError> {
        let mut chunk = [0; 16384];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed { command: command.to_owned() }),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed { command: command.to_owned() });
                }
                Err(source) => return Err(QmpError::Io { command: command.to_owned(), source }),
            }
            if self.buffer.len() > MAX_LINE {
                return Ok(());
            }
        }
    }

    fn wait(&self, flags: PollFlags, command: &str, deadline: Instant, timeout: Duration) -> Result<(), QmpError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(QmpError::Timeout { command: command.to_owned(), timeout });
        }
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.stream, flags)];
        match poll(&mut fds, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(QmpError::Io { command: command.to_owned(), source: e.into() }),
        }
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Tells one QEMU process from every other: the host's boot, the process id, and when it started.
pub fn instance_id(pid: u32) -> io::Result<u64> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): the name, field 2, may hold spaces and parentheses; start time is field 22, the 20th after it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let started = after_name.split_whitespace().nth(19).ok_or(io::ErrorKind::InvalidData)?;
    let hash = blake3::hash(format!("{} {pid} {started}", boot.trim()).as_bytes());
    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    Ok(u64::from_le_bytes(first))
}
