//! Why rdma_cm did not connect, in words that help.

use mc_core::wire::{
    WireError,
    session::{FRAME_LEN, FrameHeader, Kind, encode_frame},
};
use std::{io, time::Duration};

/// Why the connection manager did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CmError {
    /// There is no /dev/infiniband/rdma_cm, or it may not be opened.
    #[error("the connection manager cannot be used: {source}{}", service_hint(source))]
    Service {
        /// What the system said.
        source: io::Error,
    },
    /// An address that no RDMA device has, or reaches.
    #[error(
        "{doing}: {source}. No RDMA device has this address: rdma_cm needs an IP address on the network interface of an RDMA \
         device (`afterimage rdma devices`); where there is none, use the endpoint exchange"
    )]
    NoDevice {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no way, or no answer.
    #[error(
        "{doing}: unreachable: {source}. Is the peer up, is there a route to it from the RDMA device's network interface, and \
         does UDP port 4791 pass?"
    )]
    Unreachable {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline has passed. (The system's own is more than a minute.)
    #[error(
        "{doing}: timed out after {after:.1?}; the peer's host or process is gone or busy, or UDP port 4791 is filtered"
    )]
    TimedOut {
        /// What was waited for.
        doing: &'static str,
        /// How long.
        after: Duration,
    },
    /// The peer, or its system, said no.
    #[error("rejected: {0}")]
    Rejected(String),
    /// What the peer sent with its request, or its answer, is not what we speak.
    #[error("its private data: {0}. Another program, or another version of this one, is at that port")]
    Data(#[from] WireError),
    /// Something else failed.
    #[error("{doing}: {source}")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl CmError {
    /// What an error of the system means while an address or a way is looked for.
    pub(super) fn of(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENODEV | libc::EADDRNOTAVAIL) => Self::NoDevice { doing, source },
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ETIMEDOUT | libc::ENETDOWN) => {
                Self::Unreachable { doing, source }
            }
            _ => Self::Call { doing, source },
        }
    }
}

/// What to do about a connection manager that is not there.
fn service_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            ". Access to /dev/infiniband/rdma_cm is needed: run as root or join the group rdma"
        }
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => "",
        _ => {
            ". Is /dev/infiniband/rdma_cm there, and an RDMA device? `modprobe rdma_ucm` makes the first; without it, use the \
             endpoint exchange"
        }
    }
}

/// Private data of a rejection at most (IBTA 12.6.7, REJ: 148 bytes, of which rdma_cm takes none).
const REJECT_DATA: usize = 148;

/// A rejection in our words: a refusal as in a handshake, cut to what a rejection has room for.
pub(super) fn refusal(why: &str) -> Vec<u8> {
    let room = why.len().min(REJECT_DATA - FRAME_LEN);
    let end = (0..=room).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
    encode_frame(Kind::Refuse, &why.as_bytes()[..end])
}

/// What a rejection says. `status` is its reason (IBTA 12.6.7.2, table 106), or, on iWARP, a negative error number.
pub(super) fn rejection(status: i32, data: &[u8]) -> CmError {
    CmError::Rejected(match status {
        ..0 => io::Error::from_raw_os_error(-status).to_string(),
        8 => "nobody listens there: is the peer's program running, and is that its port?".to_owned(),
        10 => "the peer's system still remembers an earlier connection of this queue pair: try again".to_owned(),
        28 => refused(data).map_or_else(
            || "the peer's program says no, not why: it has given up, or is another program".to_owned(),
            |why| format!("the peer says: {why}"),
        ),
        reason => format!("the peer's system gives reason {reason} (IBTA 12.6.7.2)"),
    })
}

/// Ours, if it is one; printable.
fn refused(data: &[u8]) -> Option<String> {
    let header = FrameHeader::decode(data).ok().filter(|h| h.kind == Kind::Refuse)?;
    let body = data.get(FRAME_LEN..FRAME_LEN + header.len)?;
    header.check(body).ok()?;
    Some(String::from_utf8_lossy(body).escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cm::{CmConnection, CmListener};
    use mc_core::testing::skip;
    use std::{
        net::SocketAddr,
        path::Path,
        time::{Duration, Instant},
    };

    #[test]
    fn a_refusal_comes_back_in_its_words_however_long() {
        for why in ["another session".to_owned(), "ä".repeat(100)] {
            let mut data = refusal(&why);
            assert!(data.len() <= REJECT_DATA);
            data.resize(REJECT_DATA, 0); // as it arrives
            let text = rejection(28, &data).to_string();
            assert!(text.contains(&why.chars().take(15).collect::<String>()), "{text}");
        }
    }

    #[test]
    fn what_is_not_ours_is_not_quoted() {
        let mut damaged = refusal("true");
        damaged[FRAME_LEN] ^= 0x20;
        for data in [&[][..], b"garbage", &[0; 148], &damaged] {
            let text = rejection(28, data).to_string();
            assert!(text.contains("not why"), "{text}");
        }
    }

    #[test]
    fn errors_come_with_their_remedy() {
        let of = |code| CmError::of("resolving", io::Error::from_raw_os_error(code)).to_string();
        assert!(of(libc::ENODEV).contains("endpoint exchange"));
        assert!(of(libc::ENETUNREACH).contains("route"));
        let service = |code| CmError::Service { source: io::Error::from_raw_os_error(code) }.to_string();
        for code in [libc::ENODEV, libc::ENOENT] {
            assert!(service(code).contains("modprobe rdma_ucm"));
        }
        assert!(service(libc::EACCES).contains("group rdma"));
        assert!(rejection(8, &[]).to_string().contains("nobody listens"));
        assert!(rejection(-libc::ECONNREFUSED, &[]).to_string().contains("refused"));
    }

    #[test]
    fn without_a_connection_manager_its_module_is_named() {
        if Path::new("/dev/infiniband/rdma_cm").exists() {
            return skip("there is one");
        }
        let (at, soon) = (SocketAddr::from(([127, 0, 0, 1], 7000)), Instant::now() + Duration::from_secs(60));
        for error in [CmListener::bind(at).unwrap_err(), CmConnection::resolve(at, None, soon).unwrap_err()] {
            let error = error.to_string();
            for part in ["127.0.0.1", "rdma_cm", "modprobe rdma_ucm", "endpoint exchange"] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}
