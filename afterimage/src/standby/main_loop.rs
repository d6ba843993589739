//! The standby's loop.

use super::{
    export::Export,
    last_copy::LastCopy,
    leave::Leave,
    offer::spill_file,
    ram_file::Claim,
    report::{snapshot, standing, status, word},
    revival::Revival,
    running,
    takeover::Pending,
    vm::WaitingVm,
    vouch::Callers,
    waiting::NoTap,
};
use crate::{
    cli::Side,
    config::StandbyConfig,
    control::{Control, refused},
    live::{KeepaliveReport, Session, Wanted},
    metrics::{IfTaken, Scrapes},
    report,
    status::{Request, Response},
};
use anyhow::Result;
use mc_core::{
    driver::{StandbyDriver, StandbyErrand},
    gate::OutputGate,
    id::{self, Epoch, Generation, Time},
    register::{Mode as RegisterMode, Owner, Register, Swap},
    slab::SlabPool,
    standby::{Config, Event, Role, Standby},
    transport::Transport,
};
use node::{
    arbiter::{Answer, ArbiterClient, ArbiterSpec, ArbiterWatch, Ask, Stance},
    clock::{Clock, WatchedClock, unix_ms},
    events::{self, Event as Told, Operator, QemuTimes, RoleChange, Started, Suspect, Takeover, Waiting, emit},
    exit::{Code, ExitError, cannot_listen},
    identity,
    inbox::{self, readable, wait},
    keepalive::{BeatHandle, Verdict},
    paths::{Link, Watch},
    progress::Progress,
    signals::Signals,
    stalls::Swaps,
};
use std::{
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use transport_tcp::session::{Listener, SessionOptions};
use vmm_qemu::{
    gate::{Mode, NicGate, Options},
    mending::Mending,
    standby::Rehearsal,
};

/// For the NIC's socket of a QEMU that is there.
pub(super) const NIC_PATIENCE: Duration = Duration::from_secs(2);
/// How often the waiting QEMU is looked after.
pub(super) const VM_CHECK: Duration = Duration::from_millis(500);
/// The loop turns at least so often: well within any stall limit.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// Slabs until a primary says which size it uses.
const FIRST_SLAB: usize = 1 << 20;

/// The loop's state.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: StandbyConfig,
    pub(super) driver: StandbyDriver<Box<dyn Link>, WatchedClock>,
    pub(super) gate: NicGate,
    pub(super) arbiter: ArbiterClient,
    /// This host.
    pub(super) this: id::Node,
    pub(super) beats: Option<BeatHandle>,
    pub(super) clock: Clock,
    /// Of this loop, for the beats.
    pub(super) progress: Progress,
    pub(super) peer: Option<String>,
    /// What this node drew for the session, and whose VM it is about.
    pub(super) instance: u64,
    pub(super) primary: Option<Owner>,
    /// The register names this session's copy, as this node read it last.
    pub(super) registered: bool,
    was_entitled: bool,
    was_protected: bool,
    pub(super) takeover: Option<Takeover>,
    /// What the register holds since this node won the VM.
    pub(super) won: Option<Generation>,
    pub(super) watch: Watch,
    pub(super) vm: Option<WaitingVm>,
    /// A takeover that has not succeeded yet.
    pub(super) pending: Option<Pending>,
    pub(super) export: Option<Export>,
    /// A throw-away QEMU that loads the image.
    pub(super) rehearsal: Option<Rehearsal>,
    /// Why this host's QEMU could not load the VM, when it was tried last.
    pub(super) unloadable: Option<String>,
    /// The one standby of this VM over this RAM directory; until the VM runs here.
    pub(super) claim: Option<Claim>,
    pub(super) last_copy: LastCopy,
    /// Why the register names a copy of this node that this process does not have, and it does not renounce.
    pub(super) missed: Option<String>,
    /// The register's generation from which this node asks to renounce; and from which that was refused.
    pub(super) renounces: Option<Generation>,
    pub(super) unrenounced: Option<Generation>,
    pub(super) listener: Listener,
    pub(super) callers: Callers,
    pub(super) control: Control,
    pub(super) scrapes: Option<Scrapes>,
    role: Role,
    /// Since when it has had that role, ms since 1970.
    pub(super) role_since_ms: u64,
    pub(super) suspected_at: Option<Time>,
    pub(super) swaps: Swaps,
    pub(super) checked_vm_at: Time,
    /// Attempts to start a QEMU that died, NICs that were lost.
    pub(super) revival: Revival,
    /// Why the QEMU that waits, and is there, would not take the VM.
    pub(super) silent: Option<String>,
    /// Why the VM's QEMU did not wait here, when a primary wanted it to or a session ended for it. Nobody has tried since.
    pub(super) unstartable: Option<String>,
    /// A NIC would not work.
    pub(super) no_tap: Option<NoTap>,
    pub(super) mending: Mending,
    arbiter_watch: ArbiterWatch,
    pub(super) operator_wants_it: bool,
    pub(super) signals: Signals,
    pub(super) leave: Leave,
    pub(super) ending: Option<Code>,
    /// Why it ends with a code that needs words.
    pub(super) last_words: Option<String>,
}

