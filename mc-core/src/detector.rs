//! The detector: tells one side that the other is suspect. It never decides who goes on (that is the arbiter's
//! compare-and-swap), so a false suspicion costs protection, not correctness. One detector watches one peer in one
//! incarnation: the first member other than us that it hears. Where there are more, a `Group` (feature
//! `group`) has one for each.
//!
//! ```text
//!                 a beat of the peer               a beat is overdue               K beats' time is over
//!                (authentic, ours, new)          (and the queue is drained)      (queue drained, our own
//!   Waiting ----------------------------> Up ----------------------------> Late   lateness discounted)
//!      |                                  ^                                |  |
//!      |                                  +--------------------------------+  +------> Suspect (latched)
//!      |                                         a beat of the peer                       ^
//!      +----------------------------------------------------------------------------------+
//!                          never heard within the start-up limit
//! ```
//!
//! Who moves it: only [`Event::BeatReceived`] moves to Up, only [`Event::Drained`] moves towards Suspect, and nothing
//! leaves Suspect: an incarnation that was accused once is given up by its driver.
//!
//! Time, in RFC 5880's terms (`timing.rs` has the rules for changing them live): we send every max(our desired transmit,
//! the peer's required receive) less jitter; we suspect after the peer's K × max(our required receive, the peer's desired
//! transmit) of silence. Unlike 6.8.3, a detector that has not heard its peer does not slow down to a beat per second:
//! there is one peer, and both ends were configured to talk.
//!
//! Local health first, as in Lifeguard (Dadgar, Phillips, Currey 2017). When a deadline passes:
//!
//! 1. [`Action::Drain`]: the driver reads everything that has arrived and says [`Event::Drained`]. Judged is the silence
//!    up to the moment of asking, because only that is proven.
//! 2. A wake-up that came late by more than a quarter of an interval (the shorter one) was no listening: the silence is
//!    shortened by the lateness. The listening time granted that way since the peer's last beat adds up to one detection time at
//!    most, so a host that is always late still finds a dead peer. (A host that slept while its peer was well should lose
//!    the arbitration: it must not wake up and accuse first.)
//! 3. Only then [`Action::Suspect`].
//!
//! Beats with an older or equal sequence (duplicates, late ones, replays, the same one by a second path), of other
//! incarnations or members, and our own are counted and change nothing: gaps and round trips are those of first arrivals.
//!
//! Nobody should rely on a detector that was never seen to work: [`Detector::proof`] (`proof.rs`) says whether beats have gone
//! both ways without a gap, and [`Action::Proven`] when they first have.

mod config;
#[cfg(feature = "group")]
mod group;
mod proof;
mod report;
mod timing;

pub use config::{Config, MAX_INTERVAL, MIN_INTERVAL, MIN_STARTUP, ParameterError, Parameters};
#[cfg(feature = "group")]
pub use group::{Group, GroupAction};
pub use proof::Proof;
pub use report::{Action, Event, State, Stats, Suspicion};
pub use timing::jittered;

use crate::{
    id::{Epoch, Generation, Time},
    machine::Machine,
    wire::beat::{Beat, BeatState},
};
use std::{collections::VecDeque, mem::discriminant, time::Duration};
use timing::Timing;

/// Kinds of [`Action`]; the queue holds at most one of each.
const ACTION_KINDS: usize = 7;

/// How much of the peer's silence is our own fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Discount {
    /// Not counted as listening.
    deaf: Duration,
    /// Listening time added after late wake-ups; bounded.
    granted: Duration,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Detector {
    config: Config,
    timing: Timing,
    state: State,
    /// When the newest beat was handled; before the first, when we started.
    heard: Time,
    /// The newest beat.
    peer: Option<Beat>,
    discount: Discount,
    /// Beats overdue in the present silence.
    overdue: u32,
    /// When `Drain` was asked for, until `Drained`.
    draining: Option<Time>,
    transmit_at: Time,
    /// When the last periodic beat left.
    transmitted: Time,
    sequence: u64,
    last_sent_at: u64,
    committed: (Generation, Epoch),
    proof: proof::Tracker,
    stats: Stats,
    actions: VecDeque<Action>,
}

