//! The accept loop that all listeners share. An accept that fails usually fails again at once (out of file descriptors: the
//! connection stays in the backlog), so it rests a little, longer each time, and says it once and then counts.

use crate::{
    repeated::{Repeated, and_more},
    wake::Wake,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    io::{self, ErrorKind},
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// The first rest …
const REST: Duration = Duration::from_millis(20);
/// … and the longest.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Accepts from `listener`, which must not block, until `stop` is readable. `name` is for the log.
pub fn accept_until<T>(
    name: &str,
    listener: &impl AsFd,
    stop: &Wake,
    mut accept: impl FnMut() -> io::Result<T>,
    mut each: impl FnMut(T),
) {
    let (mut repeated, mut rest) = (Repeated::default(), Duration::ZERO);
    loop {
        match wait(listener, stop, rest) {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => return tracing::error!("{name}: poll: {error}"),
        }
        match accept() {
            Ok(connection) => {
                rest = Duration::ZERO;
                each(connection);
            }
            // Nobody there, or no longer.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => rest = Duration::ZERO,
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => rest = Duration::ZERO,
            Err(e) => {
                rest = (rest * 2).clamp(REST, LONGEST_REST);
                if let Some(more) = repeated.say(&e.to_string(), Instant::now()) {
                    tracing::warn!("{name}: cannot accept a connection: {e}{}", and_more(more));
                }
            }
        }
    }
}

/// Rests, then waits for a connection. True: to stop.
fn wait(listener: &impl AsFd, stop: &Wake, rest: Duration) -> io::Result<bool> {
    if !rest.is_zero() {
        let rest = Timespec::try_from(rest).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&rest)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) => Ok(!fds[1].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether `error` says that this process, or this host, has no file descriptor left.
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|e| e == Errno::MFILE || e == Errno::NFILE)
}
