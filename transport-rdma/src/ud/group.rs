//! Beats to a multicast group: one datagram for all who are in it. No program uses it: a pair is two, and each beats to the
//! other's queue pair. It stays, behind the feature `group`, because the wire format has it (flag 2 of an endpoint, the
//! addressee of a beat) and the tests of this crate hold devices to it; a third member, such as a witness that listens, needs
//! nothing else of this crate.
//!
//! Attaching the queue pair is not enough on Ethernet: the kernel drops packets of groups that nobody joined on that network
//! interface before the RDMA driver sees them (measured with SoftRoCE), and switches that snoop IGMP or MLD do the same. So a
//! socket joins the IP group too, and stays open. Our own datagrams come back to us; they are told by source address *and*
//! queue pair, because queue pair numbers of two devices may well be equal.

use super::{Target, UdKeepalive};
use crate::{
    error::RdmaError,
    types::{Gid, MULTICAST_QPN},
};
use mc_core::wire::beat::BeatKey;
use socket2::{InterfaceIndexOrAddress, Socket};
use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

/// A multicast group for a session: link-local or of the site, of the same family as `gid`. Another session may have the
/// same one: then its beats are heard, and refused.
#[must_use]
pub fn group_of(key: &BeatKey, gid: Gid) -> Gid {
    let hash = blake3::keyed_hash(&key.0, b"afterimage group");
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| hash.as_bytes()[i]);
    match Ipv6Addr::from(gid).to_canonical() {
        // RFC 2365 6.1, the local scope.
        IpAddr::V4(_) => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 239, 255, a, b],
        // RFC 4291 2.7: transient, link-local. RFC 3307 4.3: the group identifier's top bit is 1.
        IpAddr::V6(_) => [0xff, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a | 0x80, b, c, d],
    }
}

#[derive(Debug)]
pub(super) struct Membership {
    group: Gid,
    /// Open for the IP membership's sake.
    _socket: Socket,
}

impl UdKeepalive {
    /// Joins a multicast group; from here on every beat goes to it too, once for all who are in it.
    ///
    /// # Errors
    /// Not a group, or of another family than our own address; not on Ethernet (InfiniBand's subnet administrator would have
    /// to be asked); what the system or the driver refused.
    pub fn join(&mut self, group: Gid) -> Result<(), RdmaError> {
        let joined = self.join_both(group).map_err(self.failed("joining the multicast group"))?;
        self.groups.push(joined);
        let to = self.handle(group, 0).map_err(self.failed("resolving the multicast group"))?;
        self.targets.push(Target { to, qpn: MULTICAST_QPN, qkey: self.queue.qkey() });
        Ok(())
    }

    fn join_both(&self, group: Gid) -> io::Result<Membership> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if !self.place.ethernet || self.place.ifindex == 0 {
            return refused("groups are for RoCE on a network interface; use unicast here");
        }
        let ip = |gid| Ipv6Addr::from(gid).to_canonical();
        if !ip(group).is_multicast() {
            return refused("it is not a multicast address");
        }
        if ip(group).is_ipv4() != ip(self.place.gid).is_ipv4() {
            return refused("it is not of the family of the device's chosen address");
        }
        let socket = match ip(group) {
            IpAddr::V4(group) => {
                let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
                socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(self.place.ifindex))?;
                socket
            }
            IpAddr::V6(group) => {
                let socket = Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
                socket.join_multicast_v6(&group, self.place.ifindex)?;
                socket
            }
        };
        self.queue.multicast(group, true)?;
        Ok(Membership { group, _socket: socket })
    }
}

impl Drop for UdKeepalive {
    fn drop(&mut self) {
        // A queue pair that is still attached cannot be destroyed (EBUSY, ibv_destroy_qp(3)).
        for Membership { group, .. } in &self.groups {
            if let Err(error) = self.queue.multicast(*group, false) {
                tracing::warn!(%error, "a multicast group was not left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_the_session_s_own() {
        let keys = [1, 2, 3].map(|n| BeatKey([n; 32]));
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets();
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        for (n, key) in keys.iter().enumerate() {
            for (m, other) in keys.iter().enumerate() {
                assert_eq!(group_of(key, link_local) == group_of(other, link_local), n == m);
            }
            for gid in [link_local, mapped] {
                let group = Ipv6Addr::from(group_of(key, gid)).to_canonical();
                assert!(group.is_multicast(), "{group}");
                assert_eq!(group.is_ipv4(), Ipv6Addr::from(gid).to_canonical().is_ipv4());
            }
        }
    }
}
