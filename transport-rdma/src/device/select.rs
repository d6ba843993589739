//! Which device and which of its addresses: a function of what there is and what was asked for.

use super::{DeviceError, DeviceInfo, GidInfo, GidKind, Trouble, Wish};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The device, the entry of its GID table, and why these.
pub(super) type Selected<'a> = (&'a DeviceInfo, &'a GidInfo, String);

pub(super) fn select<'a>(devices: &'a [DeviceInfo], wish: &Wish) -> Result<Selected<'a>, DeviceError> {
    let Some(first) = devices.first() else { return Err(DeviceError::NoDevice) };
    let (device, why) = match &wish.device {
        Some(name) => {
            let there = || devices.iter().map(|d| d.name.clone()).collect();
            let found = devices.iter().find(|d| d.name == *name);
            let found = found.ok_or_else(|| DeviceError::NoSuchDevice { name: name.clone(), there: there() })?;
            (found, "asked for".to_owned())
        }
        None => default_device(devices, wish.local).unwrap_or((first, String::new())),
    };
    usable(device)?;
    let (gid, entry) = match wish.gid_index {
        Some(index) => (entry(device, index)?, "asked for"),
        None => default_gid(device, wish.local)?,
    };
    Ok((device, gid, format!("device: {why}; address: {entry}")))
}

/// `None` if there is no usable one.
fn default_device(devices: &[DeviceInfo], local: Option<SocketAddr>) -> Option<(&DeviceInfo, String)> {
    let usable: Vec<_> = devices.iter().filter(|d| usable(d).is_ok()).collect();
    if let Some(local) = local
        && let Some(device) = usable.iter().find(|d| d.usable_gids().any(|g| is_at(g, local)))
    {
        return Some((device, format!("it has {}, the address of the connection", local.ip().to_canonical())));
    }
    let first = *usable.first()?;
    let why = match usable.len() {
        1 => "the only one that is up".to_owned(),
        n => format!("the first of {n} that are up"),
    };
    Some((first, why))
}

fn usable(device: &DeviceInfo) -> Result<(), DeviceError> {
    let name = || device.name.clone();
    match &device.trouble {
        Some(Trouble::Permission) => return Err(DeviceError::Permission { device: name() }),
        Some(Trouble::Other(why)) => {
            let source = std::io::Error::other(why.clone());
            return Err(DeviceError::Verb { device: name(), doing: "looking at it", source });
        }
        None => {}
    }
    if !device.port.is_some_and(|p| p.active) {
        return Err(DeviceError::PortDown { device: name(), netdev: device.netdev.clone() });
    }
    if device.usable_gids().next().is_none() {
        return Err(DeviceError::NoGid { device: name() });
    }
    Ok(())
}

fn entry(device: &DeviceInfo, index: u8) -> Result<&GidInfo, DeviceError> {
    let name = || device.name.clone();
    let entries = device.port.map_or(0, |p| p.gids);
    if i32::from(index) >= entries {
        return Err(DeviceError::GidOutOfRange { device: name(), index, entries });
    }
    let Some(gid) = device.gids.iter().find(|g| g.index == index) else {
        let there = device.gids.iter().map(|g| g.index).collect();
        return Err(DeviceError::GidEmpty { device: name(), index, there });
    };
    if gid.kind == GidKind::RoceV1 {
        let v2 = device.usable_gids().map(|g| g.index).collect();
        return Err(DeviceError::RoceV1 { device: name(), index, v2 });
    }
    Ok(gid)
}

