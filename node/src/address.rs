//! Addresses of hosts as operators write them. An IPv6 link-local one means something only together with an interface of this
//! host (RFC 4007, 11): `fe80::1%eth0`, by the interface's name or its number.

use crate::serde_as_text;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use std::{
    fmt,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

/// Reads "10.0.0.2", "fd00::2", "fe80::2%eth0". The port of what comes out is 0.
pub fn parse_ip(text: &str) -> Result<SocketAddr, String> {
    let (bare, zone) = text.split_once('%').map_or((text, None), |(bare, zone)| (bare, Some(zone)));
    match (bare.parse(), zone) {
        (Ok(IpAddr::V6(ip)), Some(zone)) => Ok(SocketAddrV6::new(ip, 0, 0, interface(zone)?).into()),
        (Ok(IpAddr::V6(ip)), None) if ip.is_unicast_link_local() => {
            Err(format!("{ip} is link-local: say of which interface, such as {ip}%eth0"))
        }
        (Ok(ip), None) => Ok(SocketAddr::new(ip, 0)),
        _ => Err(format!("{text:?} is not an IP address; allowed: 10.0.0.2, fd00::2, fe80::2%eth0")),
    }
}

/// Reads `10.0.0.2:7410`, `[fd00::2]:7410`, `[fe80::2%eth0]:7410`.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let error = || {
        format!("{text:?} is not an address and a port; allowed: 10.0.0.2:7410, [fd00::2]:7410, [fe80::2%eth0]:7410")
    };
    let Some((host, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]:")) else {
        return text.parse().map_err(|_| error());
    };
    let mut address = parse_ip(host)?;
    address.set_port(port.parse().map_err(|_| error())?);
    if address.is_ipv4() { Err(error()) } else { Ok(address) }
}

/// The index of an interface of this host.
fn interface(zone: &str) -> Result<u32, String> {
    if let Ok(index) = zone.parse() {
        return Ok(index);
    }
    let found = socket(AddressFamily::INET, SocketType::DGRAM, None).and_then(|fd| name_to_index(fd, zone));
    found.map_err(|error| match error {
        rustix::io::Errno::NODEV => format!("no network interface is called {zone:?} here"),
        other => format!("looking for network interface {zone:?}: {other}"),
    })
}

/// An address of this host, to connect from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddr(SocketAddr);

impl LocalAddr {
    /// With port 0: any.
    #[must_use]
    pub fn any_port(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for LocalAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_ip(text).map(Self)
    }
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => write!(f, "{}%{}", v6.ip(), v6.scope_id()),
            other => write!(f, "{}", other.ip()),
        }
    }
}

/// An address to listen on, as a file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_address(text).map(Self)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
serde_as_text!(LocalAddr, Listen);

#[cfg(test)]
mod tests {
    use super::*;

    /// Loopback has an index everywhere; usually 1.
    fn lo() -> u32 {
        interface("lo").unwrap()
    }

    #[test]
    fn a_zone_is_kept_by_name_and_by_number() {
        let zone = |address: SocketAddr| match address {
            SocketAddr::V6(v6) => v6.scope_id(),
            SocketAddr::V4(_) => 0,
        };
        let address = parse_address("[fe80::1%lo]:7410").unwrap();
        assert_eq!((zone(address), address.port()), (lo(), 7410));
        assert_eq!(parse_address(&address.to_string()), Ok(address), "as a parent hands it to its child");
        let bind: LocalAddr = "fe80::1%lo".parse().unwrap();
        assert_eq!(zone(bind.any_port()), lo());
        assert_eq!(bind.to_string().parse(), Ok(bind));
        assert_eq!(zone(parse_ip("fe80::1%77").unwrap()), 77);
    }

    #[test]
    fn what_is_allowed() {
        for text in ["10.0.0.2:7410", "[fd00::2]:7410", "[::]:0", "[::1%1]:1"] {
            assert_eq!(parse_address(text).unwrap().to_string(), text);
        }
        for text in ["10.0.0.2", "fd00::2", "::1"] {
            assert_eq!(text.parse::<LocalAddr>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_says_what_is() {
        for (text, words) in [
            ("", "[fe80::2%eth0]:7410"),
            ("10.0.0.2", "[fe80::2%eth0]:7410"),
            ("host:1", "[fe80::2%eth0]:7410"),
            ("[10.0.0.2]:1", "[fe80::2%eth0]:7410"),
            ("[fd00::2]:x", "[fe80::2%eth0]:7410"),
            ("[fe80::2]:1", "fe80::2%eth0"),
            ("[fe80::2%nosuch0]:1", "no network interface is called \"nosuch0\" here"),
            ("[x%lo]:1", "is not an IP address"),
        ] {
            let error = parse_address(text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(parse_ip("10.0.0.2%lo").unwrap_err().contains("is not an IP address"));
    }
}
