//! The data path: a child process that carries checkpoints to the standby and holds output. It may die at any moment; then
//! the supervisor, which holds QEMU's control connection, asks the arbiter what becomes of the VM.
//!
//! One thread runs the loop below; beside it the beats have a thread, the arbiter's client has one, the control socket has
//! one, and connecting to a standby has one while it lasts. They talk to the loop through inboxes.

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    hands::Hands,
    left::Left,
    lookout::Lookout,
    nics,
    orders::Order,
    outputs::Outputs,
    seek::{Seek, Trouble},
    session::Found,
    stop::{Heard, Stop},
    unfit::Unfit,
    vm_health::Watcher,
    yielding::Parked,
};
use crate::{
    control::{self, Control},
    keeper,
    metrics::{IfTaken, Scrapes},
    report,
};
use anyhow::{Context, Result};
use mc_core::{
    driver::PrimaryDriver,
    id::Time,
    primary::{Config, Event, Primary, Role},
    register::Register,
    slab::SlabPool,
    source::CheckpointSource,
    staging::Staging,
    wire::control::GoodbyeReason,
};
use node::{
    arbiter::{Answer, ArbiterClient},
    clock::{Clock, WatchedClock, unix_ms},
    events::{Event as Told, Process, RoleChange, SourceBroken, Suspect, VmGone, emit},
    exit::{self, Code},
    inbox::{self, Inbox, readable, wait},
    keepalive::{BeatHandle, Verdict},
    paths::Watch,
    progress::Progress,
    scope,
    signals::Signals,
    stalls::{Stalls, Swaps},
};
use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};
use vmm_qemu::{colo::ColoSource, gate::NicGate, mending::Mending};

/// The stall limit while nobody stands by: nobody could declare this side dead. And the longest sleep.
const WITHOUT_BEATS: Duration = Duration::from_millis(100);

type Driver = PrimaryDriver<ColoSource, NicGate, WatchedClock>;

/// The loop's state.
pub(super) struct DataPath {
    pub(super) brief: Brief,
    pub(super) driver: Driver,
    pub(super) arbiter: ArbiterClient,
    pub(super) beats: Option<BeatHandle>,
    pub(super) clock: Clock,
    /// Of this loop, for the beats.
    pub(super) progress: Progress,
    pub(super) peer: Option<String>,
    pub(super) notes: Vec<String>,
    pub(super) watch: Watch,
    pub(super) supervisor: Hands,
    /// Whether somebody looks at the VM's outputs, and QEMU is there.
    pub(super) lookout: Lookout,
    /// Whether the VM runs.
    pub(super) vm: Watcher,
    pub(super) parked: Option<Parked>,
    /// Whether QEMU has left its checkpoints.
    pub(super) left: Left,
    /// NICs that were lost, and whose sockets they are.
    pub(super) mending: Mending,
    pub(super) listener: u32,
    /// How long nothing has been committed was told.
    pub(super) uncommitted: bool,
    control: Control,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) signals: Signals,
    /// A standby is being looked for.
    pub(super) sessions: Option<Inbox<Result<Found, Trouble>>>,
    pub(super) seek: Seek,
    /// What wants the arbiter's word first.
    pub(super) orders: Vec<Order>,
    pub(super) stop: Stop,
    /// Way was made for a successor.
    pub(super) made_way_at: Option<Time>,
    /// Why the session that there is will have ended.
    pub(super) trouble: Option<Trouble>,
    pub(super) protected_since: Option<Time>,
    /// Why protection has to end when the arbiter is there.
    pub(super) unfit: Option<Unfit>,
    pub(super) outputs: Outputs,
    /// The stall limit as it was when the turn before began.
    limit_before: Duration,
    last_turn: Time,
    stalls: Stalls,
    /// Those that the driver had noticed, this session, when the turn before began.
    stalls_before: u64,
    role: (Role, bool),
    /// Since when it has been so, ms since 1970.
    pub(super) role_since_ms: u64,
    arbiter_watch: report::ArbiterWatch,
    /// What the register holds, as this process heard last.
    pub(super) held: Option<Register>,
    pub(super) suspected: bool,
    /// The swap that is being asked for.
    pub(super) swaps: Swaps,
    pub(super) operator_wants_solo: bool,
    /// Its guest or its operator shut it down; its QEMU is gone soon.
    vm_shut_down: bool,
    /// Its QEMU ended without having been told to.
    pub(super) vm_died: bool,
    /// To end with, once the register says (solo, self) and QEMU was told so.
    pub(super) end_when_solo: Option<(Code, String)>,
    pub(super) ending: Option<(Code, String)>,
}

