//! What a runner of either side has: a clock, the arbiter, and, while there is a session, its beats and its way.

mod settings;

pub use settings::HostSettings;
pub(crate) use settings::within;

use crate::{
    arbiter::{Answer, ArbiterClient, ArbiterWatch, Stance},
    clock::Clock,
    events::{Event, emit},
    keepalive::{BeatHandle, Verdict},
    paths::Watch,
    progress::Progress,
    stalls::Swaps,
};
use mc_core::id::{Epoch, Generation, Time};

/// The half that [`crate::primary`] and [`crate::standby`] have in common.
#[derive(Debug)]
pub struct Host {
    /// This node's side of the register.
    pub arbiter: ArbiterClient,
    /// The one that the loop reads.
    pub clock: Clock,
    /// Of the loop, for the beats.
    pub progress: Progress,
    /// Which way checkpoints and beats go.
    pub watch: Watch,
    /// The swap that is being asked for.
    pub swap: Swaps,
    /// What there is of a session.
    pub session: Option<Session>,
    arbiter_watch: ArbiterWatch,
}

/// What a session has on either side.
#[derive(Debug)]
pub struct Session {
    /// Its beats; `None` once they have served: the VM was taken over, or fenced.
    pub beats: Option<BeatHandle>,
    /// The other node, in words.
    pub peer: String,
    /// Since when the other node is suspect.
    pub suspected_at: Option<Time>,
}

impl Session {
    /// One that begins.
    #[must_use]
    pub fn new(beats: BeatHandle, peer: String) -> Self {
        Self { beats: Some(beats), peer, suspected_at: None }
    }
}

impl Host {
    /// Without a session.
    #[must_use]
    pub fn new(arbiter: ArbiterClient) -> Self {
        Self {
            arbiter,
            clock: Clock,
            progress: Progress::new(),
            watch: Watch::default(),
            swap: Swaps::default(),
            session: None,
            arbiter_watch: ArbiterWatch::default(),
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The session's beats.
    #[must_use]
    pub fn beats(&self) -> Option<&BeatHandle> {
        self.session.as_ref()?.beats.as_ref()
    }

    /// The session's other node, in words.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.session.as_ref().map(|session| session.peer.as_str())
    }

    /// Whether the other node is suspect.
    #[must_use]
    pub fn suspects(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.suspected_at.is_some())
    }

    /// The session's beats have served.
    pub fn end_beats(&mut self) {
        if let Some(session) = &mut self.session {
            session.beats = None;
        }
    }

    /// The session is over.
    pub fn end_session(&mut self) {
        self.session = None;
        self.watch.end();
    }

    /// The arbiter's next answer; one to a swap is told.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.arbiter.take_answer()?;
        if let Answer::Cas(outcome) = &answer {
            emit(Event::Cas(self.swap.answered(self.clock.now(), outcome)));
        }
        Some(answer)
    }

    /// Tells how the arbiter is, if that is news; `stance`: what it means to this side.
    pub fn look_at_arbiter(&mut self, stance: Stance) {
        self.arbiter_watch.look(&self.arbiter.health(), stance);
    }

    /// Tells the beats what is committed, and hears them: the other node fell silent just now. A detector that is gone must not pass for
    /// one that is content.
    pub fn falls_silent(&mut self, (generation, epoch): (Generation, Epoch)) -> bool {
        let Some(beats) = self.beats() else { return false };
        beats.clear();
        beats.set_committed(generation, epoch);
        (beats.verdict() == Verdict::Suspect || !beats.is_running()) && !self.suspects()
    }

    /// The other node is suspect from now on.
    pub fn suspect(&mut self) {
        let now = self.clock.now();
        if let Some(session) = &mut self.session {
            session.suspected_at.get_or_insert(now);
        }
    }
}
