//! The output gate: what the VM sends waits here until the checkpoint that covers it is committed.
//!
//! ```text
//!   QEMU -netdev stream ---- unix socket ----> framing ---> ring of batches ---> port ---> TAP device, bridge, outside
//!   (server=on)                                (be32)       open | closed e..    (released only)
//!        ^                                                                        |
//!        +------------------------ unix socket <--- framing <---------------------+      (inbound: never held)
//!
//!            hold()                open()                     shut(), from any mode
//!   Closed ----------> Holding <============> Open            -----------------------> Shut (for ever)
//!      |                           hold()      ^
//!      +---------------- open() ---------------+
//! ```
//!
//! | mode | from the VM | to the VM | when |
//! |---|---|---|---|
//! | Closed | read, dropped | read, dropped | a standby before its takeover |
//! | Holding | held until its epoch is released | passes | protected |
//! | Open | passes | passes | solo, or not yet protected |
//! | Shut | all is closed and dropped | | fenced |
//!
//! The barrier is exact because the VM is stopped and QEMU writes a frame to its socket before the device model goes on:
//! whatever the VM sent before the stop is in the socket, and [`NicGate::barrier`] reads until there is no more. A frame of
//! which only a part has come is held by nobody yet and will belong to the next epoch. That is safe: later output only
//! leaves later; and if the VM dies first, the frame was lost on the wire, as frames are.
//!
//! Fail-closed (I6): the one way out is [`batch::Held::flush`], which sends released frames only; dropping the gate, or any
//! error, sends nothing. QEMU's end of a NIC is blocking, so the gate must be polled in every mode, above all while QEMU
//! is asked for a checkpoint: see [`nic`].
//!
//! Memory: the ring has the size of the limit and is the only place where output waits. Nothing allocates once warm.

mod batch;
#[cfg(feature = "testing")]
mod datagram;
mod error;
pub mod framing;
mod handing;
mod nic;
pub mod port;
mod ring;
mod spec;

#[cfg(feature = "testing")]
pub use datagram::DatagramPort;
pub use error::GateError;
pub use handing::NicParts;
pub use port::{Port, TapPort};
pub use spec::NicSpec;

use batch::Held;
use mc_core::{
    gate::{GateStats, OutputGate, WaitFd},
    histogram::Histogram,
    id::{Epoch, Time},
};
use nic::{Nic, Read};
use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The smallest limit of held bytes: it must hold one read of the smallest frames with the ring's overhead.
pub const HELD_LIMIT_MIN: usize = 1 << 20;
/// NICs at most: more than a PC has slots for.
pub const NICS_MAX: usize = 256;
/// Reads of one NIC in one poll, so that a busy NIC cannot keep the others, and the caller, waiting.
const READS_PER_POLL: usize = 8;
/// Bytes read from one NIC in one barrier. A stopped VM has at most its socket's buffer to give, which wmem_max bounds.
const BARRIER_BYTES: usize = 64 << 20;

/// How a gate starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes held at most, 8 to 15 bytes of overhead a frame included; at least [`HELD_LIMIT_MIN`]. Frames beyond it are
    /// dropped, newest first, and counted. Address space of this size is reserved at once, memory as it is used.
    pub held_limit_bytes: usize,
    /// The first mode.
    pub mode: Mode,
}

impl Default for Options {
    /// Closed, 64 MiB: half a second of a saturated gigabit.
    fn default() -> Self {
        Self { held_limit_bytes: 64 << 20, mode: Mode::Closed }
    }
}

/// What the gate does with traffic; the table is in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Passes nothing.
    Closed,
    /// Holds what the VM sends.
    Holding,
    /// Passes everything.
    Open,
    /// Fenced, for ever.
    Shut,
}

/// Why frames were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Drops {
    /// From the VM, while closed.
    pub closed: u64,
    /// From the VM, over the limit of held bytes.
    pub over_limit: u64,
    /// From the VM, refused by a port that is down or gone.
    pub port: u64,
    /// From the VM, held when the gate was shut.
    pub shut: u64,
    /// To the VM: closed, not connected, or lost with its connection. Not part of [`GateStats::dropped_packets`].
    pub inbound: u64,
}

/// The state of one NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicStatus<'a> {
    /// Its socket.
    pub socket: &'a Path,
    /// Whether QEMU is at the other end.
    pub connected: bool,
    /// Whether the port behind it works.
    pub port_works: bool,
}

