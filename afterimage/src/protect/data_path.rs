//! The data path: a child process that carries checkpoints to the standby and holds output. It may die at any moment; then
//! the supervisor, which holds QEMU's control connection, asks the arbiter what becomes of the VM.
//!
//! One thread runs the loop below; beside it the beats have a thread, the arbiter's client has one, the control socket has
//! one, and connecting to a standby has one while it lasts. They talk to the loop through inboxes.

use super::{
    channel::{Brief, Channel, ToDataPath, ToSupervisor},
    hands::Hands,
    outputs::Outputs,
    session::{self, Found},
};
use crate::{
    arbiter::{Answer, ArbiterClient},
    cli::Side,
    clock::Clock,
    control::Control,
    events::emit,
    exit::{self, Code, ExitError},
    gate::{GateError, Mode, NicGate, NicSpec, Options},
    inbox::{self, Inbox, readable, wait},
    keepalive::{BeatHandle, Verdict},
    metrics::Scrapes,
    paths::Watch,
    qemu::colo::ColoSource,
    report,
    stalls::{Stalls, Swap},
};
use anyhow::{Context, Result};
use mc_core::{
    driver::PrimaryDriver,
    id::Time,
    primary::{Config, Event, Primary, Role},
    slab::SlabPool,
    source::CheckpointSource,
    staging::Staging,
    wire::control::GoodbyeReason,
};
use serde_json::json;
use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

/// The stall limit while nobody stands by: nobody could declare this side dead. And the longest sleep.
const WITHOUT_BEATS: Duration = Duration::from_millis(100);

type Driver = PrimaryDriver<ColoSource, NicGate, Clock>;

/// The loop's state.
pub(super) struct DataPath {
    pub(super) brief: Brief,
    pub(super) driver: Driver,
    pub(super) arbiter: ArbiterClient,
    pub(super) beats: Option<BeatHandle>,
    pub(super) clock: Clock,
    pub(super) peer: Option<String>,
    pub(super) notes: Vec<String>,
    pub(super) watch: Watch,
    pub(super) supervisor: Hands,
    control: Control,
    scrapes: Option<Scrapes>,
    sessions: Option<Inbox<Result<Found>>>,
    pub(super) outputs: Outputs,
    /// The stall limit as it was when the turn before began.
    limit_before: Duration,
    last_turn: Time,
    stalls: Stalls,
    /// Those that the driver had noticed, this session, when the turn before began.
    stalls_before: u64,
    role: Role,
    arbiter_reachable: bool,
    suspected: bool,
    /// The swap that is being asked for.
    pub(super) swap: Swap,
    pub(super) operator_wants_solo: bool,
    /// Its QEMU ended without having been told to.
    pub(super) vm_died: bool,
    /// To end with, once the register says (solo, self) and QEMU was told so.
    pub(super) end_when_solo: Option<(Code, String)>,
    pub(super) ending: Option<(Code, String)>,
}

/// Runs the data path; `stdin` is the channel to the supervisor.
pub fn run() -> Result<Code> {
    let channel = std::io::stdin().as_fd().try_clone_to_owned().context("the channel on stdin")?;
    let mut channel = Channel::new(UnixStream::from(channel))?;
    let brief = hear_brief(&mut channel)?;
    super::record(&brief.config, "data-path")?;
    let mut supervisor = Hands::new(channel, &brief.config);
    let prepared = match prepare(&brief) {
        Ok(prepared) => prepared,
        Err(error) => {
            // One that cannot even start would only be started again.
            let (code, why) = (exit::explain(&error).0, exit::words(&error));
            supervisor.say(&ToSupervisor::Ending { code: code as u8, why })?;
            return Ok(code);
        }
    };
    DataPath::new(brief, supervisor, prepared)?.run()
}

