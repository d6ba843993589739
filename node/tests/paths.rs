//! Beats by two paths: silence of one is no suspicion, failure of one is nobody else's, and a beat that comes by both
//! is one.

use mc_core::{
    detector::{Config, Parameters},
    id::{Epoch, Generation, Incarnation},
    testing::conformance::{KeepaliveFabric, keepalive},
    transport::{Keepalive, PollableKeepalive},
    wire::beat::{self, Beat, BeatKey, BeatState},
};
use node::{
    clock::Clock,
    keepalive::{BeatHandle, BeatThread, PathStats, Paths, PathsReader, Verdict},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};
use transport_tcp::{UdpKeepalive, reach::at_port};

const SESSION: (Incarnation, BeatKey) = (Incarnation(9), BeatKey([1; 32]));
const HANG: Duration = Duration::from_secs(30);
const AT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What becomes of a path.
const FINE: u8 = 0;
/// Nothing comes through, and nobody says so.
const CUT: u8 = 1;
/// Every call fails.
const BROKEN: u8 = 2;

type Fate = Arc<AtomicU8>;

/// One path's end, whose fate a test decides.
#[derive(Debug)]
struct Fated(UdpKeepalive, Fate);

impl Fated {
    fn fate(&self) -> io::Result<bool> {
        match self.1.load(Ordering::Acquire) {
            BROKEN => Err(io::ErrorKind::NetworkDown.into()),
            fate => Ok(fate == FINE),
        }
    }
}

impl Keepalive for Fated {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        if self.fate()? { self.0.send(beat) } else { Ok(()) }
    }
    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        if self.fate()? { self.0.receive(buffer) } else { Ok(None) }
    }
    fn wait(&mut self, _: Duration) -> io::Result<()> {
        unreachable!("the paths wait together")
    }
}

impl AsFd for Fated {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PollableKeepalive for Fated {
    fn arm(&mut self) -> io::Result<bool> {
        self.fate().map(|_| false)
    }
}

fn link() -> [UdpKeepalive; 2] {
    let ends = [(); 2].map(|()| UdpKeepalive::bind(AT).unwrap());
    let ports = [&ends[1], &ends[0]].map(|end| end.local_port().unwrap());
    ends.iter().zip(ports).for_each(|(end, port)| end.connect(at_port(AT, port)).unwrap());
    ends
}

/// Two ends of two paths, and the fates of those.
fn ends() -> ([Paths; 2], [Fate; 2]) {
    let fates = [(); 2].map(|()| Fate::default());
    let [[a0, b0], [a1, b1]] = [link(), link()];
    let path = |end, which: usize| Box::new(Fated(end, Arc::clone(&fates[which]))) as Box<dyn PollableKeepalive>;
    let paths = [(a0, a1), (b0, b1)];
    let paths = paths.map(|(x, y)| Paths::new(SESSION, Clock, vec![("x", path(x, 0)), ("y", path(y, 1))]));
    (paths, fates)
}

/// The cases of the suite that are about datagrams, not beats: of those that are no beats, both copies arrive.
struct TwoPaths(Option<UdpSocket>);

impl KeepaliveFabric for TwoPaths {
    type K = Paths;

    fn pair(&mut self) -> (Paths, Paths) {
        let [[a0, b0], [a1, b1]] = [link(), link()];
        self.0 = Some(UdpSocket::from(a1.as_fd().try_clone_to_owned().unwrap()));
        let paths = |x, y| {
            Paths::new(SESSION, Clock, vec![("x", Box::new(x) as Box<dyn PollableKeepalive>), ("y", Box::new(y))])
        };
        (paths(a0, a1), paths(b0, b1))
    }

