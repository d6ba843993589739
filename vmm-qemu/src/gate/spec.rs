//! A NIC, as operators write it.

use node::serde_as_text;
use std::{fmt, path::PathBuf, str::FromStr};

/// A NIC of the VM: the unix socket of its `-netdev stream`, and the TAP device behind the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// The unix socket on which QEMU listens: `-netdev stream,id=n0,server=on,addr.type=unix,addr.path=SOCKET`.
    pub socket: PathBuf,
    /// The existing TAP device behind the gate.
    pub tap: String,
}

impl FromStr for NicSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = |why| format!("invalid NIC {text:?} ({why}): expected SOCKET=TAP, such as /run/web.net=tap0");
        let (socket, tap) = text.rsplit_once('=').ok_or_else(|| error("no '='"))?;
        if socket.is_empty() {
            return Err(error("no socket"));
        }
        // IFNAMSIZ is 16, with the terminating zero; dev_valid_name() in the kernel refuses the rest.
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if tap.is_empty() || tap.len() > 15 || tap == "." || tap == ".." || tap.contains(bad) {
            return Err(error("a TAP device's name has 1 to 15 bytes, without '/', ':' and spaces"));
        }
        Ok(Self { socket: socket.into(), tap: tap.into() })
    }
}

impl fmt::Display for NicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.socket.display(), self.tap)
    }
}
serde_as_text!(NicSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nics() {
        let nic: NicSpec = "/run/a=b.sock=tap0".parse().unwrap();
        assert_eq!((nic.socket.to_str(), nic.tap.as_str()), (Some("/run/a=b.sock"), "tap0"));
        for text in ["", "/run/web.net", "=tap0", "/run/web.net=", "/s=a/b", "/s=sixteen-bytes-xx", "/s=a b"] {
            assert!(text.parse::<NicSpec>().unwrap_err().contains("SOCKET=TAP"), "{text}");
        }
    }
}
