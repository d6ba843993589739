//! Beat threads over UDP on loopback. Deadlines here only keep a broken test from hanging.

use super::*;
use mc_core::{
    id::Incarnation,
    wire::beat::{self, Beat},
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{SocketAddr, UdpSocket};

const KEY: BeatKey = BeatKey([1; 32]);
const HANG: Duration = Duration::from_secs(30);

/// The smallest `Keepalive`, which also remembers what it sent, for the replays.
#[derive(Debug)]
struct Udp {
    socket: UdpSocket,
    peer: SocketAddr,
    tap: Arc<Mutex<Vec<[u8; beat::LEN]>>>,
}

impl Keepalive for Udp {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        self.tap.lock().push(*beat);
        self.socket.send_to(beat, self.peer).map(drop)
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        match self.socket.recv_from(buffer) {
            Ok((length, _)) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))?;
        Ok(())
    }
}

fn socket() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.set_nonblocking(true).expect("set");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

fn parameters(interval_ms: u64, k: u8) -> Parameters {
    let interval = Duration::from_millis(interval_ms);
    Parameters::new(interval, interval, k).expect("within the limits")
}

fn config(member: u8, parameters: Parameters) -> Config {
    Config { incarnation: Incarnation(9), member, parameters, startup: Some(HANG) }
}

struct End {
    beats: BeatHandle,
    address: SocketAddr,
    sent: Arc<Mutex<Vec<[u8; beat::LEN]>>>,
}

fn end(member: u8, socket: UdpSocket, address: SocketAddr, peer: SocketAddr, parameters: Parameters) -> End {
    let sent = Arc::new(Mutex::new(vec![]));
    let keepalive = Box::new(Udp { socket, peer, tap: Arc::clone(&sent) });
    let beats = BeatThread::spawn(keepalive, KEY, config(member, parameters), Clock).expect("starts");
    End { beats, address, sent }
}

