//! Why there is no device to use, and what to do about it.

use crate::ffi::LibraryError;
use std::{fmt::Display, io};

/// Why no device was chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// This host has no verbs library, or none that can be used.
    #[error("no RDMA: {0}")]
    NoLibrary(#[from] LibraryError),
    /// `ENOSYS`: /sys/class/infiniband_verbs is missing.
    #[error("this kernel has no RDMA: no verbs driver is loaded")]
    NoKernel,
    /// The list of devices could not be had.
    #[error("cannot list the RDMA devices: {0}")]
    List(#[source] io::Error),
    /// There is none.
    #[error("this machine has no RDMA device")]
    NoDevice,
    /// There is none of that name.
    #[error("no RDMA device is called {name:?}: there is {}", list(there))]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        there: Vec<String>,
    },
    /// The operating system forbids it.
    #[error("RDMA device {device}: /dev/infiniband may not be opened: permission denied")]
    Permission {
        /// Which.
        device: String,
    },
    /// Its port is not up.
    #[error("RDMA device {device}: port 1 is down{}", netdev.as_ref().map_or(String::new(), |n| format!(" (it is on {n})")))]
    PortDown {
        /// Which.
        device: String,
        /// The network interface below it, if known.
        netdev: Option<String>,
    },
    /// The device's table has no such entry.
    #[error("RDMA device {device}: GID index {index} is out of range: its table has {entries} entries")]
    GidOutOfRange {
        /// Which.
        device: String,
        /// What was asked for.
        index: u8,
        /// How many there are.
        entries: i32,
    },
    /// Nothing is there.
    #[error("RDMA device {device}: GID index {index} is empty: in use are {}", list(there))]
    GidEmpty {
        /// Which.
        device: String,
        /// What was asked for.
        index: u8,
        /// What there is.
        there: Vec<u8>,
    },
    /// RoCE v1 has no IP header: its packets are not routed, and many devices and all of SoftRoCE do not speak it.
    #[error("RDMA device {device}: GID index {index} is RoCE v1, and RoCE v2 is needed: it is at {}", list(v2))]
    RoceV1 {
        /// Which.
        device: String,
        /// What was asked for.
        index: u8,
        /// Where RoCE v2 is.
        v2: Vec<u8>,
    },
    /// Nothing that could be used is in the table.
    #[error("RDMA device {device}: no usable address (RoCE v2) in its GID table")]
    NoGid {
        /// Which.
        device: String,
    },
    /// Something else failed.
    #[error("RDMA device {device}: {doing}: {source}")]
    Verb {
        /// Which.
        device: String,
        /// What was tried.
        doing: &'static str,
        /// What the library or the driver said.
        source: io::Error,
    },
}

fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

const ENOSYS: Option<i32> = Some(rustix::io::Errno::NOSYS.raw_os_error());

impl DeviceError {
    /// What an attempt to list devices ended with.
    pub(super) fn listing(error: io::Error) -> Self {
        if error.raw_os_error() == ENOSYS { Self::NoKernel } else { Self::List(error) }
    }

    /// What an attempt to open `device` ended with.
    pub(super) fn opening(device: &str, source: io::Error) -> Self {
        let device = device.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { device },
            _ => Self::Verb { device, doing: "opening it", source },
        }
    }

    /// What to do about it, in a sentence.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::NoLibrary(LibraryError::NotInstalled) => {
                "install them (those are Debian's names; elsewhere they are part of rdma-core), or use TCP".to_owned()
            }
            Self::NoLibrary(_) => "install rdma-core of version 32 (2020) or later, or use TCP".to_owned(),
            Self::NoKernel | Self::NoDevice => {
                "load the driver of the RDMA adapter (with ib_uverbs), or for SoftRoCE: \
                `modprobe rdma_rxe` and `rdma link add rxe0 type rxe netdev NETDEV`; or use TCP"
                    .to_owned()
            }
            Self::List(_) | Self::Verb { .. } => {
                "look at `rdma link`, `ibv_devinfo` and `dmesg`; the driver's user-space part is in ibverbs-providers"
                    .to_owned()
            }
            Self::NoSuchDevice { .. } => "name one of those, or none for the default".to_owned(),
            Self::Permission { .. } => {
                "run as root, or let the user read and write /dev/infiniband/uverbs* (group `rdma` on many systems)"
                    .to_owned()
            }
            Self::PortDown { netdev, .. } => match netdev {
                Some(netdev) => format!("connect the link, and `ip link set {netdev} up`"),
                None => "connect the link, and set its network interface up; `rdma link` shows which it is".to_owned(),
            },
            Self::GidOutOfRange { .. } | Self::GidEmpty { .. } | Self::RoceV1 { .. } => {
                "`afterimage rdma devices` shows the table; without an index, a fitting entry is chosen".to_owned()
            }
            Self::NoGid { .. } => {
                "give its network interface an address, IPv6 link-local is enough; for a device that \
                can do both, set its RoCE mode to v2"
                    .to_owned()
            }
        }
    }
}
