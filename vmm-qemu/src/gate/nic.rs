//! One NIC: its connection to QEMU, and the port behind it.
//!
//! ```text
//!                 connect()                    EOF, error, bad framing
//!   Disconnected -----------------> Connected ------------------------> Disconnected, one fault to report
//!        ^                                                                    |
//!        +---------------------------- connect() again <----------------------+
//! ```
//!
//! Two properties of QEMU's end, tried with 7.2 and the same in today's source (`net/stream_data.c`), shape this file:
//! * With `server=on` QEMU's socket is **blocking**: when it is full, QEMU sleeps in `write` with its global lock held, and
//!   the VM, QMP and any checkpoint with it. So we read in every mode, also what we then drop, and never hold back reading.
//! * When we disconnect, QEMU drops what the VM sends and listens again; the VM sees no link change. But QEMU serves one
//!   connection at a time: a second one is accepted by the kernel and then waits, silent, for the first one's end.

use super::{
    batch::Sent,
    error::GateError,
    framing::{FrameReader, FrameWriter, HEADER, MAX_FRAME},
    port::{Port, is_down},
};
use mc_core::gate::WaitFd;
use rustix::{
    io::{Errno, retry_on_intr},
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Rounds of reading from the port in one poll, of up to a writer's buffer each.
const INBOUND_ROUNDS: usize = 4;
/// Frames discarded in one poll.
const DISCARD_FRAMES: usize = 256;
/// Bytes of an Ethernet header; QEMU's NICs have no use for less.
const ETHERNET_HEADER: usize = 14;

/// What one read of the connection gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, which filled the buffer: there may be more.
    Full(usize),
    /// So many bytes, and the socket was empty behind them, when we looked.
    Some(usize),
    /// Nothing: empty, or not connected.
    Nothing,
}

/// One NIC.
#[derive(Debug)]
pub(super) struct Nic {
    path: PathBuf,
    stream: Option<OwnedFd>,
    port: Option<Box<dyn Port>>,
    reader: FrameReader,
    writer: FrameWriter,
    fault: Option<GateError>,
    /// Frames written to the VM.
    pub(super) inbound: u64,
    /// Frames from the outside that were not passed.
    pub(super) inbound_dropped: u64,
}

