//! The VM runs here: after the takeover, and again when `standby` is started on a host whose VM was taken over before.
//!
//! ```text
//!   Node ── took over ──> ┌─────────┐ ── its QEMU ends ─────────────> exit 0, or 1 if it died
//!                         │ Running │ ── `protect` asks for the VM ──> exit 0; the keeper goes on until `protect` opens its gate
//!   `standby` finds the   └─────────┘ ── the register names another ─> the keeper is relieved, exit 4
//!   VM running ─────────────> ^
//! ```
//!
//! Nothing hangs on this process any more: the VM's QEMU and the keeper of its network ([`crate::keeper`]) have scopes of their
//! own. It tells (status, metrics), starts the keeper again if that dies, and refuses primaries. It is no supervisor like
//! `protect`'s: what that one watches over, a data path that holds output and a VM that may stand still in a checkpoint, does
//! not exist before somebody protects the VM again.
//!
//! Found running, the network is opened only once the register was read and says (solo, this node, this QEMU); a keeper that is
//! there already was started by somebody who knew.

use super::settings::Settings;
use super::{
    main_loop::{Node, VM_CHECK},
    network::Network,
    report::snapshot,
    vm::earlier,
    why_not::{ALONE, protect_again},
};
use crate::{
    keeper::{self, Charge},
    primary::vm_health::Watcher,
    processes::Program,
};
use anyhow::{Context, Result};
use api::{
    Control, OfSide, RUNNING, Request, Response, SCHEMA, Session, Side, Status, WhyNot, done, metrics::IfTaken,
    metrics::Scrapes, metrics::Snapshot, refused, report, socket_path,
};
use mc_core::{
    gate::OutputGate,
    id::{self, Time},
    register::{Mode, Owner, Register},
};
use node::{
    arbiter::{Answer, ArbiterClient, ArbiterWatch, Ask, Stance},
    clock::{Clock, unix_ms},
    events::{Ended, Event, Fenced, Operator, Reattached, Refused, RegisterRead, Role, Signal, VmGone, emit},
    exit::{Code, ExitError, cannot_listen},
    identity,
    inbox::{readable, wait},
    signals::Signals,
};
use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    time::Duration,
};
use transport_tcp::session::{Listener, SessionOptions};
use vmm_qemu::qmp::{Watched, find_instance};

/// The owner, in words.
fn owner(register: &Register, us: &Owner) -> String {
    match register.owner.node.id == us.node.id {
        true => "another QEMU process of this node".to_owned(),
        false => format!("node {}", register.owner.node),
    }
}

/// How often a register that does not name this VM is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a standby has beside its VM.
#[derive(Debug)]
struct Desk {
    config: Settings,
    program: Program,
    /// This host.
    this: id::Node,
    arbiter: ArbiterClient,
    control: Control,
    scrapes: Option<Scrapes>,
    listener: Listener,
    signals: Signals,
}

impl Desk {
    fn new(config: Settings, program: Program) -> Result<Self> {
        let this = identity::node(&config.state_dir, config.node)?;
        Ok(Self {
            this,
            arbiter: ArbiterClient::spawn(&config.asks(this))?,
            control: Control::listen((&config.run_dir, &config.state_dir), config.vm, config.node, Side::Standby)?,
            scrapes: Scrapes::serve(config.metrics, IfTaken::TryAgain)?,
            listener: Listener::bind(config.listen, SessionOptions::default()).map_err(cannot_listen)?,
            signals: Signals::catch()?,
            program,
            config,
        })
    }
}

/// The loop's state.
#[derive(Debug)]
struct Running {
    desk: Desk,
    vm: Watched,
    health: Watcher,
    network: Network,
    /// What was known when this began.
    base: Snapshot,
    since: Time,
    read_at: Option<Time>,
    arbiter_watch: ArbiterWatch,
    ending: Option<Code>,
    /// Why a signal was refused.
    stays: Option<String>,
}

/// The process of a QEMU at our control socket that is past its takeover; `None`: there is none, or it still waits.
pub(super) fn find(config: &Settings) -> Result<Option<Watched>> {
    let path = qmp_path(config);
    if UnixStream::connect(&path).is_err() {
        return Ok(None);
    }
    if UnixStream::connect(socket_path(&config.run_dir, config.vm, Side::Primary)).is_ok() {
        let what = format!("{} runs on this host, and `afterimage protect` has it", config.vm);
        let remedy = "a standby belongs on another host";
        return Err(ExitError::new(Code::Failed, what).remedy(remedy).into());
    }
    let asking = || format!("a QEMU of an earlier standby, at {}", path.display());
    match earlier(&path).with_context(asking)? {
        Some((qmp, state)) if state != "inmigrate" => Ok(Some(Watched::new(qmp.peer_pid()?).with_context(asking)?)),
        _ => Ok(None),
    }
}

