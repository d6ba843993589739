//! [`UdpKeepalive`]: beats as datagrams on a socket of their own, so that no bulk transfer delays them.
//!
//! The socket is connected to the peer: the kernel drops other senders' datagrams. Authentication is the beat's own business.
//!
//! # What counts as loss
//!
//! A beat that cannot leave is lost, not an error: [`Keepalive::send`] answers `Ok` and counts it if
//! the peer's port is closed (`ECONNREFUSED`, learnt from an earlier beat: it tries once more), there is no route or the
//! interface is down (`ENETUNREACH`, `EHOSTUNREACH`, `ENETDOWN`, `EHOSTDOWN`, `EADDRNOTAVAIL`), a packet filter says no
//! (`EPERM`), or a queue is full (`EAGAIN`, `ENOBUFS`). Whoever does not hear the beat suspects the sender; the sender cannot
//! know better. Everything else is an error of ours. Receiving swallows the same errors: they report an earlier send.

use crate::reach::at_port;
use mc_core::{
    transport::{Keepalive, PollableKeepalive},
    wire::beat,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt,
};
use socket2::SockRef;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// `IPTOS_CLASS_CS6`, network control (RFC 2474, RFC 4594).
const CS6: u8 = 0xc0;
/// The highest priority that needs no `CAP_NET_ADMIN` (socket(7)).
const PRIORITY: u32 = 6;

/// Beats over UDP, to one peer.
#[derive(Debug)]
pub struct UdpKeepalive {
    socket: UdpSocket,
    lost: u64,
}

impl UdpKeepalive {
    /// Binds to a free port of `local`, whose own port does not count: the local address of the session's connection, so that
    /// beats take its way. Errors name the address.
    pub fn bind(local: SocketAddr) -> io::Result<Self> {
        Self::bind_at(at_port(local, 0))
    }

    /// Binds to `at`, port and all: for whoever has to let it through a firewall.
    pub fn bind_at(at: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(at).map_err(|e| {
            let port = if at.port() == 0 { String::new() } else { format!(", port {}", at.port()) };
            io::Error::new(e.kind(), format!("cannot bind a UDP socket for beats to {}{port}: {e}", host(at)))
        })?;
        socket.set_nonblocking(true)?;
        prefer(&socket, at.is_ipv6());
        Ok(Self { socket, lost: 0 })
    }

    /// The port for the hello.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// From here on beats go to `peer`, and only `peer`'s are received. Errors name the address.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(peer).map_err(|e| io::Error::new(e.kind(), format!("cannot send beats to {peer}: {e}")))
    }

    /// Our address, and the peer's.
    pub fn ends(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.socket.local_addr()?, self.socket.peer_addr()?))
    }

    /// Beats that could not leave this machine.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

/// Without the port. The interface of a link-local address is part of it.
fn host(addr: SocketAddr) -> String {
    match addr {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => addr.ip().to_string(),
    }
}

/// Asks queues to let beats pass. Not every network family and container allows it; beats work without.
fn prefer(socket: &UdpSocket, ipv6: bool) {
    let class = if ipv6 { sockopt::set_ipv6_tclass(socket, CS6.into()) } else { sockopt::set_ip_tos(socket, CS6) };
    // After the class: setting that one changes the priority.
    let priority = SockRef::from(socket).set_priority(PRIORITY);
    if class.is_err() || priority.is_err() {
        tracing::debug!(?class, ?priority, "beats travel without precedence");
    }
}

fn is_loss(error: &io::Error) -> bool {
    let losses = [
        Errno::CONNREFUSED,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::HOSTDOWN,
        Errno::ADDRNOTAVAIL,
        Errno::PERM,
        Errno::AGAIN,
        Errno::NOBUFS,
    ];
    Errno::from_io_error(error).is_some_and(|e| losses.contains(&e))
}

fn is_about_an_earlier_send(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::WouldBlock && is_loss(error)
}

impl Keepalive for UdpKeepalive {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        let mut sent = self.socket.send(beat);
        if sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            sent = self.socket.send(beat);
        }
        match sent {
            Ok(_) => Ok(()),
            Err(error) if is_loss(&error) => {
                self.lost += 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        loop {
            match self.socket.recv(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_about_an_earlier_send(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `ppoll(2)`, so to the nanosecond. A signal, or an error of an earlier send, ends it early: harmless.
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        // A timeout beyond what the kernel can express is for ever.
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl PollableKeepalive for UdpKeepalive {
    /// A socket is readable for as long as a datagram waits.
    fn arm(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

impl AsFd for UdpKeepalive {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
