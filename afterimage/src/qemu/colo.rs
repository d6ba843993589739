//! The checkpoint source: plays the secondary of QEMU's COLO mode over a unix socket.
//!
//! ```text
//! begin: listen ─accept─> initial copy (VM runs) ─> Captured ─resume: READY─> … Request = Ready ─pause: REPLY─>
//!        VMSTATE_SEND, dirty RAM, device state (VM stopped) ─> Captured ─resume: RECEIVED, LOADED─> … Request = Ready …
//! ```
//!
//! QEMU keeps the VM stopped until LOADED, and does not care whether we really loaded anything: we answer from staging, and
//! the network is off the pause. Between Request and REPLY the VM runs: withholding the reply paces for free.

use super::{
    profile::RamBlock,
    stream::{Item, Parser},
};
use mc_core::source::{CheckpointSink, CheckpointSource, NoRoom, SourceError, SourceEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

const MSG_READY: u32 = 0;
const MSG_REPLY: u32 = 2;
const MSG_RECEIVED: u32 = 5;
const MSG_LOADED: u32 = 6;
/// Bytes read at once.
const BUFFER: usize = 1 << 20;
/// While the VM stands still, QEMU's next bytes are waited for right here: going round the caller's loop would cost more.
const LINGER: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// See the module.
#[derive(Debug)]
pub struct ColoSource {
    path: PathBuf,
    listener: UnixListener,
    stream: Option<UnixStream>,
    parser: Parser,
    buffer: Vec<u8>,
    /// What of the buffer was read and not parsed.
    unread: std::ops::Range<usize>,
    checkpoints: u64,
}

impl ColoSource {
    /// Listens at `path` (replacing a socket that an earlier process left there) for a VM with these RAM blocks.
    pub fn listen(path: &Path, blocks: Vec<RamBlock>) -> io::Result<Self> {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            stream: None,
            parser: Parser::new(blocks),
            buffer: vec![0; BUFFER],
            unread: 0..0,
            checkpoints: 0,
        })
    }

    fn accept(&mut self) -> Result<bool, SourceError> {
        if self.stream.is_some() {
            return Ok(true);
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).map_err(io_error("accepting"))?;
                self.stream = Some(stream);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(io_error("accepting")(e)),
        }
    }

    fn say(&mut self, messages: &[u32]) -> Result<(), SourceError> {
        let stream = self.stream.as_mut().ok_or(SourceError::Closed)?;
        let mut bytes = [0; 8];
        for (slot, message) in bytes.chunks_exact_mut(4).zip(messages) {
            slot.copy_from_slice(&message.to_be_bytes());
        }
        // Eight bytes into an empty socket: it takes them whole, or QEMU is gone.
        stream.write_all(&bytes[..messages.len() * 4]).map_err(io_error("answering QEMU"))
    }

    /// Hands on what was read. `None`: more has to be read.
    fn parse(&mut self, sink: &mut dyn CheckpointSink) -> Result<Option<SourceEvent>, SourceError> {
        let Self { parser, buffer, unread, .. } = self;
        loop {
            let next = parser.peek(&buffer[unread.clone()]).map_err(|e| SourceError::Stream(e.to_string()))?;
            let Some(next) = next else { return Ok(None) };
            let Ok(partly) = offer(&next.item, sink) else { return Ok(Some(SourceEvent::NoRoom)) };
            unread.start += match partly {
                Some(taken) => parser.advance_device(taken),
                None => parser.advance(&next),
            };
            match next.item {
                Item::Request => return Ok(Some(SourceEvent::Ready)),
                Item::Captured => return Ok(Some(SourceEvent::Captured)),
                _ => {}
            }
        }
    }

    /// Reads once. False: nothing has arrived.
    fn read(&mut self) -> Result<bool, SourceError> {
        self.make_room();
        let Some(stream) = &mut self.stream else { return Ok(false) };
        match stream.read(&mut self.buffer[self.unread.end..]) {
            Ok(0) => Err(SourceError::Closed),
            Ok(n) => {
                self.unread.end += n;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(SourceError::Closed),
            Err(e) => Err(io_error("reading")(e)),
        }
    }

    /// What is unread moves to the front; the buffer grows only for the first device state, whose end must be searched for.
    fn make_room(&mut self) {
        if self.unread.start > 0 {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.unread.end == self.buffer.len() && self.buffer.len() < self.parser.reach() {
            self.buffer.resize((self.buffer.len() * 2).min(self.parser.reach()), 0);
        }
    }

    fn linger(&self) -> Result<bool, SourceError> {
        let Some(stream) = &self.stream else { return Ok(false) };
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut fds, Some(&LINGER)) {
            Ok(n) => Ok(n > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(e) => Err(io_error("waiting")(e.into())),
        }
    }
}

/// Offers an item to the sink. `Some(n)`: only so many bytes of it were taken.
fn offer(item: &Item<'_>, sink: &mut dyn CheckpointSink) -> Result<Option<usize>, NoRoom> {
    match *item {
        Item::Page { block, offset, data } => sink.page(block, offset, data).map(|()| None),
        Item::Zero { block, offset } => sink.zero(block, offset).map(|()| None),
        Item::Device(data) => sink.device(data).map(|n| (n < data.len()).then_some(n)),
        Item::Nothing | Item::Request | Item::Captured => Ok(None),
    }
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> SourceError {
    move |source| SourceError::Io { doing, source }
}

impl CheckpointSource for ColoSource {
    /// QEMU is told by others (`migrate unix:PATH`) to come to our socket, which listens already.
    fn begin(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        if !self.accept()? {
            return Ok(SourceEvent::Idle);
        }
        loop {
            if let Some(event) = self.parse(sink)? {
                return Ok(event);
            }
            let more = self.read()? || (self.parser.in_checkpoint() && self.linger()?);
            if !more {
                return Ok(SourceEvent::Idle);
            }
        }
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        self.say(&[MSG_REPLY])
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        self.checkpoints += 1;
        if self.checkpoints == 1 { self.say(&[MSG_READY]) } else { self.say(&[MSG_RECEIVED, MSG_LOADED]) }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd))
    }
}

impl Drop for ColoSource {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
