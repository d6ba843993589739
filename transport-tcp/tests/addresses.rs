//! A name that stands for several addresses.

use mc_core::{
    id::{Generation, Incarnation, Name, Node, NodeId, WitnessId},
    testing::skip,
    wire::{
        beat::BeatKey,
        session::{Hello, Purpose, VERSIONS},
    },
};
use socket2::{Domain, Socket, Type};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread::spawn,
    time::Duration,
};
use transport_tcp::{
    UdpKeepalive,
    session::{Call, Listener, SessionOptions},
};

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENT: Duration = Duration::from_secs(30);

fn hello(node: &str) -> Hello {
    Hello {
        versions: VERSIONS,
        slab_size: 64 << 10,
        staging_slabs: 32,
        rdma: false,
        incarnation: Incarnation(42),
        generation: Generation(7),
        purpose: Purpose::Protect(Name::new("db1").unwrap()),
        node: Node { name: Name::new(node).unwrap(), id: NodeId([node.as_bytes()[0]; 16]) },
        witness: WitnessId::NONE,
        instance: 1,
        beat_key: BeatKey([5; 32]),
        beat_port: 4000,
        detect_multiplier: 5,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
    }
}

fn options(deadline: Duration) -> SessionOptions {
    SessionOptions { deadline, ..SessionOptions::default() }
}

/// Of loopback, and nobody listens.
fn closed(at: impl Into<std::net::IpAddr>) -> Option<SocketAddr> {
    Some(TcpListener::bind((at.into(), 0)).ok()?.local_addr().unwrap())
}

/// An address that takes no connection and says nothing: its backlog is full, so that the kernel drops what comes.
fn mute() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&HERE.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (socket, waiting, addr)
}

#[test]
fn the_addresses_of_the_connection_are_known_before_anything_is_said() {
    let Some(first) = closed(Ipv6Addr::LOCALHOST) else { return skip("no IPv6 loopback") };
    let mut listener = Listener::bind(HERE, SessionOptions::default()).unwrap();
    let second = listener.local_addr();
    let call = Call::connect("two", &[first, second], None, &options(PATIENT)).unwrap();
    assert_eq!(call.local_addr().ip(), HERE.ip(), "it is connected to the second one");
    // Beats go between the addresses of the connection: not from the first address of the name.
    let ours = UdpKeepalive::bind(call.local_addr()).unwrap();
    let hello_of_ours = Hello { beat_port: ours.local_port().unwrap(), ..hello("left") };
    let primary = spawn(move || call.shake_hands(&hello_of_ours, &[], None).unwrap());
    let offer = listener.accept(PATIENT).unwrap().expect("an offer");
    assert_eq!(offer.hello.beat_port, ours.local_port().unwrap());
    offer.accept(hello("right"), &[], None).unwrap();
    assert_eq!(primary.join().unwrap().local_addr.ip(), HERE.ip());
}

#[test]
fn an_address_that_says_nothing_leaves_the_others_time() {
    let (_socket, _waiting, silent) = mute();
    let mut listener = Listener::bind(HERE, SessionOptions::default()).unwrap();
    let addresses = [silent, listener.local_addr()];
    let primary = spawn(move || {
        let call = Call::connect("two", &addresses, None, &options(Duration::from_secs(4)))?;
        call.shake_hands(&hello("left"), &[], None)
    });
    listener.accept(PATIENT).unwrap().expect("an offer").accept(hello("right"), &[], None).unwrap();
    primary.join().unwrap().unwrap();
}

/// A wire that drops everything: whoever calls again is heard as soon as it is mended.
#[test]
fn to_connect_takes_a_part_of_the_time_only() {
    let (_socket, _waiting, silent) = mute();
    let options = SessionOptions { connect: Duration::from_millis(300), ..options(PATIENT) };
    let error = Call::connect("x", &[silent], None, &options).unwrap_err().to_string();
    assert!(error.contains("no answer within 0.3 s"), "{error}");
}

#[test]
fn every_address_that_failed_is_named_and_why() {
    let (_socket, _waiting, silent) = mute();
    let closed = closed(Ipv4Addr::LOCALHOST).unwrap();
    let ours = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
    let from = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let error = Call::connect("two", &[closed, ours, silent], from, &options(Duration::from_millis(600))).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with(&format!("cannot connect to two: {closed}: Connection refused")), "{error}");
    assert!(error.contains("; [::1]:9: not of the family of 127.0.0.1"), "{error}");
    assert!(error.contains(&format!("; {silent}: no answer within ")), "{error}");

    let error = Call::connect("nobody", &[], None, &SessionOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "cannot connect to nobody: it stands for no address");
    let from = Some(SocketAddr::from(([192, 0, 2, 1], 0)));
    let error = Call::connect("x", &[closed], from, &SessionOptions::default()).unwrap_err().to_string();
    assert!(error.contains("leaving from 192.0.2.1: Cannot assign requested address"), "{error}");
}
