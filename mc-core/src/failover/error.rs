//! What ends a link of two paths.

use crate::{
    transport::{Completion, LinkError},
    wire::{
        WireError,
        control::{Body, Control},
    },
};

/// Why a path was left, or both are gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FailoverError {
    /// The first failed when there was no other any more.
    #[error("{first}; there was nothing left to fall back to: {second}")]
    NothingLeft {
        /// Why the first is gone.
        first: LinkError,
        /// Why the second is gone.
        second: LinkError,
    },
    /// The first was left because the peer's end of it failed.
    #[error("{peer} reports that its end of the link failed")]
    PeerLeft {
        /// Who.
        peer: String,
    },
    /// The second failed after the first.
    #[error("{second}; it had taken over from a path that failed: {first}")]
    Both {
        /// Why the first is gone.
        first: LinkError,
        /// Why the second is gone.
        second: LinkError,
    },
}

/// The peer sent what it must not while the paths are changed.
pub(super) fn unexpected(peer: &str, completion: &Completion) -> LinkError {
    match completion {
        Completion::Received(Control { body: Body::Rerouted { received }, .. }) => {
            violation(peer, *received, "of another session")
        }
        _ => violation(peer, 0, "something else came before it"),
    }
}

pub(super) fn violation(peer: &str, value: u64, why: &'static str) -> LinkError {
    let source = WireError::Field { record: "rerouted record", field: "items received", value, why };
    LinkError::Wire { peer: peer.to_owned(), source }
}
