//! Beats over UD, on real verbs: the suite, hostile and lost datagrams, a group of three. Skipped where there is no
//! RDMA device (`mc_core::testing::skip`). `AFTERIMAGE_RDMA_DEVICES` names two devices that reach each other; by default
//! the first two.

use mc_core::{
    detector::{Action, Config, Detector, Event, Group, Parameters},
    id::{Epoch, Generation, Incarnation, Time},
    machine::Machine,
    testing::conformance::{KeepaliveFabric, run_all_keepalive},
    testing::skip,
    transport::{Keepalive, PollableKeepalive},
    wire::beat::{self, Beat, BeatKey, BeatState},
};
use std::{
    net::Ipv6Addr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use transport_rdma::{
    UdAddress, UdKeepalive, UdOptions,
    device::{Choice, DeviceError, GidKind, Wish, choose, devices},
    ffi::{Address, Cq, Domain, Qp, Region},
    group_of, qkey_of,
    types::{Piece, QpSizes, Request, Work},
};

const KEY: BeatKey = BeatKey([42; 32]);
type Buffer = [u8; beat::LEN + 1];

fn two_devices() -> Result<[Choice; 2], DeviceError> {
    let names = match std::env::var("AFTERIMAGE_RDMA_DEVICES") {
        Ok(names) => names.split(',').map(str::to_owned).collect(),
        Err(_) => devices()?.into_iter().map(|device| device.name).collect::<Vec<_>>(),
    };
    let pick = |at: usize| {
        let device = names.get(at).or(names.first()).cloned();
        choose(&Wish { device, ..Wish::default() })
    };
    Ok([pick(0)?, pick(1)?])
}

/// The devices, or why the test is skipped.
fn lab() -> Option<[Choice; 2]> {
    match two_devices() {
        Ok(devices) => Some(devices),
        Err(error) => {
            skip(format!("{error}; {}", error.remedy()));
            None
        }
    }
}

fn open(choice: &Choice, key: &BeatKey) -> UdKeepalive {
    UdKeepalive::open(choice, UdOptions::new(qkey_of(key))).unwrap()
}

/// Two members that hear each other, by unicast or in a group.
fn pair(devices: [&Choice; 2], key: &BeatKey, multicast: bool) -> [UdKeepalive; 2] {
    let mut members = devices.map(|device| open(device, key));
    let addresses = [members[1].address(), members[0].address()];
    for (member, peer) in members.iter_mut().zip(addresses) {
        if multicast {
            member.join(group_of(key, devices[0].gid)).unwrap();
        } else {
            member.add_member(peer).unwrap();
        }
    }
    members
}

/// Sends anything to anybody, with a queue pair of its own.
struct Stranger {
    qp: Qp,
    cq: Arc<Cq>,
    to: Address,
    at: UdAddress,
    bytes: Region,
}

impl Stranger {
    fn new(choice: &Choice, at: UdAddress) -> Self {
        let domain = Domain::new(&choice.context).unwrap();
        let cq = Cq::new(&choice.context, 8, None).unwrap();
        let sizes = QpSizes { send: 4, receive: 1, pieces: 1, inline: 0 };
        let qp = Qp::datagram(&domain, &cq, &cq, sizes).unwrap();
        qp.ready_datagram(at.qkey).unwrap();
        let to = Address::new(&domain, at.gid, at.lid, choice.gid_index).unwrap();
        Self { qp, cq, to, at, bytes: Region::buffer(&domain, 4096).unwrap() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.bytes.copy_in(0, bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let piece = [Piece { addr: self.bytes.addr(), length, lkey: self.bytes.lkey() }];
        let from = if bytes.is_empty() { &[][..] } else { &piece };
        let work = Work::LongDatagram { from, to: &self.to, qpn: self.at.qpn, qkey: self.at.qkey };
        self.qp.post(&[Request { id: 0, signaled: true, work }]).unwrap();
        while self.cq.poll().unwrap().is_none() {
            thread::yield_now();
        }
    }
}

struct Ud<'a> {
    devices: [&'a Choice; 2],
    multicast: bool,
    session: u8,
    stranger: Option<Stranger>,
}

impl KeepaliveFabric for Ud<'_> {
    type K = UdKeepalive;

    fn pair(&mut self) -> (UdKeepalive, UdKeepalive) {
        self.session += 1;
        let [a, b] = pair(self.devices, &BeatKey([self.session; 32]), self.multicast);
        self.stranger = Some(Stranger::new(self.devices[0], b.address()));
        (a, b)
    }

    fn inject(&mut self, bytes: &[u8]) {
        self.stranger.as_mut().unwrap().send(bytes);
    }
}

fn conforms([a, b]: &[Choice; 2]) {
    for (name, devices) in [("one device", [a, a]), ("two devices", [a, b])] {
        for multicast in [false, true] {
            let at = devices.map(|device| Ipv6Addr::from(device.gid).to_canonical());
            eprintln!("keepalive over UD: {name}, {} to {}, multicast: {multicast}", at[0], at[1]);
            run_all_keepalive(&mut Ud { devices, multicast, session: 0, stranger: None });
        }
    }
}

/// The same devices by their IPv4 addresses: another header, another kind of group. Only in the lab: elsewhere the way from one
/// address of a host to another is loopback, which knows no RDMA.
fn over_ipv4([a, b]: &[Choice; 2]) -> Option<[Choice; 2]> {
    veth(a)?;
    let all = devices().ok()?;
    let by_ipv4 = |of: &Choice| {
        let device = all.iter().find(|device| device.name == of.device)?;
        let entry = device.gids.iter().find(|g| g.kind == GidKind::RoceV2 && g.address().is_ipv4())?;
        let (device, gid_index) = (Some(of.device.clone()), Some(entry.index));
        choose(&Wish { device, gid_index, local: None }).ok()
    };
    Some([by_ipv4(a)?, by_ipv4(b)?])
}

/// The next datagram; `None` if none comes within `patience`.
fn next(member: &mut UdKeepalive, patience: Duration) -> Option<(usize, Buffer)> {
    let (mut buffer, start) = ([0; beat::LEN + 1], Instant::now());
    loop {
        if let Some(len) = member.receive(&mut buffer).expect("receiving works") {
            return Some((len, buffer));
        }
        if start.elapsed() > patience {
            return None;
        }
        member.wait(Duration::from_millis(5)).expect("waiting works");
    }
}

const LONG: Duration = Duration::from_secs(10);

fn beat(sequence: u64, incarnation: u64) -> Beat {
    Beat {
        incarnation: Incarnation(incarnation),
        generation: Generation(1),
        committed: Epoch(0),
        sequence,
        sent_at: sequence,
        echo: 0,
        echo_delay: 0,
        desired_tx_us: 1_000_000,
        required_rx_us: 1_000_000,
        detect_multiplier: 5,
        state: BeatState::Up,
        member: 1,
        meant_for: 0,
        poll: false,
        is_final: false,
        for_both: false,
    }
}

/// Another key, another group's Q_Key, a replay, the peer's former self, a datagram of the greatest length, more than there are
/// receives: none is taken for the peer's beat, and none keeps the next one from being heard.
fn strays_change_nothing([a, b]: &[Choice; 2]) {
    let [mut sender, mut member] = pair([a, b], &KEY, false);
    let parameters = Parameters::new(Duration::from_secs(1), Duration::from_secs(1), 5).unwrap();
    let config = Config { incarnation: Incarnation(7), member: 2, parameters, startup: None };
    let mut detector = Detector::new(config, Time(0));
    let mut refused = 0;
    let genuine = beat(1, 7).encode(&KEY);
    let mut hear = |member: &mut UdKeepalive, detector: &mut Detector| {
        let (len, buffer) = next(member, LONG).expect("a datagram arrives");
        match Beat::decode(&buffer[..len], &KEY) {
            Ok(beat) => detector.handle(Time(1), Event::BeatReceived(beat)),
            Err(_) => refused += 1,
        }
        refused
    };
    let mut stranger = Stranger::new(a, member.address());
    for bytes in [genuine, genuine, beat(9, 7).encode(&BeatKey([1; 32])), beat(9, 6).encode(&KEY)] {
        stranger.send(&bytes);
        hear(&mut member, &mut detector);
    }
    for len in [0, beat::LEN - 1, beat::LEN + 1, a.port.mtu.min(b.port.mtu) as usize] {
        let mut bytes = vec![9; len];
        bytes.iter_mut().zip(genuine).for_each(|(to, from)| *to = from);
        stranger.send(&bytes);
        assert!(hear(&mut member, &mut detector) > 1);
    }
    let stats = detector.stats();
    assert_eq!((stats.received, stats.duplicates, stats.foreign), (1, 1, 1), "{stats:?}");

    let other_group = UdAddress { qkey: qkey_of(&BeatKey([1; 32])), ..member.address() };
    Stranger::new(a, other_group).send(&genuine);
    for number in 0..300_u16 {
        // (More than there are receives: some are lost.)
        stranger.send(&number.to_le_bytes());
    }
    while let Some((len, _)) = next(&mut member, Duration::from_millis(200)) {
        assert_eq!(len, 2, "the other group's datagram was dropped by the device");
    }
    sender.send(&beat(2, 7).encode(&KEY)).unwrap();
    hear(&mut member, &mut detector);
    assert_eq!(detector.stats().received, 2);
    eprintln!("strays: {:?}, sender {:?}, member {:?}", detector.stats(), sender.counts(), member.counts());
}

/// More beats than the send queue holds, to a member that is gone: no error, no waiting, no lost credit. A descriptor that was
/// armed is readable by what came before and after.
fn credits_and_wake_ups([a, b]: &[Choice; 2]) {
    let [mut sender, mut member] = pair([a, b], &KEY, false);
    sender.add_member(UdAddress { qpn: 0xf0_0000, ..member.address() }).unwrap();
    (0..500).for_each(|_| sender.send(&[1; beat::LEN]).unwrap());
    let mut buffer = [0; beat::LEN + 1];
    let mut heard = 0;
    while next(&mut member, Duration::from_millis(200)).is_some() {
        heard += 1;
    }
    let lost = sender.counts().lost;
    eprintln!("credits: 500 beats in a burst: {heard} heard, {lost} lost for want of room");
    assert!(heard > 0);
    // Credits came back: a beat leaves, and is heard.
    sender.send(&[2; beat::LEN]).unwrap();
    assert_eq!(next(&mut member, LONG).unwrap().1[0], 2);
    assert_eq!(sender.counts().recoveries, 0);

    for round in 0..20 {
        assert!(!member.arm().unwrap(), "nothing is there yet");
        sender.send(&[round; beat::LEN]).unwrap();
        if round % 2 == 0 {
            // It is there before the next wait arms.
            thread::sleep(Duration::from_millis(5));
        }
        member.wait(Duration::from_secs(3600)).unwrap();
        while member.receive(&mut buffer).unwrap().is_none() {
            member.wait(Duration::from_secs(3600)).unwrap();
        }
        assert_eq!(buffer[0], round);
    }
}

/// Two devices count their queue pairs each for itself: a member with our number is not us.
fn a_peer_with_our_number_is_heard([a, b]: &[Choice; 2]) {
    if a.device == b.device {
        return skip("one device gives no number twice");
    }
    let mut members = [a, b].map(|device| open(device, &KEY));
    for _ in 0..500 {
        let [x, y] = [&members[0], &members[1]].map(|member| member.address().qpn);
        if x == y {
            break;
        }
        let behind = usize::from(y < x);
        members[behind] = open([a, b][behind], &KEY);
    }
    let [mut x, mut y] = members;
    if x.address().qpn != y.address().qpn {
        return skip("the two devices gave no equal numbers");
    }
    for member in [&mut x, &mut y] {
        member.join(group_of(&KEY, a.gid)).unwrap();
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let both = [&mut x, &mut y];
        both[from].send(&[7; beat::LEN]).unwrap();
        assert!(next(both[to], LONG).is_some(), "its beat was taken for our own");
        assert!(next(both[from], Duration::from_millis(200)).is_none(), "our own beat was taken for its");
    }
    eprintln!("a group of two with the same queue pair number, {:#x}: each hears the other", x.address().qpn);
}

/// The network interface below the first device, if it is one end of a veth: no cable of anybody's.
fn veth(choice: &Choice) -> Option<String> {
    let all = devices().ok()?;
    let name = all.into_iter().find(|d| d.name == choice.device)?.netdev?;
    let shown = Command::new("ip").args(["-details", "link", "show", &name]).output().ok()?;
    String::from_utf8_lossy(&shown.stdout).contains("veth").then_some(name)
}

/// SoftRoCE fails a queue pair whose packet has no route, for good: the first beat after a link went down must not be the last.
fn a_link_that_was_down_is_used_again([a, b]: &[Choice; 2]) {
    let Some(netdev) = veth(a) else {
        skip(format!("{} is not on a veth, whose link a test may take down", a.device));
        return;
    };
    let link = |to| assert!(Command::new("ip").args(["link", "set", &netdev, to]).status().unwrap().success());
    let [mut sender, mut member] = pair([a, b], &KEY, false);
    let mut buffer = [0; beat::LEN + 1];
    let mut both_ways = |patience: Duration| {
        let start = Instant::now();
        let mut heard = [false; 2];
        while heard != [true; 2] && start.elapsed() < patience {
            sender.send(&[1; beat::LEN]).unwrap();
            member.send(&[1; beat::LEN]).unwrap();
            thread::sleep(Duration::from_millis(20));
            for (heard, keepalive) in heard.iter_mut().zip([&mut member, &mut sender]) {
                *heard |= keepalive.receive(&mut buffer).unwrap().is_some();
            }
        }
        heard
    };
    assert_eq!(both_ways(LONG), [true; 2]);
    link("down");
    both_ways(Duration::from_millis(300));
    link("up");
    let heard = both_ways(3 * LONG);
    eprintln!("link down and up: heard {heard:?}, {:?}, {:?}", sender.counts(), member.counts());
    assert_eq!(heard, [true; 2], "beats come back with the link");
}

struct Member {
    keepalive: UdKeepalive,
    group: Group,
    silenced: Arc<AtomicBool>,
}

impl Member {
    /// Lives until `stop`; gives whom it suspects.
    fn live(mut self, start: Instant, stop: &AtomicBool) -> (Vec<u8>, Group) {
        let now = || Time(u64::try_from(start.elapsed().as_nanos()).unwrap() + 1);
        let (mut suspected, mut buffer, mut drain) = (vec![], [0; beat::LEN + 1], false);
        while !stop.load(Ordering::Acquire) {
            self.group.handle_timeout(now());
            while let Some(len) = self.keepalive.receive(&mut buffer).unwrap() {
                if let Ok(beat) = Beat::decode(&buffer[..len], &KEY) {
                    self.group.handle(now(), Event::BeatReceived(beat));
                    drain |= self.act(&mut suspected);
                }
            }
            drain |= self.act(&mut suspected);
            if std::mem::take(&mut drain) {
                self.group.handle(now(), Event::Drained);
                self.act(&mut suspected);
            }
            let due = self.group.deadline().map_or(Duration::ZERO, |at| at.since(now()));
            self.keepalive.wait(due.min(Duration::from_millis(20))).unwrap();
        }
        (suspected, self.group)
    }

    fn act(&mut self, suspected: &mut Vec<u8>) -> bool {
        let mut drain = false;
        while let Some(what) = self.group.poll_action() {
            match what.action {
                Action::SendBeat(beat) if !self.silenced.load(Ordering::Acquire) => {
                    self.keepalive.send(&beat.encode(&KEY)).unwrap();
                }
                Action::Drain => drain = true,
                Action::Suspect(_) => suspected.push(what.peer),
                _ => {}
            }
        }
        drain
    }
}

/// Three members, a thread each; the third falls silent. The others suspect it, and not each other.
fn a_group_of_three([a, b]: &[Choice; 2], multicast: bool) {
    let mut keepalives = [a, b, a].map(|device| open(device, &KEY));
    let addresses: Vec<_> = keepalives.iter().map(UdKeepalive::address).collect();
    for (index, keepalive) in keepalives.iter_mut().enumerate() {
        if multicast {
            keepalive.join(group_of(&KEY, a.gid)).unwrap();
        } else {
            let others = addresses.iter().enumerate().filter(|(other, _)| *other != index);
            others.for_each(|(_, address)| keepalive.add_member(*address).unwrap());
        }
    }
    let interval = Duration::from_millis(100);
    let parameters = Parameters::new(interval, interval, 15).unwrap();
    let silenced = Arc::new(AtomicBool::new(false));
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let suspected = thread::scope(|scope| {
        let members = keepalives.into_iter().zip(1_u8..).map(|(keepalive, member)| {
            let config = Config { incarnation: Incarnation(7), member, parameters, startup: Some(LONG) };
            let group = Group::new(config, &[1, 2, 3], Time(1));
            let silenced = if member == 3 { Arc::clone(&silenced) } else { Arc::default() };
            let (stop, member) = (&stop, Member { keepalive, group, silenced });
            scope.spawn(move || member.live(start, stop))
        });
        let members: Vec<_> = members.collect();
        thread::sleep(Duration::from_secs(2));
        silenced.store(true, Ordering::Release);
        thread::sleep(Duration::from_millis(3500));
        stop.store(true, Ordering::Release);
        members.into_iter().map(|member| member.join().unwrap()).collect::<Vec<_>>()
    });
    for ((suspected, group), (member, wanted)) in suspected.iter().zip([(1, vec![3]), (2, vec![3]), (3, vec![])]) {
        let states: Vec<_> = group.detectors().map(|(peer, d)| (peer, d.state(), d.stats().received)).collect();
        eprintln!("group of three, multicast {multicast}: member {member} of its peers: {states:?}");
        assert_eq!(*suspected, wanted, "member {member}");
    }
}

#[test]
fn beats_over_ud() {
    let Some(devices) = lab() else { return };
    for device in &devices {
        eprintln!("{}: GID index {}, {}", device.device, device.gid_index, device.why);
    }
    conforms(&devices);
    match over_ipv4(&devices) {
        Some(devices) => conforms(&devices),
        None => skip("no IPv4 addresses, or no veth between them"),
    }
    strays_change_nothing(&devices);
    credits_and_wake_ups(&devices);
    a_peer_with_our_number_is_heard(&devices);
    a_group_of_three(&devices, false);
    a_group_of_three(&devices, true);
    a_link_that_was_down_is_used_again(&devices);
}
