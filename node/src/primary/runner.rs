//! The loop of a VM that needs nothing else done in it.

use super::{
    Begin, Life, Primary, PrimaryLoop, PrimaryVm, Trouble,
    session::{Judge, Terms},
    start::{Waits, refused},
};
use crate::{
    address::LocalAddr,
    arbiter::{Answer, ArbiterClient, ArbiterSpec, Ask, HostPort},
    beats::Wish,
    clock::Clock,
    events::{self, Event as Told, Fenced, SourceBroken, VmGone, emit},
    host::{HostSettings, within},
    inbox::{readable, wait},
    outside,
    place::Place,
    standby::Right,
    units::size_text,
};
use anyhow::{Result, ensure};
use mc_core::{
    claim::{self, Claim, Verdict},
    driver::PrimaryErrand,
    id::{PAGE_SIZE, Time},
    machine::Machine,
    primary::{Config, Event, OnCap},
    register::{Owner, Register},
    wire::{
        control::GoodbyeReason,
        slab::{MAX_SLAB, MIN_SLAB},
    },
};
use rustix::rand::GetRandomFlags;
use std::{ops::RangeInclusive, os::fd::AsFd, time::Duration};

/// Epochs that make sense.
const EPOCH: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
/// Checkpoints under way.
const WINDOW: RangeInclusive<u64> = 1..=64;

/// What an embedder's primary is about. Times are those of `afterimage protect`, unless set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As for either side.
    pub host: HostSettings,
    /// Where the standby listens.
    pub to: HostPort,
    /// Our address of the connection to the standby; `None`: the system chooses.
    pub bind: Option<LocalAddr>,
    /// Between two checkpoints.
    pub epoch: Duration,
    /// Checkpoints captured and not yet ACKed, at most.
    pub window: u64,
    /// Bytes of a slab.
    pub slab_bytes: usize,
}

impl Settings {
    /// With the defaults: epochs of 20 ms, two of them under way.
    #[must_use]
    pub fn new(host: HostSettings, to: impl Into<HostPort>) -> Self {
        Self { host, to: to.into(), bind: None, epoch: Duration::from_millis(20), window: 2, slab_bytes: 1 << 20 }
    }

    /// Before anything is asked for: a number that is refused later would cost a VM that runs by then.
    fn check(&self) -> Result<()> {
        self.host.check()?;
        within("epoch", &self.epoch, &EPOCH)?;
        within("window", &self.window, &WINDOW)?;
        within("slab_bytes", &self.slab_bytes, &(MIN_SLAB..=MAX_SLAB))?;
        ensure!(self.slab_bytes.is_multiple_of(PAGE_SIZE), "slab_bytes is {}: expected whole pages", self.slab_bytes);
        within("staging_bytes", &self.host.staging_bytes, &(2 * self.slab_bytes..=usize::MAX))
    }

    fn commit_deadline(&self, rdma: bool) -> Duration {
        let detection = self.host.beats.interval * u32::from(self.host.beats.multiplier);
        let falls_back = if rdma { self.host.paths.rdma_give_up() } else { Duration::ZERO };
        Duration::from_secs(2).max(self.epoch * 10).max(detection * 10) + falls_back
    }
}

/// How a [`Runner`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Another node owns the VM; this copy was stopped.
    Fenced,
    /// The VM is gone.
    VmGone,
}

/// See the module.
#[derive(Debug)]
pub struct Runner<V: PrimaryVm> {
    settings: Settings,
    vm: V,
    owner: Owner,
    primary: Primary<V::Source, V::Gate>,
    life: Life,
    end: Option<End>,
    /// Given up last: the VM is gone by then.
    _place: Place,
}

impl<V: PrimaryVm> Runner<V> {
    /// Asks the arbiter for the VM, as often as it takes to be answered, and lets the VM run. Its output is let out by `gate`, which is
    /// open while no standby protects the VM.
    ///
    /// # Errors
    /// A setting that makes no sense, which is named; the VM is another node's, or another process's of this one; no identity, no thread; the arbiter is an operator, whom nobody here
    /// asks.
    pub fn new(settings: Settings, vm: V, gate: V::Gate) -> Result<Self> {
        settings.check()?;
        ensure!(
            settings.host.arbiter != ArbiterSpec::Manual,
            "a primary's runner needs an arbiter that answers by itself: with `manual` the VM's output would be held for ever"
        );
        let arbiter = settings.host.ask()?;
        Self::with_arbiter(settings, arbiter, vm, gate)
    }

