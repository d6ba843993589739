//! An event descriptor: how a thread wakes whoever sleeps in poll(2).

use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// Readable from [`Wake::raise`] until [`Wake::clear`].
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A descriptor that is not readable yet.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Makes it readable.
    pub fn raise(&self) {
        // It fails only when the counter is about to overflow, and then it is readable anyway.
        #[expect(clippy::host_endian_bytes, reason = "eventfd(2) takes an integer in the host's byte order")]
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable.
    pub fn clear(&self) {
        // It fails only when it was not readable.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }

    /// Raises when dropped: also when a thread panics.
    #[must_use]
    pub fn on_drop(self: &Arc<Self>) -> RaiseOnDrop {
        RaiseOnDrop(Arc::clone(self))
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// See [`Wake::on_drop`].
#[derive(Debug)]
pub struct RaiseOnDrop(Arc<Wake>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}
