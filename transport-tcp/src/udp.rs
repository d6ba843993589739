//! [`UdpKeepalive`]: beats as UDP datagrams, on a socket of their own.

use mc_core::{transport::Keepalive, wire::beat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

/// DSCP CS6, network control, as BFD's single-hop packets use.
const TOS_CS6: u32 = 0xc0;

/// Beats to and from one peer.
#[derive(Debug)]
pub struct UdpKeepalive {
    socket: UdpSocket,
    port: u16,
}

impl UdpKeepalive {
    /// A socket on a port of the system's choice.
    pub fn bind(local: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::new(local, 0))?;
        socket.set_nonblocking(true)?;
        if local.is_ipv4() {
            SockRef::from(&socket).set_tos_v4(TOS_CS6)?;
        }
        let port = socket.local_addr()?.port();
        Ok(Self { socket, port })
    }

    /// For the hello.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// From now on only `peer` is sent to and heard.
    pub fn connect(&self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(peer)
    }
}

/// What the network says when the peer, or the way to it, is gone. For a beat that is loss, and loss is normal.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::WouldBlock
            | ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
        || error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}

impl Keepalive for UdpKeepalive {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        match self.socket.send(beat) {
            Ok(_) => Ok(()),
            Err(error) if is_loss(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        match self.socket.recv(buffer) {
            Ok(n) => Ok(Some(n)),
            // An ICMP error of an earlier send comes up here; there may be beats behind it.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => match self.socket.recv(buffer) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Ok(None),
            },
            Err(error) if is_loss(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