/// The gate of a VM's NICs.
#[derive(Debug)]
pub struct NicGate {
    nics: Vec<Nic>,
    flow: Flow,
}

/// Everything about output that is not a NIC's own.
#[derive(Debug)]
struct Flow {
    mode: Mode,
    held: Held,
    now: Time,
    released: u64,
    drops: Drops,
}

impl Flow {
    /// A frame from the VM.
    fn take(&mut self, nic: u16, frame: &[u8]) {
        match self.mode {
            Mode::Holding | Mode::Open => {
                if !self.held.push(nic, frame, self.now) {
                    self.drops.over_limit += 1;
                }
            }
            Mode::Closed | Mode::Shut => self.drops.closed += 1,
        }
    }
}

impl NicGate {
    /// Opens the TAP device of every NIC; [`NicGate::connect`] does the rest.
    ///
    /// # Errors
    /// [`GateError::Tap`] names the device and the remedy; the limit too small; too many NICs.
    pub fn new(specs: Vec<NicSpec>, options: Options) -> Result<Self, GateError> {
        let mut ports: Vec<(PathBuf, Box<dyn Port>)> = Vec::with_capacity(specs.len());
        for NicSpec { socket, tap } in specs {
            TapPort::is_up(&tap)?;
            ports.push((socket, Box::new(TapPort::open(&tap)?)));
        }
        Self::with_ports(ports, options)
    }

    /// Whether there is what [`NicGate::new`] and [`NicGate::connect`] would open; touches nothing, and does not know whether another
    /// process has it.
    ///
    /// # Errors
    /// As theirs.
    pub fn check(specs: &[NicSpec]) -> Result<(), GateError> {
        for NicSpec { socket, tap } in specs {
            TapPort::is_up(tap)?;
            let found = std::fs::metadata(socket).map(|file| file.file_type().is_socket());
            let wrong = match found {
                Ok(true) => continue,
                Ok(false) => io::Error::other("not a socket"),
                Err(error) => error,
            };
            return Err(GateError::Connect { path: socket.clone(), source: wrong });
        }
        Ok(())
    }

    /// The same over any ports, one for each NIC's socket.
    ///
    /// # Errors
    /// The limit too small; too many NICs.
    pub fn with_ports(ports: Vec<(PathBuf, Box<dyn Port>)>, options: Options) -> Result<Self, GateError> {
        Self::of(ports.into_iter().map(|(path, port)| Nic::new(path, Some(port))).collect(), options)
    }

    /// Without a port or a connection of any NIC: [`NicGate::mend`] gets them, each as soon as it can be had.
    ///
    /// # Errors
    /// The limit too small; too many NICs.
    pub fn unconnected(specs: &[NicSpec], options: Options) -> Result<Self, GateError> {
        Self::of(specs.iter().map(|spec| Nic::new(spec.socket.clone(), None)).collect(), options)
    }

    fn of(nics: Vec<Nic>, options: Options) -> Result<Self, GateError> {
        if options.held_limit_bytes < HELD_LIMIT_MIN {
            return Err(GateError::Limit(options.held_limit_bytes));
        }
        if nics.len() > NICS_MAX {
            return Err(GateError::TooManyNics(nics.len()));
        }
        let held = Held::new(options.held_limit_bytes);
        let flow = Flow { mode: options.mode, held, now: Time::default(), released: 0, drops: Drops::default() };
        let mut gate = Self { nics, flow };
        if options.mode == Mode::Shut {
            gate.shut();
        }
        Ok(gate)
    }

    /// Connects every NIC that is not connected, trying for `patience` in all. For the start, and again after a NIC's
    /// connection was lost. Blocks.
    ///
    /// # Errors
    /// [`GateError::Connect`] names the socket and QEMU's option for it; [`GateError::Shut`].
    pub fn connect(&mut self, patience: Duration) -> Result<(), GateError> {
        self.not_shut()?;
        let deadline = Instant::now() + patience;
        self.nics.iter_mut().try_for_each(|nic| nic.connect(deadline))
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.flow.mode
    }

