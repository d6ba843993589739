//! One turn of the loop, for whoever has more to do in it than a [`super::Runner`] has.

use super::{Caller, LONGEST_SLEEP, Ready, Refusal, Standby, Won, offer, tell_refused, vouch};
use crate::{
    arbiter::Answer,
    beats::Wish,
    events::{Asking, Discarded, Event as Told, Lost, RoleChange, Standing, Suspect, emit},
    exit::{Code, ExitError},
    inbox::{self, readable, wait},
    paths::PathsConfig,
};
use anyhow::{Error, Result};
use mc_core::{
    driver::{SpillFile, StandbyErrand},
    gate::GateStats,
    id::{Epoch, Time},
    register::{Register, Swap},
    standby::{Event, Role},
    transport::Transport,
};
use rustix::event::PollFd;
use std::{
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::Duration,
};

/// A loop around a [`Standby`]. The provided methods are the loop; what is required says what it is about, and the hooks, which do
/// nothing by default, are called at their places in a turn.
pub trait StandbyLoop {
    /// What the loop knows.
    fn standby(&self) -> &Standby;
    /// The same.
    fn standby_mut(&mut self) -> &mut Standby;

    /// Which way checkpoints and beats go.
    fn paths(&self) -> &PathsConfig;

    /// How this side beats, and after how long without a turn its beats are withheld; `None`: after the usual time.
    fn beating(&self) -> (Wish, Option<Duration>);

    /// As [`super::StandbyVm::prepare`]. The image may be of a VM whose copy was lost to another node: that one stays until
    /// [`StandbyLoop::discarded`].
    ///
    /// # Errors
    /// In words for the primary.
    fn prepare(&mut self, caller: &dyn Caller) -> Result<Ready>;

    /// No session came of what was prepared.
    fn unprepared(&mut self);

    /// The VM is this node's: it is run, at once or in turns to come, and then the machine told ([`Event::Running`]).
    ///
    /// # Errors
    /// The loop ends.
    fn take_over(&mut self, won: Won) -> Result<()>;

    /// Has a throw-away copy of the VM load the image, which stands still until [`mc_core::driver::StandbyDriver::rehearsed`].
    fn rehearse(&mut self, epoch: Epoch);

    /// That copy is not needed any more.
    fn end_rehearsal(&mut self);

    /// The image is void. Where another one was prepared since, the one before that.
    fn discarded(&mut self);

    // --- hooks, in the order of a turn

    /// What else to sleep on.
    fn wait_fds<'a>(&'a self, _fds: &mut Vec<PollFd<'a>>) {}

    /// When to wake up at the latest.
    fn deadline(&self) -> Option<Time> {
        None
    }

    /// Right after sleep: signals.
    fn hear(&mut self) {}

    /// Whoever leaves asks for nothing any more: the turn ends here.
    fn is_ending(&self) -> bool {
        false
    }

    /// Whether primaries are heard.
    fn takes_offers(&self) -> bool {
        true
    }

    /// Whether this host could run the VM at all, before a primary's offer is looked at.
    ///
    /// # Errors
    /// Why not.
    fn is_able(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Whether this host can hold a copy of a VM with this profile. Nothing is started or allocated for it.
    ///
    /// # Errors
    /// Why not.
    fn fits(&mut self, _profile: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }

    /// Where epochs larger than staging go, in the session that begins.
    ///
    /// # Errors
    /// There is no session then.
    fn spill(&mut self) -> Result<Option<SpillFile>> {
        Ok(None)
    }

    /// A session begins.
    fn attached(&mut self) {}

    /// Where a copy of this instance may lie, beside the one on record.
    fn kept(&self, _instance: u64) -> Option<PathBuf> {
        None
    }

    /// The register was read, and the machine has heard it.
    fn register_read(&mut self) {}

    /// Before the driver pumps: the gate.
    fn mind_the_gate(&mut self) {}

    /// Output, as events tell it.
    fn output(&self) -> GateStats {
        GateStats::default()
    }

    /// The machine wants to ask for the VM. True if that has to wait.
    fn defers(&mut self, _swap: Swap) -> bool {
        false
    }

    /// The takeover is another copy's since: what was started ends. Returns why the loop does.
    fn abandon(&mut self) -> Error {
        ExitError::new(Code::Fenced, "the VM was given to another node while this one could not run it").into()
    }

    /// The image cannot be trusted any more: nobody shall run it.
    fn distrust(&mut self) {}

    /// The driver's errands are run: whoever leaves in order does what is due.
    fn leave(&mut self) {}

    /// What was begun in earlier turns: a takeover, a rehearsal.
    fn pursue(&mut self) {}

    /// How the VM is that waits here.
    fn mind_the_vm(&mut self) {}

    /// Who asks gets an answer.
    fn answer(&mut self) {}

    /// Why this side would not do its work.
    fn stalled(&self) -> Option<String> {
        None
    }

    // --- the loop

    /// One turn. It ends early once the VM runs here.
    ///
    /// # Errors
    /// The image cannot be trusted, or belongs to another copy; a hook's; `poll(2)` failed. Whoever runs the loop keeps an image that
    /// may be the last one.
    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.act()
    }

