//! SIGTERM, SIGINT and SIGHUP, as something that a loop hears between two turns. The handler itself does nothing but write a byte into
//! a socket, which is all that a signal handler may do.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

/// Readable when a signal came. From [`Signals::catch`] on, none of them ends the process by itself.
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
        let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        for signal in [SIGTERM, SIGINT].into_iter().chain(hangup) {
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

/// Whether whoever started this process has it ignore this signal, as nohup(1) does with SIGHUP: that stays so.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, signal)
}

/// By proc(5)'s `status`: SigIgn, of which bit 0 is signal 1.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_asks_for_stays() {
        let status = |mask: &str| format!("Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\tffff\n");
        assert!(ignores(&status("0000000000000001"), SIGHUP), "nohup");
        assert!(!ignores(&status("0000000000001000"), SIGHUP), "SIGPIPE only");
        assert!(!ignores("", SIGHUP));
    }
}
