//! The suite over loopback: TCP as the transport, UDP as the keepalive.

mod failover;

use mc_core::testing::conformance::{Fabric, KeepaliveFabric, run_all, run_all_keepalive};
use mc_core::testing::skip;
use rustix::io::ioctl_fionread;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread::sleep,
    time::Duration,
};
use transport_tcp::{LinkOptions, TcpLink, UdpKeepalive, reach::at_port};

/// Keeps a second handle on both streams, to break them and to look at what has arrived.
struct Loopback {
    at: IpAddr,
    /// A small one makes partial writes and full windows the rule.
    buffer_bytes: Option<usize>,
    streams: Option<(TcpStream, TcpStream)>,
}

impl Loopback {
    fn new(at: impl Into<IpAddr>, buffer_bytes: Option<usize>) -> Self {
        Self { at: at.into(), buffer_bytes, streams: None }
    }
}

impl Fabric for Loopback {
    type T = TcpLink;

    fn pair(&mut self, slab_size: usize, queue: usize) -> (TcpLink, TcpLink) {
        let listener = TcpListener::bind((self.at, 0)).unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (b, _) = listener.accept().unwrap();
        for stream in [&a, &b] {
            let socket = socket2::SockRef::from(stream);
            if let Some(bytes) = self.buffer_bytes {
                socket.set_send_buffer_size(bytes).unwrap();
                socket.set_recv_buffer_size(bytes).unwrap();
            }
        }
        self.streams = Some((a.try_clone().unwrap(), b.try_clone().unwrap()));
        let options = LinkOptions { queue, ..LinkOptions::default() };
        let link = |stream, name| TcpLink::with_options(stream, slab_size, name, &options).unwrap();
        (link(a, "b"), link(b, "a"))
    }

    /// A reset: an orderly close would wait behind what a stalled receiver does not read.
    fn cut(&mut self) {
        let (a, _) = self.streams.as_ref().unwrap();
        rustix::net::connect_unspec(a).unwrap();
    }

    fn settled(&mut self, _: &TcpLink, bytes: usize) -> bool {
        let (_, b) = self.streams.as_ref().unwrap();
        ioctl_fionread(b).unwrap() == bytes as u64
    }

    fn idle(&mut self) {
        sleep(Duration::from_micros(50));
    }
}

#[test]
fn tcp_conforms() {
    run_all(&mut Loopback::new(Ipv4Addr::LOCALHOST, None));
}

#[test]
fn tcp_conforms_with_buffers_smaller_than_a_slab() {
    run_all(&mut Loopback::new(Ipv4Addr::LOCALHOST, Some(16 << 10)));
}

#[test]
fn tcp_conforms_over_ipv6() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        skip("this machine has no IPv6 loopback");
        return;
    }
    run_all(&mut Loopback::new(Ipv6Addr::LOCALHOST, None));
}

struct Udp(Option<UdpSocket>);

impl KeepaliveFabric for Udp {
    type K = UdpKeepalive;

    fn pair(&mut self) -> (UdpKeepalive, UdpKeepalive) {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (a, b) = (UdpKeepalive::bind(at).unwrap(), UdpKeepalive::bind(at).unwrap());
        a.connect(at_port(at, b.local_port().unwrap())).unwrap();
        b.connect(at_port(at, a.local_port().unwrap())).unwrap();
        self.0 = Some(UdpSocket::from(a.as_fd().try_clone_to_owned().unwrap()));
        (a, b)
    }

    fn inject(&mut self, bytes: &[u8]) {
        self.0.as_ref().unwrap().send(bytes).unwrap();
    }
}

#[test]
fn udp_conforms() {
    run_all_keepalive(&mut Udp(None));
}