    /// A turn after its sleep.
    ///
    /// # Errors
    /// As [`StandbyLoop::turn`].
    fn act(&mut self) -> Result<()> {
        self.standby_mut().host.progress.mark();
        self.hear();
        if self.is_ending() {
            return Ok(());
        }
        vouch::hear_offers(self);
        self.hear_arbiter();
        self.hear_beats();
        self.mind_the_gate();
        let standby = self.standby_mut();
        standby.driver.pump();
        standby.host.watch.look(standby.driver.link().map(|link| &**link as &dyn Transport));
        standby.heed_operator();
        self.run_errands()?;
        self.leave();
        if self.is_ending() {
            return Ok(());
        }
        self.pursue();
        if self.standby().role() == Role::Active {
            return Ok(());
        }
        self.mind_the_vm();
        self.answer();
        self.report_protection();
        self.standby_mut().report_role();
        Ok(())
    }

    /// Until there is something to do.
    ///
    /// # Errors
    /// `poll(2)` failed.
    fn sleep(&self) -> Result<()> {
        let standby = self.standby();
        let mut fds = Vec::with_capacity(12);
        fds.extend(standby.driver.link().and_then(inbox::link));
        fds.extend(self.takes_offers().then(|| standby.door.wait_fd()).flatten().map(readable));
        fds.push(readable(standby.host.arbiter.as_fd()));
        fds.extend(standby.beats().map(|beats| readable(beats.wait_fd())));
        self.wait_fds(&mut fds);
        let (until, longest) = self.sleeps();
        wait(&mut fds, standby.host.now(), until, longest)?;
        Ok(())
    }

    /// Until when, and for how long at most.
    fn sleeps(&self) -> (Option<Time>, Duration) {
        (self.standby().driver.deadline().into_iter().chain(self.deadline()).min(), LONGEST_SLEEP)
    }

    /// How things stand.
    fn standing(&self) -> Standing {
        self.standby().standing(self.output())
    }

