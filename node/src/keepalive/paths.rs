//! [`Paths`]: beats by several ways at once, say UD and UDP, as one [`Keepalive`]. Every beat leaves by all of them, the first copy
//! that arrives counts, and so the peer is silent only when all are.
//!
//! ```text
//!              +--> ud  --> ... --> ud  --+
//!    beat --> send                     receive --> the first copy, to the detector
//!              +--> udp --> ... --> udp --+        later ones: counted per path, and dropped
//! ```
//!
//! A path that fails is counted, and does not touch the others: an error is one only when every path has it. Failing or not,
//! a path is asked for datagrams every time, so that "everything that had arrived was read" stays true; but for
//! [`REST`] after an error nobody waits for its descriptor, which may be readable for ever.
//!
//! What is dropped is what the detector would ignore: an authentic beat of this session that is the first by its own path,
//! and not newer than what another path has brought. A beat that comes twice by the *same* path is no second copy but a
//! duplicate or a replay: it is handed on, for the detector to count.

use super::{
    measured::PathMeasured,
    track::{Arrival, Recorded, Track},
};
use crate::clock::Clock;
use mc_core::{
    id::{Incarnation, Time},
    transport::{Keepalive, PollableKeepalive},
    wire::beat::{self, Beat, BeatKey},
};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Paths at most.
pub const MAX_PATHS: usize = 4;
/// How long a path that failed is not waited for.
const REST: Duration = Duration::from_millis(10);
/// Numbers of members.
const MEMBERS: usize = 256;
/// Arrivals kept while a reader holds the lock.
const WAITING: usize = 256;

/// One path's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PathStats {
    /// "ud", "udp".
    pub name: String,
    /// Beats that left by it.
    pub sent: u64,
    /// Beats that could not.
    pub send_errors: u64,
    /// Beats of this session that came by it, duplicates and replays not among them.
    pub heard: u64,
    /// Of those, how many came by it first.
    pub first: u64,
    /// Datagrams that are no beat of this session.
    pub rejected: u64,
    /// Failed receives and waits.
    pub receive_errors: u64,
    /// When the last beat came by it, ns of [`Clock`]; none before the first.
    pub last_heard_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct Counters {
    name: &'static str,
    sent: AtomicU64,
    send_errors: AtomicU64,
    heard: AtomicU64,
    first: AtomicU64,
    rejected: AtomicU64,
    receive_errors: AtomicU64,
    /// 0: never.
    last_heard: AtomicU64,
    /// The beats' thread only tries this lock.
    recorded: Mutex<Recorded>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    fn stats(&self) -> PathStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PathStats {
            name: self.name.to_owned(),
            sent: get(&self.sent),
            send_errors: get(&self.send_errors),
            heard: get(&self.heard),
            first: get(&self.first),
            rejected: get(&self.rejected),
            receive_errors: get(&self.receive_errors),
            last_heard_ns: Some(get(&self.last_heard)).filter(|at| *at != 0),
        }
    }

    fn measured(&self) -> PathMeasured {
        let PathStats { name, sent, heard, first, .. } = self.stats();
        let recorded = self.recorded.lock();
        let (gap, one_way) = (recorded.gap.clone(), recorded.one_way.clone());
        PathMeasured { name, sent, heard, first, gap, one_way, losses: recorded.losses.clone() }
    }
}

/// Reads the paths' figures while they are in use elsewhere.
#[derive(Clone, Debug)]
pub struct PathsReader(Vec<Arc<Counters>>);

impl PathsReader {
    /// The figures, path by path.
    #[must_use]
    pub fn stats(&self) -> Vec<PathStats> {
        self.0.iter().map(|counters| counters.stats()).collect()
    }

    /// Their histograms, path by path.
    #[must_use]
    pub fn measured(&self) -> Vec<PathMeasured> {
        self.0.iter().map(|counters| counters.measured()).collect()
    }
}

/// The newest sequence of each member.
#[derive(Debug)]
struct Newest(Box<[u64; MEMBERS]>);

impl Newest {
    fn new() -> Self {
        Self(Box::new([0; MEMBERS]))
    }

    /// Notes the beat; false if it is not newer than what was noted.
    fn advance(&mut self, beat: &Beat) -> bool {
        let newest = &mut self.0[usize::from(beat.member)];
        let newer = beat.sequence > *newest;
        *newest = beat.sequence.max(*newest);
        newer
    }
}

struct Path {
    keepalive: Box<dyn PollableKeepalive>,
    counters: Arc<Counters>,
    newest: Newest,
    track: Track,
    waiting: Vec<Arrival>,
    rests_until: Time,
}

impl Path {
    /// Measures a new beat.
    fn heard(&mut self, beat: &Beat, now: Time) {
        count(&self.counters.heard);
        self.counters.last_heard.store(now.0, Ordering::Relaxed);
        let arrival = self.track.arrived(beat, now);
        // A reader holds the lock for less than a millisecond: there is room.
        if self.waiting.len() < WAITING {
            self.waiting.push(arrival);
        }
        if let Some(mut recorded) = self.counters.recorded.try_lock() {
            self.waiting.drain(..).for_each(|arrival| recorded.record(&arrival));
        }
    }

