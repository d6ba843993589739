//! The gate against a real QEMU: no guest, two stream NICs joined by a hub. What a test sends into one comes out of the
//! other as a VM's output would.

mod gate_common;

use gate_common::{MemPort, frame, port_box};
use mc_core::{gate::OutputGate, id::Epoch, testing::skip};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use vmm_qemu::gate::{HELD_LIMIT_MIN, Mode, NicGate, Options, Port};

const LONG: Duration = Duration::from_secs(20);

/// A QEMU without a machine; killed when dropped.
struct Hub {
    child: Child,
    dir: tempfile::TempDir,
}

impl Hub {
    /// `None`, with the reason printed, where there is no QEMU with `-netdev stream`.
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "none", "-display", "none", "-nodefaults", "-serial", "none"]);
        qemu.arg("-monitor").arg(format!("unix:{},server=on,wait=off", dir.path().join("monitor").display()));
        for nic in ["vm", "far"] {
            let path = dir.path().join(nic);
            qemu.arg("-netdev").arg(format!("stream,id={nic},server=on,addr.type=unix,addr.path={}", path.display()));
            qemu.arg("-netdev").arg(format!("hubport,id=h{nic},hubid=0,netdev={nic}"));
        }
        match qemu.stdin(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => Some(Self { child, dir }),
            Err(e) => {
                skip(format!("qemu-system-x86_64: {e}"));
                None
            }
        }
    }

    fn path(&self, nic: &str) -> PathBuf {
        self.dir.path().join(nic)
    }

    /// A first gate on one NIC, and the end from which the test sends on the other. Comes back when QEMU serves both:
    /// QEMU 7.2 dereferences a null pointer when a frame reaches a stream NIC that has not begun to listen.
    fn connect(&self, port: &MemPort, mode: Mode) -> (NicGate, UnixStream) {
        let gate = gate(&self.path("vm"), port, mode);
        let far = until("QEMU listens", || UnixStream::connect(self.path("far")).ok());
        far.set_nonblocking(true).unwrap();
        let mut monitor = until("the monitor listens", || UnixStream::connect(self.path("monitor")).ok());
        monitor.set_nonblocking(true).unwrap();
        let mut said = Vec::new();
        until("QEMU serves both NICs", || {
            monitor.write_all(b"info network\n").unwrap();
            let _ = monitor.read_to_end(&mut said);
            let text = String::from_utf8_lossy(&said);
            ["vm", "far"].iter().all(|n| text.contains(&format!("{n}: index=0,type=stream,unix:"))).then_some(())
        });
        (gate, far)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gate(socket: &Path, port: &MemPort, mode: Mode) -> NicGate {
    let ports: Vec<(PathBuf, Box<dyn Port>)> = vec![(socket.to_owned(), port_box(port))];
    let mut gate = NicGate::with_ports(ports, Options { held_limit_bytes: 4 * HELD_LIMIT_MIN, mode }).unwrap();
    gate.connect(LONG).unwrap();
    gate
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(far: &mut UnixStream, tag: u16) {
    far.write_all(&gate_common::Qemu::wire(&frame(tag, 60))).unwrap();
}

/// Sends `tag` until a frame with it is held: QEMU accepts our connection some time after we have connected.
fn hold_one(gate: &mut NicGate, far: &mut UnixStream, tag: u16) {
    until("a frame passes QEMU", || {
        send(far, tag);
        gate.poll().unwrap();
        (gate.stats().held_packets > 0).then_some(())
    });
}

#[test]
fn a_restarted_gate_takes_over_a_running_qemus_nic() {
    let Some(hub) = Hub::start() else { return };
    let (first, mut far) = hub.connect(&MemPort::default(), Mode::Holding);
    drop(first);
    for life in 1..=3u16 {
        let port = MemPort::default();
        let mut gate = gate(&hub.path("vm"), &port, Mode::Holding);
        hold_one(&mut gate, &mut far, life);
        gate.barrier(Epoch(1)).unwrap();
        gate.release(Epoch(1)).unwrap();
        assert!(port.out().contains(&frame(life, 60)), "life {life}: {:?}", port.out());
        // Dies here: QEMU drops what comes now, and listens again.
    }
}

#[test]
fn a_qemu_that_was_blocked_on_a_late_gate_loses_nothing() {
    let Some(hub) = Hub::start() else { return };
    let port = MemPort::default();
    let (mut gate, mut far) = hub.connect(&port, Mode::Open);
    until("a frame passes QEMU", || {
        send(&mut far, 0);
        gate.poll().unwrap();
        port.out().first().map(|_| ())
    });
    let frames: Vec<_> = (1..=1000u16).map(|i| frame(i, 700 + usize::from(i))).collect();
    let bytes: Vec<u8> = frames.iter().flat_map(|f| gate_common::Qemu::wire(f)).collect();
    let (mut sent, mut idle) = (0, 0);
    // Until QEMU, asleep on its full socket, takes no more from us either.
    while sent < bytes.len() && idle < 100 {
        match far.write(&bytes[sent..]) {
            Ok(n) => (sent, idle) = (sent + n, 0),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
    assert!(sent < bytes.len(), "1.2 MB fit into no socket buffer");
    until("all frames came", || {
        gate.poll().unwrap();
        match far.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        port.out().ends_with(&frames[999..]).then_some(())
    });
    let out: Vec<_> = port.out().into_iter().filter(|f| f.len() != 60).collect();
    assert!(out == frames, "lost, cut or moved: {} of {}", out.len(), frames.len());
}

#[test]
fn a_killed_qemu_is_reported_once() {
    let Some(mut hub) = Hub::start() else { return };
    let port = MemPort::default();
    let (mut gate, mut far) = hub.connect(&port, Mode::Holding);
    hold_one(&mut gate, &mut far, 1);
    hub.child.kill().unwrap();
    hub.child.wait().unwrap();
    let error = until("the end is noticed", || gate.poll().err());
    assert!(error.to_string().contains("vm"), "{error}");
    gate.poll().unwrap();
    assert!(port.out().is_empty());
    assert!(gate.connect(Duration::from_millis(20)).unwrap_err().is_prerequisite());
}