impl Nic {
    pub(super) fn new(path: PathBuf, port: Option<Box<dyn Port>>) -> Self {
        Self {
            path,
            stream: None,
            port,
            reader: FrameReader::default(),
            writer: FrameWriter::default(),
            fault: None,
            inbound: 0,
            inbound_dropped: 0,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn connected(&self) -> bool {
        self.stream.is_some()
    }

    pub(super) fn port_works(&self) -> bool {
        self.port.is_some()
    }

    /// Whether the port is there: it has not failed, and its device has not been deleted.
    pub(super) fn check_port(&self) -> Result<(), GateError> {
        let checked = match &self.port {
            Some(port) => port.check(),
            None => Err(io::Error::other("it has failed")),
        };
        checked.map_err(|source| GateError::Port { path: self.path.clone(), source })
    }

    /// Whether the device `tap` behind the port is up. A port that failed is another matter.
    pub(super) fn check_up(&self, tap: &str) -> Result<(), GateError> {
        let checked = self.port.as_ref().map_or(Ok(()), |port| port.check_up());
        checked.map_err(|source| GateError::tap(tap, source))
    }

    /// In the place of one that failed, or is not there any more.
    pub(super) fn replace_port(&mut self, port: Box<dyn Port>) {
        self.port = Some(port);
    }

    /// The failure that has not been reported yet, once.
    pub(super) fn take_fault(&mut self) -> Option<GateError> {
        self.fault.take()
    }

    /// Connects, trying until `deadline`; does nothing when connected.
    pub(super) fn connect(&mut self, deadline: Instant) -> Result<(), GateError> {
        while self.stream.is_none() {
            match self.connect_once() {
                Ok(stream) => self.stream = Some(stream),
                Err(error) if Instant::now() < deadline && may_heal(error) => std::thread::sleep(CONNECT_PAUSE),
                Err(Errno::AGAIN) => return Err(GateError::Occupied(self.path.clone())),
                Err(error) => return Err(GateError::Connect { path: self.path.clone(), source: error.into() }),
            }
        }
        Ok(())
    }

    /// Goes on with a connection of another process's, between two frames.
    pub(super) fn adopt(&mut self, stream: Option<OwnedFd>) {
        self.stream = stream;
    }

    /// Whether nothing is half received, or half sent.
    pub(super) fn at_rest(&self) -> bool {
        self.reader.partial() == 0 && self.writer.pending().is_empty()
    }

    /// Its connection, if it is at rest, and its port's descriptor.
    pub(super) fn lend(&self) -> (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>) {
        let stream = self.stream().filter(|_| self.at_rest());
        (stream, self.port.as_ref().and_then(|port| port.fd()))
    }

    /// Its connection.
    pub(super) fn stream(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Closes the connection; nothing is reported.
    pub(super) fn hang_up(&mut self) {
        self.drop_connection();
    }

    /// Never blocks: QEMU's listening queue holds one connection, and a blocking connect would wait for a place in it.
    fn connect_once(&self) -> Result<OwnedFd, Errno> {
        let address = SocketAddrUnix::new(&self.path)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(socket)
    }

    /// Reads once from the VM, and gives every whole frame to `take`. The start of an unfinished frame is kept.
    pub(super) fn read(&mut self, mut take: impl FnMut(&[u8])) -> Read {
        let Some(stream) = &self.stream else { return Read::Nothing };
        let space = self.reader.space();
        let room = space.len();
        let n = match retry_on_intr(|| rustix::net::recv(stream, &mut *space, RecvFlags::DONTWAIT)) {
            Ok((_, 0)) => return self.disconnect(|path| GateError::Closed(path.to_owned())),
            Ok((_, n)) => n,
            Err(Errno::AGAIN) => return Read::Nothing,
            Err(e) => return self.disconnect(|path| GateError::socket(path, e.into())),
        };
        self.reader.filled(n);
        loop {
            match self.reader.next_frame() {
                Ok(Some(frame)) => take(frame),
                Ok(None) => break,
                Err(source) => {
                    return self.disconnect(|path| GateError::Framing { path: path.to_owned(), source });
                }
            }
        }
        if n == room { Read::Full(n) } else { Read::Some(n) }
    }

    /// Offers a released frame to the port.
    pub(super) fn send(&mut self, frame: &[u8]) -> Sent {
        let Some(port) = &mut self.port else { return Sent::Lost };
        match port.send(frame) {
            Ok(()) => Sent::Out,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            Err(e) if is_down(&e) => Sent::Lost,
            Err(e) => {
                self.port_failed(e);
                Sent::Lost
            }
        }
    }

    /// Moves frames from the port to the VM. When QEMU's socket is full, frames wait in the port's own queue (a TAP
    /// device's txqueuelen), which the kernel bounds and counts. Not connected, or told not to `pass`: reads and drops.
    pub(super) fn move_inbound(&mut self, pass: bool) {
        if !pass || self.stream.is_none() {
            self.discard();
            return;
        }
        for _ in 0..INBOUND_ROUNDS {
            if !self.flush() {
                return;
            }
            let more = self.fill();
            if !self.flush() || !more {
                return;
            }
        }
    }

    /// Reads frames from the port until it has none, or the writer is full (then `true`).
    fn fill(&mut self) -> bool {
        while let Some(room) = self.writer.room() {
            match receive(self.port.as_mut(), room) {
                Ok(Some(n)) if n >= ETHERNET_HEADER => self.writer.commit(n),
                Ok(Some(_)) => self.inbound_dropped += 1,
                Ok(None) => return false,
                Err(e) => {
                    self.port_failed(e);
                    return false;
                }
            }
        }
        true
    }

    /// Writes what waits for the VM; `false` when something is left.
    fn flush(&mut self) -> bool {
        while !self.writer.pending().is_empty() {
            let Some(stream) = &self.stream else { return false };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match retry_on_intr(|| rustix::net::send(stream, self.writer.pending(), flags)) {
                Ok(n) => self.inbound += self.writer.sent(n),
                Err(Errno::AGAIN) => return false,
                Err(e) => {
                    self.disconnect(|path| GateError::socket(path, e.into()));
                    return false;
                }
            }
        }
        true
    }

    /// Reads and drops what the port has.
    fn discard(&mut self) {
        for _ in 0..DISCARD_FRAMES {
            let Some(room) = self.writer.room() else { return };
            match receive(self.port.as_mut(), room) {
                Ok(Some(_)) => self.inbound_dropped += 1,
                Ok(None) => return,
                Err(e) => return self.port_failed(e),
            }
        }
    }

    /// What to poll. `stuck`: a released frame waits for room in the port.
    pub(super) fn wait_fds(&self, stuck: bool) -> impl Iterator<Item = WaitFd<'_>> {
        let blocked = self.stream.is_some() && !self.writer.pending().is_empty();
        let vm = self.stream().map(|fd| WaitFd { fd, read: true, write: blocked });
        let port = self.port.as_ref().and_then(|p| p.fd()).map(|fd| WaitFd { fd, read: !blocked, write: stuck });
        vm.into_iter().chain(port)
    }

    /// Closes both sides; nothing is reported.
    pub(super) fn shut(&mut self) {
        self.drop_connection();
        self.port = None;
        self.fault = None;
    }

    /// The connection is unusable: remembers why, for one report.
    fn disconnect(&mut self, why: impl FnOnce(&Path) -> GateError) -> Read {
        self.drop_connection();
        self.fault = Some(why(&self.path));
        Read::Nothing
    }

    fn drop_connection(&mut self) {
        self.stream = None;
        self.reader.reset();
        self.inbound_dropped += self.writer.reset();
    }

    fn port_failed(&mut self, source: io::Error) {
        self.port = None;
        self.fault = Some(GateError::Port { path: self.path.clone(), source });
    }
}

/// One frame from `port`, if it has one.
fn receive(port: Option<&mut Box<dyn Port>>, room: &mut [u8]) -> io::Result<Option<usize>> {
    let Some(port) = port else { return Ok(None) };
    match port.receive(room) {
        Ok(n) => Ok(Some(n.min(MAX_FRAME))),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock || is_down(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether an attempt to connect may succeed later: no socket yet, nobody listening yet, or its queue is full.
fn may_heal(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)
}

const _: () = assert!(super::framing::WRITE_BUFFER >= HEADER + MAX_FRAME, "a writer holds at least one frame");