    fn failed(&mut self, now: Time) {
        count(&self.counters.receive_errors);
        self.rests_until = now.after(REST);
    }
}

/// Several keepalives as one.
pub struct Paths {
    key: BeatKey,
    incarnation: Incarnation,
    clock: Clock,
    paths: Vec<Path>,
    newest: Newest,
    /// Whose turn it is to be asked first: a flood by one path must not hide the other.
    turn: usize,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Paths").field(&self.reader().stats()).finish()
    }
}

impl Paths {
    /// The paths of one session, with their names.
    ///
    /// # Panics
    /// Without any, or with more than [`MAX_PATHS`].
    #[must_use]
    pub fn new(
        (incarnation, key): (Incarnation, BeatKey),
        clock: Clock,
        paths: Vec<(&'static str, Box<dyn PollableKeepalive>)>,
    ) -> Self {
        assert!((1..=MAX_PATHS).contains(&paths.len()), "{} paths", paths.len());
        let path = |(name, keepalive)| {
            let counters = Arc::new(Counters { name, ..Counters::default() });
            let waiting = Vec::with_capacity(WAITING);
            Path { keepalive, counters, newest: Newest::new(), track: Track::default(), waiting, rests_until: Time(0) }
        };
        let paths = paths.into_iter().map(path).collect();
        Self { key, incarnation, clock, paths, newest: Newest::new(), turn: 0 }
    }

    /// For whoever wants the figures later.
    #[must_use]
    pub fn reader(&self) -> PathsReader {
        PathsReader(self.paths.iter().map(|path| Arc::clone(&path.counters)).collect())
    }

    /// Whether a datagram that came by path `index` is for the detector.
    fn wanted(&mut self, index: usize, bytes: &[u8]) -> bool {
        let path = &mut self.paths[index];
        let beat = match Beat::decode(bytes, &self.key) {
            Ok(beat) if beat.incarnation == self.incarnation => beat,
            _ => {
                count(&path.counters.rejected);
                return true;
            }
        };
        if !path.newest.advance(&beat) {
            return true;
        }
        path.heard(&beat, self.clock.now());
        let first = self.newest.advance(&beat);
        if first {
            count(&path.counters.first);
        }
        first
    }

    /// Arms the paths that do not rest. `None`: something may be there already; otherwise who is to be waited for.
    fn arm(&mut self, now: Time) -> Option<([usize; MAX_PATHS], usize)> {
        let (mut awake, mut many) = ([0; MAX_PATHS], 0);
        for (index, path) in self.paths.iter_mut().enumerate() {
            if path.rests_until > now {
                continue;
            }
            match path.keepalive.arm() {
                Ok(true) => return None,
                Ok(false) => {
                    awake[many] = index;
                    many += 1;
                }
                Err(_) => path.failed(now),
            }
        }
        Some((awake, many))
    }
}

impl Keepalive for Paths {
    fn send(&mut self, beat: &[u8; beat::LEN]) -> io::Result<()> {
        let (mut failed, mut sent) = (None, false);
        for path in &mut self.paths {
            match path.keepalive.send(beat) {
                Ok(()) => {
                    count(&path.counters.sent);
                    sent = true;
                }
                Err(error) => {
                    count(&path.counters.send_errors);
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if !sent => Err(error),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, buffer: &mut [u8; beat::LEN + 1]) -> io::Result<Option<usize>> {
        let (mut failed, mut errors, mut empty) = (None, 0, 0);
        while errors + empty < self.paths.len() {
            let index = self.turn;
            self.turn = (index + 1) % self.paths.len();
            match self.paths[index].keepalive.receive(buffer) {
                Ok(Some(len)) if self.wanted(index, &buffer[..len.min(buffer.len())]) => return Ok(Some(len)),
                Ok(Some(_)) => (errors, empty) = (0, 0),
                Ok(None) => empty += 1,
                Err(error) => {
                    let now = self.clock.now();
                    self.paths[index].failed(now);
                    (failed, errors) = (Some(error), errors + 1);
                }
            }
        }
        match failed {
            Some(error) if errors == self.paths.len() => Err(error),
            _ => Ok(None),
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let now = self.clock.now();
        let Some((awake, many)) = self.arm(now) else { return Ok(()) };
        let resting = self.paths.iter().map(|path| path.rests_until).filter(|until| *until > now);
        let timeout = resting.map(|until| until.since(now)).fold(timeout, Duration::min);
        // A timeout beyond what the kernel can express is for ever.
        let timeout = Timespec::try_from(timeout).ok();
        let paths = &self.paths;
        let fd = |at: usize| PollFd::from_borrowed_fd(paths[awake[at]].keepalive.as_fd(), PollFlags::IN);
        let mut fds: [PollFd<'_>; MAX_PATHS] = std::array::from_fn(fd);
        match poll(&mut fds[..many], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
