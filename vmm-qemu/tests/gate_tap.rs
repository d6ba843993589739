//! The gate over a real TAP device, in a network namespace of the test's own.

mod gate_common;

use gate_common::{Qemu, waits};
use mc_core::{gate::OutputGate, id::Epoch, testing::skip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{
    io::ErrorKind,
    net::UdpSocket,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use vmm_qemu::gate::{GateError, HELD_LIMIT_MIN, Mode, NicGate, NicParts, NicSpec, Options, TapPort};

const HOST: [u8; 4] = [10, 77, 0, 1];
const GUEST: [u8; 4] = [10, 77, 0, 2];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A network namespace; deleted when dropped.
struct Namespace(String);

impl Namespace {
    /// A new one, with the calling thread in it.
    fn enter() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gate-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if !ip(&format!("netns add {name}")) {
            return Err("ip netns add failed".into());
        }
        let namespace = Self(name);
        let file = std::fs::File::open(format!("/run/netns/{}", namespace.0)).map_err(|e| e.to_string())?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(file.as_fd(), kind).map_err(|e| e.to_string())?;
        std::fs::File::open("/dev/net/tun").map_err(|e| format!("/dev/net/tun: {e}"))?;
        if !ip("tuntap add dev tap0 mode tap") {
            return Err("ip tuntap add failed".into());
        }
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

/// Runs `test` on a thread with a network namespace of its own and a TAP device `tap0`, or says why it can't.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let named = std::thread::Builder::new().name(std::thread::current().name().unwrap_or_default().to_owned());
    let thread = named.spawn(move || match Namespace::enter() {
        Ok(_namespace) => test(),
        Err(why) => skip(why),
    });
    thread.unwrap().join().unwrap();
}

/// `ip ARGS`, in the thread's namespace.
fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).output().is_ok_and(|o| o.status.success())
}

fn set_up() -> (NicGate, Qemu) {
    for args in [
        "link set tap0 address 02:00:00:00:00:01 up",
        "addr add 10.77.0.1/24 dev tap0",
        "neigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev tap0",
    ] {
        assert!(ip(args), "ip {args}");
    }
    let mut qemu = Qemu::listen(0);
    let spec = NicSpec { socket: qemu.path.clone(), tap: "tap0".into() };
    let options = Options { held_limit_bytes: HELD_LIMIT_MIN, mode: Mode::Holding };
    let mut gate = NicGate::new(vec![spec], options).unwrap();
    gate.connect(Duration::from_secs(5)).unwrap();
    qemu.accept();
    (gate, qemu)
}

/// The one's complement sum that IP and UDP use, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// An Ethernet frame with a UDP datagram from the guest to `port` of the host; UDP checksum 0, "none".
fn udp_frame(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + 8 + length).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(GUEST);
    ip.extend(HOST);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let udp = [4000u16.to_be_bytes(), port.to_be_bytes(), (8 + length).to_be_bytes(), [0, 0]].concat();
    [&HOST_MAC[..], &GUEST_MAC, &[8, 0], &ip, &udp, payload].concat()
}

/// Whether `frame` is a UDP datagram to the guest whose checksum is right.
fn is_whole_udp_to_guest(frame: &[u8]) -> bool {
    if frame.len() < 42 || frame[..6] != GUEST_MAC || frame[12..14] != [8, 0] || frame[23] != 17 {
        return false;
    }
    let udp = &frame[34..];
    let pseudo = [&frame[26..34], &[0, 17], &udp[4..6], udp].concat();
    checksum(&pseudo) == 0
}

