//! The address of a listener.

use node::address::parse_address;
use std::net::{Ipv4Addr, SocketAddr};

/// Reads "10.0.0.2:9180", or "9180", which is that port on loopback.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let port = text.parse().map_err(|_| format!("port {text} is out of range: expected 0 to 65535"))?;
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    parse_address(text).map_err(|why| format!("{why}, or a port alone for loopback"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        assert_eq!(parse_listen("9180"), Ok("127.0.0.1:9180".parse().unwrap()));
        assert_eq!(parse_listen("[::]:1"), Ok("[::]:1".parse().unwrap()));
        for text in ["", ":9180", "host:1", "10.0.0.1"] {
            assert!(parse_listen(text).unwrap_err().contains("for loopback"), "{text}");
        }
        for text in ["65536", "99999"] {
            let error = parse_listen(text).unwrap_err();
            assert_eq!(error, format!("port {text} is out of range: expected 0 to 65535"));
        }
    }
}