    fn inject(&mut self, bytes: &[u8]) {
        self.0.as_ref().unwrap().send(bytes).unwrap();
    }
}

#[test]
fn two_paths_conform() {
    let fabric = &mut TwoPaths(None);
    keepalive::beats_go_both_ways(fabric);
    keepalive::silence_is_no_error(fabric);
    keepalive::wait_ends_when_a_beat_has_arrived(fabric);
    keepalive::a_long_datagram_shows_its_length(fabric);
    keepalive::an_empty_datagram_is_one(fabric);
    keepalive::a_peer_that_is_gone_is_no_error(fabric);
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Clock.now().after(HANG);
    while !done() {
        assert!(Clock.now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Pair {
    beats: [BeatHandle; 2],
    readers: [PathsReader; 2],
    fates: [Fate; 2],
}

impl Pair {
    fn up() -> Self {
        let (paths, fates) = ends();
        let interval = Duration::from_millis(5);
        let parameters = Parameters::new(interval, interval, 100).unwrap();
        let readers = [paths[0].reader(), paths[1].reader()];
        let mut members = 1..;
        let beats = paths.map(|paths| {
            let member = members.next().unwrap();
            let config = Config { incarnation: SESSION.0, member, parameters, startup: Some(HANG) };
            BeatThread::spawn(Box::new(paths), SESSION.1, config, Clock).unwrap()
        });
        let pair = Self { beats, readers, fates };
        until("up", || pair.beats.iter().all(|beats| beats.verdict() == Verdict::Up));
        until("both paths are heard", || pair.stats(0).iter().chain(&pair.stats(1)).all(|path| path.heard > 20));
        pair
    }

    fn stats(&self, end: usize) -> Vec<PathStats> {
        self.readers[end].stats()
    }

    fn set(&self, path: usize, fate: u8) {
        self.fates[path].store(fate, Ordering::Release);
    }

    /// Waits until so many beats more have come by `path` at the first end.
    fn hear(&self, path: usize, more: u64) {
        let before = self.stats(0)[path].heard;
        until("beats come", || self.stats(0)[path].heard >= before + more);
    }
}

#[test]
fn only_the_silence_of_all_paths_is_suspect() {
    let pair = Pair::up();
    pair.set(0, CUT);
    // More than a detection time's worth of them.
    pair.hear(1, 150);
    let cut = pair.stats(0)[0].clone();
    assert_eq!((cut.name.as_str(), cut.receive_errors), ("x", 0));
    assert!(cut.last_heard_ns < pair.stats(0)[1].last_heard_ns);
    assert!(pair.beats.iter().all(|beats| beats.verdict() == Verdict::Up));
    pair.set(0, FINE);
    pair.hear(0, 20);
    pair.set(1, CUT);
    pair.hear(0, 150);
    assert!(pair.beats.iter().all(|beats| beats.verdict() == Verdict::Up));
    pair.set(0, CUT);
    until("suspect", || pair.beats.iter().any(|beats| beats.verdict() == Verdict::Suspect));
}

#[test]
fn a_path_that_fails_is_counted_and_silences_nobody() {
    let pair = Pair::up();
    pair.set(0, BROKEN);
    let before = pair.stats(0);
    pair.hear(1, 300);
    let after = pair.stats(0);
    assert!(after[0].send_errors > 200 && after[0].receive_errors > 0 && after[1].send_errors == 0, "{after:?}");
    let (errors, sent) = (after[0].receive_errors - before[0].receive_errors, after[1].sent - before[1].sent);
    assert!(errors < 50 * sent, "the thread spins: {errors} errors while {sent} beats were sent");
    assert_eq!(pair.beats[0].stats().send_errors, 0, "the beats left, by the other path");
    assert_eq!(pair.beats[0].verdict(), Verdict::Up);
    pair.set(0, FINE);
    pair.hear(0, 20);
    pair.set(0, BROKEN);
    pair.set(1, BROKEN);
    until("suspect", || pair.beats[0].verdict() == Verdict::Suspect);
    assert!(pair.beats[0].stats().send_errors > 0);
}

fn beat(sequence: u64, incarnation: u64) -> [u8; beat::LEN] {
    let beat = Beat {
        incarnation: Incarnation(incarnation),
        generation: Generation(1),
        committed: Epoch(0),
        sequence,
        sent_at: sequence,
        echo: 0,
        echo_delay: 0,
        desired_tx_us: 10_000,
        required_rx_us: 10_000,
        detect_multiplier: 5,
        state: BeatState::Up,
        member: 1,
        meant_for: 0,
        poll: false,
        is_final: false,
        for_both: false,
    };
    beat.encode(&SESSION.1)
}

/// Each row: by which path, which sequence, and whether the detector gets it.
#[test]
fn a_beat_by_both_paths_is_one_and_a_replay_is_a_replay() {
    let [[mut x, far_x], [mut y, far_y]] = [link(), link()];
    let far = |end| Box::new(end) as Box<dyn PollableKeepalive>;
    let mut paths = Paths::new(SESSION, Clock, vec![("x", far(far_x)), ("y", far(far_y))]);
    let mut buffer = [0; beat::LEN + 1];
    let rows = [
        ("first", 0, 1, true),
        ("its second copy", 1, 1, false),
        ("the other path may lead, too", 1, 2, true),
        ("and the first follow", 0, 2, false),
        ("a replay by the same path is for the detector to count", 0, 1, true),
        ("and so is a duplicate", 1, 2, true),
        ("x is ahead", 0, 5, true),
        ("y is late: not newer than what x has brought", 1, 4, false),
        ("nor is that", 1, 5, false),
        ("x lost this one, or it is late", 1, 6, true),
    ];
    for (what, path, sequence, wanted) in rows {
        [&mut x, &mut y][path].send(&beat(sequence, 9)).unwrap();
        assert_eq!(paths.receive(&mut buffer).unwrap().is_some(), wanted, "{what}");
    }
    for (what, bytes) in [("another session", beat(50, 8)), ("noise", [7; beat::LEN])] {
        x.send(&bytes).unwrap();
        assert_eq!(paths.receive(&mut buffer).unwrap(), Some(beat::LEN), "{what} is for the detector to count");
    }
    let stats = paths.reader().stats();
    let figures = |path: &PathStats| (path.heard, path.first, path.rejected);
    assert_eq!((figures(&stats[0]), figures(&stats[1])), ((3, 2, 2), (5, 2, 0)));
    let losses = paths.reader().measured().into_iter().map(|path| path.losses.runs().collect::<Vec<_>>());
    assert_eq!(losses.collect::<Vec<_>>(), [vec![(2, 1)], vec![(1, 1)]], "x: 1 2 5, y: 1 2 4 5 6");
}
