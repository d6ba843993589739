//! The gate against a unix listener that plays QEMU, and ports in memory.

mod gate_common;

use gate_common::{MemPort, Qemu, frame, gate_over, open_gate};
use mc_core::{
    gate::OutputGate,
    id::{Epoch, Time},
};
use std::{
    io,
    os::unix::net::{UnixDatagram, UnixStream},
    time::Duration,
};
use vmm_qemu::gate::{DatagramPort, Mode, NicGate, Options, framing::MAX_FRAME};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn output_leaves_with_its_epoch_and_not_before() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    gate.tick(Time(1_000_000));
    qemu[0].send(&frame(1, 60));
    gate.poll().unwrap();
    gate.barrier(Epoch(1)).unwrap();
    qemu[0].send(&frame(2, 60));
    gate.poll().unwrap();
    assert_eq!((ports[0].out().len(), gate.stats().held_packets, gate.stats().held_bytes), (0, 2, 120));

    gate.tick(Time(4_000_000));
    gate.release(Epoch(1)).unwrap();
    assert_eq!(ports[0].out(), [frame(1, 60)]);
    assert_eq!((gate.stats().held_packets, gate.stats().released_packets), (1, 1));
    let held = gate.hold_histogram();
    assert_eq!(held.count(), 1);
    assert_eq!(held.sum(), Duration::from_millis(3));
}

#[test]
fn a_socket_that_others_wait_at_is_said_to_be_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n0.net");
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    let port = Box::new(DatagramPort::new(UnixDatagram::pair().unwrap().0));
    let mut gate = NicGate::with_ports(vec![(path.clone(), port)], Options::default()).unwrap();
    let error = gate.connect(Duration::ZERO).unwrap_err();
    assert!(error.is_prerequisite());
    let named = format!(
        "another process is connected to it, or waits to be; end that first. `ss -xp | grep {}`",
        path.display()
    );
    assert!(error.to_string().contains(&named), "{error}");
}

#[test]
fn the_barrier_takes_what_no_poll_has_read() {
    let (mut gate, mut qemu, ports) = open_gate(2, Mode::Holding);
    for i in 0..40 {
        qemu[usize::from(i % 2)].send(&frame(i, 1500));
    }
    gate.barrier(Epoch(1)).unwrap();
    gate.release(Epoch(1)).unwrap();
    assert_eq!(ports[0].out(), (0..40).step_by(2).map(|i| frame(i, 1500)).collect::<Vec<_>>());
    assert_eq!(ports[1].out(), (1..40).step_by(2).map(|i| frame(i, 1500)).collect::<Vec<_>>());
}

#[test]
fn a_frame_cut_by_the_barrier_belongs_to_the_next_epoch() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    let bytes = Qemu::wire(&frame(1, 100));
    qemu[0].raw(&bytes[..50]);
    gate.barrier(Epoch(1)).unwrap();
    qemu[0].raw(&bytes[50..]);
    gate.poll().unwrap();
    gate.release(Epoch(1)).unwrap();
    assert!(ports[0].out().is_empty());
    gate.barrier(Epoch(2)).unwrap();
    gate.release(Epoch(2)).unwrap();
    assert_eq!(ports[0].out(), [frame(1, 100)]);
}

#[test]
fn barriers_rise_and_a_refused_one_keeps_the_batch_open() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    gate.barrier(Epoch(5)).unwrap();
    qemu[0].send(&frame(1, 60));
    gate.poll().unwrap();
    let error = gate.barrier(Epoch(5)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    gate.release(Epoch(5)).unwrap();
    assert!(ports[0].out().is_empty());
    // A new generation starts again at 1, always by way of open().
    gate.open().unwrap();
    gate.hold();
    gate.barrier(Epoch(1)).unwrap();
    assert_eq!(ports[0].out().len(), 1);
}

#[test]
fn a_closed_gate_reads_and_drops_both_ways() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Closed);
    qemu[0].send(&frame(1, 60));
    ports[0].push(frame(2, 60));
    gate.poll().unwrap();
    gate.open().unwrap();
    gate.poll().unwrap();
    assert!(ports[0].out().is_empty());
    assert_eq!(ports[0].waiting(), 0);
    assert!(qemu[0].receive().is_empty());
    assert_eq!((gate.drops().closed, gate.drops().inbound), (1, 1));
    qemu[0].send(&frame(3, 60));
    ports[0].push(frame(4, 60));
    gate.poll().unwrap();
    assert_eq!((ports[0].out(), qemu[0].receive()), (vec![frame(3, 60)], vec![frame(4, 60)]));
}

#[test]
fn inbound_passes_while_output_is_held() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    qemu[0].send(&frame(1, 60));
    for i in 0..5 {
        ports[0].push(frame(i, 1514));
    }
    ports[0].push(vec![0; 5]);
    gate.poll().unwrap();
    assert_eq!(qemu[0].receive(), (0..5).map(|i| frame(i, 1514)).collect::<Vec<_>>());
    assert_eq!((gate.stats().inbound_packets, gate.drops().inbound), (5, 1));
    assert!(ports[0].out().is_empty());
}