fn default_gid(device: &DeviceInfo, local: Option<SocketAddr>) -> Result<(&GidInfo, &'static str), DeviceError> {
    let mut all = device.usable_gids();
    if let Some(local) = local {
        if let Some(gid) = device.usable_gids().find(|g| is_at(g, local)) {
            return Ok((gid, "that of the connection"));
        }
        let local = local.ip().to_canonical();
        // One of loopback says nothing about what routers between the hosts understand.
        let family = |g: &&GidInfo| g.address().is_ipv4() == local.is_ipv4() && !link_local(g.address());
        if !local.is_loopback()
            && !link_local(local)
            && let Some(gid) = device.usable_gids().find(family)
        {
            return Ok((gid, "the first of the connection's family"));
        }
    }
    let gid = all.next().ok_or_else(|| DeviceError::NoGid { device: device.name.clone() })?;
    Ok((gid, if gid.kind == GidKind::Ib { "the port's first" } else { "the first of RoCE v2" }))
}

/// The same address; of the same interface, if it is one that several interfaces may have.
fn is_at(gid: &GidInfo, local: SocketAddr) -> bool {
    let zone = match local {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    gid.address() == local.ip().to_canonical() && (zone == 0 || gid.ifindex == 0 || gid.ifindex == zone)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// The IP address that a GID of RoCE v2 is.
pub(super) fn ip_of(gid: crate::types::Gid) -> IpAddr {
    Ipv6Addr::from(gid).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Port;

    fn gid(index: u8, kind: GidKind, address: &str) -> GidInfo {
        let ip: IpAddr = address.parse().unwrap();
        let gid = match ip {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        GidInfo { index, kind, gid, netdev: Some("eth0".into()), ifindex: 7 }
    }

    fn device(name: &str, gids: Vec<GidInfo>) -> DeviceInfo {
        let port = Port { active: true, mtu: 4096, gids: 16, ethernet: true, lid: 0, mbit: 10_000 };
        let netdev = Some("eth0".to_owned());
        DeviceInfo { name: name.into(), port: Some(port), netdev, gids, trouble: None, default: None }
    }

    fn two() -> Vec<DeviceInfo> {
        use GidKind::{RoceV1, RoceV2};
        let a = vec![gid(0, RoceV1, "fe80::1"), gid(1, RoceV2, "fe80::1"), gid(3, RoceV2, "10.0.0.1")];
        let b = vec![gid(0, RoceV2, "fe80::2"), gid(2, RoceV2, "10.0.0.2"), gid(3, RoceV2, "fd00::2")];
        vec![device("a", a), device("b", b)]
    }

    fn pick(devices: &[DeviceInfo], wish: &Wish) -> (String, u8, String) {
        let (device, gid, why) = select(devices, wish).unwrap();
        (device.name.clone(), gid.index, why)
    }

    fn local(address: &str) -> Wish {
        let local = match address.split_once('%') {
            Some((ip, zone)) => format!("[{ip}%{zone}]:7410").parse().unwrap(),
            None => SocketAddr::new(address.parse().unwrap(), 7410),
        };
        Wish { local: Some(local), ..Wish::default() }
    }

    #[test]
    fn the_default_follows_the_connection_and_says_why() {
        let devices = two();
        let cases = [
            (Wish::default(), "a", 1, "the first of 2 that are up; address: the first of RoCE v2"),
            (local("10.0.0.2"), "b", 2, "it has 10.0.0.2"),
            (local("fe80::2"), "b", 0, "that of the connection"),
            (local("127.0.0.1"), "a", 1, "the first of 2"),
            (local("192.168.1.1"), "a", 3, "the connection's family"),
            (Wish { device: Some("b".into()), ..local("fd00::9") }, "b", 3, "asked for"),
            (Wish { device: Some("b".into()), gid_index: Some(0), local: None }, "b", 0, "address: asked for"),
        ];
        for (wish, name, index, why) in cases {
            let (n, i, w) = pick(&devices, &wish);
            assert_eq!((n.as_str(), i), (name, index), "{wish:?}: {w}");
            assert!(w.contains(why), "{wish:?}: {w}");
        }
        let mut one_up = two();
        one_up[0].port = Some(Port { active: false, ..one_up[0].port.unwrap() });
        assert_eq!(pick(&one_up, &Wish::default()).0, "b");
        assert!(pick(&one_up, &Wish::default()).2.contains("the only one that is up"));
    }

    #[test]
    fn a_link_local_address_is_that_of_its_interface() {
        // As of a VLAN and the interface below it: one MAC address, one link-local address.
        let at = |name, ifindex| {
            let gid = GidInfo { ifindex, ..gid(1, GidKind::RoceV2, "fe80::1") };
            device(name, vec![gid])
        };
        let devices = [at("a", 7), at("b", 8)];
        assert_eq!(pick(&devices, &local("fe80::1%8")).0, "b");
        assert_eq!(pick(&devices, &local("fe80::1%7")).0, "a");
        // Of an IPv4 connection that came to a socket of IPv6.
        assert_eq!(pick(&two(), &local("::ffff:10.0.0.2")).0, "b");
    }

    #[test]
    fn infiniband_needs_no_roce() {
        let mut ib = device("ib0", vec![gid(0, GidKind::Ib, "fe80::9")]);
        ib.port = Some(Port { ethernet: false, ..ib.port.unwrap() });
        assert_eq!(pick(&[ib], &Wish::default()).1, 0);
    }

    fn refused(devices: &[DeviceInfo], device: Option<&str>, index: Option<u8>) -> String {
        let wish = Wish { device: device.map(Into::into), gid_index: index, local: None };
        let error = select(devices, &wish).unwrap_err();
        format!("{error}; {}", error.remedy())
    }

    #[test]
    fn what_cannot_be_used_is_refused_in_words_with_a_remedy() {
        let expect = |text: String, parts: &[&str]| {
            for part in parts {
                assert!(text.contains(part), "{part:?} is missing: {text}");
            }
        };
        let devices = two();
        expect(refused(&[], None, None), &["no RDMA device", "modprobe rdma_rxe", "TCP"]);
        expect(refused(&devices, Some("c"), None), &["\"c\"", "there is a, b"]);
        expect(refused(&devices, Some("a"), Some(16)), &["a", "16 is out of range", "16 entries", "rdma devices"]);
        expect(refused(&devices, Some("a"), Some(2)), &["2 is empty", "0, 1, 3"]);
        expect(refused(&devices, Some("a"), Some(0)), &["RoCE v1", "it is at 1, 3"]);

        let mut sick = two();
        sick[0].port = Some(Port { active: false, ..sick[0].port.unwrap() });
        expect(refused(&sick, Some("a"), None), &["port 1 is down (it is on eth0)", "ip link set eth0 up"]);
        sick[0].trouble = Some(Trouble::Permission);
        expect(refused(&sick, Some("a"), None), &["permission denied", "/dev/infiniband"]);
        sick[0].trouble = Some(Trouble::Other("firmware".into()));
        expect(refused(&sick, Some("a"), None), &["firmware", "dmesg"]);
        let only_v1 = device("old", vec![gid(0, GidKind::RoceV1, "fe80::1")]);
        expect(refused(&[only_v1], None, None), &["no usable address", "RoCE mode"]);
        sick.truncate(1);
        expect(refused(&sick, None, None), &["firmware"]);
    }

    #[test]
    fn the_system_s_answers_become_words() {
        let error = DeviceError::listing(std::io::Error::from_raw_os_error(38));
        assert!(error.to_string().contains("kernel has no RDMA") && error.remedy().contains("rdma_rxe"));
        assert!(DeviceError::listing(std::io::Error::from_raw_os_error(12)).to_string().contains("cannot list"));
        let denied = DeviceError::opening("mlx5_0", std::io::Error::from_raw_os_error(13));
        assert!(denied.to_string().contains("mlx5_0") && denied.remedy().contains("root"));
        let other = DeviceError::opening("mlx5_0", std::io::Error::from_raw_os_error(24));
        assert!(other.to_string().contains("opening it"), "{other}");
    }
}
