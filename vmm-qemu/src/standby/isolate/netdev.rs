//! Network back ends: of the same kind, connected to nothing.

use super::{NotIsolated, refuse};
use crate::argv::{Item, Params};

/// Parameters of `-nic` and `-net` that make the NIC, not its back end. (`addr` of `-netdev stream` is its connection.)
const NIC: &[&str] = &["addr", "id", "mac", "macaddr", "model", "name", "netdev", "vectors"];

/// Back ends that carry bare frames and have no state of their own: a private socket is as good to the NIC.
const FRAMES: &[&str] = &["af-xdp", "dgram", "hubport", "l2tpv3", "socket", "stream", "vde"];

/// A TAP device that QEMU makes, the kernel names, and QEMU's end takes away. In no bridge; the NIC sees the same offloads.
const TAP: &str = "afterimage%d";

pub(super) fn rewrite(item: &Item, params: &Params, socket: impl FnOnce() -> String) -> Result<Item, NotIsolated> {
    let kind = params.kind("type").unwrap_or_default();
    let nic = if item.name() == "netdev" { &["id"] } else { NIC };
    match kind.as_str() {
        "none" | "nic" => Ok(item.clone()),
        "user" => Ok(item.with_params(&user(params))),
        "tap" | "bridge" => Ok(item.with_params(&tap(params, nic))),
        kind if FRAMES.contains(&kind) => Ok(item.with_params(&frames(params, nic, &socket()))),
        _ => refuse(item, format!("a rehearsal cannot cut the network back end {kind:?} off from the outside")),
    }
}

/// The parameters to keep, behind another kind.
fn only(params: &Params, kind: &str, keep: [&[&str]; 2]) -> Params {
    let mut kept = Params::parse(kind);
    for key in keep.concat() {
        if let Some(value) = params.get(key) {
            kept.set(key, &value);
        }
    }
    kept
}

fn frames(params: &Params, nic: &[&str], socket: &str) -> Params {
    let mut private = only(params, "stream", [nic, &[]]);
    for (key, value) in [("server", "on"), ("addr.type", "unix"), ("addr.path", socket)] {
        private.set(key, value);
    }
    private
}

/// Offloads and queues are the guest's to see.
fn tap(params: &Params, nic: &[&str]) -> Params {
    let seen = ["queues", "sndbuf", "vhost", "vhostforce", "vnet_hdr", "poll-us"];
    let mut private = only(params, "tap", [nic, &seen]);
    private.set("ifname", TAP);
    private.set("script", "no");
    private.set("downscript", "no");
    if let Some(fds) = params.get("fds") {
        private.set("queues", &fds.split(':').count().to_string());
    }
    private
}

/// slirp's addresses are in its state; its ports on this host are not.
fn user(params: &Params) -> Params {
    let mut private = params.clone();
    for reaching_out in ["hostfwd", "smb", "smbserver", "tftp", "bootfile", "restrict"] {
        private.remove(reaching_out);
    }
    if let Params::Keys(keys) = &mut private {
        for (key, value) in keys.iter_mut().filter(|(key, _)| key == "guestfwd") {
            // What it forwards to may be connected to at once; a command is started by a guest that runs.
            let from =
                value.as_deref().and_then(|value| value.split_once('-')).map(|(from, _)| format!("{from}-cmd:true"));
            (*key, *value) = ("guestfwd".into(), from);
        }
    } else {
        private.remove("guestfwd");
    }
    private.set("restrict", "on");
    private
}
