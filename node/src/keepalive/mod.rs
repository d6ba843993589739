//! The beats of one session, on a thread of their own: a [`Detector`](mc_core::detector) between a clock and a [`Keepalive`].
//!
//! ```text
//!   the driver                          "beats" (SCHED_FIFO, memory locked, no allocation once warm, no lock waited for)
//!   ----------                          -----------------------------------------------------------------------------
//!   verdict(), suspicion()   <-- atomics --   timers  -> detector -> beats out
//!   wait_fd()                <-- eventfd --   arrived -> check MAC -> detector -> verdict
//!   set_committed()          --- atomics ->   next beat
//!   stats()                  <-- a lock that the thread only tries --  counters, histograms
//! ```
//!
//! The thread shares nothing with the checkpoint path: FaRM (SOSP 2015, 6.5) measured leases on shared queue pairs and
//! shared threads to expire falsely even at 100 ms, and to hold at 5 ms on their own.
//!
//! # A beat speaks for the loop, too
//!
//! A thread of its own beats on when everything else has stopped, and then a beat would prove too little: a pair whose loop stands
//! still holds the VM's output for as long as that lasts, and both sides call it protected. So the loop marks its
//! [`Progress`], and once it has made none for the stall limit ([`Watched`]) the thread *withholds* its beats, until the
//! loop gets on. The other side hears silence, suspects, and the arbiter decides, as for a host that died.
//!
//! Silence, and not a flag "stalled" in the beat: the rule by which a peer is suspected stays one rule, its tests and the model
//! check cover this case as they are, and a peer of any age understands it. A flag would need a second rule for what counts as a sign of
//! life, and an old peer would ignore it.

mod buckets;
pub mod fit;
mod measured;
mod negotiation;
mod paths;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod timer;

pub use negotiation::{Negotiation, Offer};
pub use timer::Timer;
mod track;
mod worker;
#[cfg(feature = "testing")]
pub use worker::Steps;

pub use buckets::{BOUNDS, Buckets};
pub use measured::at_most;
pub use measured::{Measured, PathMeasured};
pub use paths::{MAX_PATHS, PathStats, Paths, PathsReader};
pub use stats::BeatStats;
pub use track::{LONGEST_RUN, LossRuns};

pub use mc_core::detector::Proof;

use crate::{clock::Clock, progress::Progress};
use mc_core::{
    detector::{Config, Parameters},
    id::{Epoch, Generation, Time},
    transport::Keepalive,
    wire::beat::BeatKey,
};
use shared::{Order, Shared};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::Duration,
};
use worker::Worker;

/// Enough for the loop many times over; all of it gets locked.
const STACK: usize = 256 * 1024;

/// What the thread thinks of the peer. It only ever rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Verdict {
    /// Not heard yet.
    #[default]
    Waiting = 0,
    /// Heard.
    Up = 1,
    /// Suspect, for good: go to the arbiter.
    Suspect = 2,
}

/// Why, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspicionReport {
    /// Since the peer's last beat, or since the start if there was none.
    pub silent_for: Duration,
    /// Beats that were due, our own lateness discounted.
    pub missed: u32,
    /// What the peer was allowed.
    pub detection_time: Duration,
    /// When it was said.
    pub at: Time,
}

/// How punctual a beat thread would be here and now. Takes some milliseconds.
///
/// # Errors
/// There is no thread to be had.
pub fn measure_timer() -> io::Result<Timer> {
    Timer::measure_elsewhere()
}

/// The loop that beats speak for.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Marked by the loop.
    pub progress: Progress,
    /// After so long without progress no beat leaves. `None`: [`Watched::usual`].
    pub limit: Option<Duration>,
}

impl Watched {
    /// The stall limit, unless told otherwise: four times as long as the other side bears this one's silence, and at least a second. A
    /// loop that is late by less is busy, and its own affair.
    #[must_use]
    pub fn usual(patience: Duration) -> Duration {
        (patience * 4).max(Duration::from_secs(1))
    }
}

/// Starts beats.
#[derive(Debug)]
pub struct BeatThread;

impl BeatThread {
    /// Starts the thread, and waits until it is as punctual as this host permits ([`BeatHandle::notes`]). The first beat
    /// leaves at once.
    pub fn spawn(keepalive: Box<dyn Keepalive>, key: BeatKey, config: Config, clock: Clock) -> io::Result<BeatHandle> {
        Self::spawn_for(None, keepalive, key, config, clock)
    }

    /// The same, for a loop: see the module's documentation.
    pub fn spawn_for(
        watched: Option<Watched>,
        keepalive: Box<dyn Keepalive>,
        key: BeatKey,
        config: Config,
        clock: Clock,
    ) -> io::Result<BeatHandle> {
        let shared = Arc::new(Shared::new(clock.now())?);
        let startup_limit = config.startup_limit();
        let (settled, notes) = mpsc::sync_channel(1);
        let worker = Worker::new(keepalive, key, config, clock, Arc::clone(&shared)).watching(watched);
        #[cfg(feature = "testing")]
        let worker = match crate::outside::world::begin_beats(Box::new(Steps(worker))) {
            Err(steps) => steps.0,
            Ok(()) => {
                let (notes, timer, started) = (vec![], Timer::default(), clock.now());
                return Ok(BeatHandle { shared, notes, timer, started, startup_limit, thread: None });
            }
        };
        let thread = thread::Builder::new().name("beats".into()).stack_size(STACK).spawn(move || {
            let mut worker = worker;
            // Nobody listens only if `spawn` itself has panicked.
            let _ = settled.send(worker.settle());
            worker.run();
        })?;
        let (notes, timer) = notes.recv().map_err(|_| io::Error::other("the beat thread failed to start"))?;
        Ok(BeatHandle { shared, notes, timer, started: clock.now(), startup_limit, thread: Some(thread) })
    }
}