    /// The same with an arbiter of the embedder's own ([`ArbiterClient::with_backend`]), whatever [`HostSettings::arbiter`] is.
    ///
    /// # Errors
    /// As for [`Runner::new`].
    pub fn with_arbiter(settings: Settings, arbiter: ArbiterClient, vm: V, gate: V::Gate) -> Result<Self> {
        let mut start = Start::new(settings, arbiter, vm, gate)?;
        let mut waits = Waits::new(Clock.now());
        loop {
            if let Some(register) = start.step()? {
                return start.begin(register);
            }
            waits.look(Clock.now(), start.settings.host.vm, &start.arbiter);
            // A signal is no reason to give up.
            wait(&mut [readable(start.arbiter.as_fd())], Time(0), None, Duration::from_secs(1))?;
        }
    }

    /// Goes on with a VM that this process has taken over: its output is let out from the first turn on, whether the arbiter can be
    /// asked now or not. The register was won for this copy, and only this node may change it; that it names another copy by now,
    /// which takes an operator's word or another process of this node, ends the runner as it ends every other.
    ///
    /// The arbiter is the one that the standby asked, whatever [`HostSettings::arbiter`] is.
    ///
    /// # Errors
    /// A setting that makes no sense; the right is to another VM, or another node's; another process of this node has the VM's place; the register is known to hold another value since.
    pub fn after_takeover(settings: Settings, right: Right, vm: V, gate: V::Gate) -> Result<Self> {
        settings.check()?;
        let (place, node) = (settings.host.place()?, settings.host.this()?);
        let Right { vm: name, register, arbiter } = right;
        ensure!(name == settings.host.vm, "the right is to {name}, not to {}", settings.host.vm);
        ensure!(register.owner.node.id == node.id, "the right is {}'s, not {node}'s", register.owner.node);
        // What was read meanwhile, and waits.
        let newer =
            std::iter::from_fn(|| arbiter.take_answer()).filter_map(|answer| answer.held()).chain(arbiter.seen());
        for held in newer.filter(|held| held.generation > register.generation) {
            ensure!(
                held.owner.names(&register.owner),
                "the VM belongs to {} since {}",
                held.owner.node,
                held.generation
            );
        }
        Self::begun(settings, (arbiter, place), register, vm, gate)
    }

    /// The register says (solo, this copy).
    fn begun(
        settings: Settings,
        (arbiter, _place): (ArbiterClient, Place),
        register: Register,
        mut vm: V,
        gate: V::Gate,
    ) -> Result<Self> {
        let owner = register.owner;
        vm.leave(&register)?;
        let machine =
            Config { epoch: settings.epoch, window: settings.window, commit_deadline: settings.commit_deadline(false) };
        let begin = Begin {
            machine,
            register,
            slab_bytes: settings.slab_bytes,
            staging: (settings.host.staging_bytes, OnCap::Throttle),
            patience: Duration::ZERO,
            protect: true,
        };
        let primary = Primary::new(&begin, gate, arbiter);
        Ok(Self { primary, settings, vm, owner, life: Life::Lives, end: None, _place })
    }

    /// Until the VM is gone, or another node's.
    ///
    /// # Errors
    /// The VM cannot be commanded any more. Nothing is let out from then on: the gate goes with this value.
    pub fn run(mut self) -> Result<End> {
        loop {
            self.turn()?;
            if let Some(end) = self.ended() {
                return Ok(end);
            }
        }
    }

    /// How it has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.end
    }

    /// What it knows.
    #[must_use]
    pub fn primary(&self) -> &Primary<V::Source, V::Gate> {
        &self.primary
    }
}

