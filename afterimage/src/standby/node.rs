//! The standby's loop.

use super::{
    offer::spill_file,
    report::{snapshot, standing, status, word},
    running,
    vm::WaitingVm,
};
use crate::{
    arbiter::{Answer, ArbiterClient, Ask},
    cli::Side,
    clock::Clock,
    config::StandbyConfig,
    control::{Control, done, refused},
    events::emit,
    exit::{self, Code, ExitError},
    gate::{Mode, NicGate, Options},
    inbox::{self, readable, wait},
    keepalive::{BeatHandle, Verdict},
    live::{KeepaliveReport, Session, Wanted},
    metrics::Scrapes,
    paths::{Link, Watch},
    report,
    stalls::Swap,
    status::{Request, Response, Takeover},
};
use anyhow::Result;
use mc_core::{
    driver::{StandbyDriver, StandbyErrand},
    gate::OutputGate,
    id::{Epoch, Generation, Time},
    register::{Owner, Register},
    slab::SlabPool,
    standby::{Config, Event, Role, Standby},
    transport::Transport,
};
use serde_json::json;
use std::{os::fd::AsFd, time::Duration};
use transport_tcp::session::{Listener, SessionOptions};

/// How long to wait before a register that is older than our generation is read again, and how often.
pub(super) const RETRY: (Duration, u8) = (Duration::from_millis(100), 50);
/// For the NIC's socket of a QEMU that is there.
pub(super) const NIC_PATIENCE: Duration = Duration::from_secs(2);
/// How often the waiting QEMU is looked after.
pub(super) const VM_CHECK: Duration = Duration::from_millis(500);
/// Slabs until a primary says which size it uses.
const FIRST_SLAB: usize = 1 << 20;

/// The loop's state.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: StandbyConfig,
    pub(super) driver: StandbyDriver<Box<dyn Link>, Clock>,
    pub(super) gate: NicGate,
    pub(super) arbiter: ArbiterClient,
    pub(super) beats: Option<BeatHandle>,
    pub(super) clock: Clock,
    pub(super) peer: Option<String>,
    pub(super) registered: bool,
    pub(super) takeover: Option<Takeover>,
    /// What the register holds since this node won the VM.
    pub(super) won: Option<Generation>,
    pub(super) watch: Watch,
    pub(super) vm: Option<WaitingVm>,
    pub(super) listener: Listener,
    pub(super) control: Control,
    pub(super) scrapes: Option<Scrapes>,
    role: Role,
    pub(super) suspected_at: Option<Time>,
    pub(super) swap: Swap,
    checked_vm_at: Time,
    arbiter_reachable: bool,
    pub(super) operator_wants_it: bool,
}

impl Node {
    pub(super) fn new(config: StandbyConfig) -> Result<Self> {
        let clock = Clock;
        let nobody = Owner { node: config.node, instance: 0 };
        let machine = Standby::new(Config { owner: nobody, retry: RETRY.0, retries: RETRY.1, sabotage: None });
        let pool = SlabPool::new(FIRST_SLAB, usize::try_from(config.staging_bytes)?);
        let driver = StandbyDriver::new(machine, pool, spill_file(&config)?, clock);
        let gate = NicGate::new(report::nics(&config.nics), Options { mode: Mode::Closed, ..Options::default() })?;
        Ok(Self {
            driver,
            gate,
            arbiter: ArbiterClient::spawn(config.arbiter.clone(), config.vm, &config.run_dir)?,
            beats: None,
            clock,
            peer: None,
            registered: false,
            takeover: None,
            won: None,
            watch: Watch::default(),
            vm: None,
            listener: Listener::bind(config.listen, SessionOptions::default())?,
            control: Control::listen(&config.run_dir, config.vm, Side::Standby)?,
            scrapes: Scrapes::serve(config.metrics)?,
            role: Role::Idle,
            suspected_at: None,
            swap: Swap::default(),
            checked_vm_at: clock.now(),
            arbiter_reachable: true,
            operator_wants_it: false,
            config,
        })
    }