/// The driver's end. Dropping it stops the thread.
#[derive(Debug)]
pub struct BeatHandle {
    shared: Arc<Shared>,
    notes: Vec<String>,
    timer: Timer,
    started: Time,
    startup_limit: Duration,
    thread: Option<thread::JoinHandle<()>>,
}

impl BeatHandle {
    /// What the thread thinks of the peer.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.shared.verdict()
    }

    /// Whether beats are seen to go both ways, and what was seen of them: at most one wake-up old.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.shared.published.lock().proof()
    }

    /// When it began to beat.
    #[must_use]
    pub fn started(&self) -> Time {
        self.started
    }

    /// How long after that this side suspects a peer that it never heard. One that began with the same settings suspects this
    /// side as late.
    #[must_use]
    pub fn startup_limit(&self) -> Duration {
        self.startup_limit
    }

    /// Sends no beats, or sends them again: a side that cannot run its VM does not hold on to it by beating.
    pub fn withhold(&self, on_purpose: bool) {
        self.shared.withhold.store(on_purpose, Ordering::Release);
    }

    /// Readable when the verdict has changed, beats were seen to go both ways, or the thread has died, since the last [`BeatHandle::clear`].
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Makes [`BeatHandle::wait_fd`] unreadable. Call it before you look at the verdict.
    pub fn clear(&self) {
        // Nothing to clear is the only error.
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
    }

    /// Why the peer is suspect, if it is.
    #[must_use]
    pub fn suspicion(&self) -> Option<SuspicionReport> {
        self.shared.suspicion.get().copied()
    }

    /// When the peer was heard last; before its first beat, when the thread started.
    #[must_use]
    pub fn last_heard(&self) -> Time {
        Time(self.shared.last_heard.load(Ordering::Acquire))
    }

    /// What beats say from now on. For one caller; never waits.
    pub fn set_committed(&self, generation: Generation, epoch: Epoch) {
        self.shared.committed.set(generation, epoch);
    }

    /// Changes parameters live; the peer is asked to confirm, see [`BeatStats::polling`].
    pub fn set_parameters(&self, parameters: Parameters) {
        self.shared.order(Order::Set(parameters));
    }

    /// The same, on both sides: the peer is asked to take them as its own.
    pub fn propose(&self, parameters: Parameters) {
        self.shared.order(Order::Propose(parameters));
    }

    /// What is in force, at most one wake-up old; and whether a change is under way: from the moment that it was ordered
    /// until both sides have settled.
    #[must_use]
    pub fn negotiation(&self) -> (Negotiation, bool) {
        let ordered = self.shared.ordered();
        let negotiation = self.shared.published.lock().negotiation();
        let under_way = negotiation.order != ordered || negotiation.polling || negotiation.peer_polling;
        (negotiation, under_way)
    }

    /// How long the peer bears this side's silence at least, whatever it has heard of a change that is under way: who was
    /// away for longer may have been declared dead. Lowered before the first beat that lowers it leaves. Never waits.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_nanos(self.shared.patience.load(Ordering::Acquire))
    }

    /// How punctual the thread's timers were when it started.
    #[must_use]
    pub fn timer(&self) -> Timer {
        self.timer
    }

    /// Counters and percentiles, at most one wake-up old.
    #[must_use]
    pub fn stats(&self) -> BeatStats {
        self.shared.published.lock().report(self.verdict())
    }

    /// How often the thread was late itself, the worst of that, and how many beats it heard: without the percentiles of
    /// [`BeatHandle::stats`], for whoever has to decide now.
    #[must_use]
    pub fn lateness(&self) -> (u64, Duration, u64) {
        self.shared.published.lock().lateness()
    }

    /// The gaps between the peer's beats, round trips, and how late the thread was, as metrics want them.
    #[must_use]
    pub fn buckets(&self) -> [Buckets; 3] {
        self.shared.published.lock().buckets()
    }

    /// The measurements in full, at most one wake-up old; `None` before the first beat. `name` is the beats' way if there is but
    /// one, `paths` tells of them if there are several. The copies take some tenths of a millisecond, for which the thread does not
    /// wait.
    #[must_use]
    pub fn measured(&self, name: &str, paths: Option<&PathsReader>) -> Option<Measured> {
        self.shared.published.lock().measured(name, paths.map(PathsReader::measured), true)
    }

    /// The same up to the newest beat: for a peer that has ended, whose silence since is no outage.
    #[must_use]
    pub fn measured_to_last_beat(&self, name: &str, paths: Option<&PathsReader>) -> Option<Measured> {
        self.shared.published.lock().measured(name, paths.map(PathsReader::measured), false)
    }

    /// What this host did not permit, and what to do about it; empty if the thread is real-time and locked.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the thread still runs. One that has died leaves its verdict as it was: nobody is accused for our own fault.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire)
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself, and by `is_running`.
            let _ = thread.join();
        }
    }
}

/// Stops the thread and waits for its end, 50 ms at most.
impl Drop for BeatHandle {
    fn drop(&mut self) {
        self.join();
    }
}