/// The control socket of the VM's QEMU.
pub(super) fn qmp_path(config: &Settings) -> PathBuf {
    config.run_dir.join(config.vm.to_string()).join("standby.qmp")
}

/// What is left to do once a node has taken its VM over.
pub(super) fn after_takeover(mut node: Node) -> Result<Code> {
    let base = snapshot(&node);
    let generation = node.won.unwrap_or_default();
    let qemu = node.vm.as_mut().and_then(|vm| vm.watch().ok());
    let Node { config, program, run, control, scrapes, gate, vm, signals, .. } = node;
    let mut network = Network::taken_over(Charge::of_standby(&config, generation, program), gate);
    network.look();
    // The image, staging, the control connection to QEMU. To unmap a large image takes a while: packets have their keeper by now.
    let this = run.this;
    let (listener, arbiter) = run.into_parts();
    drop(vm);
    let Some(qemu) = qemu else { return vm_gone(&config) };
    let desk = Desk { config, program, this, arbiter, control, scrapes, listener, signals };
    Running::new(desk, qemu, network, base).run()
}

/// The VM's QEMU has ended. In order it takes its control socket along (its guest shut down, or it was told to end); one that dies
/// leaves it behind. So a process that did not start it can tell, too.
fn vm_gone(config: &Settings) -> Result<Code> {
    let orderly = !qmp_path(config).exists();
    emit(Event::VmGone(VmGone { orderly }));
    if orderly {
        emit(Event::Ended(Ended { vm: None, code: Some(Code::Done as u8), why: "the VM is gone".into() }));
        return Ok(Code::Done);
    }
    let said = config.run_dir.join(config.vm.to_string()).join("standby.stderr");
    let remedy = format!("what it said last is in {}; start the VM anew from its disks", said.display());
    Err(ExitError::new(Code::Failed, "the VM's QEMU died, and no standby had it").remedy(remedy).into())
}

/// What is left to do for a VM that an earlier process took over.
pub(super) fn after_restart(config: Settings, program: Program, vm: Watched) -> Result<Code> {
    Running::again(config, program, vm)?.run()
}

impl Running {
    fn new(desk: Desk, vm: Watched, network: Network, base: Snapshot) -> Self {
        let since = Clock.now();
        Self {
            desk,
            health: Watcher::new(vm.pid(), vm.instance()),
            vm,
            network,
            base,
            since,
            read_at: None,
            arbiter_watch: ArbiterWatch::default(),
            ending: None,
            stays: None,
        }
    }

    /// Found running.
    fn again(config: Settings, program: Program, vm: Watched) -> Result<Self> {
        let kept = keeper::running(&config.run_dir, config.vm);
        let keeper = kept.as_ref().map(keeper::Keeper::pid);
        let found = Reattached { vm: config.vm, qemu: vm.pid(), keeper };
        tracing::info!(pid = vm.pid(), "{} runs here since an earlier takeover", config.vm);
        let status = Status {
            schema: SCHEMA,
            side: Side::Standby.into(),
            role: RUNNING.into(),
            vm: config.vm.to_string(),
            node: config.node.to_string(),
            why_not_protected: Some(WhyNot {
                why: ALONE.to_owned(),
                since_ms: unix_ms(),
                times: 1,
                next_try_in_ms: None,
                what_to_do: Some(protect_again(&config, None)),
            }),
            notes: report::standing_notes(),
            ..Status::default()
        };
        let base = Snapshot { status, ..Snapshot::default() };
        let running = Self::new(Desk::new(config, program)?, vm, Network::found(kept), base);
        emit(Event::Reattached(found));
        Ok(Self { read_at: Some(Clock.now()), ..running })
    }

