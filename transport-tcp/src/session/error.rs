//! Why a session does not come about.

use crate::reach::Unreached;
use mc_core::wire::{
    WireError,
    session::{Kind, MAX_PROFILE},
};
use std::{io, net::SocketAddr, time::Duration};

/// Why a session does not come about. Every message names the peer or the address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Not an address, or a name that nobody knows.
    #[error("cannot resolve {to:?} (expected HOST:PORT): {source}")]
    Resolve {
        /// As configured.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error(transparent)]
    Connect(#[from] Unreached),
    /// The port is in use, or the address not ours.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The listening socket failed, not a peer. Too many open files comes and goes: wait a little before the next try.
    #[error("cannot accept connections on {addr}: {source}")]
    Accept {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Another program.
    #[error("{peer} does not speak Afterimage's protocol: it began with {began:?}")]
    Stranger {
        /// Who.
        peer: SocketAddr,
        /// Its first bytes, printable.
        began: String,
    },
    /// The deadline passed.
    #[error("{peer}: no {awaited} within {} s", after.as_secs_f64())]
    Silent {
        /// Who.
        peer: SocketAddr,
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        after: Duration,
    },
    /// It hung up.
    #[error("{peer} closed the connection before its {awaited}")]
    Closed {
        /// Who.
        peer: SocketAddr,
        /// What was waited for.
        awaited: &'static str,
    },
    /// The connection broke.
    #[error("{peer}: {doing}: {source}")]
    Io {
        /// Who.
        peer: SocketAddr,
        /// What was tried.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A frame that is damaged or says nonsense.
    #[error("{peer} sent: {source}")]
    Wire {
        /// Who.
        peer: SocketAddr,
        /// What is wrong with it.
        source: WireError,
    },
    /// A frame out of turn.
    #[error("{peer} sent a {found:?} frame where its {expected} was due")]
    Unexpected {
        /// Who.
        peer: SocketAddr,
        /// What came.
        found: Kind,
        /// What was due.
        expected: &'static str,
    },
    /// No version in common.
    #[error("{peer} speaks {}, this build {}", versions(*theirs), versions(*ours))]
    Version {
        /// Who.
        peer: SocketAddr,
        /// Lowest and highest that the peer speaks.
        theirs: (u16, u16),
        /// Lowest and highest that we do.
        ours: (u16, u16),
    },
    /// The standby answers another session's hello.
    #[error("{peer} answered with a different {field} than it was offered")]
    Echo {
        /// Who.
        peer: SocketAddr,
        /// What differs.
        field: &'static str,
    },
    /// The peer says no.
    #[error("{peer} refused: {why}")]
    Refused {
        /// Who.
        peer: SocketAddr,
        /// In its words, printable.
        why: String,
    },
    /// Our own profile does not fit a frame.
    #[error("the VM's profile has {len} bytes, more than {MAX_PROFILE}")]
    Profile {
        /// Its bytes.
        len: usize,
    },
    /// More connections than handshakes that may be under way; the oldest went.
    #[error("{peer} dropped before its {awaited}: too many unfinished connections")]
    Crowded {
        /// Who.
        peer: SocketAddr,
        /// What was waited for.
        awaited: &'static str,
    },
}

impl SessionError {
    /// What kind of trouble it is, in a few words that name no peer: for whoever counts what repeats.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "a name that cannot be resolved",
            Self::Connect(_) => "nobody answers",
            Self::Listen { .. } => "cannot listen",
            Self::Accept { .. } => "cannot accept connections",
            Self::Stranger { .. } => "another protocol",
            Self::Silent { .. } => "a silent peer",
            Self::Closed { .. } => "a peer that hung up",
            Self::Io { .. } => "a connection that broke",
            Self::Wire { .. } => "a damaged frame",
            Self::Unexpected { .. } => "a frame out of turn",
            Self::Version { .. } => "no version in common",
            Self::Echo { .. } => "an answer to another hello",
            Self::Refused { .. } => "a refusal",
            Self::Profile { .. } => "a profile too long",
            Self::Crowded { .. } => "too many unfinished connections",
        }
    }
}

/// "version 1", "versions 2..3".
pub(super) fn versions((lowest, highest): (u16, u16)) -> String {
    if lowest == highest { format!("version {lowest}") } else { format!("versions {lowest}..{highest}") }
}

/// Text from a peer, safe for terminals and logs: no control characters, and none that reorder what is around them.
pub(super) fn printable(bytes: &[u8]) -> String {
    let reorders = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() || reorders(c) { ' ' } else { c }).collect()
}
