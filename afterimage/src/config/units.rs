//! Durations, sizes and NICs: as flags with their unit ("20ms", "64MiB"), in files with the unit in the key (`epoch_ms`).

use node::{
    address::parse_address,
    serde_as_text,
    units::{from_micros, parse_duration, whole},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// Reads "10.0.0.2:9180", or "9180", which is that port on loopback.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    port.or_else(|_| parse_address(text)).map_err(|why| format!("{why}, or a port alone for loopback"))
}

/// What a detection time may be multiplied by, and why not by less.
pub(super) const MULTIPLIERS: &str =
    "2 to 255 (1 bears no lost beat: the first that is lost, or late, would be a death)";
/// The least of them.
pub(super) const LEAST_MULTIPLIER: u8 = 2;

/// Reads "5": after how many missed beats a side is suspect.
pub fn parse_multiplier(text: &str) -> Result<u8, String> {
    let multiplier = text.parse().ok().filter(|multiplier| *multiplier >= LEAST_MULTIPLIER);
    multiplier.ok_or_else(|| format!("invalid multiplier {text:?}: allowed is {MULTIPLIERS}"))
}

/// `n` as an integer if it is one: "20", not "20.0".
fn number<S: Serializer>(n: f64, s: S) -> Result<S::Ok, S::Error> {
    #[expect(clippy::cast_possible_truncation, reason = "whole, and far below 2^53")]
    if n.fract() == 0.0 { s.serialize_i64(n as i64) } else { s.serialize_f64(n) }
}

/// A duration that a file writes in milliseconds, or with its unit as a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Millis(pub Duration);

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        number(self.0.as_secs_f64() * 1e9 / 1e6, s)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(MillisOrText)
    }
}

struct MillisOrText;

impl MillisOrText {
    fn millis<E: Error>(ms: f64) -> Result<Millis, E> {
        let millis = from_micros(ms * 1e3).map(Millis);
        millis.ok_or_else(|| E::custom(format!("{ms} ms: allowed is more than 0, to 3600000")))
    }
}

impl Visitor<'_> for MillisOrText {
    type Value = Millis;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("milliseconds, or a time with its unit such as \"20ms\"")
    }

    fn visit_i64<E: Error>(self, ms: i64) -> Result<Millis, E> {
        Self::millis(ms as f64)
    }

    fn visit_u64<E: Error>(self, ms: u64) -> Result<Millis, E> {
        Self::millis(ms as f64)
    }

    fn visit_f64<E: Error>(self, ms: f64) -> Result<Millis, E> {
        Self::millis(ms)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Millis, E> {
        parse_duration(text).map(Millis).map_err(E::custom)
    }
}

macro_rules! size {
    ($($(#[$doc:meta])* $t:ident $shift:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) struct $t(pub u64);

        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                number(self.0 as f64 / f64::from(1u32 << $shift), s)
            }
        }

        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let n = f64::deserialize(d)?;
                let bytes = whole(n * f64::from(1u32 << $shift));
                bytes.map(Self).ok_or_else(|| D::Error::custom(format!("{n}: allowed is a whole number of bytes up to 1 TiB")))
            }
        }
    )*};
}
size! {
    /// Bytes that a file writes in KiB.
    Kib 10;
    /// Bytes that a file writes in MiB.
    Mib 20;
}

/// A NIC of the VM: the unix socket of its `-netdev stream`, and the TAP device behind the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// Where QEMU's `-netdev stream` meets the gate.
    pub socket: PathBuf,
    /// The TAP device's name.
    pub tap: String,
}

impl FromStr for NicSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = |why| format!("invalid NIC {text:?} ({why}): allowed is SOCKET=TAP, such as /run/web.net=tap0");
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
    fn a_port_alone_is_on_loopback() {
        assert_eq!(parse_listen("9180"), Ok("127.0.0.1:9180".parse().unwrap()));
        assert_eq!(parse_listen("[::]:1"), Ok("[::]:1".parse().unwrap()));
        for text in ["", ":9180", "65536", "host:1", "10.0.0.1"] {
            assert!(parse_listen(text).unwrap_err().contains("for loopback"), "{text}");
        }
    }

    #[test]
    fn nics() {
        let nic: NicSpec = "/run/a=b.sock=tap0".parse().unwrap();
        assert_eq!((nic.socket.to_str(), nic.tap.as_str()), (Some("/run/a=b.sock"), "tap0"));
        for text in ["", "/run/web.net", "=tap0", "/run/web.net=", "/s=a/b", "/s=sixteen-bytes-xx", "/s=a b"] {
            assert!(text.parse::<NicSpec>().unwrap_err().contains("SOCKET=TAP"), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let json = |us| serde_json::to_string(&Millis(Duration::from_micros(us))).unwrap();
        for us in [1, 500, 1_001, 16_667, 20_000, 3_600_000_000] {
            let back: Millis = serde_json::from_str(&json(us)).unwrap();
            assert_eq!(back.0, Duration::from_micros(us));
        }
        assert_eq!((json(20_000).as_str(), json(500).as_str()), ("20", "0.5"));
        assert_eq!(serde_json::from_str::<Millis>("\"1h\"").unwrap().0, Duration::from_secs(3600));
        for (json, words) in [("\"1\"", "invalid duration"), ("true", "such as \"20ms\""), ("0", "more than 0")] {
            let error = serde_json::from_str::<Millis>(json).unwrap_err().to_string();
            assert!(error.contains(words), "{json}: {error}");
        }
        for bytes in [1, 1023, 64 << 20, (64 << 20) + 4096, (1 << 40) - 1] {
            let back: Mib = serde_json::from_str(&serde_json::to_string(&Mib(bytes)).unwrap()).unwrap();
            assert_eq!(back.0, bytes);
        }
    }
}
