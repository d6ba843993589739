//! QMP: QEMU's control connection, over its unix socket. Every wait has a deadline.
//!
//! QEMU serves one client at a time; another one gets no greeting until the first has left. Events arrive between replies
//! and are queued here, with QEMU's own timestamps; while a VM is checkpointed there are two per checkpoint, so whoever
//! holds a connection must take them ([`Qmp::take_events`]), or lose the oldest.

mod asked;
mod line;
mod process;

pub use line::{Event, LineError, Lines, MAX_LINE, Message, parse};
pub use process::{Watched, find_instance, has_ended, instance_id, is_ending, is_stopped, kill_instance};

use asked::Asked;
use node::{pass, units::spoken};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Events kept at most; then the oldest is dropped.
const MAX_EVENTS: usize = 4096;
const READ_SIZE: usize = 64 << 10;
/// Between two attempts to find a place in the queue of those who want to talk to QEMU.
const KNOCK: Duration = Duration::from_millis(10);

/// Why talking to QEMU failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The socket.
    #[error("QMP socket {}: {source}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("{} is not a QMP socket: {found}", path.display())]
    NotQmp {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// It does not greet in time.
    #[error("no QMP greeting at {} within {}: another client is connected (QMP serves one at a time), or this \
         is not a QMP socket", path.display(), spoken(*after))]
    Busy {
        /// Where.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
        /// The process that listens there, if it can be told.
        listener: Option<u32>,
    },
    /// No answer in time.
    #[error("QEMU did not answer {what} within {}", spoken(*after))]
    Timeout {
        /// To what.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// QEMU is gone.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// The operating system.
    #[error("QMP: {doing}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU sent what is no QMP.
    #[error("QMP: {0}")]
    Line(#[from] LineError),
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {desc}")]
    Command {
        /// Which.
        command: String,
        /// QEMU's class of errors.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// QEMU answered something unexpected.
    #[error("QEMU's answer to {command} has no {missing}")]
    Answer {
        /// To what.
        command: String,
        /// What was looked for.
        missing: &'static str,
    },
}

/// A QMP connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: Lines,
    events: VecDeque<Event>,
    asked: Asked,
    next_id: u64,
    chunk: Vec<u8>,
    greeting: Value,
}

/// Connects, or says [`Errno::AGAIN`] while QEMU's queue is full: a blocking connect would wait there for ever.
fn knock(path: &Path) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

impl Qmp {
    /// Connects, checks the greeting, and leaves QMP's negotiation mode; all of it within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + timeout;
        let at = |source| QmpError::Connect { path: path.to_owned(), source };
        let stream = loop {
            match knock(path) {
                Ok(stream) => break UnixStream::from(stream),
                Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(KNOCK),
                Err(Errno::AGAIN) => {
                    return Err(QmpError::Busy { path: path.to_owned(), after: timeout, listener: None });
                }
                Err(error) => return Err(at(error.into())),
            }
        };
        let mut qmp = Self {
            stream,
            lines: Lines::default(),
            events: VecDeque::new(),
            asked: Asked::default(),
            next_id: 1,
            chunk: vec![0; READ_SIZE],
            greeting: Value::Null,
        };
        qmp.greet(path, deadline, timeout)?;
        qmp.execute("qmp_capabilities", Value::Null, deadline.saturating_duration_since(Instant::now()))?;
        Ok(qmp)
    }

    fn greet(&mut self, path: &Path, deadline: Instant, timeout: Duration) -> Result<(), QmpError> {
        let not = |found: String| QmpError::NotQmp { path: path.to_owned(), found };
        match self.next_message(deadline) {
            Ok(Some(Message::Greeting(greeting))) => {
                self.greeting = greeting;
                Ok(())
            }
            Ok(Some(other)) => Err(not(format!("expected QMP's greeting, found {other:?}"))),
            Ok(None) if self.lines.unfinished().is_empty() => {
                Err(QmpError::Busy { path: path.to_owned(), after: timeout, listener: self.peer_pid().ok() })
            }
            Ok(None) => Err(not(format!("it greets with {:?}", self.lines.unfinished()))),
            Err(QmpError::Closed) => Err(not("it closed the connection without a greeting".into())),
            Err(QmpError::Line(error)) => Err(not(error.to_string())),
            Err(other) => Err(other),
        }
    }

    /// QEMU's version, as `7.2.22`.
    #[must_use]
    pub fn version(&self) -> String {
        let part = |name| self.greeting["version"]["qemu"][name].as_u64().unwrap_or(0);
        format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
    }

    /// Runs a command (`arguments`: an object, or null), and waits for its result.
    pub fn execute(&mut self, name: &str, arguments: Value, timeout: Duration) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let id = self.send(name, arguments, deadline)?;
        self.result(name, id, timeout, deadline)
    }

    /// The same of a command that takes a file descriptor along (`getfd`): QEMU has a copy of it afterwards.
    pub fn execute_with(
        &mut self,
        name: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + timeout;
        let (id, text) = self.command(name, arguments);
        // The descriptor goes with the first byte; a fresh socket's buffer has room for that.
        let sent = pass::send(&self.stream, text.as_bytes(), fd).map_err(|error| lost("writing", error))?;
        self.write(&text.as_bytes()[sent..], name, deadline)?;
        self.result(name, id, timeout, deadline)
    }

    fn result(&mut self, name: &str, id: u64, timeout: Duration, deadline: Instant) -> Result<Value, QmpError> {
        loop {
            match self.next_message(deadline)?.map(|message| self.sort(message)) {
                None => return Err(QmpError::Timeout { what: name.into(), after: timeout }),
                Some(Some(Message::Return { id: found, value })) if found == Some(id) => return Ok(value),
                Some(Some(Message::Error { id: found, class, desc })) if found == Some(id) || found.is_none() => {
                    return Err(QmpError::Command { command: name.into(), class, desc });
                }
                // One that is kept, or the late reply to a command that was given up.
                Some(_) => {}
            }
        }
    }

    /// Keeps events, and results that will be asked for; gives back any other message.
    fn sort(&mut self, message: Message) -> Option<Message> {
        match message {
            Message::Event(event) => {
                self.queue(event);
                None
            }
            other => self.asked.keep(other),
        }
    }

    /// Sends a command without waiting for its result, which is dropped when it arrives. For `quit`, whose may not come.
    pub fn send_only(&mut self, name: &str, timeout: Duration) -> Result<(), QmpError> {
        self.send(name, Value::Null, Instant::now() + timeout).map(drop)
    }

    fn send(&mut self, name: &str, arguments: Value, deadline: Instant) -> Result<u64, QmpError> {
        let (id, text) = self.command(name, arguments);
        self.write(text.as_bytes(), name, deadline)?;
        Ok(id)
    }

    fn command(&mut self, name: &str, arguments: Value) -> (u64, String) {
        let id = self.next_id;
        self.next_id += 1;
        let mut command = json!({ "execute": name, "id": id });
        if !arguments.is_null() {
            command["arguments"] = arguments;
        }
        let mut text = command.to_string();
        text.push('\n');
        (id, text)
    }

    /// Runs a line of the human monitor, and gives its output.
    pub fn hmp(&mut self, line: &str, timeout: Duration) -> Result<String, QmpError> {
        match self.execute("human-monitor-command", json!({ "command-line": line }), timeout)? {
            Value::String(output) => Ok(output),
            _ => Err(QmpError::Answer { command: format!("human-monitor-command {line}"), missing: "text" }),
        }
    }

    /// Reads what has arrived, without waiting, and queues the events in it.
    pub fn poll_events(&mut self) -> Result<(), QmpError> {
        self.collect(Instant::now())
    }

    /// The queued events, oldest first. Call [`Qmp::poll_events`] before.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// Waits for an event of that name, also among the queued ones. Others stay queued.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        if let Some(at) = self.events.iter().position(|event| event.name == name)
            && let Some(event) = self.events.remove(at)
        {
            return Ok(event);
        }
        loop {
            match self.next_message(deadline)? {
                None => return Err(QmpError::Timeout { what: format!("with the event {name}"), after: timeout }),
                Some(Message::Event(event)) if event.name == name => return Ok(event),
                Some(other) => drop(self.sort(other)),
            }
        }
    }

    /// Waits until QEMU has closed the connection, as it does when it ends.
    pub fn wait_closed(&mut self, timeout: Duration) -> Result<(), QmpError> {
        match self.collect(Instant::now() + timeout) {
            Err(QmpError::Closed) => Ok(()),
            Err(other) => Err(other),
            Ok(()) => Err(QmpError::Timeout { what: "quit by closing QMP".into(), after: timeout }),
        }
    }

    /// The process that listens at the other end (`SO_PEERCRED`): QEMU, unless somebody handed it the socket.
    pub fn peer_pid(&self) -> Result<u32, QmpError> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream)
            .map_err(|error| QmpError::Io { doing: "asking for the peer's pid", source: error.into() })?;
        Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
    }

    fn collect(&mut self, deadline: Instant) -> Result<(), QmpError> {
        while let Some(message) = self.next_message(deadline)? {
            self.sort(message);
        }
        Ok(())
    }

    fn queue(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next message; `None` when there is none by the deadline.
    fn next_message(&mut self, deadline: Instant) -> Result<Option<Message>, QmpError> {
        loop {
            if let Some(message) = self.lines.next_message()? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(len) => self.lines.push(&self.chunk[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(&self.stream, PollFlags::IN, deadline)? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(lost("reading", error)),
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], what: &str, deadline: Instant) -> Result<(), QmpError> {
        let begun = Instant::now();
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(&self.stream, PollFlags::OUT, deadline)? {
                        return Err(QmpError::Timeout { what: what.into(), after: begun.elapsed() });
                    }
                }
                Err(error) => return Err(lost("writing", error)),
            }
        }
        Ok(())
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn lost(doing: &'static str, source: io::Error) -> QmpError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
        _ => QmpError::Io { doing, source },
    }
}

/// Waits until `fd` is ready, or the deadline; says which.
fn wait(fd: &UnixStream, flags: PollFlags, deadline: Instant) -> Result<bool, QmpError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        match poll(&mut [PollFd::new(fd, flags)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(QmpError::Io { doing: "waiting", source: error.into() }),
        }
    }
}
