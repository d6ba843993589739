//! The only `unsafe` of this crate: real-time priority for the thread of beats, as the product gives it; and what a synthetic
//! guest needs, words that two processes share, and the kernel's tracking of written pages.

#![allow(unsafe_code, reason = "see above")]

use memmap2::MmapRaw;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{io, sync::atomic::AtomicU64};

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

/// A word of memory that another process may change at any time.
///
/// # Panics
/// When the mapping has no such word.
#[must_use]
pub fn shared_word(map: &MmapRaw, index: usize) -> &AtomicU64 {
    assert!((index + 1) * size_of::<AtomicU64>() <= map.len(), "the mapping has no word {index}");
    let word = map.as_mut_ptr().cast::<u64>().wrapping_add(index);
    // SAFETY: inside the mapping (asserted), whose start is aligned to a page; the borrow of `map` keeps it; whoever else
    // touches it, here or in another process, does so by atomics too.
    unsafe { AtomicU64::from_ptr(word) }
}

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, `_WP_HUGETLBFS_SHMEM`, `_WP_UNPOPULATED`, `_WP_ASYNC`.
const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;

/// Has the kernel note which pages of this process's `len` bytes at `start` are written, for [`written`] to ask. It ends with
/// the descriptor.
///
/// # Errors
/// The kernel (before 6.7), or the permissions, do not allow it.
pub fn watch_writes(start: u64, len: u64) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = [UFFD_API, FEATURES, 0];
    // SAFETY: a `struct uffdio_api` is these three words; the kernel writes to nothing else.
    control(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) })?;
    let mut register = [start, len, UFFDIO_REGISTER_MODE_WP, 0];
    // SAFETY: a `struct uffdio_register` is these four words. Registered in asynchronous mode, memory is written as before.
    control(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) })?;
    Ok(fd)
}

const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `PM_SCAN_WP_MATCHING`, `PM_SCAN_CHECK_WPASYNC`.
const SCAN_FLAGS: u64 = 1 | 2;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

/// A `struct page_region`: addresses of the first byte and of the one after the last, and what was asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    /// The first byte.
    pub start: u64,
    /// After the last.
    pub end: u64,
    categories: u64,
}

/// Pages that were written since they were last asked for, from `start` to at most `end`, of the process whose pagemap it is;
/// from now on they count as not written. Says how many regions there are, and where the next call must go on.
///
/// # Errors
/// Nothing [watches](watch_writes) there, or the kernel cannot.
pub fn written(pagemap: BorrowedFd<'_>, start: u64, end: u64, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    let size = size_of::<[u64; 12]>() as u64;
    let (vec, len) = (regions.as_mut_ptr() as u64, regions.len() as u64);
    let mut scan = [size, SCAN_FLAGS, start, end, 0, vec, len, 0, 0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN];
    // SAFETY: a `struct pm_scan_arg` is these twelve words; the kernel writes to it and to at most `len` regions at `vec`,
    // which are exclusively ours and of its layout.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, scan.as_mut_ptr()) };
    control(count)?;
    Ok((usize::try_from(count).unwrap_or(0), scan[4]))
}

fn control(result: libc::c_int) -> io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
