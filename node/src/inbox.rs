//! The wait of a main loop: one `poll(2)` over all its file descriptors, and queues that
//! other threads put values into.

use crate::wake::Wake;
use mc_core::{
    gate::{OutputGate, WaitFd},
    id::Time,
    transport::Transport,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, mpsc},
    time::Duration,
};

/// Waits until one of `fds` is ready or `until` has come; never longer than `longest`. A signal counts as ready.
pub fn wait(fds: &mut [PollFd<'_>], now: Time, until: Option<Time>, longest: Duration) -> io::Result<()> {
    let sleep = until.map_or(longest, |t| t.since(now).min(longest));
    let timeout = Timespec::try_from(sleep).map_err(io::Error::other)?;
    match rustix::event::poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One entry for [`wait`]: readable.
#[must_use]
pub fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// The entry of a link: what it has a use for, and always the peer's hanging up.
pub fn link(link: &(impl Transport + ?Sized)) -> Option<PollFd<'_>> {
    let mut flags = PollFlags::RDHUP;
    flags.set(PollFlags::IN, link.wants_read());
    flags.set(PollFlags::OUT, link.wants_write());
    link.wait_fd().map(|fd| PollFd::from_borrowed_fd(fd, flags))
}

/// The entries of a gate.
pub fn gate<'a>(fds: &mut Vec<PollFd<'a>>, gate: &'a impl OutputGate) {
    gate.wait_fds(&mut |WaitFd { fd, read, write }| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read);
        flags.set(PollFlags::OUT, write);
        fds.push(PollFd::from_borrowed_fd(fd, flags));
    });
}

/// Hands values from other threads to a loop that sleeps in [`wait`].
#[derive(Debug)]
pub struct Inbox<T> {
    queue: mpsc::Receiver<T>,
    wake: Arc<Wake>,
}

/// The sending end of an [`Inbox`].
#[derive(Debug)]
pub struct Outbox<T> {
    queue: mpsc::Sender<T>,
    wake: Arc<Wake>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), wake: Arc::clone(&self.wake) }
    }
}

/// An inbox and its sending end.
pub fn inbox<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Wake::new()?;
    Ok((Outbox { queue: sender, wake: Arc::clone(&wake) }, Inbox { queue: receiver, wake }))
}

impl<T> Outbox<T> {
    /// Puts a value in; false if the loop is gone.
    pub fn put(&self, value: T) -> bool {
        let sent = self.queue.send(value).is_ok();
        self.wake.raise();
        sent
    }
}

impl<T> Inbox<T> {
    /// The next value, if any.
    pub fn take(&self) -> Option<T> {
        self.queue.try_recv().ok().or_else(|| {
            self.wake.clear();
            self.queue.try_recv().ok()
        })
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
