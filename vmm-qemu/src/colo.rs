//! [`ColoSource`]: plays the COLO secondary towards a primary's QEMU.
//!
//! QEMU stops its VM when it has read REPLY, and lets it run on when it has read LOADED. Both are ours to send: LOADED as
//! soon as the checkpoint is staged here, REPLY not before the next checkpoint is wanted. Until then the VM simply runs.
//!
//! ```text
//!           begin             Captured            resume: READY, later RECEIVED+LOADED
//!  Unbound ───────> Reading ──────────> Captured ────────> Asking ──(REQUEST read)──> Ready
//!                     ^ VM: initial copy runs,               VM runs                    │ VM runs
//!                     │ then stopped                                                    │
//!                     └──────────────────────── pause: REPLY ───────────────────────────┘
//! ```
//!
//! QEMU is handed one end of a socket pair ([`ColoSource::far_end`]), so that it needs no path, no permission and no working
//! directory of ours, and so that a migration that ends before it begins is seen at once: its end is closed.
//!
//! On every error the state is `Broken`; the VM may then be stopped, until whoever holds its QMP connection leaves COLO
//! ([`crate::control::leave_colo`]).

use super::{
    blocks::RamBlock,
    stream::{Kind, Outcome, Parser, StreamError, message},
};
use mc_core::source::{CheckpointSink, CheckpointSource, SourceError, SourceEvent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

/// A unix socket passes some 200 KB at a time; twice that lets one read take it all behind an unfinished record.
const BUFFER: usize = 512 << 10;
/// Reads before the caller gets the word again, during the initial copy.
const READS_PER_POLL: u32 = 32;
/// How long QEMU may take to make room for 8 bytes.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// How long `poll` waits for more of a checkpoint. The VM stands still, and QEMU pauses for less than that between two
/// pieces: going through the caller's loop and back would only lengthen the pause.
const LINGER: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unbound,
    /// A checkpoint is coming in; `first` is the initial copy, during most of which the VM runs.
    Reading {
        first: bool,
    },
    Captured {
        first: bool,
    },
    Asking,
    Ready,
    Broken,
}

/// The checkpoint source for a QEMU that knows COLO.
#[derive(Debug)]
pub struct ColoSource {
    blocks: Vec<RamBlock>,
    peer: Option<UnixStream>,
    far: Option<OwnedFd>,
    parser: Parser,
    /// What was received and not parsed is `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    state: State,
}

impl ColoSource {
    /// `blocks` are the VM's, from its profile.
    ///
    /// # Errors
    /// The blocks cannot be a VM's.
    pub fn new(blocks: Vec<RamBlock>) -> io::Result<Self> {
        let parser = new_parser(&blocks)?;
        Ok(Self {
            blocks,
            peer: None,
            far: None,
            parser,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            state: State::Unbound,
        })
    }

    /// QEMU's end of the stream, once after each `begin`: for [`crate::control::start_colo`].
    pub fn far_end(&mut self) -> Option<OwnedFd> {
        self.far.take()
    }