#[test]
fn a_vm_that_does_not_read_leaves_inbound_in_the_ports_queue() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Open);
    let all: Vec<_> = (0..900).map(|i| frame(i, 1000 + usize::from(i))).collect();
    all.iter().for_each(|f| ports[0].push(f.clone()));
    let mut left = usize::MAX;
    while ports[0].waiting() < left {
        left = ports[0].waiting();
        gate.poll().unwrap();
    }
    assert!(left > 0, "the socket takes less than 1.3 MB");
    let mut got = Vec::new();
    while got.len() < all.len() {
        got.extend(qemu[0].receive());
        gate.poll().unwrap();
    }
    assert!(got == all, "a frame was lost, cut or moved");
    assert_eq!(gate.drops().inbound, 0);
}

#[test]
fn a_blocked_direction_waits_for_room_and_the_other_goes_on() {
    let mut qemu = Qemu::listen(0);
    let (near, outside) = UnixDatagram::pair().unwrap();
    outside.set_nonblocking(true).unwrap();
    let ports = vec![(qemu.path.clone(), Box::new(DatagramPort::new(near)) as _)];
    let options = Options { mode: Mode::Open, ..Options::default() };
    let mut gate = NicGate::with_ports(ports, options).unwrap();
    gate.connect(SOON).unwrap();
    qemu.accept();
    let quiet = [(true, false), (true, false)];
    assert!(waits_for(&gate).eq(&quiet));
    // Inbound: until the VM's socket is full, and behind it the datagram queue.
    let mut full = 0;
    while full < 3 {
        full = if outside.send(&frame(1, 1500)).is_ok() { 0 } else { full + 1 };
        gate.poll().unwrap();
    }
    assert!(waits_for(&gate).eq(&[(true, true), (false, false)]));
    // Outbound: until the outside's queue is full as well.
    while !waits_for(&gate)[1].1 {
        qemu.send(&frame(2, 1500));
        gate.poll().unwrap();
    }
    assert!(gate.stats().held_packets > 0);
    while waits_for(&gate) != quiet {
        qemu.receive();
        while outside.recv(&mut [0; 1500]).is_ok() {}
        gate.poll().unwrap();
    }
    assert_eq!((gate.stats().held_packets, gate.stats().dropped_packets, gate.drops().inbound), (0, 0, 0));
}

/// To read and to write, of each descriptor.
fn waits_for(gate: &NicGate) -> Vec<(bool, bool)> {
    let mut all = Vec::new();
    gate.wait_fds(&mut |fd| all.push((fd.read, fd.write)));
    all
}

#[test]
fn a_shut_gate_never_emits_again() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    qemu[0].send(&frame(1, 60));
    gate.barrier(Epoch(1)).unwrap();
    qemu[0].send(&frame(2, 60));
    gate.poll().unwrap();
    gate.shut();
    gate.shut();
    gate.hold();
    assert_eq!(gate.release(Epoch(1)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(gate.open().is_err() && gate.barrier(Epoch(2)).is_err() && gate.connect(SOON).is_err());
    gate.poll().unwrap();
    assert!(qemu[0].is_closed() && ports[0].out().is_empty() && ports[0].is_dropped());
    assert_eq!((gate.mode(), gate.stats().dropped_packets, gate.stats().held_packets), (Mode::Shut, 2, 0));
    assert_eq!(waits_for(&gate), []);
}

#[test]
fn a_dropped_gate_releases_nothing() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    qemu[0].send(&frame(1, 60));
    gate.barrier(Epoch(1)).unwrap();
    qemu[0].send(&frame(2, 60));
    drop(gate);
    assert!(ports[0].out().is_empty());
}

#[test]
fn over_the_limit_the_newest_frames_are_dropped() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    let mut sent = 0u16;
    while gate.drops().over_limit == 0 {
        qemu[0].send(&frame(sent, 1500));
        sent += 1;
        gate.poll().unwrap();
    }
    qemu[0].send(&frame(sent, 1500));
    gate.barrier(Epoch(1)).unwrap();
    let stats = gate.stats();
    assert_eq!((stats.dropped_packets, stats.held_packets), (2, u64::from(sent - 1)));
    assert!((900_000..=1 << 20).contains(&stats.held_bytes), "{}", stats.held_bytes);
    gate.release(Epoch(1)).unwrap();
    assert_eq!(ports[0].out(), (0..sent - 1).map(|i| frame(i, 1500)).collect::<Vec<_>>());
    // There is room again.
    qemu[0].send(&frame(7, MAX_FRAME));
    gate.barrier(Epoch(2)).unwrap();
    assert_eq!(gate.stats().held_packets, 1);
}

