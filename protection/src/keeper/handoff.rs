//! The messages between a keeper and the process that starts it: one JSON object per message over a pair of sockets, some
//! with descriptors (`SCM_RIGHTS`, unix(7)).
//!
//! ```text
//!   starter                                              keeper (its stdin is the socket)
//!      │  ── starts it ───────────────────────────────────> │  takes its place: lock, control socket
//!      │  <───────────────────────────────────── "ready" ── │
//!      │  ── a NIC: connection, TAP device ── ... ────────> │
//!      │  ── "go": the VM is solo, and ours ──────────────> │  passes packets
//!      │  <─────────────────────────────────── "keeping" ── │
//! ```
//!
//! Until "go" a keeper opens nothing and touches nothing; if its starter dies before, so does it.

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// Bytes of a message at most.
const MESSAGE: usize = 256;
/// Descriptors in a message at most.
const DESCRIPTORS: usize = 2;

/// Messages to the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum ToKeeper {
    /// A NIC's descriptors: first its connection to QEMU, then its TAP device, as far as they come along.
    Nic {
        /// Which of the NICs, from 0.
        number: usize,
        /// Its connection comes along.
        stream: bool,
        /// Its device comes along.
        tap: bool,
    },
    /// The register says (solo, this node): pass packets.
    Go,
}

/// Messages from the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum FromKeeper {
    /// It has its place, and waits for "go".
    Ready,
    /// It passes packets.
    Keeping,
}

/// One end of the socket pair.
#[derive(Debug)]
pub(super) struct Handoff(OwnedFd);

/// Creates the socket pair.
pub(super) fn pair() -> io::Result<(Handoff, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Handoff(ours), theirs))
}

impl Handoff {
    /// The end that a keeper was started with.
    pub(super) fn over(end: OwnedFd) -> Self {
        Self(end)
    }

    /// Says something; at most two descriptors go along, which stay open here.
    pub(super) fn say(&self, message: &impl Serialize, along: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !along.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(along)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        let iov = [IoSlice::new(&text)];
        retry_on_intr(|| sendmsg(&self.0, &iov, &mut ancillary, SendFlags::NOSIGNAL)).map(drop)?;
        Ok(())
    }

    /// The next thing said, with what came along; `None`: the other end is gone. Waits until `deadline`.
    pub(super) fn hear<T: DeserializeOwned>(&self, deadline: Instant) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.wait(deadline)?;
        let (mut bytes, mut space) = ([0; MESSAGE], [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags);
        let mut along = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                along.extend(descriptors);
            }
        }
        match received {
            Ok(got) if got.bytes == 0 => Ok(None),
            Ok(got) => Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, along))),
            Err(Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left.max(Duration::from_millis(1))).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Handoff {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read, Write},
    };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn descriptors_come_along_and_the_end_is_heard() {
        let (ours, theirs) = pair().unwrap();
        let theirs = Handoff::over(theirs);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let nic = ToKeeper::Nic { number: 255, stream: true, tap: true };
        ours.say(&nic, &[writer.as_fd(), reader.as_fd()]).unwrap();
        ours.say(&ToKeeper::Go, &[]).unwrap();
        let (said, mut along) = theirs.hear::<ToKeeper>(soon()).unwrap().unwrap();
        assert_eq!((said, along.len()), (nic, 2));
        drop((reader, writer));
        let (mut reader, mut writer) = (File::from(along.pop().unwrap()), File::from(along.pop().unwrap()));
        writer.write_all(b"carried on").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "carried on");
        assert_eq!(theirs.hear::<ToKeeper>(soon()).unwrap().unwrap().0, ToKeeper::Go);
        drop(ours);
        assert!(theirs.hear::<ToKeeper>(soon()).unwrap().is_none());
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (ours, theirs) = pair().unwrap();
        let theirs = Handoff::over(theirs);
        assert_eq!(theirs.hear::<ToKeeper>(Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        ours.say(&"what?", &[]).unwrap();
        assert!(theirs.hear::<ToKeeper>(soon()).is_err());
    }
}
