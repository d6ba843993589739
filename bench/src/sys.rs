//! The only `unsafe` of this crate: real-time priority for the thread of beats, as the product gives it; and words
//! that two processes share.

#![allow(unsafe_code, reason = "see above")]

use memmap2::MmapRaw;
use std::{io, sync::atomic::AtomicU64};

/// The least real-time priority there is.
const PRIORITY: i32 = 1;

/// Makes the calling thread `SCHED_FIFO`; children that it forks are not. Needs `CAP_SYS_NICE` or `RLIMIT_RTPRIO`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` lives until the call returns, and the kernel only reads it; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A word of memory that another process may change at any time.
///
/// # Panics
/// When the mapping has no such word.
#[must_use]
pub(crate) fn shared_word(map: &MmapRaw, index: usize) -> &AtomicU64 {
    assert!((index + 1) * size_of::<AtomicU64>() <= map.len(), "the mapping has no word {index}");
    let word = map.as_mut_ptr().cast::<u64>().wrapping_add(index);
    // SAFETY: inside the mapping (asserted), whose start is aligned to a page; the borrow of `map` keeps it; whoever else
    // touches it, here or in another process, does so by atomics too.
    unsafe { AtomicU64::from_ptr(word) }
}