impl Node {
    pub(super) fn new(config: StandbyConfig) -> Result<Self> {
        let (clock, progress) = (Clock, Progress::new());
        let claim = Claim::take(&config.ram_dir, config.vm)?;
        let this = identity::node(&config.state_dir, config.node)?;
        let last_copy = LastCopy::open(&config.state_dir, config.vm)?;
        let nobody = Owner { node: this, instance: 0 };
        let machine = Config { owner: nobody, rehearse: !config.no_rehearsal, sabotage: None };
        // Two things tell of a copy that was kept: the record, and the files.
        let machine = match last_copy.gone()?.filter(|instance| claim.kept(*instance).is_none()) {
            Some(gone) => Standby::without_copy(machine, gone),
            None => Standby::new(machine),
        };
        let pool = SlabPool::new(FIRST_SLAB, usize::try_from(config.staging_bytes)?);
        let driver = StandbyDriver::new(machine, pool, spill_file(&config)?, WatchedClock(progress.clone()));
        let gate = NicGate::new(report::nics(&config.nics), Options { mode: Mode::Closed, ..Options::default() });
        let gate = gate.map_err(|error| match error.is_prerequisite() {
            true => ExitError::new(Code::Prerequisite, error),
            false => ExitError::new(Code::Failed, error),
        })?;
        Ok(Self {
            driver,
            gate,
            arbiter: ArbiterClient::spawn(&config.asks(this))?,
            this,
            beats: None,
            clock,
            progress,
            peer: None,
            instance: 0,
            primary: None,
            registered: false,
            was_entitled: false,
            was_protected: false,
            takeover: None,
            won: None,
            watch: Watch::default(),
            vm: None,
            pending: None,
            export: None,
            rehearsal: None,
            unloadable: None,
            claim: Some(claim),
            last_copy,
            missed: None,
            renounces: None,
            unrenounced: None,
            listener: Listener::bind(config.listen, SessionOptions::default()).map_err(cannot_listen)?,
            callers: Callers::default(),
            control: Control::listen((&config.run_dir, &config.state_dir), config.vm, config.node, Side::Standby)?,
            scrapes: Scrapes::serve(config.metrics, IfTaken::Refuse)?,
            role: Role::Idle,
            role_since_ms: unix_ms(),
            suspected_at: None,
            swaps: Swaps::default(),
            checked_vm_at: clock.now(),
            revival: Revival::default(),
            silent: None,
            unstartable: None,
            no_tap: None,
            mending: Mending::new(clock.now()),
            arbiter_watch: ArbiterWatch::default(),
            operator_wants_it: false,
            signals: Signals::catch()?,
            leave: Leave::default(),
            ending: None,
            last_words: None,
            config,
        })
    }