    /// Hears what the arbiter says.
    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.standby_mut().host.answer() {
            let (before, held) = (self.standby().role(), answer.held());
            match answer {
                Answer::Read(held) => {
                    self.standby_mut().look_whether_named(held.as_ref());
                    self.standby_mut().driver.event(Event::RegisterRead(held));
                    vouch::hear_register(self, held.as_ref());
                    self.look_whether_missed(held.as_ref());
                    self.register_read();
                }
                // What the register said before stays said: as on the primary, the copy is as good as before.
                Answer::Fault(_) => self.standby_mut().driver.event(Event::ArbiterFault),
                Answer::Cas(outcome) => {
                    self.standby_mut().hear_renounced(&outcome);
                    self.standby_mut().driver.event(Event::Cas(outcome));
                }
            }
            if before != Role::Lost && self.standby().role() == Role::Lost {
                emit(Told::Lost(Lost { register: held, standing: Some(self.standing()) }));
            }
        }
        let standby = self.standby_mut();
        standby.host.look_at_arbiter(standby.stance());
    }

    /// Whether the register names a copy of this node that is not here.
    fn look_whether_missed(&mut self, held: Option<&Register>) {
        let missed = self.standby().misses(held);
        let kept = missed.and_then(|_| self.kept(self.standby().last_copy.instance()?));
        self.standby_mut().tell_missed(missed, kept.as_deref());
    }

    /// Hears the beats.
    fn hear_beats(&mut self) {
        let standby = self.standby_mut();
        let machine = standby.driver.machine();
        let (committed, left) = (machine.committed(), machine.was_left());
        if !standby.host.falls_silent(committed) || left {
            return;
        }
        let (host, standing) = (&self.standby().host, self.standing());
        if let Some(beats) = host.beats() {
            emit(Told::Suspect(Box::new(Suspect::by_beats(beats, &host.watch, host.now(), standing))));
        }
        self.standby_mut().suspect();
    }

    /// Runs what the driver asks for.
    ///
    /// # Errors
    /// A hook's; the image cannot be trusted, or belongs to another copy.
    fn run_errands(&mut self) -> Result<()> {
        while let Some(errand) = self.standby_mut().driver.errand() {
            match errand {
                StandbyErrand::ReadRegister => self.standby_mut().read_register(),
                StandbyErrand::Cas(swap) if self.defers(swap) => {}
                StandbyErrand::Cas(swap) => self.claim(swap),
                StandbyErrand::Renounce(swap) => self.standby_mut().renounce(swap),
                StandbyErrand::TakeOver { generation, epoch } => {
                    let won = self.standby_mut().win(generation, epoch);
                    self.take_over(won)?;
                }
                StandbyErrand::Rehearse(epoch) => self.rehearse(epoch),
                StandbyErrand::EndRehearsal => self.end_rehearsal(),
                StandbyErrand::Discard => {
                    let standing = Some(self.standing());
                    emit(Told::Discarded(Discarded { vm: self.standby().vm, standing }));
                    self.discarded();
                    self.standby_mut().end_session();
                }
                StandbyErrand::Abandon => return Err(self.abandon()),
                StandbyErrand::Fatal(why) => {
                    self.distrust();
                    return Err(ExitError::new(Code::Failed, why).into());
                }
                StandbyErrand::LinkLost(why) => {
                    let output = self.output();
                    self.standby_mut().link_lost(&why, output);
                }
                StandbyErrand::Refused(reason, why) => tell_refused(reason, why),
            }
        }
        Ok(())
    }

    /// Asks the arbiter for the VM.
    fn claim(&mut self, swap: Swap) {
        self.standby_mut().ask_for(swap);
        emit(Told::Asking(Asking { swap, standing: Some(self.standing()) }));
        let standby = self.standby();
        if standby.operator_wants_it() {
            standby.host.arbiter.operator_decides();
        }
    }

    /// The room of a copy that was lost is needed.
    ///
    /// # Errors
    /// As [`StandbyLoop::run_errands`].
    fn make_room(&mut self) -> Result<()> {
        self.standby_mut().driver.event(Event::MakeRoom);
        self.run_errands()
    }

    /// Begins a session with a primary that the register vouches for. The offer comes back if the primary has no answer yet.
    ///
    /// # Errors
    /// There is no session.
    fn begin(&mut self, caller: Box<dyn Caller>) -> Result<(), (Option<Box<dyn Caller>>, Error)> {
        offer::begin(self, caller)
    }

    /// Whether the death of the other host would cost nothing now.
    fn is_protected(&self) -> bool {
        self.standby().protects() && self.stalled().is_none()
    }

    /// Says so when it begins to be so.
    fn report_protection(&mut self) {
        let standby = self.standby_mut();
        let entitled = standby.driver.machine().is_entitled();
        let Some(copy) = &mut standby.copy else { return };
        if !std::mem::replace(&mut copy.was_entitled, entitled) && entitled {
            standby.read_register(); // not in a second: now
        }
        let protected = self.is_protected();
        let Some(copy) = &mut self.standby_mut().copy else { return };
        if !std::mem::replace(&mut copy.was_protected, protected) && protected {
            let (generation, standing) = (self.standby().driver.machine().committed().0, Some(self.standing()));
            emit(Told::Protected(RoleChange { vm: None, generation, epoch: None, acked: None, standing }));
        }
    }
}

/// A bug must not cost the last copy: a panic is an error like any other, and what an error keeps is kept.
///
/// # Errors
/// What `work` says, or that it panicked.
pub fn mishaps(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(ExitError::new(Code::Failed, format!("a bug ended this standby: {words}")).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    #[test]
    fn a_panic_is_an_error() {
        let panics: [fn() -> Result<()>; 2] = [|| panic!("in words"), || panic!("in {}", String::from("words"))];
        for panic in panics {
            let (code, text) = exit::explain(&mishaps(panic).unwrap_err());
            assert!(code == Code::Failed && text.contains("a bug ended this standby: in words"), "{text}");
        }
        assert!(mishaps(|| Ok(())).is_ok());
    }
}