impl<V: PrimaryVm> Runner<V> {
    /// A VM that is gone is told to the machine once, before anything else is made of a source that broke.
    fn look_after_vm(&mut self) {
        if self.life != Life::Lives {
            return;
        }
        self.life = self.vm.life();
        let (orderly, event) = match self.life {
            Life::Lives => return,
            Life::ShutDown => (true, Event::Unprotect(GoodbyeReason::GuestGone)),
            Life::Died => (false, Event::SourceLost),
        };
        emit(Told::VmGone(VmGone { orderly }));
        self.primary.because(Trouble::passing(if orderly { "the VM was shut down" } else { "the VM died" }));
        self.primary.driver.event(event);
    }
}

/// A runner that asks the arbiter whose the VM is.
#[derive(Debug)]
pub struct Start<V: PrimaryVm> {
    settings: Settings,
    arbiter: ArbiterClient,
    vm: V,
    gate: V::Gate,
    place: Place,
    claim: Claim,
}

impl<V: PrimaryVm> Start<V> {
    /// Asks.
    ///
    /// # Errors
    /// A setting that makes no sense; another process of this node runs the VM or stands by for it; no identity.
    pub fn new(settings: Settings, arbiter: ArbiterClient, vm: V, gate: V::Gate) -> Result<Self> {
        settings.check()?;
        let place = settings.host.place()?;
        let node = settings.host.this()?;
        let mut instance = [0; 8];
        outside::random(&mut instance, GetRandomFlags::empty())?;
        let owner = Owner { node, instance: u64::from_le_bytes(instance) };
        Ok(Self { settings, arbiter, vm, gate, place, claim: Claim::new(owner) })
    }

    /// What can be done without waiting. Returns what the register holds once the VM is ours.
    ///
    /// # Errors
    /// It is another node's, or another process's of this one.
    pub fn step(&mut self) -> Result<Option<Register>> {
        loop {
            match self.claim.poll_action() {
                Some(claim::Action::ReadRegister) => self.arbiter.ask(Ask::Read),
                Some(claim::Action::Cas(swap)) => self.arbiter.ask(Ask::Cas(swap)),
                Some(claim::Action::LookFor { instance }) => {
                    let lives = self.vm.lives(instance);
                    self.claim.handle(Time(0), claim::Event::Looked { lives });
                }
                None => match (self.claim.verdict(), self.arbiter.take_answer()) {
                    (Verdict::Ours(register), _) => return Ok(Some(register)),
                    (verdict @ (Verdict::Foreign(_) | Verdict::OtherInstance(_) | Verdict::Beside(_)), _) => {
                        return Err(refused(self.settings.host.vm, &verdict).into());
                    }
                    (Verdict::Open, Some(Answer::Read(held))) => {
                        self.claim.handle(Time(0), claim::Event::RegisterRead(held));
                    }
                    (Verdict::Open, Some(Answer::Cas(outcome))) => {
                        self.claim.handle(Time(0), claim::Event::Cas(outcome));
                    }
                    (Verdict::Open, Some(Answer::Fault(fault))) => {
                        tracing::warn!(%fault, "the arbiter cannot be believed");
                    }
                    (Verdict::Open, None) => return Ok(None),
                },
            }
        }
    }

    /// The VM is ours: it runs.
    ///
    /// # Errors
    /// As for [`Runner::new`].
    pub fn begin(self, register: Register) -> Result<Runner<V>> {
        ensure!(self.claim.verdict() == Verdict::Ours(register), "this register was not won here");
        let Self { settings, arbiter, vm, gate, place, claim: _ } = self;
        Runner::begun(settings, (arbiter, place), register, vm, gate)
    }
}

impl<V: PrimaryVm> PrimaryLoop for Runner<V> {
    type Source = V::Source;
    type Gate = V::Gate;

    fn primary(&self) -> &Primary<V::Source, V::Gate> {
        &self.primary
    }

    fn primary_mut(&mut self) -> &mut Primary<V::Source, V::Gate> {
        &mut self.primary
    }

