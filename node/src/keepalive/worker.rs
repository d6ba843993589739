//! The beat thread's loop: timers first, because our beat is somebody's proof of life; then what has arrived; then sleep.
//!
//! It does not log: a log line can block, and what there is to say is in the verdict and the counters.

use super::{
    SuspicionReport, Verdict, Watched,
    negotiation::Negotiation,
    shared::{Order, Shared},
    stats::{Counts, Sample, receiving},
    timer::Timer,
    track::{Track, due},
};
use crate::{clock::Clock, sys::sched};
#[cfg(feature = "testing")]
use mc_core::id::Time;
use mc_core::{
    detector::{Action, Config, Detector, Event},
    id::{Epoch, Generation, nanos},
    machine::Machine,
    transport::Keepalive,
    wire::beat::{self, Beat, BeatKey},
};
use std::{
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

/// Above every ordinary thread, below the kernel's own.
const PRIORITY: i32 = 10;
/// So long it sleeps at most: how soon it notices `stop` and new parameters between slow beats.
pub(super) const MAX_SLEEP: Duration = Duration::from_millis(50);
/// Datagrams read between two looks at the timers. A socket of Linux's default size (212,992 bytes, 768 and more for each
/// of ours) holds fewer, so one pass reads everything that had arrived when the detector asked; and a flood of forged
/// beats delays ours by milliseconds, not for ever.
const PASS: usize = 1024;
/// Failed receives in one pass before it is given up.
const ERRORS: usize = 16;
/// After errors: a socket that only fails must not make a real-time thread spin.
const AFTER_ERROR: Duration = Duration::from_millis(1);
/// Samples kept while a reader holds the lock.
const SAMPLES: usize = 1024;

#[cfg_attr(feature = "testing", derive(Debug))]
pub(super) struct Worker {
    keepalive: Box<dyn Keepalive>,
    key: BeatKey,
    clock: Clock,
    config: Config,
    detector: Detector,
    shared: Arc<Shared>,
    watched: Option<Watched>,
    committed: (Generation, Epoch),
    drain_asked: bool,
    /// Beats have gone both ways, and the driver does not know it yet.
    proven_unsaid: bool,
    counts: Counts,
    track: Track,
    /// In the present silence, what the detector has discounted.
    discounted: Duration,
    samples: Vec<Sample>,
    negotiation: Negotiation,
    /// How often the peer had agreed to send when its newest beat came.
    due: Option<Duration>,
}

/// Makes the calling thread punctual; returns what was not permitted.
pub(super) fn settle() -> Vec<String> {
    let mut notes = vec![];
    // Without real-time priority, Linux may stretch each sleep by 50 µs.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    if let Err(error) = sched::real_time(PRIORITY) {
        notes.push(format!(
            "beats run without real-time priority ({error}): a busy host may delay them; run as root or grant CAP_SYS_NICE"
        ));
    }
    if let Err(error) = sched::lock_code_heap_and_stack() {
        notes.push(format!(
            "the beats' memory is not locked ({error}): a host short of memory may delay them; grant CAP_IPC_LOCK or raise \
             the limit of locked memory"
        ));
    }
    notes
}

/// A thread's work, for a world without threads: whoever has it takes the turns.
#[cfg(feature = "testing")]
#[derive(Debug)]
pub struct Steps(pub(super) Worker);

#[cfg(feature = "testing")]
impl Steps {
    /// The session is over, or its handle is gone.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped()
    }

    /// Everything that is due, and all that has arrived. Returns when the next turn is due at the latest.
    pub fn turn(&mut self) -> Time {
        self.0.turn();
        let now = self.0.clock.now();
        self.0.detector.deadline().map_or(now.after(MAX_SLEEP), |deadline| deadline.min(now.after(MAX_SLEEP)))
    }
}

