//! What goes wrong with RDMA, in words that help: who, which queue pair, what it was doing, for how long, with which timeouts.

use crate::types::{FLUSHED, LOCAL_PROTECTION, REMOTE_ACCESS, REMOTE_INVALID, RETRY_EXCEEDED, RNR_EXCEEDED};
use mc_core::wire::WireError;
use std::{io, time::Duration};

/// Why a link cannot be made, or is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// A device or one of its objects is not to be had.
    #[error("RDMA device {device}: {doing}: {source}{}", hint_for(source))]
    Device {
        /// Its name.
        device: String,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Memory cannot be registered.
    #[error("{peer}: registering {bytes} bytes on {device}: {source}{}", hint_for(source))]
    Register {
        /// Who they were for.
        peer: String,
        /// The device.
        device: String,
        /// How many.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A verb failed on an established link.
    #[error("{peer}: queue pair {qpn:#x}: {doing}: {source}")]
    Verb {
        /// The peer.
        peer: String,
        /// Our queue pair.
        qpn: u32,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A work request failed.
    #[error("{peer}: queue pair {qpn:#x}: {}", .failure)]
    Work {
        /// The peer.
        peer: String,
        /// Our queue pair.
        qpn: u32,
        /// The rest.
        failure: Box<WorkFailure>,
    },
    /// The peer sent what it must not.
    #[error("{peer} sent over RDMA: {source}")]
    Wire {
        /// The peer.
        peer: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The two sides do not fit.
    #[error("{peer}: {what}")]
    Mismatch {
        /// The peer.
        peer: String,
        /// What does not fit.
        what: String,
    },
}

/// How a work request failed.
#[derive(Debug)]
pub struct WorkFailure {
    /// What it was: "RDMA WRITE of a slab", "SEND", "RECV".
    pub kind: &'static str,
    /// The completion's status.
    pub status: u32,
    /// The library's words for it.
    pub words: String,
    /// The vendor's own code.
    pub vendor: u32,
    /// Since it was posted; `None` for receives, which wait as long as they must.
    pub elapsed: Option<Duration>,
    /// The local ACK timeout in force: 4.096 µs * 2^this.
    pub timeout: u8,
    /// The transport retries in force.
    pub retry: u8,
}

impl std::fmt::Display for WorkFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, status, words, vendor, elapsed, timeout, retry } = self;
        write!(f, "{kind} failed: {words} (status {status}, vendor code {vendor:#x})")?;
        if let Some(elapsed) = elapsed {
            write!(f, " after {elapsed:.1?}")?;
        }
        let ack = ack_timeout(*timeout);
        write!(f, "; timeout {timeout} ({ack:.1?}) x {} tries{}", u32::from(*retry) + 1, hint(*status))
    }
}

/// What a local ACK timeout's code means (IBTA 9.7.6.1.3). Devices may wait up to four times as long.
#[must_use]
pub fn ack_timeout(code: u8) -> Duration {
    Duration::from_nanos(4096) * (1 << code.min(31))
}

/// What to do about a status.
fn hint(status: u32) -> &'static str {
    match status {
        RETRY_EXCEEDED => {
            ". The peer does not answer: its host or process is gone, the link is cut, or UDP port 4791 is filtered; if it is \
             only slow, raise the timeout"
        }
        RNR_EXCEEDED => ". The peer posted no receives: its process is stuck, or it counts credits wrongly",
        REMOTE_ACCESS => ". The peer has ended our access to its memory: it revoked this session, or was restarted",
        REMOTE_INVALID => ". The peer's queue pair refuses this: it was reset, or belongs to another session",
        LOCAL_PROTECTION => ". Our own memory key is wrong: this is a bug",
        FLUSHED => {
            ". The queue pair was already in error; an earlier message says why, or the device or the peer closed it"
        }
        _ => "",
    }
}

/// What to do about an error of the system.
fn hint_for(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            ". This kernel has no RDMA: load ib_uverbs and your device's driver, or rdma_rxe for SoftRoCE"
        }
        Some(libc::ENOMEM) => {
            ". If locked memory is limited (`ulimit -l`), raise it: LimitMEMLOCK=infinity in the unit, or CAP_IPC_LOCK"
        }
        Some(libc::EACCES | libc::EPERM) => {
            ". Access to /dev/infiniband/uverbs* is needed: run as root or join the group rdma"
        }
        Some(libc::ETIMEDOUT | libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            ". The peer's address cannot be resolved on this port: are both GIDs of one subnet, of one RoCE version, and up?"
        }
        Some(libc::EINVAL) => {
            ". The GID index, the path MTU or a limit may not fit this device: see `afterimage rdma devices`"
        }
        _ if error.kind() == io::ErrorKind::NotFound => ". `afterimage rdma devices` lists what there is",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_says_everything() {
        let failure = Box::new(WorkFailure {
            kind: "RDMA WRITE of a slab",
            status: RETRY_EXCEEDED,
            words: "transport retry counter exceeded".to_owned(),
            vendor: 0x81,
            elapsed: Some(Duration::from_millis(1900)),
            timeout: 16,
            retry: 6,
        });
        let text = RdmaError::Work { peer: "b (10.0.0.2:7000)".to_owned(), qpn: 0x12, failure }.to_string();
        let parts = [
            "b (10.0.0.2:7000)",
            "0x12",
            "RDMA WRITE",
            "retry counter exceeded",
            "1.9s",
            "timeout 16 (268.4ms) x 7",
            "4791",
        ];
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn an_error_of_the_system_comes_with_its_remedy() {
        for (code, remedy) in [(libc::ENOMEM, "LimitMEMLOCK"), (libc::ENOSYS, "rdma_rxe"), (libc::EACCES, "uverbs")] {
            let source = io::Error::from_raw_os_error(code);
            let error = RdmaError::Device { device: "rxe0".to_owned(), doing: "opening it", source };
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
