//! The only `unsafe` of this crate: real-time priority for the thread of beats, as the product gives it.

#![allow(unsafe_code, reason = "see above")]

use std::io;

/// The least real-time priority there is.
const PRIORITY: i32 = 1;

/// Makes the calling thread `SCHED_FIFO`; children that it forks are not. Needs `CAP_SYS_NICE` or `RLIMIT_RTPRIO`.
///
/// # Errors
/// What the kernel says.
pub fn real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` lives until the call returns, and the kernel only reads it; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
