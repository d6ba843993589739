//! The byte stream under a session and its link.

use rustix::{
    io::ioctl_fionread,
    net::{SendAncillaryBuffer, SendFlags, connect_unspec, sendmsg},
};
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, BorrowedFd},
};

/// A connected byte stream, one arm for each kind there is: what a session and its link are carried by.
///
/// An enum and no type parameter: whoever owns a [`crate::link::TcpLink`] need not know what is under it, and what a session is
/// carried by is decided at run time, before its hello. The plain connection is the only arm today. What another one, such
/// as TLS, has to keep:
///
/// | of what | an arm |
/// |---|---|
/// | its beginning | is made before the session's hello, so that hello and profile are protected as well; it may block then, under the session's deadline |
/// | waiting | never does after that: [`io::ErrorKind::WouldBlock`] from reading and writing. Whatever it has to say or hear for its own sake (alerts, tickets, a new key) it does within those two calls |
/// | wanting to read in order to write | does not: a link reads nothing while no slab is posted. TLS 1.3 has no such need |
/// | wanting to write | says so by [`Self::wants_write`] when it holds bytes that the kernel did not take, its own records too; [`io::Write::flush`] pushes them out |
/// | vectored writes | takes slabs where they are, several at once, and joins no plaintext: the only copy it may make is the one that encryption makes. It takes no more than it can hold encrypted, a few records, or the peer's window would hold nothing back |
/// | what *written* means | that it needs these bytes no more; that the peer has them, only an ACK says |
/// | vectored reads | decrypts into the slab; what does not fit stays inside it |
/// | bytes that it has decrypted, or read, and nobody took | gives them out before it says `WouldBlock`. No descriptor tells of them: a link whose reading rests for want of a slab is polled once more after each [`mc_core::transport::Op::Post`], which every owner of a [`mc_core::transport::Transport`] does |
/// | revocation | counts by [`Self::arrived`] what had arrived: an upper bound in bytes of what reading may still give, its own records included |
/// | its end | says goodbye in [`Self::shut`] if the kernel takes it at once, and never waits for an answer. An end without goodbye reads as an error, not as an end: both are the link's end |
/// | resetting | is the socket's: [`Self::reset`] asks nobody |
/// | its descriptor | is the socket's |
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
}

impl Stream {
    /// The connection under it, for addresses, options and timeouts.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
        }
    }

    /// Whether it holds bytes that the kernel did not take: [`io::Write::flush`] when the descriptor is writable.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
        }
    }

    /// Bytes that reading may still give without anything more from the peer, at most.
    #[must_use]
    pub fn arrived(&self) -> usize {
        match self {
            Self::Plain(socket) => ioctl_fionread(socket).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        }
    }

    /// Ends both ways in order. What was written is still delivered.
    pub fn shut(&mut self) {
        match self {
            // It fails only if the connection is gone already.
            Self::Plain(socket) => drop(socket.shutdown(Shutdown::Both)),
        }
    }

    /// Resets the connection (connect(2) to no address); what was written may be lost.
    pub fn reset(&mut self) {
        if connect_unspec(self.socket()).is_err() {
            self.shut();
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read_vectored(buffers),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // sendmsg rather than writev: a closed connection must be an error, not a signal.
            Self::Plain(socket) => {
                Ok(sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
        }
    }
}