#[test]
fn a_busy_port_is_retried_and_a_down_one_loses_frames() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Holding);
    (0..4).for_each(|i| qemu[0].send(&frame(i, 60)));
    gate.barrier(Epoch(1)).unwrap();
    ports[0].fail_after(1, libc::EAGAIN);
    gate.release(Epoch(1)).unwrap();
    assert_eq!((ports[0].out().len(), gate.stats().held_packets), (1, 3));
    ports[0].fail_after(0, libc::EIO);
    gate.poll().unwrap();
    assert_eq!((gate.stats().held_packets, gate.drops().port), (0, 3));
    ports[0].heal();
    gate.open().unwrap();
    qemu[0].send(&frame(9, 60));
    gate.poll().unwrap();
    assert_eq!(ports[0].out(), [frame(0, 60), frame(9, 60)]);
}

#[test]
fn a_port_that_is_gone_is_reported_once() {
    let (mut gate, mut qemu, ports) = open_gate(2, Mode::Open);
    ports[0].fail_after(0, libc::EBADFD);
    (0..2).for_each(|i| qemu[i].send(&frame(1, 60)));
    let error = gate.poll().unwrap_err();
    assert!(error.to_string().contains("port behind NIC") && error.to_string().contains("n0"), "{error}");
    gate.poll().unwrap();
    assert_eq!(ports[1].out().len(), 1, "the other NIC was served");
    assert!(gate.nics().map(|n| n.port_works).eq([false, true]));
}

#[test]
fn qemus_end_is_reported_once_and_a_new_qemu_is_served() {
    let (mut gate, mut qemu, ports) = open_gate(2, Mode::Holding);
    qemu[0].send(&frame(1, 60));
    qemu[0].raw(&[0, 0]);
    gate.poll().unwrap();
    qemu[0].hang_up();
    qemu[1].send(&frame(5, 60));
    let error = gate.poll().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("n0"), "{error}");
    gate.poll().unwrap();
    assert!(gate.nics().map(|n| n.connected).eq([false, true]));
    assert!(ports.iter().all(|p| p.out().is_empty()), "what was held stays held");

    gate.connect(SOON).unwrap();
    qemu[0].accept();
    qemu[0].send(&frame(2, 60));
    gate.barrier(Epoch(1)).unwrap();
    gate.release(Epoch(1)).unwrap();
    assert_eq!(ports[0].out(), [frame(1, 60), frame(2, 60)]);
    assert_eq!(ports[1].out(), [frame(5, 60)]);
}

#[test]
fn an_inbound_frame_cut_by_a_lost_connection_does_not_disturb_the_next() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Open);
    (0..600).for_each(|i| ports[0].push(frame(i, 1500)));
    gate.poll().unwrap();
    assert!(ports[0].waiting() > 0, "the socket is full, and a frame half in it");
    qemu[0].hang_up();
    gate.poll().unwrap_err();
    gate.poll().unwrap();
    assert_eq!(ports[0].waiting(), 0, "nobody to deliver to");
    gate.connect(SOON).unwrap();
    qemu[0].accept();
    ports[0].push(frame(7, 60));
    gate.poll().unwrap();
    assert_eq!(qemu[0].receive(), [frame(7, 60)]);
    let stats = gate.stats();
    assert_eq!(stats.inbound_packets + gate.drops().inbound, 601);
}

#[test]
fn a_new_gate_can_take_the_place_of_a_dead_one() {
    let (gate, mut qemu, _ports) = open_gate(1, Mode::Holding);
    drop(gate);
    assert!(qemu[0].is_closed());
    let port = MemPort::default();
    let mut gate = gate_over(&[&qemu[0]], &[&port], Mode::Open);
    qemu[0].accept();
    qemu[0].send(&frame(3, 60));
    gate.poll().unwrap();
    assert_eq!(port.out(), [frame(3, 60)]);
}

#[test]
fn bad_framing_ends_the_connection() {
    let (mut gate, mut qemu, ports) = open_gate(1, Mode::Open);
    qemu[0].send(&frame(1, 60));
    qemu[0].raw(&u32::MAX.to_be_bytes());
    let error = gate.poll().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("n0") && error.to_string().contains("4294967295"), "{error}");
    assert!(qemu[0].is_closed());
    assert_eq!(ports[0].out().len(), 1, "what came before it was sound");
}

#[test]
fn errors_of_setting_up_say_what_to_do() {
    let path = tempfile::tempdir().unwrap().path().join("none");
    let ports = vec![(path.clone(), Box::new(DatagramPort::new(UnixDatagram::unbound().unwrap())) as _)];
    let mut gate = NicGate::with_ports(ports, Options::default()).unwrap();
    let error = gate.connect(Duration::from_millis(30)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains(path.to_str().unwrap()) && said.contains("-netdev stream,id=n0,server=on"), "{said}");
    assert!(error.is_prerequisite());

    let small = Options { held_limit_bytes: 1000, mode: Mode::Open };
    assert!(NicGate::with_ports(Vec::new(), small).unwrap_err().to_string().contains("1048576"));
    let shut = Options { mode: Mode::Shut, ..Options::default() };
    assert_eq!(NicGate::with_ports(Vec::new(), shut).unwrap().mode(), Mode::Shut);
}