/// Runs the data path; `stdin` is the channel to the supervisor.
pub fn run() -> Result<Code> {
    let signals = Signals::catch().context("catching signals")?;
    let channel = std::io::stdin().as_fd().try_clone_to_owned().context("the channel on stdin")?;
    let mut channel = Channel::new(UnixStream::from(channel))?;
    let brief = hear_brief(&mut channel)?;
    super::record(&brief.config, Process::DataPath)?;
    let mut supervisor = Hands::new(channel, &brief);
    scope::find_out();
    let mut replaces = brief.deaths > 0;
    let prepared = match prepare(&brief, &mut replaces) {
        Ok(prepared) => prepared,
        // The VM's packets passed here, or where this process has taken the place, until a moment ago: tried again.
        Err(error) if replaces => return Err(error),
        Err(error) => {
            // One that cannot even start would only be started again.
            let (code, why) = (exit::explain(&error).0, exit::words(&error));
            supervisor.say(&ToSupervisor::Ending { code: code as u8, why })?;
            supervisor.finish();
            return Ok(code);
        }
    };
    DataPath::new(brief, supervisor, signals, prepared)?.run()
}

/// What may be missing: the NICs, their TAP devices, a free control socket. A process that is to be relieved is told to leave as late
/// as possible: the VM has no network from then until the gate is there. `replaces`: the VM's packets passed elsewhere until now.
fn prepare(brief: &Brief, replaces: &mut bool) -> Result<(NicGate, ArbiterClient, Control)> {
    let config = &brief.config;
    nics::check(brief)?;
    let arbiter = ArbiterClient::spawn(&config.asks(brief.register.owner.node))?;
    if brief.relieve {
        control::relieve_primary(&config.run_dir, config.vm)?;
        *replaces = true;
    }
    let control = control::take_place((&config.run_dir, &config.state_dir), (config.vm, config.node), brief.relieve)?;
    // As late as this: until now its packets have passed.
    *replaces |= keeper::relieve(&config.run_dir, config.vm)?;
    Ok((nics::open(config, *replaces)?, arbiter, control))
}

fn hear_brief(channel: &mut Channel) -> Result<Brief> {
    loop {
        if let Some(ToDataPath::Begin(brief)) = channel.hear()? {
            return Ok(*brief);
        }
        anyhow::ensure!(!channel.is_closed(), "the data path is started by `afterimage protect`, not by hand");
        let mut fds = [readable(channel.as_fd())];
        wait(&mut fds, Time(0), None, Duration::from_secs(1))?;
    }
}

impl DataPath {
    fn new(
        brief: Brief,
        supervisor: Hands,
        signals: Signals,
        prepared: (NicGate, ArbiterClient, Control),
    ) -> Result<Self> {
        let (clock, progress) = (Clock, Progress::new());
        let config = &brief.config;
        let (gate, arbiter, control) = prepared;
        let listener = nics::listener(&gate, &brief);
        let pool = SlabPool::new(usize::try_from(config.slab_bytes)?, usize::try_from(config.staging_bytes)?);
        let machine = Primary::new(
            Config {
                epoch: config.epoch,
                window: config.window,
                commit_deadline: config.commit_deadline(false),
                sabotage: None,
            },
            brief.register,
        );
        let mut driver = PrimaryDriver::new(machine, Staging::new(pool), gate, WatchedClock(progress.clone()));
        driver.set_cap(usize::try_from(config.staging_bytes)?, config.on_cap.0);
        let scrapes = Scrapes::serve(config.metrics, IfTaken::TryAgain)?;
        let outputs = Outputs::new(brief.outputs.clone(), config.forced());
        let seek = Seek::new(clock.now().after(Seek::patience(brief.deaths)), brief.protect);
        Ok(Self {
            driver,
            arbiter,
            beats: None,
            clock,
            progress,
            peer: None,
            notes: report::standing_notes(),
            watch: Watch::default(),
            supervisor,
            lookout: Lookout::new(clock.now()),
            vm: Watcher::new(brief.qemu_process().0, brief.qemu_process().1),
            parked: None,
            left: Left::default(),
            mending: Mending::new(clock.now()),
            listener,
            uncommitted: false,
            control,
            scrapes,
            signals,
            sessions: None,
            seek,
            orders: Vec::new(),
            stop: Stop::default(),
            made_way_at: None,
            trouble: None,
            protected_since: None,
            unfit: None,
            outputs,
            limit_before: Duration::MAX,
            last_turn: clock.now(),
            stalls: Stalls::default(),
            stalls_before: 0,
            role: (Role::Solo, false),
            role_since_ms: unix_ms(),
            arbiter_watch: report::ArbiterWatch::default(),
            held: None,
            suspected: false,
            swaps: Swaps::default(),
            operator_wants_solo: false,
            vm_shut_down: false,
            vm_died: false,
            end_when_solo: None,
            ending: None,
            brief,
        })
    }

