//! SIGTERM and SIGINT, as something that a loop hears between two turns. The handler itself does nothing but write a byte into
//! a socket, which is all that a signal handler may do.

use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

/// Readable when a signal came. From [`Signals::catch`] on, neither of the two ends the process.
#[derive(Debug)]
pub struct Signals(UnixStream);

impl Signals {
    /// Begins to catch them.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn catch() -> io::Result<Self> {
        let (heard, on_signal) = UnixStream::pair()?;
        heard.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
        }
        Ok(Self(heard))
    }

    /// How many came since this was asked last. Two of a kind at the same moment count as one: the kernel joins them.
    #[must_use]
    pub fn take(&self) -> u32 {
        let (mut bytes, mut count) = ([0; 64], 0);
        while let Ok(n @ 1..) = (&self.0).read(&mut bytes) {
            count += u32::try_from(n).unwrap_or(u32::MAX);
        }
        count
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
