//! A gate's connections and devices, on their way from one process to another; and how lost ones come back.
//!
//! A connection to QEMU and an open TAP device are descriptors, which another process can carry on with: no frame is lost, QEMU
//! does not notice, and the TAP device keeps its carrier (a bridge with a spanning tree would not forward for half a minute
//! after it came back). Only a connection in the middle of a frame cannot be handed on: [`NicGate::at_rest`].

use super::{GateError, NicGate, NicSpec, Options, Port, TapPort, nic::Nic};
use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Instant,
};

/// One NIC, as it comes from another process.
#[derive(Debug)]
pub struct NicParts {
    /// Which NIC.
    pub spec: NicSpec,
    /// Its connection to QEMU.
    pub stream: Option<OwnedFd>,
    /// Its open TAP device; `None`: [`NicGate::mend`] opens it.
    pub tap: Option<OwnedFd>,
}

impl NicGate {
    /// A gate of what was handed over; what was not is left to [`NicGate::mend`].
    ///
    /// # Errors
    /// The limit too small; too many NICs.
    pub fn from_parts(parts: Vec<NicParts>, options: Options) -> Result<Self, GateError> {
        let nics = parts.into_iter().map(|NicParts { spec, stream, tap }| {
            let port = tap.map(|fd| Box::new(TapPort::from_fd(fd)) as Box<dyn Port>);
            let mut nic = Nic::new(spec.socket, port);
            nic.adopt(stream);
            nic
        });
        Self::of(nics.collect(), options)
    }

    /// Whether a TAP device of each NIC is there, and up. One that was deleted, and made again, is another one: the NIC is joined to that.
    ///
    /// # Errors
    /// The first device that cannot be had; the other NICs were looked at too.
    pub fn mend_ports(&mut self, specs: &[NicSpec]) -> Result<(), GateError> {
        let mut outcome = Ok(());
        for (nic, spec) in self.nics.iter_mut().zip(specs) {
            if nic.check_port().is_err() {
                let opened = TapPort::open(&spec.tap).map(|port| nic.replace_port(Box::new(port)));
                outcome = outcome.and(opened);
            }
            outcome = outcome.and(nic.check_up(&spec.tap));
        }
        outcome
    }

    /// Whether no connection is in the middle of a frame, and nothing waits to be sent.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        self.flow.held.frames() == 0 && self.nics.iter().all(Nic::at_rest)
    }

    /// What another process could carry on with: of every NIC its connection, if it is between two frames, and its device. As
    /// soon as the other one begins this gate must not be polled any more: shut it, or [`NicGate::hang_up`].
    pub fn lend(&self) -> impl Iterator<Item = (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>)> {
        self.nics.iter().map(Nic::lend)
    }

    /// Closes every connection to QEMU: [`NicGate::connect`] makes new ones.
    pub fn hang_up(&mut self) {
        self.nics.iter_mut().for_each(Nic::hang_up);
    }

    /// The connections to QEMU.
    pub fn connections(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.nics.iter().filter_map(Nic::stream)
    }

    /// Tries once, without waiting, to connect each NIC that is not connected, and to open its TAP device again where that
    /// failed; `specs` are the NICs in their order. A connection that `is_ours` denies is closed again.
    ///
    /// # Errors
    /// The first failure, or a TAP device that is down; the other NICs were tried too.
    pub fn mend(&mut self, specs: &[NicSpec], is_ours: impl Fn(BorrowedFd<'_>) -> bool) -> Result<(), GateError> {
        self.not_shut()?;
        let mut outcome = Ok(());
        for (nic, spec) in self.nics.iter_mut().zip(specs) {
            if !nic.connected() {
                let connected = nic.connect(Instant::now());
                if nic.stream().is_some_and(|stream| !is_ours(stream)) {
                    nic.hang_up();
                    outcome = outcome.and(Err(GateError::Stranger(spec.socket.clone())));
                }
                outcome = outcome.and(connected);
            }
            if !nic.port_works() {
                let opened = TapPort::open(&spec.tap).map(|port| nic.replace_port(Box::new(port)));
                outcome = outcome.and(opened);
            }
            outcome = outcome.and(nic.check_up(&spec.tap));
        }
        outcome
    }
}
