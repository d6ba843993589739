//! One turn of the loop, for whoever has more to do in it than a [`super::Runner`] has.

use super::{
    Primary, Trouble, WITHOUT_BEATS, chance,
    proving::Proof,
    session::{self, Found, Terms},
};
use crate::{
    arbiter::Answer,
    beats::Wish,
    clock::unix_ms,
    events::{Before, Event as Told, NoSession, Suspect, Syncing, emit},
    exit,
    host::Session,
    inbox::{self, Inbox, readable, wait},
    keepalive::Watched,
};
use anyhow::Result;
use mc_core::{
    driver::PrimaryErrand,
    gate::OutputGate,
    id::Time,
    primary::{Event, Role},
    source::CheckpointSource,
    wire::control::GoodbyeReason,
};
use rustix::event::PollFd;
use std::{os::fd::AsFd, time::Duration};

/// A loop around a [`Primary`]. The provided methods are the loop; what is required says what it is about, and the hooks, which do
/// nothing by default, are called at their places in a turn.
pub trait PrimaryLoop {
    /// Where checkpoints come from.
    type Source: CheckpointSource;
    /// What holds output.
    type Gate: OutputGate;

    /// What the loop knows.
    fn primary(&self) -> &Primary<Self::Source, Self::Gate>;
    /// The same.
    fn primary_mut(&mut self) -> &mut Primary<Self::Source, Self::Gate>;

    /// What the next session offers a standby.
    ///
    /// # Errors
    /// Why none is looked for now.
    fn terms(&mut self) -> Result<Terms, Trouble>;

    /// How this side beats, and after how long without a turn its beats are withheld; `None`: after the usual
    /// time.
    fn beating(&self) -> (Wish, Option<Duration>);

    /// So long an epoch may wait for its ACK.
    fn commit_deadline(&self) -> Duration;

    /// A source for the session that begins.
    ///
    /// # Errors
    /// There is no session then.
    fn source(&mut self) -> Result<Self::Source>;

    /// Carries out what the driver asks for.
    ///
    /// # Errors
    /// The loop ends.
    fn errand(&mut self, errand: PrimaryErrand) -> Result<()>;

    // --- hooks, in the order of a turn

    /// What else to sleep on.
    fn wait_fds<'a>(&'a self, _fds: &mut Vec<PollFd<'a>>) {}

    /// When to wake up at the latest.
    fn deadline(&self) -> Option<Time> {
        None
    }

    /// Right after sleep: who commands the VM, signals.
    ///
    /// # Errors
    /// The loop ends.
    fn hear(&mut self) -> Result<()> {
        Ok(())
    }

    /// Whoever leaves asks for nothing any more: the turn ends here.
    fn is_ending(&self) -> bool {
        false
    }

    /// Before the arbiter is heard: how the VM is.
    fn mind_the_vm(&mut self) {}

    /// The register was read, and the machine has heard it.
    fn register_read(&mut self) {}

    /// Before beats are heard: settings, and what waited for the arbiter for too long.
    ///
    /// # Errors
    /// The loop ends.
    fn mind_the_settings(&mut self) -> Result<()> {
        Ok(())
    }

    /// Beats prove nothing: this attempt at protection was given up, before the register was touched.
    fn unproven(&mut self, why: String) {
        self.primary_mut().because(Trouble::lasting(why));
    }

    /// Beats go both ways, and there was a gap: whether the next session may be without one.
    fn bears_gaps(&self) -> bool {
        true
    }

    /// Whether a standby is looked for, while the VM runs solo and an operator wants protection.
    fn may_look(&self) -> bool {
        true
    }

    /// A session begins.
    fn attached(&mut self) {}

    /// No session came about.
    fn without_session(&mut self, _trouble: &Trouble) {}

    /// What a trouble means to this loop.
    fn judged(&self, trouble: Trouble) -> Trouble {
        trouble
    }

    /// The driver has done what can be done without waiting; its errands come next.
    ///
    /// # Errors
    /// The loop ends.
    fn pumped(&mut self) -> Result<()> {
        Ok(())
    }

