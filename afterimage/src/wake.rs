//! Sleeping until something is ready: one `poll(2)`, rebuilt for every turn from whoever has a file descriptor.

use mc_core::id::Time;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// Waits until one of `fds` is ready or `until` has come; never longer than `longest`. A signal counts as ready.
pub fn wait(fds: &mut [PollFd<'_>], now: Time, until: Option<Time>, longest: Duration) -> io::Result<()> {
    let sleep = until.map_or(longest, |t| t.since(now).min(longest));
    let timeout = Timespec { tv_sec: i64::try_from(sleep.as_secs()).unwrap_or(i64::MAX), tv_nsec: sleep.subsec_nanos().into() };
    match rustix::event::poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// One entry for [`wait`]: readable, and writable if asked for.
#[must_use]
pub fn interest(fd: BorrowedFd<'_>, write: bool) -> PollFd<'_> {
    let flags = if write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    PollFd::from_borrowed_fd(fd, flags)
}

/// Wakes a loop from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// Makes the loop's next wait return at once.
    pub fn wake(&self) {
        // The only failure of a non-blocking eventfd is "counter full": then the loop is awake anyway.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    /// Called by the loop once awake.
    pub fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Hands values from other threads to a loop that sleeps in [`wait`].
#[derive(Debug)]
pub struct Inbox<T> {
    queue: std::sync::mpsc::Receiver<T>,
    waker: Waker,
}

/// The sending end of an [`Inbox`].
#[derive(Debug)]
pub struct Outbox<T> {
    queue: std::sync::mpsc::Sender<T>,
    waker: Waker,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), waker: self.waker.clone() }
    }
}

/// An inbox and its sending end.
pub fn inbox<T>() -> io::Result<(Outbox<T>, Inbox<T>)> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let waker = Waker::new()?;
    Ok((Outbox { queue: sender, waker: waker.clone() }, Inbox { queue: receiver, waker }))
}

impl<T> Outbox<T> {
    /// Puts a value in; false if the loop is gone.
    pub fn put(&self, value: T) -> bool {
        let sent = self.queue.send(value).is_ok();
        self.waker.wake();
        sent
    }
}

impl<T> Inbox<T> {
    /// The next value, if any.
    pub fn take(&self) -> Option<T> {
        self.queue.try_recv().ok().or_else(|| {
            self.waker.clear();
            self.queue.try_recv().ok()
        })
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}