    fn run(mut self) -> Result<Code> {
        loop {
            self.turn()?;
            if self.vm.has_ended() {
                return vm_gone(&self.desk.config);
            }
            match self.ending {
                Some(Code::Done) => return Ok(Code::Done),
                Some(code) => {
                    let what = format!("ended by a second signal although {}", self.stays.unwrap_or_default());
                    let remedy =
                        "`afterimage protect` on this host, or `afterimage standby`, gives the VM its network again";
                    return Err(ExitError::new(code, what).remedy(remedy).into());
                }
                None => {}
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        self.sleep()?;
        self.network.look();
        if self.vm.has_ended() {
            return Ok(());
        }
        self.health.look(Clock.now());
        self.ask_for_register();
        self.hear_arbiter()?;
        self.hear_signals();
        self.refuse_primaries();
        self.hear_control();
        Ok(())
    }

    fn sleep(&self) -> Result<()> {
        let desk = &self.desk;
        let mut fds = Vec::with_capacity(8);
        fds.extend(
            [desk.control.as_fd(), desk.arbiter.as_fd(), desk.listener.as_fd(), desk.signals.as_fd(), self.vm.as_fd()]
                .map(readable),
        );
        fds.extend(desk.scrapes.as_ref().map(|s| readable(s.as_fd())));
        self.network.wait_fds(&mut fds);
        let until = self.network.deadline().into_iter().chain(self.read_at).min();
        wait(&mut fds, Clock.now(), until, VM_CHECK)?;
        Ok(())
    }

    // --- an orderly end ---

    /// Nothing hangs on this process once a keeper has the VM's network. Before, the first signal is refused.
    fn hear_signals(&mut self) {
        for _ in 0..self.desk.signals.take() {
            emit(Event::Signal(Signal { role: Role::Running, times: None }));
            let passes = self.network.gate().is_some_and(|gate| gate.nics().next().is_some());
            self.ending = match (passes, &self.stays) {
                (false, _) => Some(Code::Done),
                (true, Some(why)) => {
                    emit(Event::StopObeyed(why.as_str().into()));
                    Some(Code::Degraded)
                }
                (true, None) => {
                    let why = "no keeper has the VM's network yet: it passes through this process".to_owned();
                    tracing::error!(why, "refused to end on this signal; the next signal ends this process");
                    emit(Event::StopRefused(why.as_str().into()));
                    self.stays = Some(why);
                    None
                }
            };
        }
    }

    // --- the register ---

    fn ask_for_register(&mut self) {
        let now = Clock.now();
        if self.read_at.is_some_and(|at| at <= now) {
            self.read_at = None;
            self.desk.arbiter.ask(Ask::Read);
        }
    }

    fn hear_arbiter(&mut self) -> Result<()> {
        while let Some(answer) = self.desk.arbiter.take_answer() {
            if let Answer::Read(held) = answer {
                self.hear_register(held)?;
            }
        }
        self.arbiter_watch.look(&self.desk.arbiter.health(), Stance::Idle);
        Ok(())
    }

    fn hear_register(&mut self, held: Option<Register>) -> Result<()> {
        let vm = self.desk.config.vm;
        let us = Owner { node: self.desk.this, instance: self.vm.instance() };
        // The client tells nothing below what this node has seen; that must not be all that keeps a VM its network.
        let newer = |register: &Register| register.generation.0 > self.base.status.generation;
        match held {
            Some(register) if newer(&register) && self.is_anothers(&register, &us) => {
                // Whatever passes packets here shows a second copy of the VM.
                let relieved = keeper::relieve(&self.desk.config.run_dir, vm)?;
                let (register_now, keeper_relieved) = (Some(register), Some(relieved));
                let fenced = Fenced { vm: Some(vm), register: register_now, keeper_relieved, ..Fenced::default() };
                emit(Event::Fenced(Box::new(fenced)));
                let what = format!(
                    "{vm} belongs to {} since {}, so the copy that runs here must not reach the network",
                    owner(&register, &us),
                    register.generation
                );
                let remedy = format!("it has no network any more; end its QEMU, process {}", self.vm.pid());
                Err(ExitError::new(Code::Fenced, what).remedy(remedy).into())
            }
            Some(register) if register.owner.names(&us) && register.mode == Mode::Solo => {
                self.base.status.generation = self.base.status.generation.max(register.generation.0);
                if !self.network.is_entitled() {
                    emit(Event::Register(RegisterRead { register: Some(register) }));
                    self.network.entitle(Charge::of_standby(&self.desk.config, register.generation, self.desk.program));
                }
                Ok(())
            }
            other => {
                if let Some(register) = other.filter(newer) {
                    self.base.status.generation = register.generation.0;
                }
                self.read_at = Some(after(Clock.now(), READ_AGAIN));
                Ok(())
            }
        }
    }

    /// Whether the VM is another copy's. Found running, this one may have another number than the register gives it: its takeover
    /// started a QEMU anew. Then one of this host that does not live is no other copy.
    fn is_anothers(&self, register: &Register, us: &Owner) -> bool {
        let here = register.owner.node.id == us.node.id;
        let known = self.base.status.generation > 0;
        !register.owner.names(us) && (!here || known || matches!(find_instance(register.owner.instance), Ok(Some(_))))
    }

    // --- whoever calls ---

    fn refuse_primaries(&mut self) {
        match self.desk.listener.accept(Duration::ZERO) {
            Ok(None) => {}
            Ok(Some(offer)) => {
                let (purpose, node, peer) = (offer.hello.purpose, offer.hello.node, offer.peer_addr);
                let qmp = qmp_path(&self.desk.config);
                let why = format!(
                    "this node runs a VM that it took over, {}: protect that one (--qmp {}), or end it",
                    self.desk.config.vm,
                    qmp.display()
                );
                tracing::warn!(%purpose, %node, %peer, why, "refused");
                let (primary, peer) = (Some(node), Some(peer));
                emit(Event::Refused(Refused { why: why.clone(), primary, peer, ..Refused::default() }));
                if let Err(error) = offer.refuse(&why) {
                    tracing::debug!(%error, "the refusal was not heard");
                }
            }
            Err(error) => tracing::warn!(%error, "a caller was turned away"),
        }
    }

    fn hear_control(&mut self) {
        while let Some(request) = self.desk.control.take() {
            if let Some(request) = request.request.decision() {
                emit(Event::Operator(Operator { request, role: Some(Role::Running) }));
            }
            let response = match request.request {
                Request::Status => Response::Status(Box::new(self.status())),
                Request::Keepalive => Response::Keepalive(Box::new(self.beating().report())),
                // `afterimage protect` on this node wants the VM. The keeper stays until its gate is there.
                Request::Handover => {
                    self.ending = Some(Code::Done);
                    done("leaving")
                }
                Request::Takeover => refused("nothing to take over: the VM runs here"),
                _ => {
                    refused("the VM runs here, unprotected: `afterimage status` has the command that protects it again")
                }
            };
            request.reply(response);
        }
        while let Some(scrape) = self.desk.scrapes.as_ref().and_then(Scrapes::take) {
            scrape.reply(Snapshot { status: self.status(), ..self.base.clone() });
        }
    }

    fn beating(&self) -> Session<'_> {
        let config = &self.desk.config;
        Session {
            configured: config.wish(),
            beats: None,
            vm: config.vm,
            node: config.node,
            side: "standby",
            peer: self.base.status.peer.clone(),
            paths: (self.base.status.keepalive.clone(), self.base.status.beat_paths.clone()),
            config_file: config.config_file.clone(),
        }
    }

    fn status(&self) -> Status {
        let mut status = self.base.status.clone();
        let elapsed = u64::try_from(Clock.now().since(self.since).as_millis()).unwrap_or(u64::MAX);
        status.last_ack_age_ms = status.last_ack_age_ms.map(|ms| ms.saturating_add(elapsed));
        report::fill_arbiter(&mut status, &self.desk.arbiter);
        if let Some(gate) = self.network.gate() {
            report::fill_gate(&mut status, gate.stats(), gate.hold_histogram().percentiles());
        }
        if let OfSide::Standby(standby) = &mut status.side {
            standby.qmp = Some(qmp_path(&self.desk.config).display().to_string());
        }
        status.qemu = Some(self.vm.pid());
        status.network = self.network.missing().map(str::to_owned);
        status.stalled = self.health.health().why().map(str::to_owned);
        status.notes.extend(self.network.note());
        status.notes.extend(self.desk.scrapes.as_ref().and_then(Scrapes::note));
        let stays = self.stays.as_ref();
        status.notes.extend(stays.map(|why| format!("refused to end: {why}. The next signal ends this process")));
        if !self.network.is_entitled() {
            status.notes.push(
                "the register does not yet say that this node runs the VM alone, so its network stays closed; \
                 `afterimage protect` asks for the VM"
                    .into(),
            );
        }
        status
    }
}

fn after(now: Time, pause: Duration) -> Time {
    Time(now.0.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX)))
}