    /// Last in a turn: who asks gets an answer.
    ///
    /// # Errors
    /// The loop ends.
    fn answer(&mut self) -> Result<()> {
        Ok(())
    }

    /// The role is another one than in the turn before, or protection has begun or ended.
    fn new_role(&mut self) {}

    // --- the loop

    /// One turn.
    ///
    /// # Errors
    /// A hook's, or an errand's; `poll(2)` failed.
    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.act()
    }

    /// A turn after its sleep.
    ///
    /// # Errors
    /// A hook's, or an errand's.
    fn act(&mut self) -> Result<()> {
        self.primary_mut().host.progress.mark();
        self.primary_mut().notice_stall();
        self.hear()?;
        if self.is_ending() {
            return Ok(());
        }
        self.mind_the_vm();
        self.hear_arbiter();
        self.mind_the_settings()?;
        self.prove_beats();
        self.hear_beats();
        self.look_for_standby();
        let primary = self.primary_mut();
        primary.driver.pump();
        primary.host.watch.look(primary.driver.link());
        self.pumped()?;
        self.run_errands()?;
        self.answer()?;
        if self.primary_mut().has_new_role() {
            self.primary().tell_role();
            self.new_role();
        }
        Ok(())
    }

    /// Until there is something to do.
    ///
    /// # Errors
    /// `poll(2)` failed.
    fn sleep(&self) -> Result<()> {
        let primary = self.primary();
        let (driver, host) = (&primary.driver, &primary.host);
        let mut fds = Vec::with_capacity(12);
        fds.extend(driver.link().and_then(inbox::link));
        fds.extend(driver.source().and_then(CheckpointSource::wait_fd).map(readable));
        fds.push(readable(host.arbiter.as_fd()));
        fds.extend(host.beats().map(|beats| readable(beats.wait_fd())));
        fds.extend(primary.looking.as_ref().map(|found| readable(found.as_fd())));
        inbox::gate(&mut fds, &driver.gate);
        self.wait_fds(&mut fds);
        let (until, longest) = self.sleeps();
        wait(&mut fds, host.now(), until, longest)?;
        Ok(())
    }

    /// Until when, and for how long at most.
    fn sleeps(&self) -> (Option<Time>, Duration) {
        let primary = self.primary();
        let until = primary.driver.deadline().into_iter().chain(self.next_look()).chain(self.deadline()).min();
        (until, (primary.stall_limit() / 2).min(WITHOUT_BEATS))
    }

    /// Hears what the arbiter says.
    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.primary_mut().host.answer() {
            let primary = self.primary_mut();
            primary.held = answer.held().or(primary.held);
            match answer {
                Answer::Read(held) => {
                    primary.driver.event(Event::RegisterRead(held));
                    self.register_read();
                }
                Answer::Fault(_) => {} // told below; the machine waits for a register that it can believe
                Answer::Cas(outcome) => primary.driver.event(Event::Cas(outcome)),
            }
        }
        let primary = self.primary_mut();
        primary.host.look_at_arbiter(primary.stance());
    }

    /// Looks whether protection may be registered, as far as beats go; gives it up, before the register is touched, when they do
    /// not come both ways in time.
    fn prove_beats(&mut self) {
        let (wish, _) = self.beating();
        match self.primary().proof(wish) {
            Proof::Pending => {}
            Proof::Given => self.primary_mut().driver.event(Event::BeatsProven),
            Proof::Gap(why) if self.bears_gaps() => self.primary_mut().try_again(why),
            Proof::Gap(why) | Proof::Failed(why) => {
                self.primary_mut().driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
                self.no_beats(why);
            }
        }
    }

    /// Beats prove nothing.
    fn no_beats(&mut self, why: String) {
        tracing::error!(why, "not protected: beats do not pass both ways");
        emit(Told::NoBeats(why.as_str().into()));
        self.unproven(why);
    }

    /// Hears the beats.
    fn hear_beats(&mut self) {
        let primary = self.primary_mut();
        let machine = primary.driver.machine();
        let committed = (machine.generation(), machine.epochs().1);
        if !primary.host.falls_silent(committed) {
            return;
        }
        let (host, standing) = (&primary.host, primary.standing());
        if let Some(beats) = host.beats() {
            emit(Told::Suspect(Box::new(Suspect::by_beats(beats, &host.watch, host.now(), standing))));
        }
        primary.host.suspect();
        primary.because(Trouble::passing("the standby was silent for longer than the detection time"));
        primary.driver.event(Event::Suspect);
    }

    /// When to look for a standby next.
    fn next_look(&self) -> Option<Time> {
        let primary = self.primary();
        let looks = primary.role() == Role::Solo && primary.looking.is_none() && self.may_look();
        primary.seek.next().filter(|_| looks)
    }

    /// Begins to look, or hears what came of it.
    fn look_for_standby(&mut self) {
        let now = self.primary().host.now();
        if self.next_look().is_some() && self.primary_mut().seek.begin(now) {
            let begun = self.terms();
            let begun =
                begun.and_then(|terms| session::seek(terms).map_err(|error| Trouble::passing(exit::words(&error))));
            match begun {
                Ok(inbox) => self.primary_mut().looking = Some(inbox),
                Err(trouble) => self.no_session(trouble),
            }
        }
        let Some(found) = self.primary().looking.as_ref().and_then(Inbox::take) else { return };
        self.primary_mut().looking = None;
        match found {
            Ok(found) if self.primary().seek.is_trying() => {
                if let Err(error) = self.attach(found) {
                    self.no_session(Trouble::passing(exit::words(&error)));
                }
            }
            Ok(_) => {} // an operator does not want it any more; its session ends here
            Err(trouble) => self.no_session(trouble),
        }
    }

    /// The standby that was found stands by.
    ///
    /// # Errors
    /// No thread for the beats, no source: there is no session.
    fn attach(&mut self, found: Found) -> Result<()> {
        let source = self.source()?;
        let (wish, limit) = self.beating();
        let (standby, incarnation, address) = (found.standby, found.incarnation, found.peer);
        let (peer_beats, peer) = (Some(found.beats), Some(address));
        emit(Told::Syncing(Syncing { standby: Some(standby), peer, peer_beats, ..Syncing::default() }));
        let primary = self.primary_mut();
        let watched = Watched { progress: primary.host.progress.clone(), limit };
        let (link, beats, report) = found.start(wish, watched)?;
        primary.host.session = Some(Session::new(beats, format!("{} at {address}", standby.node)));
        primary.host.watch.begin(report);
        (primary.trouble, primary.protected_since) = (None, None);
        primary.seek.found();
        self.attached();
        let deadline = self.commit_deadline();
        let driver = &mut self.primary_mut().driver;
        driver.set_commit_deadline(deadline);
        driver.attach(link, incarnation, source, standby);
        Ok(())
    }

    /// No session came about. Says so if the reason is news.
    fn no_session(&mut self, trouble: Trouble) {
        let trouble = self.judged(trouble);
        let primary = self.primary_mut();
        let before = primary.seek.reason().map(|reason| Before { why: reason.why.clone(), times: reason.times });
        if primary.seek.failed((primary.host.now(), unix_ms()), &trouble, chance()) {
            let (why, slow) = (&trouble.why, trouble.is_slow());
            tracing::warn!(why, slow, "no session with a standby: the VM runs on, unprotected, with its network");
            emit(Told::NoSession(NoSession { why: why.clone(), slow, before }));
        }
        self.without_session(&trouble);
    }

    /// The session is over, and the VM runs solo. `because`: a reason that counts more than the session's own.
    fn session_ended(&mut self, because: Option<Trouble>) {
        let (trouble, protected) = self.primary_mut().end_session();
        let trouble = self.judged(because.unwrap_or(trouble));
        let primary = self.primary_mut();
        primary.seek.lost((primary.host.now(), unix_ms()), &trouble, protected, chance());
    }

    /// Runs what the driver asks for.
    ///
    /// # Errors
    /// An errand's.
    fn run_errands(&mut self) -> Result<()> {
        while let Some(errand) = self.primary_mut().driver.errand() {
            self.errand(errand)?;
        }
        Ok(())
    }
}