    fn terms(&mut self) -> Result<Terms, Trouble> {
        let (settings, host) = (&self.settings, &self.primary.host);
        let judge: Judge = self.vm.judge();
        Ok(Terms {
            to: settings.to.clone(),
            bind: settings.bind,
            patience: Duration::ZERO,
            paths: settings.host.paths(),
            vm: settings.host.vm,
            owner: self.owner,
            generation: self.primary.driver.machine().register().generation.next(),
            witness: host.arbiter.health().witness,
            beats: settings.host.beats,
            slab_bytes: settings.slab_bytes as u64,
            staging_bytes: settings.host.staging_bytes as u64,
            profile: self.vm.profile(),
            judge,
        })
    }

    fn beating(&self) -> (Wish, Option<Duration>) {
        (self.settings.host.beats, self.settings.host.stall_after)
    }

    fn commit_deadline(&self) -> Duration {
        self.settings.commit_deadline(self.primary.host.watch.has_rdma())
    }

    fn source(&mut self) -> Result<V::Source> {
        self.vm.source()
    }

    fn hear(&mut self) -> Result<()> {
        self.look_after_vm();
        Ok(())
    }

    fn errand(&mut self, errand: PrimaryErrand) -> Result<()> {
        match errand {
            PrimaryErrand::Cas(swap) => self.primary.ask_for(swap),
            PrimaryErrand::StartSource => {
                // A session that ended in the turn in which it began has none any more; its end is the next errand.
                if let Some(source) = self.primary.driver.source_mut() {
                    self.vm.start(source)?;
                }
            }
            PrimaryErrand::LeaveSource => {
                let register = *self.primary.driver.machine().register();
                if self.primary.host.session.is_some() && self.primary.trouble().is_none() {
                    let why = "the standby ended the session";
                    emit(Told::GaveUp(why.into()));
                    self.primary.because(Trouble::passing(why));
                }
                self.session_ended(None);
                self.vm.leave(&register)?;
            }
            PrimaryErrand::Fence => {
                let (register, standing) = (self.primary.held(), Some(self.primary.standing()));
                emit(Told::Fenced(Box::new(Fenced {
                    vm: Some(self.settings.host.vm),
                    register,
                    standing,
                    ..Fenced::default()
                })));
                self.primary.host.end_beats();
                self.end = Some(End::Fenced);
                self.vm.fence()?;
            }
            PrimaryErrand::End => self.end = Some(End::VmGone),
            PrimaryErrand::LinkLost(why) => {
                if let Some(unproven) = self.primary.link_lost(&why) {
                    self.no_beats(unproven);
                }
            }
            PrimaryErrand::SourceFailed(why) => {
                self.look_after_vm();
                if self.life == Life::Lives {
                    tracing::error!(vm = %self.settings.host.vm, why, "no checkpoints: protection is given up");
                    emit(Told::SourceBroken(SourceBroken { why: why.clone(), unsupported: false }));
                    self.primary.because(Trouble::passing(why));
                    self.primary.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
                }
            }
            PrimaryErrand::GateFailed(why) => {
                if self.primary.gate_failed(&why) {
                    emit(Told::GateFailed(why.into()));
                }
            }
            PrimaryErrand::Refused(_, words) => {
                let why = format!("the standby refused a checkpoint: {words}");
                // It is said for each epoch that was on its way.
                if self.primary.trouble().is_none_or(|trouble| trouble.why != why) {
                    tracing::error!(why, "protection is given up");
                    emit(Told::Refused(events::Refused { why: why.clone(), ..events::Refused::default() }));
                    self.primary.because(Trouble::lasting(why));
                }
            }
            PrimaryErrand::Late => self.primary.late(),
            PrimaryErrand::GaveUp => {
                let cap = size_text(self.primary.driver.pool_stats().cap_bytes);
                let why = format!("a checkpoint did not fit into staging ({cap}): give the host more of it");
                tracing::error!(why, "protection is given up");
                emit(Told::GaveUp(why.as_str().into()));
                self.primary.because(Trouble::lasting(why));
            }
            PrimaryErrand::HandsBack => {
                tracing::error!("the VM died while the arbiter was asked; what is won goes to the standby");
                emit(Told::HandsBack(self.primary.standing()));
            }
        }
        Ok(())
    }
}
