//! Opening a TAP device by name: two ioctls on `/dev/net/tun` (Linux `Documentation/networking/tuntap.rst`,
//! `include/uapi/linux/if_tun.h`).

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Longest interface name in bytes: `IFNAMSIZ` less its NUL.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Opens the existing TAP device `name` in the caller's network namespace: whole Ethernet frames, without the packet
/// information header, non-blocking, close-on-exec. Offloads that an earlier user left on a persistent device are switched
/// off, so that every frame we read is complete, checksums included.
///
/// # Errors
/// `NotFound` when there is no such interface (the kernel would silently create a new one, joined to nothing) or no
/// `/dev/net/tun`; `EBUSY` when another process holds it; `EPERM` without CAP_NET_ADMIN; `EINVAL` when it is no plain TAP
/// device (tun mode, multi-queue).
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let request = request(name)?;
    exists(name)?;
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    attach(&fd, request)?;
    no_offloads(&fd)?;
    Ok(fd)
}

/// The interface request for `name`.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        return Err(Errno::INVAL.into());
    }
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_be_bytes([from]);
    }
    let ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("0x1002 fits");
    Ok(libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } })
}

/// Whether the namespace has an interface `name`.
///
/// # Errors
/// `NotFound` when it has none.
pub fn exists(name: &str) -> io::Result<()> {
    let any = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    match rustix::net::netdevice::name_to_index(&any, name) {
        Ok(_) => Ok(()),
        Err(Errno::NODEV) => Err(io::Error::new(io::ErrorKind::NotFound, "it does not exist")),
        Err(e) => Err(e.into()),
    }
}

fn attach(fd: &OwnedFd, mut request: libc::ifreq) -> io::Result<()> {
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, alive and exclusively ours for the call;
    // `fd` is open for as long as it is borrowed.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(rc)
}

/// Whether the device behind an open TAP descriptor is still there: one that was deleted stays open, joined to nothing.
///
/// # Errors
/// `EBADFD` when it is gone.
pub fn check_attached(fd: &OwnedFd) -> io::Result<()> {
    attached(fd).map(drop)
}

/// Whether the device behind an open TAP descriptor is up.
///
/// # Errors
/// As [`check_attached`]'s and [`check_up`]'s.
pub fn check_attached_up(fd: &OwnedFd) -> io::Result<()> {
    is_up(attached(fd)?)
}

/// Whether the namespace has an interface `name`, and an operator has set it up (`IFF_UP`): one that is down passes no frame.
///
/// # Errors
/// `NotFound` when it has none; `NetworkDown` when it is down.
pub fn check_up(name: &str) -> io::Result<()> {
    exists(name)?;
    is_up(request(name)?)
}

/// The request that names the device behind an open TAP descriptor, under whatever name it has by now.
fn attached(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    let mut found = request("any")?;
    // SAFETY: TUNGETIFF writes one `ifreq`, which `found` is, alive and exclusively ours for the call; `fd` is open for as
    // long as it is borrowed.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut found) };
    check(rc).map(|()| found)
}

fn is_up(mut request: libc::ifreq) -> io::Result<()> {
    let any = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq`, which `request` is, alive and exclusively ours for the call; `any` is
    // open until the end of this function.
    let rc = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    check(rc)?;
    // SAFETY: SIOCGIFFLAGS has written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    match libc::c_int::from(flags) & libc::IFF_UP {
        0 => Err(io::Error::new(io::ErrorKind::NetworkDown, "it is there, but it is down")),
        _ => Ok(()),
    }
}

fn no_offloads(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours; `fd` is open.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong) };
    check(rc)
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "a\0b", "sixteen-letters-"] {
            assert_eq!(open(name).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{name:?}");
        }
    }

    #[test]
    fn an_interface_that_does_not_exist_is_not_created() {
        assert_eq!(open("no-such-tap0").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(exists("no-such-tap0").unwrap_err().to_string(), "it does not exist");
        assert_eq!(check_up("no-such-tap0").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
