//! Which RDMA devices there are, and which of them, with which address, to use.
//!
//! Discovery and the GID table come from the `ibverbs` crate; what is chosen is opened through [`crate::ffi`].
//!
//! # The default
//!
//! The device whose GID table has the local address of the connection to the peer; if none has, the first one whose port
//! is up. Of its table: that address; else, unless the connection is local, the first of its family; else the first entry of
//! RoCE v2, which may be link-local: good on one network, not through a router. On InfiniBand the first entry.

mod error;
pub mod probe;
mod select;

pub use error::DeviceError;

use crate::{
    ffi::{self, Context},
    rc::Place,
    types::{Gid, PORT, Port},
};
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name};
use serde::{Serialize, Serializer};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What was asked for. What is `None` is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The device's name.
    pub device: Option<String>,
    /// The entry of its GID table.
    pub gid_index: Option<u8>,
    /// The local address of the connection to the peer; a link-local one with its interface.
    pub local: Option<SocketAddr>,
}

/// A device and an address of it, opened.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The open device.
    pub context: Arc<Context>,
    /// Its name.
    pub device: String,
    /// The entry of its GID table.
    pub gid_index: u8,
    /// What is there.
    pub gid: Gid,
    /// What kind of address that is.
    pub kind: GidKind,
    /// The port, as it was a moment ago; its MTU is the path's upper bound.
    pub port: Port,
    /// The network interface of the address, by index; 0 for none.
    pub ifindex: u32,
    /// Why these.
    pub why: String,
}

impl Choice {
    /// As a reliable link wants it.
    #[must_use]
    pub fn place(&self) -> Place {
        let (context, Port { lid, mtu, mbit, .. }) = (Arc::clone(&self.context), self.port);
        Place {
            context,
            gid_index: self.gid_index,
            gid: self.gid,
            lid,
            mtu,
            mbit,
            software: crate::rc::is_software(&self.device),
        }
    }
}

/// What an entry of a GID table is good for (`enum ibv_gid_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum GidKind {
    /// InfiniBand.
    #[serde(rename = "IB")]
    Ib,
    /// Ethernet frames without IP: not used here.
    #[serde(rename = "RoCE v1")]
    RoceV1,
    /// UDP over IP.
    #[serde(rename = "RoCE v2")]
    RoceV2,
}

impl GidKind {
    /// As in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ib => "IB",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
        }
    }
}

/// An entry of a GID table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GidInfo {
    /// Its index.
    pub index: u8,
    /// What it is good for.
    pub kind: GidKind,
    /// The address.
    #[serde(serialize_with = "as_address")]
    pub gid: Gid,
    /// The network interface that it comes from.
    pub netdev: Option<String>,
    /// The same, as the kernel's index; 0 for none.
    #[serde(skip)]
    pub ifindex: u32,
}

fn as_address<S: Serializer>(gid: &Gid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&select::ip_of(*gid))
}

impl GidInfo {
    /// As an IP address; an IPv4 one that is mapped into it as itself.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        select::ip_of(self.gid)
    }
}

/// Why nothing more is known of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// /dev/infiniband may not be opened.
    Permission,
    /// In the system's words.
    Other(String),
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Its first port.
    pub port: Option<Port>,
    /// The network interface below, if it is RoCE.
    pub netdev: Option<String>,
    /// The GID table of the first port without its empty entries; none while the port is down.
    pub gids: Vec<GidInfo>,
    /// What keeps it from being used.
    pub trouble: Option<Trouble>,
    /// Set for the one that [`choose`] takes when nothing is asked for.
    pub default: Option<DefaultChoice>,
}

/// The default's address, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DefaultChoice {
    /// The entry of the GID table.
    pub gid_index: u8,
    /// Why this device and this entry.
    pub why: String,
}

impl DeviceInfo {
    fn new(name: &str) -> Self {
        Self { name: name.into(), port: None, netdev: None, gids: vec![], trouble: None, default: None }
    }

