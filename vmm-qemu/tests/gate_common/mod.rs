//! What the gate's tests share: a listener that plays QEMU's end of a stream NIC, and a port in memory.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its own part of this.

use mc_core::gate::OutputGate;
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::BorrowedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use vmm_qemu::gate::{HELD_LIMIT_MIN, Mode, NicGate, Options, Port};

/// A frame of `length` bytes that tells `tag`.
pub fn frame(tag: u16, length: usize) -> Vec<u8> {
    tag.to_be_bytes().into_iter().cycle().take(length).collect()
}

/// QEMU's end of one NIC.
#[derive(Debug)]
pub struct Qemu {
    listener: UnixListener,
    pub path: PathBuf,
    stream: Option<UnixStream>,
    got: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl Qemu {
    pub fn listen(index: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("n{index}"));
        Self { listener: UnixListener::bind(&path).unwrap(), path, stream: None, got: Vec::new(), _dir: dir }
    }

    pub fn accept(&mut self) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        self.stream = Some(stream);
        self.got.clear();
    }

    pub fn wire(frame: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        bytes
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.raw(&Self::wire(frame));
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stream.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Writes what fits.
    pub fn try_raw(&mut self, bytes: &[u8]) -> usize {
        match self.stream.as_mut().unwrap().write(bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => panic!("{e}"),
        }
    }

    /// The whole frames that came.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut buf = vec![0; 1 << 16];
        loop {
            match self.stream.as_mut().unwrap().read(&mut buf) {
                Ok(0) => break,
                Ok(n) => self.got.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        let mut frames = Vec::new();
        while let Some((head, rest)) = self.got.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize;
            if rest.len() < length {
                break;
            }
            frames.push(rest[..length].to_vec());
            self.got.drain(..4 + length);
        }
        frames
    }

    /// Reads and forgets what came, without allocating.
    pub fn skim(&mut self) {
        let mut buf = [0; 4096];
        while self.stream.as_mut().unwrap().read(&mut buf).is_ok_and(|n| n > 0) {}
    }

    pub fn hang_up(&mut self) {
        self.stream = None;
    }

    /// Whether the gate has closed its end.
    pub fn is_closed(&mut self) -> bool {
        let stream = self.stream.as_mut().unwrap();
        matches!(stream.read(&mut [0; 64]), Ok(0)) || stream.write(&[0]).is_err()
    }
}

#[derive(Debug, Default)]
struct Wire {
    out: Vec<Vec<u8>>,
    inward: VecDeque<Vec<u8>>,
    /// Sends that still work, and the error afterwards.
    fails: Option<(usize, i32)>,
    dropped: bool,
}

/// The test's handle on a port.
#[derive(Clone, Debug, Default)]
pub struct MemPort(Arc<Mutex<Wire>>);

impl MemPort {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }
    pub fn out(&self) -> Vec<Vec<u8>> {
        self.wire().out.clone()
    }
    pub fn push(&self, frame: Vec<u8>) {
        self.wire().inward.push_back(frame);
    }
    pub fn waiting(&self) -> usize {
        self.wire().inward.len()
    }
    pub fn fail_after(&self, sends: usize, errno: i32) {
        self.wire().fails = Some((sends, errno));
    }
    pub fn heal(&self) {
        self.wire().fails = None;
    }
    pub fn is_dropped(&self) -> bool {
        self.wire().dropped
    }
}

/// The gate's end of a [`MemPort`].
#[derive(Debug)]
struct GateEnd(MemPort);

impl Port for GateEnd {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut wire = self.0.wire();
        match &mut wire.fails {
            Some((0, errno)) => return Err(io::Error::from_raw_os_error(*errno)),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        wire.out.push(frame.to_vec());
        Ok(())
    }
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let frame = self.0.wire().inward.pop_front().ok_or(ErrorKind::WouldBlock)?;
        buf[..frame.len()].copy_from_slice(&frame);
        Ok(frame.len())
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for GateEnd {
    fn drop(&mut self) {
        self.0.wire().dropped = true;
    }
}

/// The gate's end of `port`.
pub fn port_box(port: &MemPort) -> Box<dyn Port> {
    Box::new(GateEnd(port.clone()))
}

/// A gate with the smallest limit between `qemu` and `ports`, connected.
pub fn gate_over(qemu: &[&Qemu], ports: &[&MemPort], mode: Mode) -> NicGate {
    let pairs = qemu.iter().zip(ports).map(|(q, &p)| (q.path.clone(), port_box(p)));
    let options = Options { held_limit_bytes: HELD_LIMIT_MIN, mode };
    let mut gate = NicGate::with_ports(pairs.collect(), options).unwrap();
    gate.connect(Duration::from_secs(5)).unwrap();
    gate
}

/// A connected gate of `n` NICs, with both of its sides.
/// How many descriptors the gate waits for.
pub fn waits(gate: &NicGate) -> usize {
    let mut count = 0;
    gate.wait_fds(&mut |_| count += 1);
    count
}

pub fn open_gate(n: usize, mode: Mode) -> (NicGate, Vec<Qemu>, Vec<MemPort>) {
    let mut qemu: Vec<_> = (0..n).map(Qemu::listen).collect();
    let ports: Vec<_> = (0..n).map(|_| MemPort::default()).collect();
    let gate = gate_over(&qemu.iter().collect::<Vec<_>>(), &ports.iter().collect::<Vec<_>>(), mode);
    qemu.iter_mut().for_each(Qemu::accept);
    (gate, qemu, ports)
}
