//! Choosing among real devices. Skipped without one (`mc_core::testing::skip`). `AFTERIMAGE_RDMA_DEVICES` names the
//! device whose choice is looked at; by default the first.

use mc_core::testing::skip;
use std::{net::IpAddr, process::Command, thread::sleep, time::Duration};
use transport_rdma::device::{
    Choice, DeviceError, DeviceInfo, GidKind, Wish, choose, devices,
    probe::{Ability, capabilities_of},
};

fn wish(device: &str, gid_index: Option<u8>) -> Wish {
    Wish { device: Some(device.to_owned()), gid_index, local: None }
}

fn refused(wish: &Wish, part: &str) {
    let error = choose(wish).expect_err("refused");
    assert!(error.to_string().contains(part) && !error.remedy().is_empty(), "{error}");
    eprintln!("{wish:?}: {error}; {}", error.remedy());
}

/// The named one, or the first.
fn subject() -> Result<DeviceInfo, DeviceError> {
    let named = std::env::var("AFTERIMAGE_RDMA_DEVICES").ok();
    let named = named.as_ref().and_then(|names| names.split(',').next());
    let all = devices()?;
    assert!(all.iter().filter(|d| d.default.is_some()).count() <= 1, "one default at most");
    all.into_iter().find(|d| named.is_none_or(|name| d.name == name)).ok_or(DeviceError::NoDevice)
}

/// Whether its network interface is one end of a veth, whose link a test may take down.
fn on_a_veth(netdev: &str) -> bool {
    let shown = Command::new("ip").args(["-details", "link", "show", netdev]).output();
    shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains("veth"))
}

fn down_and_up(device: &DeviceInfo) {
    let Some(netdev) = device.netdev.as_deref().filter(|netdev| on_a_veth(netdev)) else {
        skip(format!("{} is not on a veth, whose link a test may take down", device.name));
        return;
    };
    let link = |to| assert!(Command::new("ip").args(["link", "set", netdev, to]).status().unwrap().success());
    link("down");
    let of_it = || devices().unwrap().into_iter().find(|d| d.name == device.name).unwrap();
    while of_it().port.unwrap().active {
        sleep(Duration::from_millis(10));
    }
    assert!(of_it().gids.is_empty() && of_it().trouble.is_none(), "down is no trouble of the device's");
    refused(&wish(&device.name, None), netdev);
    link("up");
    while choose(&wish(&device.name, None)).is_err() {
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn devices_are_chosen() {
    let device = match subject() {
        Ok(device) => device,
        Err(error) => return skip(error),
    };
    eprintln!("{device:?}");
    let Choice { context, gid, kind, port, .. } = choose(&wish(&device.name, None)).unwrap();
    assert_eq!(context.name(), device.name);
    assert!(port.active && gid != [0; 16] && kind != GidKind::RoceV1);
    for entry in device.gids.iter().filter(|entry| entry.kind != GidKind::RoceV1) {
        let by_index = choose(&wish(&device.name, Some(entry.index))).unwrap();
        assert_eq!((by_index.gid, by_index.ifindex), (entry.gid, entry.ifindex));
        let local: IpAddr = entry.address();
        let by_address = choose(&Wish { local: Some((local, 0).into()), ..Wish::default() }).unwrap();
        assert_eq!((by_address.device, by_address.gid), (device.name.clone(), entry.gid), "the connection's address");
    }
    refused(&wish("no-such-device", None), &device.name);
    refused(&wish(&device.name, Some(u8::MAX)), "255");
    let entries = u8::try_from(device.port.unwrap().gids).unwrap_or(u8::MAX);
    if let Some(free) = (0..entries).find(|index| device.gids.iter().all(|entry| entry.index != *index)) {
        refused(&wish(&device.name, Some(free)), "empty");
    }

    let can = capabilities_of(&context).unwrap();
    eprintln!("{can:?}");
    assert!(can.inline_bytes >= 96 && can.pieces >= 1 && can.max_region_bytes > 0);
    assert_eq!(can.datagrams, Ability::Works);
    assert!(!matches!(&can.huge_pages, Ability::No(why) if why.is_empty()));
    down_and_up(&device);
}