#[test]
fn frames_cross_a_tap_device_both_ways() {
    in_namespace(|| {
        let (mut gate, mut qemu) = set_up();
        let host = UdpSocket::bind("10.77.0.1:0").unwrap();
        host.set_nonblocking(true).unwrap();
        let port = host.local_addr().unwrap().port();

        qemu.send(&udp_frame(port, b"held"));
        gate.barrier(Epoch(1)).unwrap();
        let mut buf = [0; 100];
        assert_eq!(host.recv(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
        gate.release(Epoch(1)).unwrap();
        assert_eq!(wait(|| host.recv(&mut buf).ok()), 4);
        assert_eq!(&buf[..4], b"held");

        // Again and again: the kernel drops what is sent before it has noticed the new carrier.
        let frame = wait(|| {
            host.send_to(b"to the guest", "10.77.0.2:4000").unwrap();
            gate.poll().unwrap();
            qemu.receive().into_iter().find(|f| f.ends_with(b"to the guest"))
        });
        assert!(is_whole_udp_to_guest(&frame), "checksum left to an offload that nobody does: {frame:02x?}");
        assert!(gate.stats().inbound_packets > 0);
        assert_eq!(waits(&gate), 2);
    });
}

#[test]
fn a_link_that_is_down_loses_frames_and_a_deleted_device_is_reported() {
    in_namespace(|| {
        let (mut gate, mut qemu) = set_up();
        assert!(ip("link set tap0 down"));
        gate.open().unwrap();
        qemu.send(&udp_frame(9, b"lost"));
        gate.poll().unwrap();
        assert_eq!((gate.drops().port, gate.stats().held_packets), (1, 0));
        assert!(ip("link set tap0 up"));
        qemu.send(&udp_frame(9, b"out"));
        gate.poll().unwrap();
        assert_eq!(gate.stats().released_packets, 1);

        let specs = [NicSpec { socket: qemu.path.clone(), tap: "tap0".into() }];
        gate.mend_ports(&specs).unwrap();
        assert!(ip("link del tap0"));
        let gone = gate.mend_ports(&specs).unwrap_err();
        assert!(
            gone.is_missing_tap() && gone.to_string().contains("TAP device tap0"),
            "before a frame is lost: {gone}"
        );
        let error = gate.poll().unwrap_err();
        assert!(error.to_string().contains("the port behind NIC"), "{error}");
        gate.poll().unwrap();
        assert_eq!(waits(&gate), 1, "a dead device would wake us for ever");

        // Made again, it is another device: the gate is joined to it, and the NIC never noticed.
        assert!(ip("tuntap add dev tap0 mode tap"));
        let down = gate.mend_ports(&specs).unwrap_err();
        assert!(!down.is_missing_tap() && down.to_string().contains("ip link set tap0 up"), "{down}");
        assert!(ip("link set tap0 up"));
        gate.mend_ports(&specs).unwrap();
        qemu.send(&udp_frame(9, b"out again"));
        gate.poll().unwrap();
        assert_eq!(gate.stats().released_packets, 2);
    });
}

#[test]
fn devices_that_cannot_be_opened_are_named_with_a_remedy() {
    in_namespace(|| {
        let said = |name: &str| {
            let error = TapPort::open(name).unwrap_err();
            assert!(matches!(error, GateError::Tap { .. }) && error.is_prerequisite());
            error.to_string()
        };
        assert!(said("tap9").contains("TAP device tap9: ") && said("tap9").contains("ip tuntap add dev tap9 mode tap"));
        assert!(!ip("link show tap9"), "not created behind the operator's back");
        assert!(said("lo").contains("must be a single-queue TAP"), "{}", said("lo"));
        assert!(TapPort::is_up("tap0").unwrap_err().to_string().contains("ip link set tap0 up"));
        assert!(ip("link set tap0 up"));
        TapPort::is_up("tap0").unwrap();
        let _first = TapPort::open("tap0").unwrap();
        assert!(said("tap0").contains("another process has it open"), "{}", said("tap0"));
    });
}

#[test]
fn another_process_carries_on_without_losing_a_frame_or_the_carrier() {
    in_namespace(|| {
        let (mut gate, mut qemu) = set_up();
        let host = UdpSocket::bind("10.77.0.1:0").unwrap();
        host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let port = host.local_addr().unwrap().port();
        gate.open().unwrap();
        let whole = Qemu::wire(&udp_frame(port, b"cut in two"));
        qemu.raw(&whole[..20]);
        gate.poll().unwrap();
        assert!(!gate.at_rest(), "half a frame is here");
        assert!(gate.lend().all(|(stream, tap)| stream.is_none() && tap.is_some()), "such a connection stays");
        qemu.raw(&whole[20..]);
        gate.poll().unwrap();
        assert!(gate.at_rest());
        let mut buf = [0; 100];
        assert_eq!(host.recv(&mut buf).unwrap(), 10);

        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        let spec = NicSpec { socket: qemu.path.clone(), tap: "tap0".into() };
        let part = |(stream, tap): (Option<_>, Option<_>)| NicParts {
            spec: spec.clone(),
            stream: stream.map(own),
            tap: tap.map(own),
        };
        let parts = gate.lend().map(part).collect();
        qemu.send(&udp_frame(port, b"in between"));
        let mut next =
            NicGate::from_parts(parts, Options { held_limit_bytes: HELD_LIMIT_MIN, mode: Mode::Open }).unwrap();
        gate.shut();
        next.poll().unwrap();
        assert_eq!(host.recv(&mut buf).unwrap(), 10);
        assert_eq!(&buf[..10], b"in between");
        let link = Command::new("ip").args(["link", "show", "tap0"]).output().unwrap().stdout;
        assert!(String::from_utf8_lossy(&link).contains("LOWER_UP"), "a bridge would not have noticed");
    });
}

#[test]
fn what_was_lost_comes_back_but_not_from_a_stranger() {
    in_namespace(|| {
        let (mut gate, mut qemu) = set_up();
        let specs = [NicSpec { socket: qemu.path.clone(), tap: "tap0".into() }];
        assert!(ip("link del tap0"));
        gate.poll().unwrap_err();
        qemu.hang_up();
        gate.poll().unwrap_err();
        assert!(gate.mend(&specs, |_| true).unwrap_err().to_string().contains("TAP device tap0"));
        qemu.accept();
        assert!(gate.nics().all(|nic| nic.connected && !nic.port_works), "one does not wait for the other");
        assert!(ip("tuntap add dev tap0 mode tap"));
        assert!(gate.mend(&specs, |_| true).unwrap_err().to_string().contains("ip link set tap0 up"));
        assert!(gate.nics().all(|nic| nic.port_works), "it is joined to the device that is down");
        assert!(ip("link set tap0 up"));
        gate.mend(&specs, |_| true).unwrap();
        assert!(gate.nics().all(|nic| nic.connected && nic.port_works));
        qemu.hang_up();
        gate.poll().unwrap_err();
        assert!(
            gate.mend(&specs, |_| false).unwrap_err().to_string().contains("another process, not to this VM's QEMU")
        );
        assert!(gate.nics().all(|nic| !nic.connected));
        gate.shut();
        assert!(matches!(gate.mend(&specs, |_| true), Err(GateError::Shut)));
    });
}

/// Tries until `probe` has something; the deadline only guards against a hang.
fn wait<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}
