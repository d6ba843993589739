//! The standby's loop.

use super::{report::status, vm::WaitingVm};
use crate::{
    arbiter::{Answer, ArbiterClient, Ask},
    beats::{self, Wish},
    cli::Side,
    clock::Clock,
    config::StandbyConfig,
    control::{Control, done, refused},
    events::emit,
    exit::{self, Code, ExitError},
    gate::{Mode, NicGate, Options},
    inbox::{self, readable, wait},
    keepalive::{BeatHandle, Verdict},
    qemu::profile::Profile,
    report,
    status::{Request, Response, Takeover},
};
use anyhow::{Context, Result};
use mc_core::{
    driver::{Attachment, SpillFile, StandbyDriver, StandbyErrand},
    gate::OutputGate,
    id::{Epoch, Generation, Time},
    image::Image,
    register::{Owner, Register},
    slab::SlabPool,
    standby::{Config, Event, Role, Standby},
    wire::session::Hello,
};
use serde_json::json;
use std::{fs::File, net::SocketAddr, os::fd::AsFd, time::Duration};
use transport_tcp::{
    link::TcpLink,
    session::{Listener, Offer, SessionOptions},
    udp::UdpKeepalive,
};

/// How long to wait before a register that is older than our generation is read again, and how often.
const RETRY: (Duration, u8) = (Duration::from_millis(100), 50);
/// For the NIC's socket of a QEMU that is there.
const NIC_PATIENCE: Duration = Duration::from_secs(2);
/// How often the waiting QEMU is looked after.
const VM_CHECK: Duration = Duration::from_millis(500);
/// Slabs until a primary says which size it uses.
const FIRST_SLAB: usize = 1 << 20;

