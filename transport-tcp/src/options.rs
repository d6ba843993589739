//! Socket options, in one place.

use socket2::SockRef;
use std::{io, net::TcpStream, time::Duration};

/// A backstop only: silence is the keepalive's business, and noticed within milliseconds.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Room for a few slabs in the kernel, so that a checkpoint leaves the loop in one go.
const BUFFER: usize = 4 << 20;

/// Commit records and ACKs must not wait for company (nodelay); a full buffer must not wait for ever (user timeout).
pub(crate) fn apply(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    // The kernel caps these at net.core.{w,r}mem_max and says nothing; smaller buffers cost speed, not safety.
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_recv_buffer_size(BUFFER)
}
