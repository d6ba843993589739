//! The data path looks for a standby: begins, hears what came of it, and says why there is none.

use super::{
    channel::ToSupervisor,
    data_path::DataPath,
    seek::{Kind, Trouble},
    session::{self, Found},
    unfit::Unfit,
};
use crate::status::WhyNot;
use anyhow::Result;
use mc_core::{
    id::Time,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::{
    clock::unix_ms,
    events::{Before, Event as Told, NoSession, Syncing, emit},
    exit::{self, Code},
    inbox::Inbox,
    keepalive::Watched,
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::time::Duration;
use vmm_qemu::colo::ColoSource;

/// A successor that way was made for, and that has not come after this, does not come. For a data path without a supervisor.
const SUCCESSOR: Duration = Duration::from_secs(10);

impl DataPath {
    /// When to look next.
    pub(super) fn next_look(&self) -> Option<Time> {
        let looks = self.driver.machine().role() == Role::Solo && self.sessions.is_none();
        let looks = looks && !self.stop.is_ending() && !self.left.is_pending();
        self.seek.next().filter(|_| looks)
    }

    pub(super) fn look_for_standby(&mut self) {
        if self.next_look().is_some() && self.seek.begin(self.clock.now()) {
            match self.begin_to_look() {
                Ok(inbox) => self.sessions = Some(inbox),
                Err(trouble) => self.no_session(&trouble),
            }
        }
        if let Some(found) = self.sessions.as_ref().and_then(Inbox::take) {
            self.sessions = None;
            match found {
                Ok(found) if self.seek.is_trying() => {
                    if let Err(error) = self.attach(found) {
                        self.no_session(&Trouble::passing(exit::words(&error)));
                    }
                }
                Ok(_) => {} // an operator does not want it any more; its session ends here
                Err(trouble) => self.no_session(&trouble),
            }
        }
        let left_alone = self.made_way_at.is_some_and(|at| self.clock.now().since(at) > SUCCESSOR);
        if left_alone && !self.supervisor.is_supervised() {
            self.take_back_place();
        }
    }

    fn begin_to_look(&self) -> Result<Inbox<Result<Found, Trouble>>, Trouble> {
        if let Some(why) = self.outputs.left_open() {
            return Err(Trouble::lasting(why));
        }
        let generation = self.driver.machine().register().generation.next();
        let witness = self.arbiter.health().witness;
        session::seek(&self.brief, generation, witness).map_err(|error| Trouble::passing(exit::words(&error)))
    }

    fn attach(&mut self, found: Found) -> Result<()> {
        let source = ColoSource::new(self.brief.profile.blocks.clone())?;
        let (standby, incarnation) = (found.standby, found.incarnation);
        emit(Told::Syncing(Syncing {
            standby: Some(standby),
            peer: Some(found.peer),
            peer_beats: Some(found.beats),
            ..Syncing::default()
        }));
        let peer = format!("{} at {}", standby.node, found.peer);
        self.suspected = false;
        let wish = self.brief.config.wish();
        let watched = Watched { progress: self.progress.clone(), limit: self.brief.config.stall_after };
        let (link, beats, report) = found.start(wish, watched)?;
        self.peer = Some(peer);
        self.beats = Some(beats);
        self.watch.begin(report);
        (self.trouble, self.protected_since) = (None, None);
        self.seek.found();
        self.outputs.begin_session();
        self.driver.set_commit_deadline(self.brief.config.commit_deadline(self.watch.has_rdma()));
        self.driver.attach(link, incarnation, source, standby);
        Ok(())
    }

    /// Says so if the reason is news. With `--once` it ends this process, and a keeper has the VM's network.
    fn no_session(&mut self, trouble: &Trouble) {
        let trouble = &self.once(trouble.clone());
        let before = self.seek.reason().map(|reason| Before { why: reason.why.clone(), times: reason.times });
        if self.seek.failed((self.clock.now(), unix_ms()), trouble, chance()) {
            let (why, slow) = (&trouble.why, trouble.kind != Kind::Passing);
            tracing::warn!(why, slow, "no session with a standby: the VM runs on, unprotected, with its network");
            emit(Told::NoSession(NoSession { why: why.clone(), slow, before }));
        }
        if !self.brief.stay {
            self.end_once(Code::Failed, &trouble.why);
        }
    }

    /// `--once` looks for no second session.
    fn once(&self, trouble: Trouble) -> Trouble {
        if self.brief.config.once { Trouble { kind: Kind::Hopeless, ..trouble } } else { trouble }
    }

    /// The session is over, and the VM runs solo.
    pub(super) fn session_ended(&mut self) {
        let (unfit, trouble) = (self.unfit.take().map(Unfit::trouble), self.trouble.take());
        let trouble = unfit.or(trouble).unwrap_or_else(|| Trouble::passing("the session with the standby ended"));
        let protected = self.protected_since.take().map(|since| self.clock.now().since(since));
        let trouble = self.once(trouble);
        self.seek.lost((self.clock.now(), unix_ms()), &trouble, protected, chance());
    }

    /// A successor prepares itself: this process goes on as the VM's way to its network, and nothing else.
    pub(super) fn make_way(&mut self) -> Result<()> {
        self.seek.make_way(self.clock.now(), true);
        (self.sessions, self.made_way_at) = (None, Some(self.clock.now()));
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected)); // a copy that was on its way
        self.run_errands()?;
        self.supervisor.say(&ToSupervisor::MakeWay)
    }

    /// It did not come.
    pub(super) fn take_back_place(&mut self) {
        self.made_way_at = None;
        self.seek.make_way(self.clock.now(), false);
    }

    /// For the status: why no standby protects the VM.
    pub(super) fn why_not(&self) -> Option<WhyNot> {
        let unfit = self.why_unfit();
        if unfit.is_some() {
            return unfit;
        }
        let reason = self.seek.reason()?;
        let now = self.clock.now();
        let next = self.seek.next().map(|at| u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX));
        let begun = matches!(self.driver.machine().role(), Role::Syncing | Role::Registering);
        let under_way = (begun || self.sessions.is_some()).then_some(0);
        Some(WhyNot {
            why: reason.why.clone(),
            since_ms: reason.since_ms,
            times: reason.times,
            next_try_in_ms: next.or(under_way),
            what_to_do: None,
        })
    }
}

/// Any number, for the jitter; without the kernel's help they are all alike.
fn chance() -> u8 {
    let mut byte = [128];
    let _ = getrandom(&mut byte, GetRandomFlags::NONBLOCK);
    byte[0]
}