    pub(super) fn run(mut self) -> Result<Code> {
        let (config, version) = (&self.config, env!("CARGO_PKG_VERSION"));
        let (arbiter, beats) = (config.arbiter.to_string(), config.wish().told());
        emit(Told::Started(Started { version: version.to_owned(), arbiter, beats }));
        emit(Told::Waiting(Waiting { vm: config.vm, listen: config.listen, keeps_lost_copy: None }));
        while self.driver.machine().role() != Role::Active {
            if let Err(error) = mishaps(|| self.turn()) {
                return Err(self.save_image(error));
            }
            match (self.ending, self.last_words.take()) {
                (Some(code), None) => return Ok(code),
                (Some(code), Some(words)) => return Err(ExitError::new(code, words).into()),
                (None, _) => {}
            }
        }
        self.report_role();
        running::after_takeover(self)
    }

    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.progress.mark();
        self.hear_signals();
        if self.ending.is_some() {
            return Ok(()); // who leaves asks for nothing any more
        }
        self.hear_offers();
        self.hear_arbiter();
        self.hear_beats();
        self.gate.tick(self.clock.now());
        if let Err(error) = self.gate.poll() {
            self.gate_failed(error.to_string());
        }
        self.driver.pump();
        self.watch.look(self.driver.link().map(|link| &**link as &dyn Transport));
        self.heed_operator();
        self.run_errands()?;
        self.leave_in_order();
        if self.ending.is_some() {
            return Ok(());
        }
        self.hear_rehearsal();
        self.pursue_takeover();
        self.hear_export();
        if self.driver.machine().role() == Role::Active {
            return Ok(());
        }
        self.look_after_vm();
        self.hear_control();
        self.report_protection();
        self.report_role();
        Ok(())
    }

    fn sleep(&self) -> Result<()> {
        let mut fds = Vec::with_capacity(12);
        fds.extend(self.driver.link().and_then(inbox::link));
        fds.extend((!self.leave.is_leaving()).then(|| readable(self.listener.as_fd())));
        fds.push(readable(self.arbiter.as_fd()));
        fds.push(readable(self.control.as_fd()));
        fds.push(readable(self.signals.as_fd()));
        fds.extend(self.scrapes.as_ref().map(|s| readable(s.as_fd())));
        fds.extend(self.beats.as_ref().map(|b| readable(b.wait_fd())));
        inbox::gate(&mut fds, &self.gate);
        fds.extend(self.attempt_fd().map(readable));
        fds.extend(self.rehearsal.as_ref().map(|rehearsal| readable(rehearsal.as_fd())));
        fds.extend(self.export.as_ref().map(|export| readable(export.task.as_fd())));
        let until = self.driver.deadline().into_iter().chain(self.leave_deadline()).min();
        wait(&mut fds, self.clock.now(), until, LONGEST_SLEEP)?;
        Ok(())
    }

    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.arbiter.take_answer() {
            let (before, held) = (self.driver.machine().role(), answer.held());
            match answer {
                Answer::Read(held) => {
                    self.look_whether_named(held.as_ref());
                    self.driver.event(Event::RegisterRead(held));
                    self.hear_register(held.as_ref());
                    self.look_whether_missed(held.as_ref());
                    self.leave_hears();
                }
                // What the register said before stays said: as on the primary, the copy is as good as before.
                Answer::Fault(_) => {
                    self.driver.event(Event::ArbiterFault);
                }
                Answer::Cas(outcome) => {
                    emit(Told::Cas(self.swaps.answered(self.clock.now(), &outcome)));
                    self.hear_renounced(&outcome);
                    self.driver.event(Event::Cas(outcome));
                }
            }
            if before != Role::Lost && self.driver.machine().role() == Role::Lost {
                emit(Told::Lost(events::Lost { register: held, standing: Some(standing(self)) }));
            }
        }
        let stance = match self.driver.machine().role() {
            Role::Protecting => Stance::Protects,
            Role::Revoking | Role::Claiming => Stance::TakesOver,
            _ => Stance::Idle,
        };
        self.arbiter_watch.look(&self.arbiter.health(), stance);
    }

    /// With `manual` an operator is the register: what it would say, were this copy to be asked for, is up to the swap.
    fn read_register(&mut self) {
        match self.primary.filter(|_| *self.arbiter.spec() == ArbiterSpec::Manual) {
            Some(owner) => {
                let (generation, _) = self.driver.machine().committed();
                let standby = Owner { node: self.this, instance: self.instance };
                let named = Register { generation, owner, mode: RegisterMode::Protected { standby } };
                self.look_whether_named(Some(&named));
                self.driver.event(Event::RegisterRead(Some(named)));
            }
            None => self.arbiter.ask(Ask::Read),
        }
    }

    /// Whether the register, read by this node, names the copy that it keeps.
    fn look_whether_named(&mut self, held: Option<&Register>) {
        let copy = Owner { node: self.this, instance: self.instance };
        let (generation, _) = self.driver.machine().committed();
        self.registered = held.is_some_and(|r| r.generation == generation && r.names_standby(&copy));
    }

    /// The death of the other host would cost nothing now: said when it begins to be so.
    fn report_protection(&mut self) {
        let entitled = self.driver.machine().is_entitled();
        if !std::mem::replace(&mut self.was_entitled, entitled) && entitled {
            self.read_register(); // not in a second: now
        }
        let protected = self.is_protected();
        if protected && !self.was_protected {
            let (generation, standing) = (self.driver.machine().committed().0, Some(standing(self)));
            emit(Told::Protected(RoleChange { vm: None, generation, epoch: None, acked: None, standing }));
        }
        self.was_protected = protected;
    }

    pub(super) fn is_protected(&self) -> bool {
        let machine = self.driver.machine();
        let proven = machine.is_entitled() && self.registered && !machine.is_unproven();
        machine.role() == Role::Protecting && proven && self.stalled().is_none()
    }

    fn hear_beats(&mut self) {
        let Some(beats) = &self.beats else { return };
        beats.clear();
        let (generation, epoch) = self.driver.machine().committed();
        beats.set_committed(generation, epoch);
        let dead = !beats.is_running(); // a detector that is gone must not pass for one that is content
        let left = self.driver.machine().was_left();
        if (beats.verdict() == Verdict::Suspect || dead) && !left && self.suspected_at.is_none() {
            let suspect = Suspect::by_beats(beats, &self.watch, self.clock.now(), standing(self));
            emit(Told::Suspect(Box::new(suspect)));
            self.suspect();
        }
    }

    fn suspect(&mut self) {
        self.suspected_at.get_or_insert(self.clock.now());
        self.driver.event(Event::Suspect);
    }

    pub(super) fn run_errands(&mut self) -> Result<()> {
        while let Some(errand) = self.driver.errand() {
            match errand {
                StandbyErrand::ReadRegister => self.read_register(),
                StandbyErrand::Cas(swap) if self.defers(swap) => {}
                StandbyErrand::Cas(swap) => self.claim(swap),
                StandbyErrand::Renounce(swap) => self.renounce(swap),
                StandbyErrand::TakeOver { generation, epoch } => self.take_over(generation, epoch)?,
                StandbyErrand::Rehearse(epoch) => self.begin_rehearsal(epoch),
                StandbyErrand::EndRehearsal => self.rehearsal = None,
                StandbyErrand::Discard => self.discarded(),
                StandbyErrand::Abandon => return Err(self.abandon()),
                StandbyErrand::Fatal(why) => {
                    self.vm = None;
                    return Err(ExitError::new(Code::Failed, why).into());
                }
                StandbyErrand::LinkLost(why) => self.link_lost(&why),
                StandbyErrand::Refused(reason, why) => {
                    tracing::error!(?reason, why, "epoch refused");
                    emit(Told::EpochRefused(events::EpochRefused { reason: reason.into(), why }));
                }
            }
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, swap: Swap) {
        self.swaps.asked(self.clock.now());
        self.arbiter.ask(Ask::Cas(swap));
        emit(Told::Asking(events::Asking { swap, standing: Some(standing(self)) }));
        if self.operator_wants_it {
            self.arbiter.operator_decides();
        }
    }

    fn link_lost(&mut self, why: &str) {
        let machine = self.driver.machine();
        // After a goodbye, or a suspicion that was told, it is how a session ends.
        if machine.was_left() || self.suspected_at.is_some() {
            tracing::info!(why, "the session's link is closed");
        } else {
            tracing::warn!(why, "link lost");
        }
        // After a goodbye nobody is suspect.
        if machine.role() != Role::Idle && !machine.was_left() && self.suspected_at.is_none() {
            self.suspected_at = Some(self.clock.now());
            let now = self.clock.now();
            let paths = self.beats.as_ref().map(|beats| self.watch.heard(beats, now));
            let (why, standing) = (why.to_owned(), Some(standing(self)));
            emit(Told::Suspect(Box::new(Suspect { why, paths, standing, ..Suspect::default() })));
        }
    }

    fn discarded(&mut self) {
        emit(Told::Discarded(events::Discarded { vm: self.config.vm, standing: Some(standing(self)) }));
        (self.rehearsal, self.vm, self.beats, self.peer, self.registered) = (None, None, None, None, false);
        self.unstartable = self.revival.unable().map(str::to_owned);
        (self.revival, self.silent, self.no_tap) = (Revival::default(), None, None);
        self.mending.forget();
        self.watch.end();
    }

    pub(super) fn took_over(
        &mut self,
        (generation, epoch): (Generation, Epoch),
        (silence, won_at): (Duration, Time),
        qemu: QemuTimes,
    ) {
        let decided = self.suspected_at.unwrap_or(won_at);
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let us = |at: Time| whole(at.since(decided));
        let revoked_us = us(self.driver.figures().revoked_at.unwrap_or(decided));
        let silence_us = whole(silence);
        let takeover = Takeover { silence_us, revoked_us, won_us: us(won_at), running_us: us(self.clock.now()) };
        let qmp = running::qmp_path(&self.config);
        tracing::info!(qmp = %qmp.display(), "the VM runs here, unprotected: `afterimage protect --qmp` protects it again");
        emit(Told::Running(Box::new(events::Running {
            generation,
            epoch,
            since_suspicion: takeover,
            qemu: Some(qemu),
            qmp: Some(qmp),
            standing: Some(standing(self)),
        })));
        (self.takeover, self.won) = (Some(takeover), Some(generation));
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            if let Some(request) = request.request.decision() {
                emit(Told::Operator(Operator { request, role: Some(self.driver.machine().role().into()) }));
            }
            if let Request::Export { dir } = &request.request {
                let dir = dir.clone();
                self.begin_export(request, dir);
                continue;
            }
            let response = match &request.request {
                Request::Status => Response::Status(Box::new(status(self))),
                Request::Keepalive => Response::Keepalive(Box::new(self.beating().report())),
                Request::KeepaliveSet(wanted) => self.set_keepalive(wanted),
                Request::Measured => report::measured(&self.watch, self.beats.as_ref()),
                Request::Takeover => self.operator_takeover(),
                Request::Handover => refused("this node stands by for it; `protect` belongs on the node that runs it"),
                Request::Set(_) => refused(
                    "epoch, max-staging and on-cap are the primary's; this is the standby, whose staging is its --staging",
                ),
                Request::Witness(_) => refused("that is for a witness; this is the standby"),
                Request::Solo | Request::Unprotect | Request::Protect | Request::MakeWay | Request::Export { .. } => {
                    refused("that is for the primary; this is the standby: see `takeover`")
                }
            };
            request.reply(response);
        }
        while let Some(scrape) = self.scrapes.as_ref().and_then(Scrapes::take) {
            scrape.reply(snapshot(self));
        }
    }

    fn beating(&self) -> Session<'_> {
        let configured = self.config.wish();
        Session {
            configured,
            beats: self.beats.as_ref(),
            status: status(self),
            config_file: self.config.config_file.clone(),
        }
    }

    fn set_keepalive(&mut self, wanted: &Wanted) -> Response {
        match self.beating().change(wanted) {
            Ok((wish, warnings)) => {
                emit(Told::KeepaliveSet(wish.into()));
                self.config.set_wish(wish);
                let report = KeepaliveReport { warnings, ..self.beating().report() };
                Response::Keepalive(Box::new(report))
            }
            Err(refusal) => Response::Refused { message: refusal.what, remedy: Some(refusal.remedy) },
        }
    }

    fn report_role(&mut self) {
        let role = self.driver.machine().role();
        if role != std::mem::replace(&mut self.role, role) {
            self.role_since_ms = unix_ms();
            let after = if self.driver.machine().was_left() { "role, after the primary's goodbye" } else { "role" };
            tracing::info!(role = word(role), "{after}");
            if matches!(role, Role::Idle | Role::Lost) {
                let keeps = role == Role::Lost; // the copy that was lost, until its room is needed
                let (vm, listen) = (self.config.vm, self.config.listen);
                emit(Told::Waiting(Waiting { vm, listen, keeps_lost_copy: Some(keeps) }));
            }
        }
    }
}

/// A bug of ours must not cost the last copy: a panic is an error like any other, and what an error keeps is kept.
fn mishaps(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(ExitError::new(Code::Failed, format!("a bug ended this standby: {words}")).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::exit;

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
