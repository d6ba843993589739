//! What only UDP has: strangers, closed ports, options.

use mc_core::{transport::Keepalive, wire::beat};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};
use transport_tcp::{UdpKeepalive, reach::at_port};

const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn a_strangers_datagram_is_not_received() {
    let mut keepalive = UdpKeepalive::bind(HERE).unwrap();
    let peer = UdpSocket::bind(HERE).unwrap();
    let stranger = UdpSocket::bind(HERE).unwrap();
    let at = at_port(HERE, keepalive.local_port().unwrap());
    keepalive.connect(peer.local_addr().unwrap()).unwrap();
    stranger.send_to(&[1; beat::LEN], at).unwrap();
    peer.send_to(&[2; beat::LEN], at).unwrap();
    let mut buffer = [0; beat::LEN + 1];
    keepalive.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(keepalive.receive(&mut buffer).unwrap(), Some(beat::LEN));
    assert_eq!(buffer[0], 2);
    assert_eq!(keepalive.receive(&mut buffer).unwrap(), None);
}

#[test]
fn beats_to_nowhere_are_counted_as_lost() {
    let mut keepalive = UdpKeepalive::bind(HERE).unwrap();
    keepalive.send(&[0; beat::LEN]).expect_err("sending before connect is our own mistake");
    // From loopback there is no way to a documentation address (RFC 5737).
    if keepalive.connect(SocketAddr::from(([192, 0, 2, 1], 9))).is_ok() {
        keepalive.send(&[0; beat::LEN]).unwrap();
        keepalive.send(&[0; beat::LEN]).unwrap();
        assert!(keepalive.receive(&mut [0; beat::LEN + 1]).unwrap().is_none());
    }
    let closed = UdpSocket::bind(HERE).unwrap().local_addr().unwrap();
    let mut keepalive = UdpKeepalive::bind(HERE).unwrap();
    keepalive.connect(closed).unwrap();
    (0..10).for_each(|_| keepalive.send(&[0; beat::LEN]).unwrap());
    assert!(keepalive.lost() <= 10);
}

#[test]
fn beats_ask_for_precedence() {
    let keepalive = UdpKeepalive::bind(HERE).unwrap();
    let socket = socket2::SockRef::from(&keepalive);
    assert_eq!((socket.tos_v4().unwrap(), socket.priority().unwrap()), (0xc0, 6));
    assert!(keepalive.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn a_port_that_was_asked_for_is_taken_or_named() {
    let first = UdpKeepalive::bind(HERE).unwrap();
    let at = at_port(HERE, first.local_port().unwrap());
    let error = UdpKeepalive::bind_at(at).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("127.0.0.1, port {}: ", at.port())), "{error}");
    drop(first);
    assert_eq!(UdpKeepalive::bind_at(at).unwrap().local_port().unwrap(), at.port());
}

#[test]
fn an_address_that_is_not_ours_is_named() {
    let error = UdpKeepalive::bind(SocketAddr::from(([192, 0, 2, 1], 7))).unwrap_err().to_string();
    assert!(error.starts_with("cannot bind a UDP socket for beats to 192.0.2.1: "), "{error}");
}
