//! Runs long work on its own thread, and wakes the main loop when it ends.

use node::inbox::{Inbox, inbox};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    thread::{self, JoinHandle},
};

/// Work under way. Dropping this waits for nothing: the work goes on, and nobody hears how it ended.
#[derive(Debug)]
pub(super) struct Task<T> {
    result: Inbox<T>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Task<T> {
    pub(super) fn spawn(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (outbox, result) = inbox()?;
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            outbox.put(work());
        })?;
        Ok(Self { result, thread })
    }

    /// What came of it, once; an error if it died of a bug.
    pub(super) fn take(&self) -> Option<io::Result<T>> {
        let died = self.thread.is_finished();
        match self.result.take() {
            Some(result) => Some(Ok(result)),
            None => died.then(|| Err(io::Error::other("its thread has died: this is a bug"))),
        }
    }
}

impl<T> AsFd for Task<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended<T: Send + 'static>(task: &Task<T>) -> io::Result<T> {
        loop {
            if let Some(result) = task.take() {
                return result;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn its_end_is_heard_whatever_it_is() {
        let good = Task::spawn("good", || 7).unwrap();
        assert_eq!(ended(&good).unwrap(), 7);
        let bad: Task<u8> = Task::spawn("bad", || panic!("on purpose")).unwrap();
        assert!(ended(&bad).unwrap_err().to_string().contains("bug"));
    }
}
