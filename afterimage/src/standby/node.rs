//! The standby's loop.

use super::{offer::spill_file, report::status, vm::WaitingVm};
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
    paths::{Link, Watch},
    report,
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
const VM_CHECK: Duration = Duration::from_millis(500);
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
    pub(super) watch: Watch,
    pub(super) vm: Option<WaitingVm>,
    pub(super) listener: Listener,
    control: Control,
    role: Role,
    pub(super) suspected_at: Option<Time>,
    checked_vm_at: Time,
    arbiter_reachable: bool,
    pub(super) operator_wants_it: bool,
    ending: Option<Code>,
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
            watch: Watch::default(),
            vm: None,
            listener: Listener::bind(config.listen, SessionOptions::default())?,
            control: Control::listen(&config.run_dir, config.vm, Side::Standby)?,
            role: Role::Idle,
            suspected_at: None,
            checked_vm_at: clock.now(),
            arbiter_reachable: true,
            operator_wants_it: false,
            ending: None,
            config,
        })
    }

    pub(super) fn run(mut self) -> Result<Code> {
        emit("waiting", json!({ "vm": self.config.vm, "listen": self.config.listen }));
        loop {
            self.turn()?;
            if let Some(code) = self.ending {
                return Ok(code);
            }
        }
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
                    emit("cas", report::outcome(&outcome));
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
            emit("suspect", report::suspicion(beats));
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
                    emit("protected", json!({ "generation": self.driver.machine().committed().0 }));
                }
                StandbyErrand::Discard => self.discarded(),
                StandbyErrand::Fatal(why) => {
                    self.vm = None;
                    return Err(ExitError::new(Code::Failed, why).into());
                }
                StandbyErrand::LinkLost(why) => self.link_lost(&why),
                StandbyErrand::Refused(reason, why) => tracing::error!(?reason, why, "epoch refused"),
            }
        }
        Ok(())
    }

    fn claim(&mut self, expect: Generation, new: Register) {
        self.arbiter.ask(Ask::Cas { expect, new, contested: true });
        if self.operator_wants_it {
            self.arbiter.operator_decides();
        }
    }

    fn link_lost(&mut self, why: &str) {
        tracing::warn!(why, "link lost");
        if self.driver.machine().role() != Role::Idle && self.suspected_at.is_none() {
            self.suspected_at = Some(self.clock.now());
            emit("suspect", json!({ "why": why }));
        }
    }

    fn discarded(&mut self) {
        emit("discarded", json!({ "vm": self.config.vm }));
        (self.vm, self.beats, self.peer, self.registered) = (None, None, None, false);
        self.watch.end();
    }

    /// The VM is ours. Its gate opens before it runs: from here on it is the one visible copy.
    fn take_over(&mut self, generation: Generation, epoch: Epoch) -> Result<()> {
        let won_at = self.clock.now();
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
        self.took_over((generation, epoch), won_at, &qemu);
        self.driver.event(Event::Running);
        Ok(())
    }

    fn took_over(&mut self, (generation, epoch): (Generation, Epoch), won_at: Time, qemu: &serde_json::Value) {
        let decided = self.suspected_at.unwrap_or(won_at);
        let us = |at: Time| u64::try_from(at.since(decided).as_micros()).unwrap_or(u64::MAX);
        let takeover = Takeover { won_us: us(won_at), running_us: us(self.clock.now()), ..Takeover::default() };
        emit("running", json!({ "generation": generation, "epoch": epoch, "since_suspicion": takeover, "qemu": qemu }));
        self.takeover = Some(takeover);
    }

    /// While it waits, a QEMU that died is started again; once it runs, its end is ours.
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
        if self.driver.machine().role() == Role::Active {
            emit("ended", json!({ "why": "the VM's QEMU ended" }));
            self.ending = Some(Code::Done);
            return;
        }
        tracing::warn!("the waiting QEMU died; starting it again over the same RAM file");
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
            let response = match request.request {
                Request::Status => Response::Status(Box::new(status(self))),
                Request::Measured => self.watch.measured(self.beats.as_ref()),
                Request::Takeover => self.operator_takeover(),
                Request::Handover => self.hand_over(),
                Request::Solo | Request::Unprotect => {
                    refused("that is for the primary; this is the standby: see `takeover`")
                }
            };
            request.reply(response);
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

    /// `afterimage protect` on this node wants the VM that runs here now.
    fn hand_over(&mut self) -> Response {
        if self.driver.machine().role() != Role::Active {
            return refused("this node stands by for it; `protect` belongs on the node that runs it");
        }
        self.ending = Some(Code::Done);
        done("leaving")
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
