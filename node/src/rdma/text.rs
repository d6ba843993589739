//! The devices as text.

use super::Device;
use transport_rdma::{
    device::{
        DeviceInfo, Trouble,
        probe::{Ability, Capabilities},
    },
    types::Port,
};

/// A table of the devices; below it what is worth knowing of each. Ends in a newline; empty for none.
pub(super) fn render(devices: &[Device]) -> String {
    if devices.is_empty() {
        return String::new();
    }
    let mut out = row(["DEVICE", "PORT", "LINK", "MTU", "RATE", "NETDEV"]);
    for Device { info, .. } in devices {
        let [state, link, mtu, rate] = info.port.map_or_else(|| ["?"; 4].map(str::to_owned), port);
        out += &row([&info.name, &state, &link, &mtu, &rate, info.netdev.as_deref().unwrap_or("-")]);
    }
    for device in devices {
        out += &format!("\n{}{}\n", device.info.name, default(&device.info));
        detail(&mut out, device);
    }
    out
}

fn row(cells: [&str; 6]) -> String {
    let line = cells.iter().zip([12, 8, 10, 6, 11, 0]).map(|(cell, width)| format!("{cell:<width$}"));
    format!("{}\n", line.collect::<String>().trim_end())
}

fn port(port: Port) -> [String; 4] {
    let rate = match port.mbit {
        0 => "?".to_owned(),
        mbit if mbit % 1000 == 0 => format!("{} Gbit/s", mbit / 1000),
        mbit => format!("{}.{} Gbit/s", mbit / 1000, mbit % 1000 / 100),
    };
    let (state, link) =
        (if port.active { "active" } else { "down" }, if port.ethernet { "Ethernet" } else { "InfiniBand" });
    [state.to_owned(), link.to_owned(), port.mtu.to_string(), rate]
}

fn default(info: &DeviceInfo) -> String {
    info.default.as_ref().map_or(String::new(), |default| format!(": the default ({})", default.why))
}

fn detail(out: &mut String, device: &Device) {
    match &device.info.trouble {
        Some(Trouble::Permission) => out.push_str("  cannot be used: permission denied on /dev/infiniband\n"),
        Some(Trouble::Other(why)) => *out += &format!("  cannot be used: {why}\n"),
        None => {}
    }
    for gid in &device.info.gids {
        let default = device.info.default.as_ref().is_some_and(|default| default.gid_index == gid.index);
        let netdev = gid.netdev.as_deref().unwrap_or("-");
        let mark = if default { "  <- default" } else { "" };
        *out += &format!("  GID {:<4} {:<8} {:<40} {netdev}{mark}\n", gid.index, gid.kind.as_str(), gid.address());
    }
    if let Some(why) = &device.probe_failed {
        *out += &format!("  capabilities unknown: {why}\n");
    }
    if let Some(capabilities) = &device.capabilities {
        able(out, capabilities);
    }
}

fn able(out: &mut String, c: &Capabilities) {
    let mut line = |key: &str, value: String| *out += &format!("  {key:<16} {value}\n");
    line("inline", format!("{} bytes", c.inline_bytes));
    line("gather", format!("{} pieces", c.pieces));
    line("datagrams (UD)", words(&c.datagrams));
    line("multicast", words(&c.multicast));
    line("atomics", if c.atomics { "yes (reported by the driver)" } else { "no, says the driver" }.to_owned());
    line("huge pages", words(&c.huge_pages));
    line("largest region", format!("{}, says the driver", size(c.max_region_bytes)));
    line("lockable memory", c.memlock_bytes.map_or_else(|| "no limit".to_owned(), size));
}

fn words(ability: &Ability) -> String {
    match ability {
        Ability::Works => "yes".to_owned(),
        Ability::No(why) => format!("no: {why}"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        1_073_741_824..=0xff_ffff_ffff => format!("{} GiB", bytes >> 30),
        _ => format!("{} TiB", bytes >> 40),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport_rdma::{
        device::{DefaultChoice, GidInfo, GidKind},
        types::Limits,
    };

    fn device() -> Device {
        let gid = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        let netdev = Some("eth0".to_owned());
        let gids = vec![GidInfo { index: 3, kind: GidKind::RoceV2, gid, netdev: netdev.clone(), ifindex: 2 }];
        let port = Some(Port { active: true, mtu: 4096, gids: 16, ethernet: true, lid: 0, mbit: 2_500 });
        let default = Some(DefaultChoice { gid_index: 3, why: "the only one".into() });
        let limits = Limits {
            max_mr_size: 1 << 41,
            max_mr: 1,
            max_qp: 1,
            max_qp_wr: 1,
            max_sge: 32,
            max_cqe: 1,
            max_mcast_grp: 0,
            max_qp_rd_atom: 1,
            atomics: true,
            ports: 1,
        };
        let capabilities = Capabilities {
            inline_bytes: 512,
            pieces: 32,
            datagrams: Ability::Works,
            multicast: Ability::No("no groups".into()),
            atomics: true,
            huge_pages: Ability::No("no huge page is free".into()),
            max_region_bytes: limits.max_mr_size,
            memlock_bytes: Some(8 << 20),
            limits,
        };
        let info = DeviceInfo { name: "rxe0".into(), port, netdev, gids, trouble: None, default };
        Device { info, capabilities: Some(capabilities), probe_failed: None }
    }

    #[test]
    fn the_text_says_what_a_reader_asks() {
        let text = render(&[device()]);
        let lines = [
            "rxe0        active  Ethernet  4096  2.5 Gbit/s eth0",
            "rxe0: the default (the only one)",
            "10.0.0.1",
            "eth0  <- default",
            "inline           512 bytes",
            "datagrams (UD)   yes",
            "multicast        no: no groups",
            "largest region   2 TiB",
            "lockable memory  8 MiB",
        ];
        for line in lines {
            assert!(text.contains(line), "{line:?} is missing:\n{text}");
        }
        let mut sick = device();
        (sick.info.port, sick.info.trouble, sick.capabilities) = (None, Some(Trouble::Permission), None);
        let text = render(&[sick]);
        assert!(text.contains("permission denied") && text.contains("rxe0        ?"), "{text}");
    }

    #[test]
    fn the_json_has_plain_values() {
        let json: serde_json::Value = serde_json::from_str(&super::super::json_of(&[device()])).unwrap();
        let device = &json["devices"][0];
        assert_eq!((&json["schema"], &device["name"]), (&1.into(), &"rxe0".into()));
        assert_eq!(device["gids"][0]["gid"], "10.0.0.1");
        assert_eq!(device["gids"][0]["kind"], "RoCE v2");
        assert_eq!(device["default"]["gid_index"], 3);
        assert_eq!(device["capabilities"]["datagrams"], "works");
        assert_eq!(device["capabilities"]["multicast"]["no"], "no groups");
    }
}
