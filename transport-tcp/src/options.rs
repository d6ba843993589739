//! The knobs of a link, and the TCP options that follow from them.

use socket2::SockRef;
use std::{io, net::TcpStream, time::Duration};

/// How a link is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// `SO_SNDBUF`, bytes. `None` leaves it to the kernel's autotuning, which usually reaches further.
    pub send_buffer_bytes: Option<usize>,
    /// `SO_RCVBUF`, bytes. `None` as above.
    pub receive_buffer_bytes: Option<usize>,
    /// `TCP_USER_TIMEOUT`: after this long without a TCP acknowledgement the kernel ends the connection. Only a backstop.
    pub user_timeout: Duration,
    /// Operations queued at most: so many writes and sends, and as many posted slabs.
    pub queue: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { send_buffer_bytes: None, receive_buffer_bytes: None, user_timeout: Duration::from_secs(30), queue: 64 }
    }
}

impl LinkOptions {
    /// The buffer sizes, which count only if they are set before `connect` or `listen`: the window scale is agreed on then.
    pub(crate) fn set_buffers(&self, socket: &SockRef<'_>) -> io::Result<()> {
        self.send_buffer_bytes.map_or(Ok(()), |bytes| socket.set_send_buffer_size(bytes))?;
        self.receive_buffer_bytes.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))
    }

    /// Everything that counts on a connected stream.
    pub(crate) fn set_stream(&self, stream: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        socket.set_nonblocking(true)
    }
}
