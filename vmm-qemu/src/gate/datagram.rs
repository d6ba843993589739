//! A port for tests: no TAP device, and no rights, are needed.

use super::Port;
use rustix::net::{RecvFlags, SendFlags};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

/// A connected datagram socket, one frame a datagram.
#[derive(Debug)]
pub struct DatagramPort {
    socket: UnixDatagram,
}

impl DatagramPort {
    /// Takes a connected `socket`.
    #[must_use]
    pub fn new(socket: UnixDatagram) -> Self {
        Self { socket }
    }
}

impl Port for DatagramPort {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, frame, flags))?;
        Ok(())
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (n, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT))?;
        Ok(n)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}
