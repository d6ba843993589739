//! Which arbiter: `witness://HOST:PORT` or `manual`. There is no word for "none".

use crate::address;
use std::{fmt, io, net::SocketAddr, net::ToSocketAddrs, str::FromStr};

/// A host and a port, looked up when it is used. IPv6 addresses stand in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name or an address, without brackets; a link-local one with its interface (`fe80::1%eth0`).
    pub host: String,
    /// Not 0.
    pub port: u16,
}

/// Why a text is no [`HostPort`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid HOST:PORT {text:?} ({why}): expected 10.0.0.2:7410, [fd00::2]:7410, [fe80::2%eth0]:7410, \
         standby.example:7410"
)]
pub struct HostPortError {
    text: String,
    why: &'static str,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let error = |why| HostPortError { text: text.to_owned(), why };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| error("no port"))?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(|| error("the port is 1 to 65535"))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if bare.is_none() && host.contains(':') {
            return Err(error("an IPv6 address stands in brackets"));
        }
        let host = bare.unwrap_or(host);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(allowed) {
            return Err(error("the host is a name or an address"));
        }
        if host.parse().is_ok_and(|ip: std::net::Ipv6Addr| ip.is_unicast_link_local()) {
            return Err(error("a link-local address needs its interface"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl HostPort {
    /// Every address that it stands for now. May wait for the name service.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if self.host.contains(':') {
            let mut address =
                address::parse_ip(&self.host).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            address.set_port(self.port);
            return Ok(vec![address]);
        }
        let addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        Ok(addresses.take(16).collect())
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            other => other.ip().to_string(),
        };
        Self { host, port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Which arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ArbiterSpec {
    /// `afterimage witness` there.
    Witness(HostPort),
    /// An operator: `afterimage takeover` and `afterimage solo`.
    Manual,
    /// What an embedder calls its own ([`super::Backend`]). No text of an operator means it.
    Other(String),
}

/// Why a text is no [`ArbiterSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArbiterSpecError {
    /// Neither of the two.
    #[error(
        "invalid arbiter {0:?}: expected witness://HOST:PORT (an `afterimage witness` on a third host), or manual (nothing is \
         promoted until an operator says so). Without an arbiter two hosts could run the VM at the same time, so there is no 'none'"
    )]
    Kind(String),
    /// `witness://`, and then no host and port.
    #[error("witness://…: {0}")]
    Witness(#[from] HostPortError),
}

impl FromStr for ArbiterSpec {
    type Err = ArbiterSpecError;

    fn from_str(text: &str) -> Result<Self, ArbiterSpecError> {
        match text.strip_prefix("witness://") {
            Some(address) => Ok(Self::Witness(address.strip_suffix('/').unwrap_or(address).parse()?)),
            None if text == "manual" => Ok(Self::Manual),
            None => Err(ArbiterSpecError::Kind(text.to_owned())),
        }
    }
}

impl fmt::Display for ArbiterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Witness(address) => write!(f, "witness://{address}"),
            Self::Manual => f.write_str("manual"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

crate::serde_as_text!(HostPort, ArbiterSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_comes_back_as_it_was_written() {
        for text in [
            "manual",
            "witness://10.0.0.9:7400",
            "witness://[fd00::9]:7400",
            "witness://[fe80::9%eth0]:7400",
            "witness://w.example:1",
        ] {
            assert_eq!(text.parse::<ArbiterSpec>().unwrap().to_string(), text);
        }
        assert_eq!("witness://w:7400/".parse::<ArbiterSpec>().unwrap().to_string(), "witness://w:7400");
    }

    #[test]
    fn nothing_means_none_and_errors_say_what_is_allowed() {
        for text in
            ["", "none", "off", "no", "null", "false", "0", "Manual", "manual ", "witness", "etcd://a:1", "a:7400"]
        {
            let error = text.parse::<ArbiterSpec>().unwrap_err().to_string();
            assert!(error.contains("witness://HOST:PORT") && error.contains("manual"), "{text:?}: {error}");
        }
        for text in [
            "",
            "w",
            "w:",
            "w:0",
            "w:65536",
            ":1",
            "fd00::9:7400",
            "[fd00::9]",
            "w:1:2",
            "a b:1",
            "a/b:1",
            "[fe80::9]:7400",
        ] {
            let error = format!("witness://{text}").parse::<ArbiterSpec>().unwrap_err().to_string();
            assert!(error.contains("expected 10.0.0.2:7410"), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_interface_is_part_of_a_link_local_address() {
        let to: HostPort = "[fe80::9%lo]:7400".parse().unwrap();
        let [SocketAddr::V6(address)] = to.addresses().unwrap()[..] else { panic!("one address") };
        assert!(address.scope_id() != 0 && address.port() == 7400, "{address}");
        let to: HostPort = "[fe80::9%nosuch0]:7400".parse().unwrap();
        assert!(to.addresses().unwrap_err().to_string().contains("no network interface is called \"nosuch0\" here"));
    }
}