/// What may be missing: the NICs, their TAP devices, a free control socket.
fn prepare(brief: &Brief) -> Result<(NicGate, ArbiterClient, Control)> {
    let config = &brief.config;
    let control = Control::listen(&config.run_dir, config.vm, Side::Primary)?;
    let held_limit_bytes = usize::try_from(config.held_limit_bytes)?;
    let options = Options { held_limit_bytes, mode: Mode::Open };
    let gate = connected_gate(report::nics(&config.nics), options).map_err(|error| {
        let code = if error.is_prerequisite() { Code::Prerequisite } else { Code::Failed };
        ExitError::new(code, error)
    })?;
    let arbiter = ArbiterClient::spawn(config.arbiter.clone(), config.vm, &config.run_dir)?;
    Ok((gate, arbiter, control))
}

fn connected_gate(nics: Vec<NicSpec>, options: Options) -> Result<NicGate, GateError> {
    let mut gate = NicGate::new(nics, options)?;
    gate.connect(Duration::from_secs(5))?;
    Ok(gate)
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
    fn new(brief: Brief, supervisor: Hands, prepared: (NicGate, ArbiterClient, Control)) -> Result<Self> {
        let clock = Clock;
        let config = &brief.config;
        let (gate, arbiter, control) = prepared;
        let pool = SlabPool::new(usize::try_from(config.slab_bytes)?, usize::try_from(config.staging_bytes)?);
        let machine =
            Primary::new(Config { epoch: config.epoch, window: config.window, sabotage: None }, brief.register);
        let mut driver = PrimaryDriver::new(machine, Staging::new(pool), gate, clock);
        driver.set_cap(usize::try_from(config.staging_bytes)?, config.on_cap.0);
        let scrapes = Scrapes::serve(config.metrics)?;
        let outputs = Outputs::new(brief.outputs.clone(), config.forced());
        let mut this = Self {
            driver,
            arbiter,
            beats: None,
            clock,
            peer: None,
            notes: report::standing_notes(),
            watch: Watch::default(),
            supervisor,
            control,
            scrapes,
            sessions: None,
            outputs,
            limit_before: Duration::MAX,
            last_turn: clock.now(),
            stalls: Stalls::default(),
            stalls_before: 0,
            role: Role::Solo,
            arbiter_reachable: true,
            suspected: false,
            swap: Swap::default(),
            operator_wants_solo: false,
            vm_died: false,
            end_when_solo: None,
            ending: None,
            brief,
        };
        if this.brief.protect {
            this.seek_standby()?;
        }
        Ok(this)
    }

    fn seek_standby(&mut self) -> Result<()> {
        self.sessions = Some(session::seek(&self.brief, self.driver.machine().register().generation.next())?);
        Ok(())
    }

    fn run(mut self) -> Result<Code> {
        emit("solo", json!({ "vm": self.brief.config.vm, "generation": self.driver.machine().register().generation }));
        loop {
            self.turn()?;
            if let Some((code, why)) = self.ending.take() {
                let _ = self.supervisor.say(&ToSupervisor::Ending { code: code as u8, why });
                return Ok(code);
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.notice_stall();
        self.hear_supervisor()?;
        self.hear_arbiter();
        self.hear_beats();
        self.hear_sessions();
        self.driver.gate.tick(self.clock.now());
        self.driver.pump();
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
        fds.extend(self.scrapes.as_ref().map(|s| readable(s.as_fd())));
        fds.extend(self.beats.as_ref().map(|b| readable(b.wait_fd())));
        fds.extend(self.sessions.as_ref().map(|s| readable(s.as_fd())));
        fds.extend(self.driver.gate.wait_fds());
        wait(&mut fds, self.clock.now(), self.driver.deadline(), (self.stall_limit() / 2).min(WITHOUT_BEATS))?;
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

    fn hear_supervisor(&mut self) -> Result<()> {
        while let Some(message) = self.supervisor.hear()? {
            match message {
                ToDataPath::Begin(_) | ToDataPath::Started { error: None, .. } => {}
                ToDataPath::Started { error: Some(why), unsupported } => self.source_broken(why, unsupported),
                ToDataPath::VmGone { orderly: true } => {
                    emit("vm-gone", json!({ "orderly": true }));
                    self.driver.event(Event::Unprotect(GoodbyeReason::GuestGone));
                }
                ToDataPath::VmGone { orderly: false } => {
                    emit("vm-gone", json!({ "orderly": false }));
                    self.vm_died = true;
                    self.driver.event(Event::SourceLost);
                }
                ToDataPath::SourceBroken { why, unsupported } => self.source_broken(why, unsupported),
                ToDataPath::Outputs(inventory) => self.outputs_changed(*inventory),
            }
        }
        Ok(())
    }

    /// A first attempt that fails for want of the source ends this process; a VM that was protected once keeps its gate.
    fn source_broken(&mut self, why: String, unsupported: bool) {
        tracing::error!(%why, "the checkpoint stream broke; giving protection up");
        emit("source-broken", json!({ "why": why, "unsupported": unsupported }));
        let first = self.driver.figures().last_ack_at.is_none();
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        if (unsupported || first) && !self.brief.stay {
            let code = if unsupported { Code::Prerequisite } else { Code::Failed };
            self.end_when_solo = Some((code, why));
        } else {
            self.notes.push(format!("not protected: {why}"));
        }
    }

    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.arbiter.take_answer() {
            match answer {
                Answer::Read(_) => {}
                Answer::Cas(outcome) => {
                    emit("cas", self.swap.answered(self.clock.now(), &outcome));
                    self.driver.event(Event::Cas(outcome));
                }
            }
        }
        let health = self.arbiter.health();
        // Before its first try it is neither.
        if health.reachable != self.arbiter_reachable && (health.reachable || health.last_error.is_some()) {
            self.arbiter_reachable = health.reachable;
            report::arbiter(&health);
        }
    }

    fn hear_beats(&mut self) {
        let Some(beats) = &self.beats else { return };
        beats.clear();
        beats.set_committed(self.driver.machine().generation(), self.driver.machine().epochs().1);
        let dead = !beats.is_running(); // a detector that is gone must not pass for one that is content
        if (beats.verdict() == Verdict::Suspect || dead) && !self.suspected {
            let why = report::suspicion(beats, &self.watch, self.clock.now());
            emit("suspect", report::with(why, super::commands::standing(self)));
            self.suspected = true;
            self.driver.event(Event::Suspect);
        }
    }

    fn hear_sessions(&mut self) {
        let Some(result) = self.sessions.as_ref().and_then(Inbox::take) else { return };
        self.sessions = None;
        match result {
            Ok(found) => {
                if let Err(error) = self.attach(found) {
                    self.no_session(exit::words(&error));
                }
            }
            Err(error) => self.no_session(exit::words(&error)),
        }
    }

    fn no_session(&mut self, why: String) {
        tracing::error!(why, "no session with the standby; the VM runs on, unprotected");
        emit("no-session", json!({ "why": why }));
        if self.brief.stay {
            self.notes.push(format!("not protected: {why}"));
        } else {
            self.ending = Some((Code::Failed, why));
        }
    }

    fn attach(&mut self, found: Found) -> Result<()> {
        self.outputs.begin_session()?;
        let source = ColoSource::new(self.brief.profile.blocks.clone())?;
        let (standby, incarnation) = (found.standby, found.incarnation);
        emit("syncing", json!({ "standby": standby, "peer": found.peer, "peer_beats": found.beats }));
        self.peer = Some(format!("{standby} at {}", found.peer));
        self.suspected = false;
        let wish = self.brief.config.wish();
        let (link, beats, report) = found.start(wish, self.clock)?;
        self.beats = Some(beats);
        self.watch.begin(report);
        self.driver.attach(link, incarnation, source, standby);
        Ok(())
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            let response = super::commands::answer(self, request.request);
            request.reply(response);
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
        let role = self.driver.machine().role();
        if role != std::mem::replace(&mut self.role, role) {
            super::commands::report_role(self);
        }
    }
}