impl Detector {
    /// A detector that starts at `now`; its first beat is due at once.
    #[must_use]
    pub fn new(config: Config, now: Time) -> Self {
        Self {
            timing: Timing::new(config.parameters),
            config,
            state: State::Waiting,
            heard: now,
            peer: None,
            discount: Discount::default(),
            overdue: 0,
            draining: None,
            transmit_at: now,
            transmitted: now,
            sequence: 0,
            last_sent_at: 0,
            committed: Default::default(),
            proof: proof::Tracker::default(),
            stats: Stats::default(),
            actions: VecDeque::with_capacity(ACTION_KINDS),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The peer's newest beat: its state, generation, last committed epoch, parameters.
    #[must_use]
    pub fn peer(&self) -> Option<&Beat> {
        self.peer.as_ref()
    }

    /// When the peer was heard last; before its first beat, when we started.
    #[must_use]
    pub fn last_heard(&self) -> Time {
        self.heard
    }

    /// The same, but no proposal of the peer's makes it beat or listen more often than every `floor`: what the machine under
    /// it can time.
    #[must_use]
    pub fn with_floor(mut self, floor: Duration) -> Self {
        self.timing.set_floor(floor);
        self
    }

    /// The parameters that our beats advertise.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        self.timing.advertised()
    }

    /// Whether the peer has yet to confirm our newest parameters.
    #[must_use]
    pub fn polling(&self) -> bool {
        self.timing.polling()
    }

    /// How often we send, before jitter.
    #[must_use]
    pub fn transmit_interval(&self) -> Duration {
        self.timing.transmit_interval(self.peer())
    }

    /// How often the peer has agreed to send; `None` before its first beat.
    #[must_use]
    pub fn receive_interval(&self) -> Option<Duration> {
        self.peer().map(|peer| self.timing.receive_interval(peer))
    }

    /// How long the peer bears our silence at least: the shortest detection time that it may hold against us now, also while
    /// a change is under way.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.timing.patience(self.peer())
    }

    /// How long the peer may be silent; before its first beat, the start-up limit.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        self.peer().map_or(self.config.startup_limit(), |peer| self.timing.detection_time(peer))
    }

    /// Whether beats are seen to go both ways at `now`, and what was seen of them.
    #[must_use]
    pub fn proof(&self, now: Time) -> Proof {
        Proof {
            proven: self.proof.proven(now, self.measure()),
            heard: self.stats.received,
            echoed: self.proof.echoed(),
            accused: self.accused(),
        }
    }

    fn accused(&self) -> bool {
        self.peer.is_some_and(|peer| peer.state == BeatState::Suspect)
    }

    /// What the proof takes: see its module.
    fn measure(&self) -> proof::Measure {
        let (theirs, ours) = (self.detection_time(), self.patience());
        let multiplier = self.peer.map_or(0, |peer| peer.detect_multiplier).max(self.parameters().multiplier);
        proof::Measure { limit: theirs + ours, span: theirs.max(ours), echoes: multiplier.into() }
    }

    /// One of each kind at most: a driver that does not drain the queue finds the newest.
    fn push(&mut self, action: Action) {
        self.actions.retain(|queued| discriminant(queued) != discriminant(&action));
        self.actions.push_back(action);
    }

    // --- Sending ---

    fn send(&mut self, now: Time, is_final: bool) {
        self.sequence += 1;
        // Strictly rising, and so never 0: an echo names one beat.
        self.last_sent_at = now.0.max(self.last_sent_at + 1);
        self.stats.sent += 1;
        let poll = self.timing.beat_leaves(self.last_sent_at, is_final);
        let advertised = self.timing.advertised();
        let beat = Beat {
            incarnation: self.config.incarnation,
            generation: self.committed.0,
            committed: self.committed.1,
            sequence: self.sequence,
            sent_at: self.last_sent_at,
            echo: self.peer.map_or(0, |peer| peer.sent_at),
            echo_delay: self.peer.map_or(0, |_| now.0.saturating_sub(self.heard.0)),
            desired_tx_us: advertised.tx_us,
            required_rx_us: advertised.rx_us,
            detect_multiplier: advertised.multiplier,
            state: match self.state {
                State::Waiting => BeatState::Waiting,
                State::Up | State::Late => BeatState::Up,
                State::Suspect => BeatState::Suspect,
            },
            member: self.config.member,
            meant_for: 0,
            poll,
            is_final,
            for_both: poll && self.timing.proposing(),
        };
        self.push(Action::SendBeat(beat));
    }

    fn next_interval(&self) -> Duration {
        jittered(self.transmit_interval(), self.config.incarnation.0, self.config.member, self.sequence)
    }

    /// 6.8.3: a shorter interval is honoured at once, counted from the last periodic beat; but not into the past, which
    /// would look like lateness.
    fn hurry(&mut self, now: Time) {
        let wanted = self.transmitted.after(self.next_interval()).max(now);
        self.transmit_at = self.transmit_at.min(wanted);
    }

    // --- Hearing ---

    fn receive(&mut self, now: Time, beat: Beat) {
        if beat.member == self.config.member {
            self.stats.own += 1;
        } else if beat.incarnation != self.config.incarnation || self.peer.is_some_and(|p| p.member != beat.member) {
            self.stats.foreign += 1;
        } else if self.peer.is_some_and(|p| p.sequence >= beat.sequence) {
            self.stats.duplicates += 1;
        } else {
            self.hear(now, beat.as_heard_by(self.config.member));
        }
    }

    fn hear(&mut self, now: Time, beat: Beat) {
        self.stats.received += 1;
        let there_and_back = now.since(Time(beat.echo).after(Duration::from_nanos(beat.echo_delay)));
        let rtt = (beat.echo != 0).then_some(there_and_back);
        self.push(Action::Heard { gap: self.peer.map(|_| now.since(self.heard)), rtt });
        match self.state {
            State::Waiting => {
                self.state = State::Up;
                self.push(Action::Up);
            }
            State::Up | State::Late => self.state = State::Up,
            State::Suspect => self.stats.after_suspicion += 1,
        }
        self.peer = Some(beat);
        self.heard = now;
        self.overdue = 0;
        self.discount = Discount::default();
        self.timing.beat_arrived(&beat);
        self.prove(now, beat.echo);
        if beat.poll && beat.for_both {
            self.timing.proposed(&beat, self.config.member < beat.member);
        }
        self.hurry(now);
        if beat.poll {
            self.send(now, true);
        }
    }

    /// A beat of the peer came: does it say that ours arrive?
    fn prove(&mut self, now: Time, echo: u64) {
        let measure = self.measure();
        self.proof.heard(now, echo, self.last_sent_at, measure);
        if self.accused() || self.state == State::Suspect {
            self.proof.broken();
        }
        if self.proof.news(now, measure) {
            self.push(Action::Proven);
        }
    }

    // --- Judging ---

    /// From when on the silence is the peer's.
    fn listening_since(&self) -> Time {
        self.heard.after(self.discount.deaf)
    }

    /// When the silence must be judged next; never again once it was.
    fn judge_at(&self) -> Option<Time> {
        let limit = match (&self.peer, self.state) {
            (_, State::Suspect) => return None,
            (None, _) => self.config.startup_limit(),
            (Some(peer), _) => (self.timing.receive_interval(peer) * (self.overdue + 1)).min(self.detection_time()),
        };
        Some(self.listening_since().after(limit))
    }

    /// Called `late` after the deadline: notes it, and takes the part since the last beat off the peer's silence.
    fn note_lateness(&mut self, now: Time, deadline: Time) {
        let late = now.since(deadline);
        let interval = self.transmit_interval();
        let shorter = self.peer().map_or(interval, |peer| interval.min(self.timing.receive_interval(peer)));
        if late <= shorter / 4 {
            return;
        }
        self.stats.self_late += 1;
        self.stats.max_self_late = self.stats.max_self_late.max(late);
        self.push(Action::SelfLate(late));
        let expires = self.listening_since().after(self.detection_time());
        let left = self.detection_time().saturating_sub(self.discount.granted);
        let listen_from = now.max(expires);
        let extended = expires.after(now.since(deadline.max(self.heard))).min(listen_from.after(left));
        self.discount.granted += extended.since(listen_from);
        self.discount.deaf += extended.since(expires);
    }

    /// Everything that had arrived by `asked` was read: what is missing by then is missing.
    fn judge(&mut self, now: Time, asked: Time) {
        let silence = asked.since(self.listening_since());
        if let Some(peer) = &self.peer {
            let due = silence.as_nanos() / self.timing.receive_interval(peer).as_nanos().max(1);
            let due = u32::try_from(due).unwrap_or(u32::MAX).min(peer.detect_multiplier.into());
            if due > self.overdue {
                self.stats.missed += u64::from(due - self.overdue);
                self.overdue = due;
                self.state = State::Late;
            }
        }
        if silence >= self.detection_time() {
            self.state = State::Suspect;
            self.proof.broken();
            let (silent_for, missed) = (now.since(self.heard), self.overdue);
            self.push(Action::Suspect(Suspicion { silent_for, missed, detection_time: self.detection_time() }));
        }
    }
}