    /// The machine that QEMU says it is; empty before the first bytes.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn machine(&self) -> &str {
        self.parser.machine()
    }

    fn step(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        match self.state {
            State::Unbound | State::Captured { .. } => return Ok(SourceEvent::Idle),
            State::Ready => return self.nothing_more().map(|()| SourceEvent::Idle),
            State::Broken => return Err(SourceError::Closed),
            State::Reading { .. } | State::Asking => {}
        }
        self.receive(sink)
    }

    fn receive(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        let mut reads = 0;
        loop {
            let fed = self.parser.feed(&self.buffer[self.start..self.end], sink).map_err(stream_error)?;
            self.start += fed.used;
            match fed.outcome {
                Outcome::NoRoom => return Ok(SourceEvent::NoRoom),
                Outcome::Ready => {
                    self.state = State::Ready;
                    return Ok(SourceEvent::Ready);
                }
                Outcome::Captured => {
                    self.state = State::Captured { first: self.state == State::Reading { first: true } };
                    return Ok(SourceEvent::Captured);
                }
                Outcome::More(wanted) => self.make_room(wanted),
            }
            // Everything at hand is parsed here, so that it is safe to leave: whatever comes next makes the fd readable.
            if reads >= READS_PER_POLL && self.state == (State::Reading { first: true }) {
                return Ok(SourceEvent::Idle);
            }
            reads += 1;
            if !self.read()? && !self.linger()? {
                return Ok(SourceEvent::Idle);
            }
        }
    }

    /// While the VM runs and nothing is due, a readable fd can only mean that QEMU is gone.
    fn nothing_more(&mut self) -> Result<(), SourceError> {
        self.make_room(self.end - self.start + 1);
        self.read()?;
        if self.end > self.start {
            return Err(SourceError::Stream("QEMU sent something before it was answered".into()));
        }
        Ok(())
    }

    /// Makes the buffer hold `wanted` bytes from `start` on. It grows only while the end of the first device state is
    /// looked for, whose size the parser bounds.
    fn make_room(&mut self, wanted: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 && self.buffer.len() - self.end < BUFFER / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.start + wanted > self.buffer.len() {
            self.buffer.resize((self.start + wanted).next_power_of_two(), 0);
        }
    }

    /// Reads what is there; says whether that was anything.
    fn read(&mut self) -> Result<bool, SourceError> {
        let Some(peer) = &mut self.peer else { return Ok(false) };
        loop {
            match peer.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(SourceError::Closed),
                Ok(len) => {
                    self.end += len;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if again(&error) => return Ok(false),
                Err(error) => return Err(lost("reading", error)),
            }
        }
    }

    /// Whether more has come, for which a stopped VM is worth a short wait ([`LINGER`]).
    fn linger(&self) -> Result<bool, SourceError> {
        let (Some(peer), State::Reading { first: false }) = (&self.peer, self.state) else { return Ok(false) };
        match poll(&mut [PollFd::new(peer, PollFlags::IN)], Some(&LINGER)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(SourceError::Io { doing: "waiting for QEMU", source: error.into() }),
        }
    }

    fn send(&mut self, messages: &[u32]) -> Result<(), SourceError> {
        let mut bytes = [0; 8];
        for (place, message) in bytes.chunks_exact_mut(4).zip(messages) {
            place.copy_from_slice(&message.to_be_bytes());
        }
        let mut left = &bytes[..4 * messages.len().min(2)];
        let deadline = Instant::now() + WRITE_DEADLINE;
        let Some(peer) = &mut self.peer else { return Err(SourceError::Closed) };
        while !left.is_empty() {
            match peer.write(left) {
                Ok(len) => left = &left[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // QEMU reads these few bytes at once. If ever it does not, its end of the socket is full of older ones.
                Err(error) if again(&error) && Instant::now() < deadline => {
                    let _ = poll(&mut [PollFd::new(&*peer, PollFlags::OUT)], Some(&LINGER));
                }
                Err(error) => return Err(lost("answering QEMU", error)),
            }
        }
        Ok(())
    }

    /// After an error: lets QEMU see that the stream is over, and never speaks to it again.
    fn broken<T>(&mut self, result: Result<T, SourceError>) -> Result<T, SourceError> {
        if result.is_err() {
            self.state = State::Broken;
            self.peer = None;
        }
        result
    }
}

impl CheckpointSource for ColoSource {
    /// Makes a new stream: now somebody hands QEMU its end. An earlier one is dropped.
    fn begin(&mut self) -> Result<(), SourceError> {
        let pair = UnixStream::pair().and_then(|pair| pair.0.set_nonblocking(true).map(|()| pair));
        let (near, far) = pair.map_err(|source| SourceError::Io { doing: "making a socket pair", source })?;
        self.parser = new_parser(&self.blocks).map_err(|error| SourceError::Stream(error.to_string()))?;
        (self.peer, self.far) = (Some(near), Some(far.into()));
        (self.start, self.end) = (0, 0);
        self.state = State::Reading { first: true };
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> {
        let result = self.step(sink);
        self.broken(result)
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        if self.state != State::Ready {
            return Err(SourceError::Stream(format!("pause() while {:?}", self.state)));
        }
        self.state = State::Reading { first: false };
        let result = self.send(&[message::REPLY]);
        self.broken(result)
    }

    fn resume(&mut self) -> Result<(), SourceError> {
        let result = match self.state {
            State::Captured { first: true } => self.send(&[message::READY]),
            State::Captured { first: false } => self.send(&[message::VMSTATE_RECEIVED, message::VMSTATE_LOADED]),
            state => return Err(SourceError::Stream(format!("resume() while {state:?}"))),
        };
        self.state = State::Asking;
        self.broken(result)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.peer.as_ref().map(AsFd::as_fd)
    }
}

fn new_parser(blocks: &[RamBlock]) -> io::Result<Parser> {
    Parser::new(Kind::Colo, blocks.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

fn lost(doing: &'static str, source: io::Error) -> SourceError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SourceError::Closed,
        _ => SourceError::Io { doing, source },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn stream_error(error: StreamError) -> SourceError {
    SourceError::Stream(error.to_string())
}
