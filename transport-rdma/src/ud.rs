//! [`UdKeepalive`]: beats as RDMA datagrams (UD), on a queue pair, completion queues and a descriptor of their own, so that
//! no bulk transfer delays them, and none of its failures takes them down.
//!
//! A datagram goes to each member ([`UdKeepalive::add_member`]); with the feature `group` also to a multicast group that was
//! joined. What arrives need not come from a member: authentication is the beat's own business. The Q_Key only keeps strays
//! out: it travels in the clear, but the device drops what bears another before we see it.
//!
//! # What counts as loss
//!
//! As over UDP: a beat that cannot leave is lost and counted, not an error, whether the queue is full,
//! or the queue pair failed and is not ready again yet ([`queue`] draws that). A member that is gone is nothing at all: a
//! datagram has no answer. An address that cannot be resolved is an error of [`UdKeepalive::add_member`].

#[cfg(feature = "group")]
mod group;
mod queue;

use crate::{
    device::Choice,
    error::RdmaError,
    ffi::{Address, Domain},
    patience::patiently,
    types::Gid,
};
#[cfg(feature = "group")]
pub use group::group_of;
use mc_core::{
    transport::{Keepalive, PollableKeepalive},
    wire::beat::{self, BeatKey},
};
use queue::Queue;
pub use queue::UdCounts;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

/// Where a member can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdAddress {
    /// Its port's GID.
    pub gid: Gid,
    /// Its port's LID; 0 on Ethernet.
    pub lid: u16,
    /// Its queue pair.
    pub qpn: u32,
    /// Its Q_Key.
    pub qkey: u32,
}

/// The knobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdOptions {
    /// All members' key: [`qkey_of`]. The top bit is 0 (IBTA 10.2.5: the others are privileged).
    pub qkey: u32,
    /// Datagrams that may wait for us, each with a buffer of 4136 bytes.
    pub receives: u32,
    /// Datagrams that may wait for the device; at least 2.
    pub sends: u32,
}

impl UdOptions {
    /// With room for 2.5 s of beats from a member that sends one every 10 ms.
    #[must_use]
    pub fn new(qkey: u32) -> Self {
        Self { qkey, receives: 256, sends: 64 }
    }
}

/// The Q_Key of a session.
#[must_use]
pub fn qkey_of(key: &BeatKey) -> u32 {
    let hash = blake3::keyed_hash(&key.0, b"afterimage Q_Key");
    u32::from_le_bytes([0, 1, 2, 3].map(|i| hash.as_bytes()[i])) & !(1 << 31)
}

/// Beats over UD. Drops its queue pair when it is dropped.
#[derive(Debug)]
pub struct UdKeepalive {
    /// Before `targets`: their address handles are named by what it may still send.
    queue: Queue,
    targets: Vec<Target>,
    #[cfg(feature = "group")]
    groups: Vec<group::Membership>,
    domain: Arc<Domain>,
    place: Place,
}

/// What of a [`Choice`] is needed later.
#[derive(Clone, Copy, Debug)]
struct Place {
    gid: Gid,
    gid_index: u8,
    lid: u16,
    #[cfg(feature = "group")]
    ifindex: u32,
    #[cfg(feature = "group")]
    ethernet: bool,
}

#[derive(Debug)]
struct Target {
    to: Address,
    qpn: u32,
    qkey: u32,
}

impl UdKeepalive {
    /// A keepalive without members yet, which hears whoever knows its address.
    ///
    /// # Errors
    /// What the driver refused, and a Q_Key that is privileged.
    pub fn open(choice: &Choice, options: UdOptions) -> Result<Self, RdmaError> {
        let failed = |doing| move |source| RdmaError::Device { device: choice.device.clone(), doing, source };
        let domain = Domain::new(&choice.context).map_err(failed("making a protection domain for beats"))?;
        let queue = Queue::new(&domain, options).map_err(failed("making a queue pair for beats"))?;
        let place = Place {
            gid: choice.gid,
            gid_index: choice.gid_index,
            lid: choice.port.lid,
            #[cfg(feature = "group")]
            ifindex: choice.ifindex,
            #[cfg(feature = "group")]
            ethernet: choice.port.ethernet,
        };
        Ok(Self {
            queue,
            targets: vec![],
            #[cfg(feature = "group")]
            groups: vec![],
            domain,
            place,
        })
    }

    /// Where others send their beats.
    #[must_use]
    pub fn address(&self) -> UdAddress {
        let Place { gid, lid, .. } = self.place;
        UdAddress { gid, lid, qpn: self.queue.number(), qkey: self.queue.qkey() }
    }

    /// From here on every beat goes to `member` too. Blocks while the address is resolved: seconds, if it cannot be.
    ///
    /// # Errors
    /// The address cannot be resolved: no route, no answer to the neighbour discovery.
    pub fn add_member(&mut self, member: UdAddress) -> Result<(), RdmaError> {
        let to = self.handle(member.gid, member.lid).map_err(self.failed("resolving a member's address"))?;
        self.targets.push(Target { to, qpn: member.qpn, qkey: member.qkey });
        Ok(())
    }

    fn handle(&self, gid: Gid, lid: u16) -> io::Result<Address> {
        patiently(|| Address::new(&self.domain, gid, lid, self.place.gid_index))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> RdmaError {
        let device = self.domain.context().name().to_owned();
        move |source| RdmaError::Device { device, doing, source }
    }

    /// What was lost, and how often the queue pair had to be made ready again.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn counts(&self) -> UdCounts {
        self.queue.counts()
    }
}

impl Keepalive for UdKeepalive {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        for Target { to, qpn, qkey } in &self.targets {
            self.queue.send(beat, to, *qpn, *qkey)?;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        let ours = (self.queue.number(), self.place.gid);
        while let Some(datagram) = self.queue.receive(buffer)? {
            if (datagram.queue, datagram.from) != ours {
                return Ok(Some(datagram.len));
            }
        }
        Ok(None)
    }

    /// `ppoll(2)`, so to the nanosecond. A signal, or a datagram of our own, ends it early: harmless.
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.arm()? {
            return Ok(());
        }
        // A timeout beyond what the kernel can express is for ever.
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl PollableKeepalive for UdKeepalive {
    fn arm(&mut self) -> io::Result<bool> {
        self.queue.arm()
    }
}

impl AsFd for UdKeepalive {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_keys_are_the_session_s_own_and_allowed() {
        let keys = [1, 2, 3].map(|n| BeatKey([n; 32]));
        for (n, key) in keys.iter().enumerate() {
            assert!(qkey_of(key) < 1 << 31);
            for (m, other) in keys.iter().enumerate() {
                assert_eq!(qkey_of(key) == qkey_of(other), n == m);
            }
        }
    }

    #[test]
    fn an_address_survives_json() {
        let address = UdAddress { gid: [7; 16], lid: 3, qpn: 0x12_3456, qkey: 9 };
        let json = serde_json::to_string(&address).unwrap();
        assert_eq!(serde_json::from_str::<UdAddress>(&json).unwrap(), address);
    }
}
