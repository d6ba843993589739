//! The kernel's tracking of written pages: this crate's only `unsafe`.

#![allow(unsafe_code, reason = "see above")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

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
pub(super) struct Region {
    /// The first byte.
    pub(super) start: u64,
    /// After the last.
    pub(super) end: u64,
    categories: u64,
}

/// Pages that were written since they were last asked for, from `start` to at most `end`, of the process whose pagemap it is;
/// from now on they count as not written. Says how many regions there are, and where the next call must go on.
///
/// # Errors
/// Nothing [watches](watch_writes) there, or the kernel cannot.
pub(super) fn written(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    regions: &mut [Region],
) -> io::Result<(usize, u64)> {
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