fn pair(parameters: [Parameters; 2]) -> [End; 2] {
    let ((a, a_address), (b, b_address)) = (socket(), socket());
    [end(1, a, a_address, b_address, parameters[0]), end(2, b, b_address, a_address, parameters[1])]
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Clock.now().after(HANG);
    while !done() {
        assert!(Clock.now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn until_up(ends: &[End]) {
    until("both up", || ends.iter().all(|end| end.beats.verdict() == Verdict::Up));
}

fn readable(beats: &BeatHandle) -> bool {
    let now = Timespec::default();
    poll(&mut [PollFd::new(&beats.wait_fd(), PollFlags::IN)], Some(&now)).expect("an eventfd") == 1
}

#[test]
fn two_ends_hear_each_other_and_measure() {
    let ends = pair([parameters(5, 200); 2]);
    until_up(&ends);
    assert!(readable(&ends[0].beats));
    ends[0].beats.clear();
    assert!(!readable(&ends[0].beats));
    until("samples", || ends.iter().all(|end| end.beats.stats().rtt_us.count >= 20));
    let stats = ends[0].beats.stats();
    assert_eq!((stats.verdict, stats.accused, ends[0].beats.suspicion()), (Verdict::Up, false, None));
    assert_eq!((stats.detection_time_us, stats.transmit_interval_us), (1_000_000, 5_000));
    assert!(stats.gap_us.p50 <= stats.gap_us.p99 && stats.gap_us.p99 <= stats.gap_us.max && stats.gap_us.max > 0);
    assert!(stats.sent >= 20 && stats.received > stats.gap_us.count);
    let text = serde_json::to_string(&stats).expect("serialises");
    assert_eq!(serde_json::from_str::<BeatStats>(&text).expect("parses"), stats);
}

#[test]
fn everything_measured_is_there_in_full() {
    let ends = pair([parameters(5, 200); 2]);
    until_up(&ends);
    until("samples", || ends[0].beats.measured("udp", None).is_some_and(|m| m.gap.count() >= 20));
    let measured = ends[0].beats.measured("udp", None).expect("heard");
    let gaps = measured.gap.count();
    // A busy machine may be in the middle of a silence, which is a gap of its own.
    let heard = gaps + 1 - u64::from(gaps == measured.received);
    assert_eq!((measured.interval_us, measured.detect_multiplier), (5_000, 200));
    assert_eq!((measured.excess.count(), measured.received), (gaps, heard));
    assert!(measured.lateness.count() >= 20 && measured.rtt.count() > 0);
    let [path] = &measured.paths[..] else { panic!("one way") };
    assert_eq!((path.name.as_str(), path.one_way.count(), path.gap.count()), ("udp", heard, gaps));
    assert_eq!(measured.losses.lost(), path.losses.lost());
    let text = serde_json::to_string(&measured).expect("serialises");
    assert_eq!(serde_json::from_str::<Measured>(&text).expect("parses"), measured);
}

/// It ends with the measurement: no later beat tells of it.
#[test]
fn an_outage_at_the_end_counts() {
    let [a, b] = pair([parameters(5, 200); 2]);
    until_up(std::slice::from_ref(&a));
    drop(b);
    until("lost", || a.beats.measured("udp", None).is_some_and(|m| m.losses.longest() >= 20));
    let measured = a.beats.measured("udp", None).expect("heard");
    assert!(measured.gap.max() >= Duration::from_millis(100), "{:?}", measured.gap.max());
    assert_eq!(measured.excess.count(), measured.gap.count());
    assert_eq!(measured.paths[0].losses, measured.losses);
}

#[test]
fn a_peer_that_stops_is_suspect_and_the_report_says_why() {
    let [a, b] = pair([parameters(5, 100); 2]);
    until_up(std::slice::from_ref(&a));
    a.beats.clear();
    let stopped = Clock.now();
    drop(b);
    until("suspect", || a.beats.verdict() == Verdict::Suspect);
    assert!(readable(&a.beats));
    let report = a.beats.suspicion().expect("there with the verdict");
    assert_eq!((report.missed, report.detection_time), (100, Duration::from_millis(500)));
    assert!(report.silent_for >= report.detection_time && report.at > stopped);
    assert!(a.beats.last_heard() <= report.at);
    assert!(a.beats.is_running());
    until("counted", || a.beats.stats().missed >= 100);
}

/// Forged and replayed beats neither kill a live peer nor keep a dead one alive.
#[test]
fn nobody_else_speaks_for_the_peer() {
    let [a, b] = pair([parameters(5, 100); 2]);
    until_up(std::slice::from_ref(&a));
    let (attacker, _) = socket();
    let forge = || {
        let replayed = b.sent.lock().first().copied().expect("it was heard");
        let genuine = Beat::decode(&replayed, &KEY).expect("ours");
        let newest = Beat { sequence: u64::MAX, ..genuine };
        let other_key = newest.encode(&BeatKey([2; 32]));
        let other_session = Beat { incarnation: Incarnation(10), ..newest }.encode(&KEY);
        let own = a.sent.lock().last().copied().expect("it beats");
        let mut long = [0; 200];
        long[..beat::LEN].copy_from_slice(&newest.encode(&KEY));
        let all: [&[u8]; 7] = [&replayed, &other_key, &other_session, &own, &long, &replayed[..40], b""];
        for datagram in all {
            // A full socket buffer is part of an attack.
            let _ = attacker.send_to(datagram, a.address);
        }
    };
    until("attacked while the peer lives", || {
        forge();
        a.beats.stats().rejected > 500
    });
    assert_eq!(a.beats.verdict(), Verdict::Up);
    b.beats.shared.stop.store(true, Ordering::Release);
    until("suspect in spite of them", || {
        forge();
        a.beats.verdict() == Verdict::Suspect
    });
    let stats = a.beats.stats();
    assert!(stats.duplicates > 50 && stats.foreign > 50 && stats.own > 50, "{stats:?}");
}

#[test]
fn parameters_change_live_and_nobody_is_suspected() {
    let ends = pair([parameters(10, 100); 2]);
    until_up(&ends);
    for (interval_ms, k) in [(40, 30), (4, 255), (20, 60)] {
        ends[0].beats.set_parameters(parameters(interval_ms, k));
        let slower = u64::max(interval_ms, 10) * 1000;
        until("in force on both sides", || {
            let (own, peer) = (ends[0].beats.stats(), ends[1].beats.stats());
            !own.polling
                && own.transmit_interval_us == slower
                && peer.transmit_interval_us == slower
                && peer.detection_time_us == slower * u64::from(k)
                && own.detection_time_us == slower * 100
        });
    }
    assert!(ends.iter().all(|end| end.beats.verdict() == Verdict::Up));
}

#[test]
fn one_proposal_changes_both_ends_and_patience_follows() {
    let ends = pair([parameters(10, 100); 2]);
    until_up(&ends);
    assert!(ends.iter().all(|end| end.beats.patience() == Duration::from_secs(1)));
    for (from, interval_ms, k) in [(0, 20, 60), (1, 5, 200), (0, 5, 240), (1, 40, 30)] {
        let before = ends[from].beats.patience();
        let wish = parameters(interval_ms, k);
        ends[from].beats.propose(wish);
        assert!(ends[from].beats.negotiation().1, "under way from the moment that it is ordered");
        until("settled", || {
            let lowest = ends[from].beats.patience();
            assert!(lowest <= before.max(wish.desired_tx() * k.into()));
            ends.iter().all(|end| {
                let (now, under_way) = end.beats.negotiation();
                !under_way && now.own == Offer::from(wish) && now.peer == Some(now.own)
            })
        });
        let detection = wish.desired_tx() * k.into();
        until("patience", || ends.iter().all(|end| end.beats.patience() == detection));
        assert!(ends.iter().all(|end| end.beats.negotiation().0.patience == detection));
    }
    assert!(ends.iter().all(|end| end.beats.verdict() == Verdict::Up));
}

#[test]
fn beats_carry_what_is_committed() {
    let ((a, a_address), (b, b_address)) = (socket(), socket());
    let end = end(1, a, a_address, b_address, parameters(2, 5));
    let next = |wanted: (Generation, Epoch)| {
        until("the committed epoch", || {
            let mut buffer = [0; beat::LEN];
            let Ok(length) = b.recv(&mut buffer) else { return false };
            let beat = Beat::decode(&buffer[..length], &KEY).expect("authentic");
            (beat.generation, beat.committed) == wanted
        });
    };
    next((Generation(0), Epoch(0)));
    end.beats.set_committed(Generation(3), Epoch(40));
    next((Generation(3), Epoch(40)));
    end.beats.set_committed(Generation(4), Epoch(1));
    next((Generation(4), Epoch(1)));
    assert_eq!(end.beats.verdict(), Verdict::Waiting, "a peer never heard is not suspect before the start-up limit");
}

#[test]
fn stopping_does_not_wait_for_a_beat() {
    let ((a, a_address), (_b, b_address)) = (socket(), socket());
    let end = end(1, a, a_address, b_address, parameters(10_000, 5));
    let shared = Arc::clone(&end.beats.shared);
    drop(end);
    assert!(shared.ended.load(Ordering::Acquire));
}

/// A network that is gone.
#[derive(Debug)]
struct Broken;

impl Keepalive for Broken {
    fn send(&mut self, _: &[u8; beat::LEN]) -> io::Result<()> {
        Err(io::ErrorKind::NetworkUnreachable.into())
    }
    fn receive(&mut self, _: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        Err(io::ErrorKind::NetworkDown.into())
    }
    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Err(io::ErrorKind::NetworkDown.into())
    }
}

#[test]
fn a_socket_that_only_fails_ends_in_suspicion_and_is_counted() {
    let config = Config { startup: Some(Duration::from_millis(100)), ..config(1, parameters(5, 5)) };
    let beats = BeatThread::spawn(Box::new(Broken), KEY, config, Clock).expect("starts");
    until("suspect", || beats.verdict() == Verdict::Suspect);
    let stats = beats.stats();
    assert!(stats.send_errors > 0 && stats.receive_errors > 0 && stats.sent == 0, "{stats:?}");
}

#[derive(Debug)]
struct Panics;

impl Keepalive for Panics {
    fn send(&mut self, _: &[u8; beat::LEN]) -> io::Result<()> {
        panic!("on purpose")
    }
    fn receive(&mut self, _: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        Ok(None)
    }
    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_thread_that_dies_says_so_and_accuses_nobody() {
    let beats = BeatThread::spawn(Box::new(Panics), KEY, config(1, parameters(5, 5)), Clock).expect("starts");
    until("noticed", || readable(&beats) && !beats.is_running());
    assert_eq!((beats.verdict(), beats.suspicion()), (Verdict::Waiting, None));
}

#[test]
fn beats_that_go_both_ways_are_proven() {
    let ends = pair([parameters(5, 100); 2]);
    until("proven", || ends.iter().all(|end| end.beats.proof().proven));
    let proof = ends[0].beats.proof();
    assert!(proof.heard >= 100 && proof.echoed >= 100 && !proof.accused, "{proof:?}");
}

#[test]
fn what_bears_no_lost_beat_is_not_fit_to_be_relied_on() {
    let ends = pair([parameters(5, 200), parameters(2_000, 1)]);
    until_up(&ends);
    until("it knows the other side's", || ends[0].beats.negotiation().0.peer.is_some());
    let why = ends[0].beats.fit().expect_err("the other side's multiplier is 1").what;
    assert!(why.contains("2s (2s x 1) is too short: a single lost beat"), "{why}");
}

/// What one side sends is dropped on the way: each knows which direction fails.
#[test]
fn one_way_is_not_proven_and_each_side_knows_which_way_fails() {
    let ((a, a_address), (b, b_address), (_void, void_address)) = (socket(), socket(), socket());
    let a = end(1, a, a_address, void_address, parameters(5, 100));
    let b = end(2, b, b_address, a_address, parameters(5, 100));
    until("heard for long enough", || a.beats.stats().received >= 400);
    let (here, there) = (a.beats.proof(), b.beats.proof());
    assert!(!here.proven && here.heard >= 400 && here.echoed == 0, "{here:?}");
    assert_eq!((there.proven, there.heard, there.echoed), (false, 0, 0));
}

/// The other end's detection time, and this one's stall limit, are of the same order: the rest of the machine may be busy.
fn watched_pair(limit: Duration) -> (Progress, [End; 2]) {
    let ((a, a_address), (b, b_address)) = (socket(), socket());
    let progress = Progress::new();
    let (sent, watched) = (Arc::default(), Watched { progress: progress.clone(), limit: Some(limit) });
    let keepalive = Box::new(Udp { socket: a, peer: b_address, tap: Arc::clone(&sent) });
    let beats = BeatThread::spawn_for(Some(watched), keepalive, KEY, config(1, parameters(5, 200)), Clock);
    let a = End { beats: beats.expect("starts"), address: a_address, sent };
    (progress, [a, end(2, b, b_address, a_address, parameters(5, 200))])
}

#[test]
fn a_loop_that_stands_still_is_not_spoken_for() {
    let (progress, ends) = watched_pair(Duration::from_secs(2));
    until("both up, while the loop turns", || {
        progress.mark();
        ends.iter().all(|end| end.beats.verdict() == Verdict::Up)
    });
    assert_eq!(ends[0].beats.stats().withheld, 0);
    // The loop stands still, and its thread of beats lives.
    until("suspect", || ends[1].beats.verdict() == Verdict::Suspect);
    let stats = ends[0].beats.stats();
    assert!(stats.withheld > 0 && ends[0].beats.is_running(), "{stats:?}");
    let sent = stats.sent;
    progress.mark();
    until("it beats again when the loop turns", || {
        progress.mark();
        ends[0].beats.stats().sent > sent + 10
    });
}

#[test]
fn a_side_that_yields_sends_no_beats_until_it_does_not() {
    let ends = pair([parameters(5, 200); 2]);
    until_up(&ends);
    ends[0].beats.withhold(true);
    until("suspect", || ends[1].beats.verdict() == Verdict::Suspect);
    assert!(ends[0].beats.stats().withheld > 0);
    let sent = ends[0].beats.stats().sent;
    ends[0].beats.withhold(false);
    until("it beats again", || ends[0].beats.stats().sent > sent);
}
