//! Locked memory: what is registered is pinned, and counts against RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK.
//!
//! The kernel keeps the count per process (`mm->pinned_vm`, `ib_umem_get` in drivers/infiniband/core/umem.c), a page as
//! often as it is registered, and refuses with a bare ENOMEM. So we keep the same count, and check before we ask.

use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes registered by this process, on all devices.
static REGISTERED: AtomicU64 = AtomicU64::new(0);

/// The kernel pins whole pages.
fn pinned_by(bytes: usize) -> u64 {
    bytes.next_multiple_of(4096) as u64
}

/// A region was made.
pub(crate) fn charge(bytes: usize) {
    REGISTERED.fetch_add(pinned_by(bytes), Ordering::Relaxed);
}

/// A region was deregistered.
pub(crate) fn release(bytes: usize) {
    REGISTERED.fetch_sub(pinned_by(bytes), Ordering::Relaxed);
}

/// Bytes of all regions that this process has.
#[must_use]
pub fn registered() -> u64 {
    REGISTERED.load(Ordering::Relaxed)
}

/// The limit is too low for what is to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "registering {needed} bytes beside {registered} takes more locked memory than this process may have ({limit} bytes, \
     RLIMIT_MEMLOCK); raise it: LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`, or \
     `setcap cap_ipc_lock+ep` on the program"
)]
pub struct MemlockError {
    /// Bytes that are to be registered.
    pub needed: u64,
    /// Bytes that are already.
    pub registered: u64,
    /// Bytes that may be.
    pub limit: u64,
}

/// Whether `bytes` more can be registered.
///
/// # Errors
/// The limit is too low; says by how much, and what to do. Of a limit that other memory locks eat into, or of a capability
/// that a user namespace does not really give, only the kernel knows.
pub fn check(bytes: usize) -> Result<(), MemlockError> {
    judge(pinned_by(bytes), registered(), limit())
}

/// Bytes that this process may lock; `None`: no limit, or one that does not bind it (`CAP_IPC_LOCK`).
#[must_use]
pub fn limit() -> Option<u64> {
    if exempt() { None } else { getrlimit(Resource::Memlock).current }
}

fn exempt() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// `limit`: `None` for no limit.
fn judge(needed: u64, registered: u64, limit: Option<u64>) -> Result<(), MemlockError> {
    match limit {
        Some(limit) if needed.saturating_add(registered) > limit => Err(MemlockError { needed, registered, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_and_the_refusal_names_the_remedy() {
        assert_eq!(judge(4096, 4096, Some(8192)), Ok(()));
        assert_eq!(judge(u64::MAX, 1, None), Ok(()));
        let error = judge(65536, 4096, Some(65536)).unwrap_err();
        assert_eq!(error, MemlockError { needed: 65536, registered: 4096, limit: 65536 });
        let text = error.to_string();
        for part in ["65536 bytes beside 4096", "RLIMIT_MEMLOCK", "LimitMEMLOCK=infinity", "ulimit -l", "cap_ipc_lock"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(judge(u64::MAX, 1, Some(u64::MAX - 1)).is_err(), "the sum saturates");
    }

    #[test]
    fn pages_are_pinned_whole() {
        assert_eq!((pinned_by(1), pinned_by(4096), pinned_by(4097)), (4096, 4096, 8192));
    }
}