impl Machine for Detector {
    type Event = Event;
    type Action = Action;

    fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::BeatReceived(beat) => self.receive(now, beat),
            Event::Drained => {
                if let Some(asked) = self.draining.take()
                    && self.state != State::Suspect
                {
                    self.judge(now, asked);
                }
            }
            Event::SetParameters(parameters) => {
                self.timing.change(parameters);
                self.hurry(now);
            }
            Event::Propose(parameters) => {
                self.timing.propose(parameters);
                self.hurry(now);
            }
            Event::Committed { generation, epoch } => self.committed = (generation, epoch),
        }
    }

    fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn deadline(&self) -> Option<Time> {
        let judge_at = if self.draining.is_some() { None } else { self.judge_at() };
        Some(judge_at.map_or(self.transmit_at, |at| at.min(self.transmit_at)))
    }

    fn handle_timeout(&mut self, now: Time) {
        if let Some(deadline) = self.deadline().filter(|&deadline| deadline <= now) {
            self.note_lateness(now, deadline);
        }
        if self.transmit_at <= now {
            self.send(now, false);
            self.transmitted = now;
            self.transmit_at = now.after(self.next_interval());
        }
        if self.draining.is_none() && self.judge_at().is_some_and(|at| at <= now) {
            self.draining = Some(now);
            self.push(Action::Drain);
        }
    }
}