    fn run(mut self) -> Result<Code> {
        let (vm, generation) = (Some(self.brief.config.vm), self.driver.machine().register().generation);
        emit(Told::Solo(RoleChange { vm, generation, epoch: None, acked: None, standing: None }));
        loop {
            self.turn()?;
            if let Some((code, why)) = self.ending.take() {
                let _ = self.supervisor.say(&ToSupervisor::Ending { code: code as u8, why });
                self.supervisor.finish();
                return Ok(code);
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.progress.mark();
        self.notice_stall();
        self.hear_supervisor()?;
        self.hear_signals();
        if self.ending.is_some() {
            return Ok(()); // who leaves asks for nothing any more
        }
        self.keep_a_lookout();
        self.mind_the_vm();
        self.hear_arbiter();
        self.mind_the_settings()?;
        self.refuse_late_orders();
        self.prove_beats();
        self.hear_beats();
        self.look_for_standby();
        self.driver.pump();
        self.mend_nics();
        self.notice_standstill();
        self.watch.look(self.driver.link());
        self.watch_sizes()?;
        self.run_errands()?;
        self.hear_control();
        self.report_role();
        Ok(())
    }

    /// How long the loop may be away before it must ask whether it still owns the VM: no longer than the standby may bear
    /// its silence, by the parameters in force, or the shortest of those that may be while they change.
    fn stall_limit(&self) -> Duration {
        self.beats.as_ref().map_or(WITHOUT_BEATS, BeatHandle::patience)
    }

    fn sleep(&self) -> Result<()> {
        let (link, source) = (self.driver.link(), self.driver.source());
        let mut fds = Vec::with_capacity(12);
        fds.extend(link.and_then(inbox::link));
        fds.extend(source.and_then(ColoSource::wait_fd).map(readable));
        fds.extend(self.supervisor.wait_fd().map(readable));
        fds.push(readable(self.arbiter.as_fd()));
        fds.push(readable(self.control.as_fd()));
        fds.push(readable(self.signals.as_fd()));
        fds.extend(self.scrapes.as_ref().map(|s| readable(s.as_fd())));
        fds.extend(self.beats.as_ref().map(|b| readable(b.wait_fd())));
        fds.extend(self.sessions.as_ref().map(|s| readable(s.as_fd())));
        inbox::gate(&mut fds, &self.driver.gate);
        let orders = self.orders.iter().map(|order| order.until);
        let until =
            self.driver.deadline().into_iter().chain(self.next_look()).chain(self.mend_at()).chain(orders).min();
        wait(&mut fds, self.clock.now(), until, (self.stall_limit() / 2).min(WITHOUT_BEATS))?;
        Ok(())
    }

    /// A process that was frozen may have been declared dead meanwhile: it asks before it releases anything.
    fn notice_stall(&mut self) {
        let limit = self.stall_limit();
        // While this loop was away the limit may have been raised, by what the standby had heard before.
        let limit = limit.min(std::mem::replace(&mut self.limit_before, limit));
        let now = self.clock.now();
        let away = now.since(std::mem::replace(&mut self.last_turn, now));
        self.driver.notice_stall(limit);
        let stalls = self.driver.figures().stalls;
        if stalls > std::mem::replace(&mut self.stalls_before, stalls) {
            self.stalls.tell(now, away, limit);
        }
    }

    /// It shut down, or died.
    pub(super) fn is_vm_gone(&self) -> bool {
        self.vm_shut_down || self.vm_died
    }

    fn hear_supervisor(&mut self) -> Result<()> {
        while let Some(message) = self.supervisor.hear()? {
            match message {
                ToDataPath::Begin(_) | ToDataPath::Started { error: None, .. } => {}
                ToDataPath::Started { error: Some(why), unsupported } => self.source_broken(why, unsupported),
                ToDataPath::Here => self.lookout.heard(self.clock.now()),
                ToDataPath::VmIs(health) => self.vm.qemu_says(health),
                ToDataPath::VmGone { orderly: true } if self.vm_died => {} // too late
                ToDataPath::VmGone { orderly: true } => {
                    emit(Told::VmGone(VmGone { orderly: true }));
                    self.vm_shut_down = true;
                    self.driver.event(Event::Unprotect(GoodbyeReason::GuestGone));
                }
                ToDataPath::VmGone { orderly: false } => self.vm_has_died(),
                ToDataPath::SourceBroken { why, unsupported } => self.source_broken(why, unsupported),
                ToDataPath::Left { error } => self.hear_left(error),
                ToDataPath::Stop => self.told_to_stop(Heard::BySupervisor),
                ToDataPath::Resume => self.take_back_place(),
                ToDataPath::Changed(changed) => self.vm_changed(*changed),
            }
        }
        Ok(())
    }

    /// Of a VM that was shut down nobody shall run a copy.
    pub(super) fn vm_has_died(&mut self) {
        if self.is_vm_gone() {
            return;
        }
        emit(Told::VmGone(VmGone { orderly: false }));
        self.vm_died = true;
        self.driver.event(Event::SourceLost);
    }

    /// With `--once` a first attempt that fails for want of the source ends this process, and a keeper has the VM's network. Otherwise it
    /// goes on being the VM's way there.
    fn source_broken(&mut self, why: String, unsupported: bool) {
        if self.is_vm_gone() {
            return; // and its stream with it
        }
        let first = self.driver.figures().last_ack_at.is_none();
        let (why, unsupported) = match unsupported && !first {
            true => ("somebody ended the VM's checkpoints (`x-colo-lost-heartbeat` at a monitor)".to_owned(), false),
            false => (why, unsupported),
        };
        tracing::error!(%why, "the checkpoint stream broke; giving protection up");
        emit(Told::SourceBroken(SourceBroken { why: why.clone(), unsupported }));
        self.because(match (unsupported, first) {
            (true, _) => Trouble::hopeless(&why),
            (false, true) => Trouble::lasting(&why),
            (false, false) => Trouble::passing(&why),
        });
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        if unsupported || first {
            let code = if unsupported { Code::Prerequisite } else { Code::Failed };
            self.give_up_for(code, why);
        }
    }

    /// This attempt at protection came to nothing, for something that does not pass by itself.
    pub(super) fn give_up_for(&mut self, code: Code, why: String) {
        self.because(Trouble::lasting(&why));
        if !self.brief.stay {
            self.end_when_solo = Some((code, why));
        }
    }

    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.arbiter.take_answer() {
            self.held = answer.held().or(self.held);
            match answer {
                Answer::Read(held) => {
                    self.register_read(held);
                    self.arbiter_is_there();
                }
                Answer::Fault(_) => {} // told below; the machine waits for a register that it can believe
                Answer::Cas(outcome) => {
                    emit(Told::Cas(self.swaps.answered(self.clock.now(), &outcome)));
                    self.driver.event(Event::Cas(outcome));
                }
            }
        }
        let stance = match self.driver.machine().role() {
            Role::Registering | Role::Protected => report::Stance::Protects,
            Role::Claiming => report::Stance::Claims,
            _ => report::Stance::Idle,
        };
        self.arbiter_watch.look(&self.arbiter.health(), stance);
    }

    fn hear_beats(&mut self) {
        let Some(beats) = &self.beats else { return };
        beats.clear();
        beats.set_committed(self.driver.machine().generation(), self.driver.machine().epochs().1);
        let dead = !beats.is_running(); // a detector that is gone must not pass for one that is content
        if (beats.verdict() == Verdict::Suspect || dead) && !self.suspected {
            let standing = super::commands::standing(self);
            emit(Told::Suspect(Box::new(Suspect::by_beats(beats, &self.watch, self.clock.now(), standing))));
            self.suspected = true;
            self.because(Trouble::passing("the standby was silent for too long"));
            self.driver.event(Event::Suspect);
        }
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            super::commands::answer(self, request);
        }
        while let Some(scrape) = self.scrapes.as_ref().and_then(Scrapes::take) {
            scrape.reply(super::commands::snapshot(self));
        }
    }

    /// A hand-over: this process leaves the VM, which runs solo, to its successor.
    pub(super) fn leave(&mut self) {
        self.ending = Some((Code::Done, "handed over to another `afterimage protect`".to_owned()));
    }

    fn report_role(&mut self) {
        let machine = self.driver.machine();
        let role = (machine.role(), machine.is_protected());
        if role != std::mem::replace(&mut self.role, role) {
            self.role_since_ms = unix_ms();
            super::commands::report_role(self);
            if role.1 {
                self.protected_since.get_or_insert(self.clock.now());
                self.seek.protected();
                let generation = self.driver.machine().register().generation;
                if let Err(error) = self.supervisor.say(&ToSupervisor::Protected { generation }) {
                    tracing::debug!(%error, "the supervisor is gone");
                }
            }
        }
    }
}