    /// The NICs, in the order in which they were given.
    pub fn nics(&self) -> impl Iterator<Item = NicStatus<'_>> {
        self.nics.iter().map(|nic| NicStatus {
            socket: nic.path(),
            connected: nic.connected(),
            port_works: nic.port_works(),
        })
    }

    /// The time from the arrival of a batch's first frame to its release, for every batch so far that had frames.
    #[must_use]
    pub fn hold_histogram(&self) -> &Histogram {
        self.flow.held.hold_times()
    }

    /// Why frames were dropped.
    #[must_use]
    pub fn drops(&self) -> Drops {
        let inbound = self.nics.iter().map(|nic| nic.inbound_dropped).sum();
        Drops { inbound, ..self.flow.drops }
    }

    fn not_shut(&self) -> Result<(), GateError> {
        if self.flow.mode == Mode::Shut { Err(GateError::Shut) } else { Ok(()) }
    }

    /// Reads a share of what each NIC's VM side has.
    fn read_some(&mut self) {
        for index in 0..self.nics.len() {
            for _ in 0..READS_PER_POLL {
                if !matches!(self.read(index), Read::Full(_)) {
                    break;
                }
            }
        }
    }

    /// Reads NIC `index` once; in open mode lets the frames go at once.
    fn read(&mut self, index: usize) -> Read {
        let Self { nics, flow } = self;
        let number = u16::try_from(index).expect("at most NICS_MAX NICs");
        let read = nics[index].read(|frame| flow.take(number, frame));
        if flow.mode == Mode::Open {
            flow.held.pass();
            self.flush();
        }
        read
    }

    /// Sends released frames until one has to wait: the only way out.
    fn flush(&mut self) {
        let Self { nics, flow } = self;
        let (out, lost) = flow.held.flush(|nic, frame| nics[usize::from(nic)].send(frame));
        flow.released += out;
        flow.drops.port += lost;
    }

    /// Reads NIC `index` until it has no more.
    fn drain(&mut self, index: usize, epoch: Epoch) -> Result<(), GateError> {
        let mut bytes = 0;
        loop {
            match self.read(index) {
                Read::Nothing => return Ok(()),
                Read::Full(n) | Read::Some(n) => bytes += n,
            }
            if bytes > BARRIER_BYTES {
                let path = self.nics[index].path().to_owned();
                return Err(GateError::Restless { path, epoch, bytes });
            }
        }
    }
}

impl OutputGate for NicGate {
    /// The time of the frames that the next calls read, and of the batches that they release.
    fn tick(&mut self, now: Time) {
        self.flow.now = now;
    }

    /// Moves a bounded share of the traffic. Fails once for every failure of a NIC or its port, after it has served the
    /// others; the failed part stays quiet until [`NicGate::connect`].
    fn poll(&mut self) -> io::Result<()> {
        self.read_some();
        self.flush();
        let pass = matches!(self.flow.mode, Mode::Holding | Mode::Open);
        for nic in &mut self.nics {
            nic.move_inbound(pass);
        }
        self.nics.iter_mut().find_map(Nic::take_fault).map_or(Ok(()), |fault| Err(fault.into()))
    }

    fn hold(&mut self) {
        if matches!(self.flow.mode, Mode::Closed | Mode::Open) {
            self.flow.mode = Mode::Holding;
            self.flow.held.begin();
        }
    }

    /// Fails only when the batch was not closed: shut, epochs out of order, or a VM that is not stopped. The failure of a
    /// NIC is left to `poll`.
    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        self.not_shut()?;
        self.flow.held.check_order(epoch).map_err(|last| GateError::Order { epoch, last })?;
        for index in 0..self.nics.len() {
            self.drain(index, epoch)?;
        }
        if self.flow.mode == Mode::Holding {
            self.flow.held.close(epoch);
        }
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        self.not_shut()?;
        self.flow.held.release(epoch, self.flow.now);
        self.flush();
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        self.not_shut()?;
        self.flow.held.release_all(self.flow.now);
        self.flow.mode = Mode::Open;
        self.flush();
        Ok(())
    }

    fn shut(&mut self) {
        self.flow.mode = Mode::Shut;
        self.flow.drops.shut += self.flow.held.clear();
        self.nics.iter_mut().for_each(Nic::shut);
    }

    fn stats(&self) -> GateStats {
        let drops = self.flow.drops;
        GateStats {
            held_packets: self.flow.held.frames(),
            held_bytes: self.flow.held.bytes(),
            released_packets: self.flow.released,
            dropped_packets: drops.closed + drops.over_limit + drops.port + drops.shut,
            inbound_packets: self.nics.iter().map(|nic| nic.inbound).sum(),
        }
    }

    /// A blocked direction asks for room, the other for data.
    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        let stuck = self.flow.held.next_nic();
        (0u16..).zip(&self.nics).flat_map(|(i, nic)| nic.wait_fds(stuck == Some(i))).for_each(each);
    }
}