/// Says that the thread is gone, also if it panics.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Worker {
    pub(super) fn new(
        keepalive: Box<dyn Keepalive>,
        key: BeatKey,
        config: Config,
        clock: Clock,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            keepalive,
            key,
            clock,
            detector: Detector::new(config, clock.now()),
            config,
            shared,
            watched: None,
            committed: Default::default(),
            drain_asked: false,
            proven_unsaid: false,
            counts: Counts::default(),
            track: Track::default(),
            discounted: Duration::ZERO,
            samples: Vec::with_capacity(SAMPLES),
            negotiation: Negotiation::default(),
            due: None,
        }
    }

    /// Beats speak for this loop.
    pub(super) fn watching(mut self, watched: Option<Watched>) -> Self {
        self.watched = watched;
        self
    }

    /// Whether beats would say more than is true: the loop stands still, or was said not to count.
    fn must_withhold(&self) -> bool {
        let stands_still = self.watched.as_ref().is_some_and(|Watched { progress, limit }| {
            progress.since(self.clock.now()) > limit.unwrap_or_else(|| Watched::usual(self.detector.patience()))
        });
        stands_still || self.shared.withhold.load(Ordering::Acquire)
    }

    /// Makes this thread punctual, and measures how punctual it is: no proposal of the peer's makes it faster than it can
    /// be.
    pub(super) fn settle(&mut self) -> (Vec<String>, Timer) {
        let notes = settle();
        let timer = Timer::measure();
        let now = self.clock.now();
        self.detector = Detector::new(self.config, now).with_floor(timer.floor());
        self.publish_patience();
        (notes, timer)
    }

    pub(super) fn run(&mut self) {
        let _ended = Ended(Arc::clone(&self.shared));
        while !self.is_stopped() {
            let healthy = self.turn();
            if self.sleep().is_err() || !healthy {
                thread::sleep(AFTER_ERROR);
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// False if the socket fails.
    fn turn(&mut self) -> bool {
        self.take_orders();
        let now = self.clock.now();
        if let Some(deadline) = self.detector.deadline().filter(|deadline| *deadline <= now) {
            self.sample(Sample::Woke(now.since(deadline)));
            self.detector.handle_timeout(now);
            self.act();
        }
        let healthy = self.receive();
        self.publish();
        healthy
    }

    fn take_orders(&mut self) {
        if let Some(committed) = self.shared.committed.get().filter(|&new| new != self.committed) {
            self.committed = committed;
            let (generation, epoch) = committed;
            self.tell(Event::Committed { generation, epoch });
        }
        if let Some((number, order)) = self.shared.take_order() {
            self.tell(match order {
                Order::Set(parameters) => Event::SetParameters(parameters),
                Order::Propose(parameters) => Event::Propose(parameters),
            });
            self.negotiation.order = number;
        }
    }

    fn tell(&mut self, event: Event) {
        self.detector.handle(self.clock.now(), event);
        self.act();
    }

    /// Before a beat leaves that lowers it: who reads it must not believe the peer more patient than it is.
    fn publish_patience(&self) {
        self.shared.patience.store(nanos(self.detector.patience()), Ordering::Release);
    }

    fn act(&mut self) {
        self.publish_patience();
        while let Some(action) = self.detector.poll_action() {
            match action {
                Action::SendBeat(_) if self.must_withhold() => self.counts.withheld += 1,
                Action::SendBeat(beat) => {
                    if self.keepalive.send(&beat.encode(&self.key)).is_err() {
                        self.counts.send_errors += 1;
                    }
                }
                Action::Drain => self.drain_asked = true,
                Action::Heard { gap, rtt } => {
                    if let (Some(gap), Some(due)) = (gap, self.due) {
                        let overdue = gap.saturating_sub(due);
                        self.negotiation.overdue_max = self.negotiation.overdue_max.max(overdue);
                    }
                    self.heard(rtt);
                }
                Action::Up => self.shared.set_verdict(Verdict::Up),
                Action::Proven => self.proven_unsaid = true,
                Action::SelfLate(late) => self.discounted = self.discounted.saturating_add(late),
                Action::Suspect(why) => {
                    let report = SuspicionReport {
                        silent_for: why.silent_for,
                        missed: why.missed,
                        detection_time: why.detection_time,
                        at: self.clock.now(),
                    };
                    // Said once only; before the verdict, so that who sees the verdict finds it.
                    let _ = self.shared.suspicion.set(report);
                    self.shared.set_verdict(Verdict::Suspect);
                }
            }
        }
    }

    /// Reads what has arrived. False if the socket fails.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; beat::LEN + 1];
        let mut errors = 0;
        for _ in 0..PASS {
            match self.keepalive.receive(&mut buffer) {
                Ok(None) => break,
                Ok(Some(length)) => self.datagram(&buffer[..length.min(buffer.len())]),
                Err(_) => {
                    self.counts.receive_errors += 1;
                    errors += 1;
                    if errors == ERRORS {
                        break;
                    }
                }
            }
        }
        if std::mem::take(&mut self.drain_asked) {
            self.tell(Event::Drained);
        }
        errors < ERRORS
    }

    fn datagram(&mut self, bytes: &[u8]) {
        match Beat::decode(bytes, &self.key) {
            Ok(beat) => {
                self.due = self.detector.receive_interval();
                self.tell(Event::BeatReceived(beat));
                self.shared.last_heard.store(self.detector.last_heard().0, Ordering::Release);
            }
            Err(_) => self.counts.rejected += 1,
        }
    }

    /// Measures the peer's newest beat.
    fn heard(&mut self, rtt: Option<Duration>) {
        let Some(beat) = self.detector.peer().copied() else { return };
        let arrival = self.track.arrived(&beat, self.detector.last_heard());
        let due = due(&beat, arrival.missing, receiving(&self.detector).0);
        let late = std::mem::take(&mut self.discounted);
        let excess = arrival.gap.unwrap_or_default().saturating_sub(due).saturating_sub(late);
        self.sample(Sample::Heard { arrival, rtt, excess });
    }

    fn sample(&mut self, sample: Sample) {
        if self.samples.len() < SAMPLES {
            self.samples.push(sample);
        } else {
            self.counts.unrecorded += 1;
        }
    }

    fn publish(&mut self) {
        let now = self.clock.now();
        self.negotiation.note(&self.detector, now);
        if let Some(mut published) = self.shared.published.try_lock() {
            published.update(&self.detector, now, self.counts, &self.samples);
            published.negotiate(self.negotiation);
            published.prove(self.detector.proof(now));
            self.samples.clear();
            if std::mem::take(&mut self.proven_unsaid) {
                self.shared.signal();
            }
        }
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        let now = self.clock.now();
        let due = self.detector.deadline().map_or(MAX_SLEEP, |deadline| deadline.since(now));
        if due.is_zero() {
            return Ok(());
        }
        self.keepalive.wait(due.min(MAX_SLEEP)).inspect_err(|_| self.counts.receive_errors += 1)
    }
}
