//! The far side of the gate: where frames go once they are released, and where inbound frames come from.

use super::error::GateError;
use crate::sys::tap;
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Sends and receives whole Ethernet frames, and never blocks. `WouldBlock` means "later"; a port that is down for the
/// moment says so with [`is_down`] errors, any other error is taken as the port's end.
pub trait Port: fmt::Debug + Send {
    /// Sends one frame, whole or not at all.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives one frame into `buf`, which is large enough for any; gives its length.
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// What to poll for readability and room; `None` for a port that has no descriptor.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Whether what is behind it is still there.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether what is behind it is there, and takes frames.
    fn check_up(&self) -> io::Result<()> {
        self.check()
    }
}

/// Whether `error` means that the port cannot take this frame now, though it may take others later: link down (EIO from a
/// TAP device, ENETDOWN from a socket), no memory, or a frame that no Ethernet device takes (a runt: EINVAL, over-long:
/// EMSGSIZE). Such a frame is lost, as on a wire.
#[must_use]
pub fn is_down(error: &io::Error) -> bool {
    let lost = [libc::EIO, libc::ENETDOWN, libc::ENOBUFS, libc::ENOMEM, libc::EINVAL, libc::EMSGSIZE];
    error.raw_os_error().is_some_and(|e| lost.contains(&e))
}

/// A TAP device: what the VM sends enters the host's network there, usually through a bridge.
#[derive(Debug)]
pub struct TapPort {
    fd: OwnedFd,
}

impl TapPort {
    /// Opens the existing TAP device `name`.
    ///
    /// # Errors
    /// [`GateError::Tap`], which names the device and the remedy.
    pub fn open(name: &str) -> Result<Self, GateError> {
        let fd = tap::open(name).map_err(|source| GateError::tap(name, source))?;
        Ok(Self { fd })
    }

    /// Whether there is such a device, and it is up; it is not opened.
    ///
    /// # Errors
    /// [`GateError::Tap`], which names the device and the remedy.
    pub fn is_up(name: &str) -> Result<(), GateError> {
        tap::check_up(name).map_err(|source| GateError::tap(name, source))
    }

    /// Opens it, for another part of this program, or for another process.
    ///
    /// # Errors
    /// As [`TapPort::open`].
    pub fn open_fd(name: &str) -> Result<OwnedFd, GateError> {
        Self::open(name).map(|port| port.fd)
    }

    /// Over one that another process has opened, as [`TapPort::open`] does.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl Port for TapPort {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        // A TAP device takes a frame whole, or fails.
        rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, frame))?;
        Ok(())
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buf))?)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn check(&self) -> io::Result<()> {
        tap::check_attached(&self.fd)
    }

    fn check_up(&self) -> io::Result<()> {
        tap::check_attached_up(&self.fd)
    }
}