/// The loop's state.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: StandbyConfig,
    pub(super) driver: StandbyDriver<TcpLink, Clock>,
    pub(super) gate: NicGate,
    pub(super) arbiter: ArbiterClient,
    pub(super) beats: Option<BeatHandle>,
    pub(super) clock: Clock,
    pub(super) peer: Option<String>,
    pub(super) registered: bool,
    pub(super) takeover: Option<Takeover>,
    vm: Option<WaitingVm>,
    listener: Listener,
    control: Control,
    role: Role,
    suspected_at: Option<Time>,
    checked_vm_at: Time,
    arbiter_reachable: bool,
    operator_wants_it: bool,
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

    fn hear_offers(&mut self) {
        match self.listener.accept(Duration::ZERO) {
            Ok(None) => {}
            Ok(Some(offer)) => self.hear_offer(offer),
            Err(error) => tracing::warn!(%error, "a caller was turned away"),
        }
    }

    fn hear_offer(&mut self, offer: Offer) {
        let (vm, node, peer) = (offer.hello.vm, offer.hello.node, offer.peer_addr);
        if let Err((offer, why)) = self.consider(offer) {
            tracing::warn!(%vm, %node, %peer, why, "refused");
            emit("refused", json!({ "peer": peer, "node": node, "why": why }));
            if let Some(Err(error)) = offer.map(|offer| offer.refuse(&why)) {
                tracing::debug!(%error, "the refusal was not heard");
            }
        }
    }

    /// Takes a primary on, or says why not.
    fn consider(&mut self, offer: Offer) -> Result<(), (Option<Box<Offer>>, String)> {
        let role = self.driver.machine().role();
        if role != Role::Idle {
            let why = format!("this standby is busy ({role:?})");
            return Err((Some(Box::new(offer)), why));
        }
        let hello = offer.hello;
        if hello.vm != self.config.vm {
            let why = format!("this standby stands by for {}, not for {}", self.config.vm, hello.vm);
            return Err((Some(Box::new(offer)), why));
        }
        if u64::from(hello.slab_size) * 2 > self.config.staging_bytes {
            let (slab, staging) = (hello.slab_size, self.config.staging_bytes);
            let why = format!(
                "slabs of {slab} bytes: this standby's staging of {staging} bytes does not hold two; raise --staging here, or \
                 lower --slab there"
            );
            return Err((Some(Box::new(offer)), why));
        }
        match self.prepare(&offer.profile) {
            Ok((profile, image)) => self.accept(offer, &profile, image).map_err(|error| {
                self.vm = None;
                (None, exit::words(&error))
            }),
            Err(error) => {
                self.vm = None;
                Err((Some(Box::new(offer)), exit::words(&error)))
            }
        }
    }

    /// A QEMU that waits, with the primary's profile, and an image over its RAM.
    fn prepare(&mut self, profile: &[u8]) -> Result<(Vec<u8>, Image)> {
        let theirs: Profile = Profile::from_json(profile).context("the primary")?;
        self.vm = None;
        let mut vm = WaitingVm::start(&self.config, &theirs)?;
        let ours = vm.profile()?.to_json();
        let image = vm.image()?;
        self.gate.connect(NIC_PATIENCE)?;
        self.vm = Some(vm);
        Ok((ours, image))
    }

    fn accept(&mut self, offer: Offer, profile: &[u8], image: Image) -> Result<()> {
        let theirs = offer.hello;
        let peer = offer.peer_addr;
        let keepalive = UdpKeepalive::bind(offer.local_addr.ip()).context("UDP socket for beats")?;
        keepalive.connect(SocketAddr::new(peer.ip(), theirs.beat_port))?;
        let accepted = offer.accept(self.hello(&theirs, keepalive.local_port()?)?, profile, None)?;
        let owner = self.vm.as_mut().map(WaitingVm::owner).transpose()?.context("a waiting VM")?;
        let machine = Standby::new(Config { owner, retry: RETRY.0, retries: RETRY.1, sabotage: None });
        let pool = SlabPool::new(theirs.slab_size as usize, usize::try_from(self.config.staging_bytes)?);
        self.driver = StandbyDriver::new(machine, pool, spill_file(&self.config)?, self.clock);
        let wish = Wish { interval: self.config.beat_interval, multiplier: self.config.detect_multiplier };
        let session = (theirs.incarnation, theirs.beat_key);
        self.beats = Some(beats::start(keepalive, session, beats::STANDBY, wish, self.clock)?);
        (self.registered, self.suspected_at, self.operator_wants_it) = (false, None, false);
        self.peer = Some(format!("{} at {peer}", theirs.node));
        emit("syncing", json!({ "primary": theirs.node, "peer": peer, "generation": theirs.generation }));
        self.driver.attach(Attachment {
            link: accepted.link,
            incarnation: theirs.incarnation,
            generation: theirs.generation,
            image,
        });
        Ok(())
    }

    /// Our answer to a primary's hello.
    fn hello(&self, theirs: &Hello, beat_port: u16) -> Result<Hello> {
        let interval_us = beats::interval_us(self.config.beat_interval)?;
        Ok(Hello {
            staging_slabs: u32::try_from(self.config.staging_bytes / u64::from(theirs.slab_size))?,
            node: self.config.node,
            beat_port,
            detect_multiplier: self.config.detect_multiplier,
            desired_tx_us: interval_us,
            required_rx_us: interval_us,
            ..*theirs
        })
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
    }

    /// The VM is ours. Its gate opens before it runs: from here on it is the one visible copy.
    fn take_over(&mut self, generation: Generation, epoch: Epoch) -> Result<()> {
        let won_at = self.clock.now();
        self.beats = None;
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

/// The spill file: unlinked at once, so that it ends with this process.
fn spill_file(config: &StandbyConfig) -> Result<Option<SpillFile>> {
    let Some(path) = &config.spill else { return Ok(None) };
    let what = || format!("spill file {}", path.display());
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).with_context(what)?;
    std::fs::remove_file(path).with_context(what)?;
    Ok(Some(SpillFile::new(file)))
}