    /// What can be chosen without asking for it.
    fn usable_gids(&self) -> impl Iterator<Item = &GidInfo> {
        let ethernet = self.port.is_some_and(|p| p.ethernet);
        let wanted = if ethernet { GidKind::RoceV2 } else { GidKind::Ib };
        self.gids.iter().filter(move |g| g.kind == wanted)
    }
}

/// All devices; the default one says so.
///
/// # Errors
/// There is no library, the kernel has no RDMA, or the list cannot be had. What is wrong with one device is said there: [`DeviceInfo::trouble`].
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    ffi::open_library()?;
    let list = ibverbs::devices().map_err(DeviceError::listing)?;
    let mut devices: Vec<_> = list.iter().map(|device| look_at(&device)).collect();
    let default = select::select(&devices, &Wish::default()).ok();
    let default = default.map(|(device, gid, why)| (device.name.clone(), DefaultChoice { gid_index: gid.index, why }));
    if let Some((name, default)) = default {
        devices.iter_mut().filter(|d| d.name == name).for_each(|d| d.default = Some(default.clone()));
    }
    Ok(devices)
}

fn look_at(device: &ibverbs::Device<'_>) -> DeviceInfo {
    let name = device.name().map_or_else(|| "?".into(), |n| n.to_string_lossy());
    let mut info = DeviceInfo::new(&name);
    if let Err(error) = fill(&mut info, device) {
        info.trouble = Some(match error.kind() {
            io::ErrorKind::PermissionDenied => Trouble::Permission,
            _ => Trouble::Other(error.to_string()),
        });
    }
    info
}

fn fill(info: &mut DeviceInfo, device: &ibverbs::Device<'_>) -> io::Result<()> {
    // First through ffi: `ibverbs` neither says why a device cannot be opened, nor opens one whose port is down.
    let port = Context::open(&info.name)?.port(PORT)?;
    info.port = Some(port);
    info.netdev = below(&info.name);
    if port.active {
        let context = device.open()?;
        info.gids = context.gid_table().iter().filter_map(gid_info).collect();
        info.netdev = info.gids.iter().find_map(|g| g.netdev.clone()).or(info.netdev.take());
    }
    Ok(())
}

/// The first network interface below a device, as far as sysfs shows it: good for one whose port is down.
fn below(device: &str) -> Option<String> {
    let file = format!("/sys/class/infiniband/{device}/ports/{PORT}/gid_attrs/ndevs/0");
    std::fs::read_to_string(file).ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn gid_info(entry: &ibverbs::GidEntry) -> Option<GidInfo> {
    if entry.port_num != u32::from(PORT) {
        return None;
    }
    let mut gid = [0; 16];
    gid[..8].copy_from_slice(&entry.gid.subnet_prefix().to_be_bytes());
    gid[8..].copy_from_slice(&entry.gid.interface_id().to_be_bytes());
    let kind = match entry.gid_type {
        // `enum ibv_gid_type` of <infiniband/verbs.h>: the crate gives the type, but not its names.
        0 => GidKind::Ib,
        1 => GidKind::RoceV1,
        _ => GidKind::RoceV2,
    };
    let (index, ifindex) = (u8::try_from(entry.gid_index).ok()?, entry.ndev_ifindex);
    Some(GidInfo { index, kind, gid, netdev: interface(ifindex), ifindex })
}

fn interface(ifindex: u32) -> Option<String> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    index_to_name(socket, ifindex).ok()
}

/// Chooses and opens: see the module for the default.
///
/// # Errors
/// In words, each with a [`DeviceError::remedy`].
pub fn choose(wish: &Wish) -> Result<Choice, DeviceError> {
    let devices = devices()?;
    let (device, gid, why) = select::select(&devices, wish)?;
    let context = Context::open(&device.name).map_err(|e| DeviceError::opening(&device.name, e))?;
    let port = context.port(PORT);
    let verb = |source| DeviceError::Verb { device: device.name.clone(), doing: "asking for its port's state", source };
    Ok(Choice {
        port: port.map_err(verb)?,
        context,
        device: device.name.clone(),
        gid_index: gid.index,
        gid: gid.gid,
        kind: gid.kind,
        ifindex: gid.ifindex,
        why,
    })
}
