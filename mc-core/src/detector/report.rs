//! What goes into the detector and what comes out of it.

use super::Parameters;
use crate::{
    id::{Epoch, Generation},
    wire::beat::Beat,
};
use std::time::Duration;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// An authentic beat arrived; whose it is, and whether it is new, is for the machine to say.
    BeatReceived(Beat),
    /// The driver has read everything that had arrived when [`Action::Drain`] asked.
    Drained,
    /// The operator wants other parameters, live.
    SetParameters(Parameters),
    /// The operator wants them on both sides: the peer is asked to take them as well.
    Propose(Parameters),
    /// What to put into beats from now on.
    Committed {
        /// Our generation.
        generation: Generation,
        /// The last epoch that we know to be committed.
        epoch: Epoch,
    },
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Sign and send it.
    SendBeat(Beat),
    /// Read everything that has arrived, then say [`Event::Drained`].
    Drain,
    /// For the histograms.
    Heard {
        /// Since the beat before; `None` for the first.
        gap: Option<Duration>,
        /// There and back, less what the peer waited in between; `None` while the peer has nothing to echo.
        rtt: Option<Duration>,
    },
    /// The first beat of the peer.
    Up,
    /// For the first time beats have gone both ways without a gap, for K intervals: the detector works. Said once.
    Proven,
    /// This machine was called late by so much: the host is busy, or slept.
    SelfLate(Duration),
    /// The peer is suspect. Said once.
    Suspect(Suspicion),
}

/// Why the peer is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Suspicion {
    /// Since its last beat, or since the start if there was none.
    pub silent_for: Duration,
    /// Beats that were due in that time, own lateness discounted. 0 if it was never heard.
    pub missed: u32,
    /// What it was allowed: the detection time, or the start-up limit.
    pub detection_time: Duration,
}

/// Where the detector is; drawn in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The peer was not heard yet.
    Waiting,
    /// It is heard.
    Up,
    /// Yellow: at least one beat is overdue.
    Late,
    /// Red, for good.
    Suspect,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Beats that we asked to send.
    pub sent: u64,
    /// New beats of the peer.
    pub received: u64,
    /// Duplicate, late or replayed ones.
    pub duplicates: u64,
    /// Of another incarnation or member.
    pub foreign: u64,
    /// Our own, come back.
    pub own: u64,
    /// New ones that came after the suspicion (also counted in `received`).
    pub after_suspicion: u64,
    /// Times a beat was overdue, own lateness discounted.
    pub missed: u64,
    /// Times this machine was called late.
    pub self_late: u64,
    /// The worst of them.
    pub max_self_late: Duration,
}
