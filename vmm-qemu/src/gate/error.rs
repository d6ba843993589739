//! What can go wrong at the gate. Whatever it is, output is kept or dropped, never let out (I6).

use super::framing::Oversized;
use mc_core::id::Epoch;
use std::{io, path::Path, path::PathBuf};

/// Why the gate refused or failed. Every message names the NIC by its socket, or the TAP device.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The TAP device could not be opened, or is down.
    #[error("TAP device {name}: {source}; {remedy}")]
    Tap {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do about it.
        remedy: String,
    },
    /// No QEMU listens on a NIC's socket.
    #[error(
        "NIC {}: {source}; start QEMU with -netdev stream,id=n0,server=on,addr.type=unix,addr.path={}",
        path.display(), path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The last attempt's error.
        source: io::Error,
    },
    /// QEMU serves one connection at a time, and others wait for their turn.
    #[error(
        "NIC {}: another process is connected to it, or waits to be; end that first. `ss -xp | grep {}` shows QEMU's end, and the \
         number of the other one; `ss -xp | grep NUMBER` shows the process",
        .0.display(), .0.display()
    )]
    Occupied(PathBuf),
    /// Another process than the VM's QEMU listens on a NIC's socket.
    #[error("NIC {}: the socket belongs to another process, not to this VM's QEMU", .0.display())]
    Stranger(PathBuf),
    /// QEMU closed a NIC's connection.
    #[error("NIC {}: QEMU closed the connection", .0.display())]
    Closed(PathBuf),
    /// A NIC's connection failed.
    #[error("NIC {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A NIC's peer does not speak the framing.
    #[error("NIC {}: {source}", path.display())]
    Framing {
        /// The socket.
        path: PathBuf,
        /// The length it claimed.
        source: Oversized,
    },
    /// The port behind a NIC failed for good: the TAP device was deleted, for example.
    #[error("the port behind NIC {}: {source}", path.display())]
    Port {
        /// The NIC's socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The VM was said to be stopped, yet kept sending.
    #[error("NIC {}: still sending {bytes} bytes into the barrier of {epoch}: is the VM stopped?", path.display())]
    Restless {
        /// The socket.
        path: PathBuf,
        /// The barrier's epoch.
        epoch: Epoch,
        /// Read before we gave up.
        bytes: usize,
    },
    /// A barrier out of order; the open batch stays open.
    #[error("barrier of {epoch} after that of {last}: epochs only rise")]
    Order {
        /// The barrier asked for.
        epoch: Epoch,
        /// The newest closed batch.
        last: Epoch,
    },
    /// A limit of held bytes that does not hold one read.
    #[error("a gate that holds {0} bytes is too small, give it at least {min}", min = super::HELD_LIMIT_MIN)]
    Limit(usize),
    /// More NICs than the gate can number.
    #[error("{0} NICs, the limit is {max}", max = super::NICS_MAX)]
    TooManyNics(usize),
    /// The gate was shut: this side is fenced.
    #[error("the gate is shut: this side is fenced")]
    Shut,
}

impl GateError {
    /// A failure to open the TAP device `name`, with the remedy that fits.
    pub(super) fn tap(name: &str, source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "run with CAP_NET_ADMIN, or give the device to this user".to_owned(),
            Some(libc::EBUSY) => "another process has it open: stop that, or use another device".to_owned(),
            Some(libc::EINVAL) => format!(
                "a name has 1 to {} bytes, and the device must be a single-queue TAP: ip tuntap add dev {name} mode tap",
                crate::sys::tap::NAME_MAX
            ),
            _ if source.kind() == io::ErrorKind::NetworkDown => format!("set it up with: ip link set {name} up"),
            _ => format!(
                "make it with: ip tuntap add dev {name} mode tap && ip link set {name} up (needs CAP_NET_ADMIN and /dev/net/tun)"
            ),
        };
        Self::Tap { name: name.to_owned(), source, remedy }
    }

    /// A failure of the connection to `path`.
    pub(super) fn socket(path: &Path, source: io::Error) -> Self {
        Self::Socket { path: path.to_owned(), source }
    }

    /// Whether a TAP device is not there, as against one that another process has, or that this one may not open.
    #[must_use]
    pub fn is_missing_tap(&self) -> bool {
        matches!(self, Self::Tap { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether something must be set up before a new attempt can work (exit code 6), as against a failure while running.
    #[must_use]
    pub fn is_prerequisite(&self) -> bool {
        matches!(self, Self::Tap { .. } | Self::Connect { .. } | Self::Occupied(_))
    }
}

impl From<GateError> for io::Error {
    fn from(error: GateError) -> Self {
        let kind = match &error {
            GateError::Tap { source, .. }
            | GateError::Connect { source, .. }
            | GateError::Socket { source, .. }
            | GateError::Port { source, .. } => source.kind(),
            GateError::Occupied(_) => io::ErrorKind::ResourceBusy,
            GateError::Closed(_) => io::ErrorKind::UnexpectedEof,
            GateError::Stranger(_) => io::ErrorKind::ConnectionRefused,
            GateError::Framing { .. } => io::ErrorKind::InvalidData,
            GateError::Restless { .. } => io::ErrorKind::Other,
            GateError::Order { .. } | GateError::Limit(_) | GateError::TooManyNics(_) => io::ErrorKind::InvalidInput,
            GateError::Shut => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}
