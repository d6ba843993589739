//! A primary's complete offer, and the standby's answer.

use super::{Connected, SessionError, SessionOptions, check_profile, frame::FrameStream};
use crate::stream::Stream;
use mc_core::wire::{
    rdma::Endpoint,
    session::{Hello, Kind, MAX_REFUSAL, VERSIONS, encode_frame},
};
use std::{io::Write, net::SocketAddr, time::Instant};

/// A primary that wants to be protected.
#[derive(Debug)]
pub struct Offer {
    /// Its hello; the versions overlap with ours.
    pub hello: Hello,
    /// Its VM's profile.
    pub profile: Vec<u8>,
    /// Its RDMA endpoint, if it wants RDMA.
    pub endpoint: Option<Endpoint>,
    /// Where it is.
    pub peer_addr: SocketAddr,
    /// Where it reached us: its beats will come to this address, too.
    pub local_addr: SocketAddr,
    pub(super) stream: Stream,
    pub(super) options: SessionOptions,
}

/// As much of a refusal as its frame may carry.
pub(super) fn cut(why: &str) -> &str {
    let mut end = why.len().min(MAX_REFUSAL);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    &why[..end]
}

impl Offer {
    /// Agrees: answers with our hello and profile, and that we are ready. What the standby must echo (incarnation,
    /// generation, purpose, beat key, slab size) and the version taken are filled in here, whatever `hello` says. With `endpoint`,
    /// which counts only if the offer has one, the slabs come over RDMA.
    pub fn accept(
        self,
        mut hello: Hello,
        profile: &[u8],
        endpoint: Option<&Endpoint>,
    ) -> Result<Connected, SessionError> {
        check_profile(profile)?;
        let peer = self.peer_addr;
        let version = Hello::negotiate(VERSIONS, self.hello.versions).map_err(|_| SessionError::Version {
            peer,
            theirs: self.hello.versions,
            ours: VERSIONS,
        })?;
        hello.versions = (version, version);
        hello.incarnation = self.hello.incarnation;
        hello.generation = self.hello.generation;
        hello.purpose = self.hello.purpose;
        hello.beat_key = self.hello.beat_key;
        hello.slab_size = self.hello.slab_size;
        let endpoint = endpoint.filter(|_| self.endpoint.is_some());
        hello.rdma = endpoint.is_some();
        let mut frames = frames(self.stream, peer, &self.options)?;
        frames.offer(&hello, profile, endpoint, true)?;
        frames.into_connected(self.hello, self.profile, self.endpoint.filter(|_| hello.rdma), &self.options.link)
    }

    /// Says no, and why; the primary sees the text. One write, never waited for: nothing was sent before, so the socket takes it
    /// whole. Best effort: a peer that has gone needs no refusal.
    pub fn refuse(mut self, why: &str) -> Result<(), SessionError> {
        let said = self.stream.write_all(&encode_frame(Kind::Refuse, cut(why).as_bytes()));
        said.map_err(|source| SessionError::Io { peer: self.peer_addr, doing: "refusing it", source })
    }
}

fn frames(stream: Stream, peer: SocketAddr, options: &SessionOptions) -> Result<FrameStream, SessionError> {
    FrameStream::new(stream, peer, Instant::now() + options.deadline, options.deadline)
}
