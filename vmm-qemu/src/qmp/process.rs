//! Processes, told apart for good: pids are reused, start times within one boot are not.

use node::identity::boot_id;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// A number that tells this process from every other one on this host, also after a reboot: a hash of the boot id, the pid
/// and the time the process was started.
///
/// # Errors
/// There is no such process.
pub fn instance_id(pid: u32) -> io::Result<u64> {
    instance_of(pid, &fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

fn instance_of(pid: u32, stat: &str) -> io::Result<u64> {
    let boot = boot_id()?;
    let started = start_time(stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(boot.as_bytes());
    hasher.update(&pid.to_le_bytes());
    hasher.update(&started.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Ok(u64::from_le_bytes(first))
}

/// Field 22 of proc(5)'s `stat`, in clock ticks since boot. The command in field 2 may hold anything but its last ')'.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether the process with this pid and [`instance_id`] has ended; also before whoever started it has asked how. One that cannot
/// be looked at (no descriptor is left) has not.
#[must_use]
pub fn has_ended(pid: u32, instance: u64) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => {
            matches!(state(&stat), Some("Z" | "X")) || instance_of(pid, &stat).is_ok_and(|found| found != instance)
        }
        Err(error) => is_gone(&error),
    }
}

/// Whether the process is on its way out, or out. The kernel says so (PF_EXITING) before it closes the process's sockets, so whoever
/// sees one of them close can tell an end from a fault. One that cannot be looked at is not.
#[must_use]
pub fn is_ending(pid: u32, instance: u64) -> bool {
    const PF_EXITING: u32 = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    has_ended(pid, instance) || stat.is_ok_and(|stat| flags(&stat).is_some_and(|flags| flags & PF_EXITING != 0))
}

/// Field 9 of proc(5)'s `stat`.
fn flags(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(6)?.parse().ok()
}

/// ESRCH: it ended while it was read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The process on this host that is this instance and has not ended; a stopped one lives.
///
/// # Errors
/// One of them cannot be looked at: it may be that one.
pub fn find_instance(instance: u64) -> io::Result<Option<u32>> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match instance_id(pid) {
            Ok(found) if found == instance && !has_ended(pid, instance) => return Ok(Some(pid)),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether a signal has stopped the process with this pid.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| state(&stat) == Some("T"))
}

/// Field 3 of proc(5)'s `stat`.
fn state(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().next()
}

/// Kills (SIGKILL) the process with this pid, if it is still the one with this [`instance_id`]; otherwise it is gone
/// already, which is as good.
pub fn kill_instance(pid: u32, instance: u64) -> io::Result<()> {
    // Opened before it is checked: from here on the pid cannot come to mean another process.
    let handle = match open(pid) {
        Ok(handle) => handle,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => return Ok(()),
        Err(error) => return Err(error),
    };
    if instance_id(pid).is_ok_and(|found| found == instance) {
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid process number {pid}")));
    };
    Ok(pidfd_open(target, PidfdFlags::empty())?)
}

/// A process whose end is waited for, whoever's child it is. Its descriptor is readable once it has ended, also before its
/// parent has asked for its exit code.
#[derive(Debug)]
pub struct Watched {
    pid: u32,
    instance: u64,
    handle: OwnedFd,
}

impl Watched {
    /// # Errors
    /// There is no such process.
    pub fn new(pid: u32) -> io::Result<Self> {
        let handle = open(pid)?;
        Ok(Self { pid, instance: instance_id(pid)?, handle })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its [`instance_id`].
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn tells_processes_apart() {
        let own = instance_id(std::process::id()).unwrap();
        assert_eq!(own, instance_id(std::process::id()).unwrap());
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let other = instance_id(child.id()).unwrap();
        assert_ne!(own, other);
        kill_instance(child.id(), own).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "another instance must not be killed");
        assert!(!is_ending(child.id(), other) && is_ending(child.id(), own));
        let watched = Watched::new(child.id()).unwrap();
        assert!(!watched.has_ended());
        assert_eq!(find_instance(other).unwrap(), Some(child.id()));
        kill_instance(child.id(), other).unwrap();
        poll(&mut [PollFd::new(&watched, PollFlags::IN)], None).unwrap();
        assert!(watched.has_ended() && watched.instance() == other, "before anybody asked for its exit code");
        assert!(
            has_ended(child.id(), other) && has_ended(std::process::id(), other) && !has_ended(std::process::id(), own)
        );
        assert_eq!(find_instance(other).unwrap(), None, "nor is it one that lives");
        assert!(!child.wait().unwrap().success());
        assert!(Watched::new(child.id()).is_err());
        kill_instance(child.id(), other).unwrap();
        assert!(instance_id(child.id()).is_err() && has_ended(child.id(), other));
    }

    #[test]
    fn a_command_may_hold_anything() {
        let stat = "7 (a) (b c) d) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time("7 (sleep"), None);
    }
}