    pub(super) fn run(mut self) -> Result<Code> {
        let (config, version) = (&self.config, env!("CARGO_PKG_VERSION"));
        let beats = json!({ "interval_ms": report::ms(config.beat_interval), "multiplier": config.detect_multiplier });
        emit("started", json!({ "version": version, "arbiter": config.arbiter.to_string(), "beats": beats }));
        emit("waiting", json!({ "vm": config.vm, "listen": config.listen }));
        while self.driver.machine().role() != Role::Active {
            self.turn()?;
        }
        self.report_role();
        running::after_takeover(self)
    }

    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.hear_offers();
        self.hear_arbiter();
        self.hear_beats();
        self.gate.tick(self.clock.now());
        if let Err(error) = self.gate.poll() {
            tracing::debug!(%error, "gate");
        }
        self.driver.pump();
        self.watch.look(self.driver.link().map(|link| &**link as &dyn Transport));
        self.run_errands()?;
        if self.driver.machine().role() == Role::Active {
            return Ok(());
        }
        self.look_after_vm();
        self.hear_control();
        self.report_role();
        Ok(())
    }

    fn sleep(&self) -> Result<()> {
        let mut fds = Vec::with_capacity(12);
        fds.extend(self.driver.link().and_then(inbox::link));
        fds.push(readable(self.listener.as_fd()));
        fds.push(readable(self.arbiter.as_fd()));
        fds.push(readable(self.control.as_fd()));
        fds.extend(self.scrapes.as_ref().map(|s| readable(s.as_fd())));
        fds.extend(self.beats.as_ref().map(|b| readable(b.wait_fd())));
        fds.extend(self.gate.wait_fds());
        wait(&mut fds, self.clock.now(), self.driver.deadline(), VM_CHECK)?;
        Ok(())
    }

    fn hear_arbiter(&mut self) {
        while let Some(answer) = self.arbiter.take_answer() {
            match answer {
                Answer::Read(held) => self.driver.event(Event::RegisterRead(held)),
                Answer::Cas(outcome) => {
                    emit("cas", self.swap.answered(self.clock.now(), &outcome));
                    self.driver.event(Event::Cas(outcome));
                }
            }
        }
        let health = self.arbiter.health();
        if health.reachable != self.arbiter_reachable && (health.reachable || health.last_error.is_some()) {
            self.arbiter_reachable = health.reachable;
            report::arbiter(&health);
        }
    }

    fn hear_beats(&mut self) {
        let Some(beats) = &self.beats else { return };
        beats.clear();
        let (generation, epoch) = self.driver.machine().committed();
        beats.set_committed(generation, epoch);
        let dead = !beats.is_running(); // a detector that is gone must not pass for one that is content
        if (beats.verdict() == Verdict::Suspect || dead) && self.suspected_at.is_none() {
            let why = report::suspicion(beats, &self.watch, self.clock.now());
            emit("suspect", report::with(why, standing(self)));
            self.suspect();
        }
    }

    fn suspect(&mut self) {
        self.suspected_at.get_or_insert(self.clock.now());
        self.driver.event(Event::Suspect);
    }

    fn run_errands(&mut self) -> Result<()> {
        while let Some(errand) = self.driver.errand() {
            match errand {
                StandbyErrand::ReadRegister => self.arbiter.ask(Ask::Read),
                StandbyErrand::Cas { expect, new } => self.claim(expect, new),
                StandbyErrand::TakeOver { generation, epoch } => self.take_over(generation, epoch)?,
                StandbyErrand::Registered => {
                    self.registered = true;
                    let fields = json!({ "generation": self.driver.machine().committed().0 });
                    emit("protected", report::with(fields, standing(self)));
                }
                StandbyErrand::Discard => self.discarded(),
                StandbyErrand::Fatal(why) => {
                    self.vm = None;
                    return Err(ExitError::new(Code::Failed, why).into());
                }
                StandbyErrand::LinkLost(why) => self.link_lost(&why),
                StandbyErrand::Refused(reason, why) => {
                    tracing::error!(?reason, why, "epoch refused");
                    emit("epoch-refused", json!({ "reason": format!("{reason:?}"), "why": why }));
                }
            }
        }
        Ok(())
    }

    fn claim(&mut self, expect: Generation, new: Register) {
        self.swap.asked(self.clock.now());
        self.arbiter.ask(Ask::Cas { expect, new, contested: true });
        emit("asking", report::with(report::asked(expect, &new, true), standing(self)));
        if self.operator_wants_it {
            self.arbiter.operator_decides();
        }
    }

    fn link_lost(&mut self, why: &str) {
        tracing::warn!(why, "link lost");
        if self.driver.machine().role() != Role::Idle && self.suspected_at.is_none() {
            self.suspected_at = Some(self.clock.now());
            let now = self.clock.now();
            let heard = self.beats.as_ref().map(|beats| self.watch.heard(beats, now));
            emit("suspect", report::with(json!({ "why": why, "paths": heard }), standing(self)));
        }
    }

    fn discarded(&mut self) {
        emit("discarded", report::with(json!({ "vm": self.config.vm }), standing(self)));
        (self.vm, self.beats, self.peer, self.registered) = (None, None, None, false);
        self.watch.end();
    }

    /// The VM is ours. Its gate opens before it runs: from here on it is the one visible copy.
    fn take_over(&mut self, generation: Generation, epoch: Epoch) -> Result<()> {
        let won_at = self.clock.now();
        let silence = self.beats.as_ref().and_then(|b| b.suspicion()).map_or(Duration::ZERO, |s| s.silent_for);
        self.beats = None;
        self.watch.end();
        let (Some(vm), Some(image)) = (self.vm.as_mut(), self.driver.image()) else {
            anyhow::bail!("{generation} is ours, but there is no VM to run: this is a bug");
        };
        self.gate.open()?;
        let mut tries = 0;
        let timings = loop {
            match vm.take_over(image) {
                Ok(timings) => break timings,
                Err(error) if tries < 2 => {
                    tracing::error!(
                        error = exit::words(&error),
                        "takeover; starting QEMU again over the same RAM file"
                    );
                    tries += 1;
                    vm.restart()?;
                    self.gate.connect(NIC_PATIENCE)?;
                }
                Err(error) => return Err(error),
            }
        };
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let qemu = json!({ "sent_ms": ms(timings.sent), "resumed_ms": ms(timings.resumed) });
        self.took_over((generation, epoch), (silence, won_at), &qemu);
        self.driver.event(Event::Running);
        Ok(())
    }

    fn took_over(
        &mut self,
        (generation, epoch): (Generation, Epoch),
        (silence, won_at): (Duration, Time),
        qemu: &serde_json::Value,
    ) {
        let decided = self.suspected_at.unwrap_or(won_at);
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let us = |at: Time| whole(at.since(decided));
        let revoked_us = us(self.driver.figures().revoked_at.unwrap_or(decided));
        let silence_us = whole(silence);
        let takeover = Takeover { silence_us, revoked_us, won_us: us(won_at), running_us: us(self.clock.now()) };
        let fields = json!({ "generation": generation, "epoch": epoch, "since_suspicion": takeover, "qemu": qemu });
        emit("running", report::with(fields, standing(self)));
        (self.takeover, self.won) = (Some(takeover), Some(generation));
    }

    /// A waiting QEMU that died is started again.
    fn look_after_vm(&mut self) {
        let now = self.clock.now();
        if now.since(self.checked_vm_at) < VM_CHECK {
            return;
        }
        self.checked_vm_at = now;
        let Some(vm) = &mut self.vm else { return };
        if vm.is_alive() {
            return;
        }
        tracing::warn!("the waiting QEMU died; starting it again over the same RAM file");
        emit("waiting-qemu-died", json!({}));
        let restarted = vm.restart().and_then(|()| vm.owner()).and_then(|owner| {
            self.gate.connect(NIC_PATIENCE)?;
            Ok(owner)
        });
        match restarted {
            Ok(owner) => self.driver.set_owner(owner),
            Err(error) => tracing::error!(error = exit::words(&error), "the waiting QEMU does not start"),
        }
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.control.take() {
            if request.request.decides() {
                let role = word(self.driver.machine().role());
                emit("operator", json!({ "request": request.request, "role": role }));
            }
            let response = match request.request {
                Request::Status => Response::Status(Box::new(status(self))),
                Request::Keepalive => Response::Keepalive(Box::new(self.beating().report())),
                Request::KeepaliveSet(wanted) => self.set_keepalive(&wanted),
                Request::Measured => self.watch.measured(self.beats.as_ref()),
                Request::Takeover => self.operator_takeover(),
                Request::Handover => refused("this node stands by for it; `protect` belongs on the node that runs it"),
                Request::Set(_) => refused(
                    "epoch, max-staging and on-cap are the primary's; this is the standby, whose staging is its --staging",
                ),
                Request::Solo | Request::Unprotect => {
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
                emit(
                    "keepalive-set",
                    json!({ "interval_us": wish.interval.as_micros(), "multiplier": wish.multiplier }),
                );
                self.config.set_wish(wish);
                let report = KeepaliveReport { warnings, ..self.beating().report() };
                Response::Keepalive(Box::new(report))
            }
            Err(refusal) => Response::Refused { message: refusal.what, remedy: Some(refusal.remedy) },
        }
    }

    fn operator_takeover(&mut self) -> Response {
        match self.driver.machine().role() {
            Role::Protecting | Role::Revoking | Role::Claiming => {
                self.operator_wants_it = true;
                self.suspect();
                self.arbiter.operator_decides();
                done("taking over")
            }
            role => refused(&format!("nothing to take over: this standby is {role:?}")),
        }
    }

    fn report_role(&mut self) {
        let role = self.driver.machine().role();
        if role != std::mem::replace(&mut self.role, role) {
            tracing::info!(?role, "role");
            if role == Role::Idle {
                emit("waiting", json!({ "vm": self.config.vm, "listen": self.config.listen }));
            }
        }
    }
}
