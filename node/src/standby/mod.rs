//! The standby's loop: waits for a primary, holds a copy of its VM, and takes the VM over once the register says that it is this node's.
//!
//! ```text
//!            ┌───────────────────────────────── turn ─────────────────────────────────┐
//!   sleep ──>│ hear ─> offers ─> arbiter ─> beats ─> pump ─> operator ─> errands ─> VM │──> sleep
//!            └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! | | |
//! |---|---|
//! | [`StandbyVm`] | what a virtual machine monitor implements |
//! | [`StandbyLoop`] | one turn, in the order that safety needs; whoever has more to do in a turn implements it |
//! | [`Runner`] | the loop of whoever has not |
//! | [`Standby`] | what the loop knows; [`VmCopy`]: what it knows of a session's copy |
//! | [`LastCopy`] | what this node knows of its last copy, after a power cut too |
//!
//! Before anything is started for a primary, the register vouches for it (`vouch`). A session's copy is on record before the primary
//! is told of it (`offer`). What the register says is heard before beats are: a verdict is never older than the register. An error ends
//! the loop, and destroys no copy that the register may name: it is the caller's to keep.

mod door;
mod last_copy;
mod offer;
mod renounce;
mod runner;
mod turn;
mod vm;
mod vouch;

pub use door::Caller;
#[cfg(feature = "testing")]
pub use door::Calls;
pub use last_copy::LastCopy;
pub use runner::{Runner, Settings};
pub use turn::{StandbyLoop, mishaps};
pub use vm::{Ready, StandbyVm};
pub use vouch::{Refusal, refusal};

use crate::{
    arbiter::{ArbiterClient, ArbiterSpec, Ask, Stance},
    clock::{WatchedClock, unix_ms},
    events::{
        self, Epochs, Event as Told, Role as Word, StandbyStanding, Standing, Suspect, Takeover, Waiting, emit, ms,
    },
    exit::cannot_listen,
    host::Host,
    keepalive::BeatHandle,
};
use anyhow::Result;
use door::Door;
use mc_core::{
    driver::StandbyDriver,
    gate::GateStats,
    id::{Epoch, Generation, Name, Node, Time},
    register::{Mode, Owner, Register, Swap},
    standby::{Config, Event, Role, Standby as Machine},
    transport::Transport,
};
use renounce::Renounce;
use std::{net::SocketAddr, time::Duration};
use transport_tcp::session::{Listener, SessionOptions};
use vouch::Callers;

/// The loop turns at least so often: well within any stall limit.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// What the loop knows.
#[derive(Debug)]
pub struct Standby {
    /// The machine, its staging, its image, its link.
    pub driver: StandbyDriver<Box<dyn Transport>, WatchedClock>,
    /// The half that the primary has as well.
    pub host: Host,
    /// This host.
    pub this: Node,
    /// On record, of this node.
    pub last_copy: LastCopy,
    /// Of the session that there is, or that ended with a takeover.
    pub copy: Option<VmCopy>,
    vm: Name,
    door: Door,
    listen: SocketAddr,
    staging_bytes: u64,
    callers: Callers,
    renounce: Renounce,
    role: Role,
    role_since_ms: u64,
}

/// What a session has on this side.
#[derive(Debug)]
pub struct VmCopy {
    /// What this node drew for it: see [`Owner::instance`].
    pub instance: u64,
    /// Whose VM it is.
    pub primary: Owner,
    /// The register names this copy, as this node read it last.
    pub registered: bool,
    /// An operator said that this node shall run the VM.
    pub operator_wants_it: bool,
    was_entitled: bool,
    was_protected: bool,
}

impl VmCopy {
    fn new(instance: u64, primary: Owner) -> Self {
        let (registered, operator_wants_it, was_entitled, was_protected) = (false, false, false, false);
        Self { instance, primary, registered, operator_wants_it, was_entitled, was_protected }
    }
}

/// What a standby begins with.
#[derive(Debug)]
pub struct Begin {
    /// The VM.
    pub vm: Name,
    /// This host.
    pub this: Node,
    /// Where to wait for its primary.
    pub listen: SocketAddr,
    /// Bytes of staging, in a session.
    pub staging_bytes: u64,
    /// Whether a throw-away copy of the VM has to load the image before it protects.
    pub rehearse: bool,
    /// On record.
    pub last_copy: LastCopy,
    /// The copy that this node had last, where it is certain that it is no more ([`LastCopy::gone`], and nothing else tells of it).
    pub gone: Option<u64>,
}

/// The VM is this node's, and does not run yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Won {
    /// What the register holds.
    pub generation: Generation,
    /// The epoch that the image holds.
    pub epoch: Epoch,
    /// How long the primary had been silent when it was suspected.
    pub silence: Duration,
    /// When the arbiter said so.
    pub at: Time,
}

impl Standby {
    /// Waits for a primary.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn new(begin: Begin, arbiter: ArbiterClient) -> Result<Self> {
        let Begin { vm, this, listen, staging_bytes, rehearse, last_copy, gone } = begin;
        let host = Host::new(arbiter);
        let config = Config { owner: Owner { node: this, instance: 0 }, rehearse };
        let machine = match gone {
            Some(gone) => Machine::without_copy(config, gone),
            None => Machine::new(config),
        };
        #[cfg(feature = "testing")]
        let machine = machine.sabotaged(crate::outside::world::sabotaged());
        Ok(Self {
            driver: StandbyDriver::new(machine, WatchedClock(host.progress.clone())),
            host,
            this,
            last_copy,
            copy: None,
            vm,
            door: open(listen)?,
            listen,
            staging_bytes,
            callers: Callers::default(),
            renounce: Renounce::default(),
            role: Role::Idle,
            role_since_ms: unix_ms(),
        })
    }

    /// The machine's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.driver.machine().role()
    }

    /// Since when the role is what it is, ms since 1970.
    #[must_use]
    pub fn role_since_ms(&self) -> u64 {
        self.role_since_ms
    }

    /// Where it waits for a primary.
    #[must_use]
    // No program calls this: for an embedder that listens at port 0, as the tests do.
    pub fn listens_at(&self) -> SocketAddr {
        self.door.address()
    }

    /// Whether this node may be entitled to run the VM from its copy, so that nobody may destroy it.
    #[must_use]
    pub fn may_be_the_last(&self) -> bool {
        use Role::{Active, Claiming, Disputed, Idle, Lost, Protecting, Rehearsing, Revoking, Syncing, TakingOver};
        match self.role() {
            Protecting | Revoking | Claiming | Disputed | TakingOver => true,
            Idle | Syncing | Rehearsing | Lost | Active => false,
        }
    }

    /// The session's beats.
    #[must_use]
    pub fn beats(&self) -> Option<&BeatHandle> {
        self.host.beats()
    }

    /// Why the register names a copy of this node that this process does not have, and does not renounce.
    #[must_use]
    pub fn missed(&self) -> Option<&str> {
        self.renounce.missed()
    }

    /// The listener and the arbiter's client, for what comes after a takeover.
    #[must_use]
    pub fn into_parts(self) -> (Listener, ArbiterClient) {
        (self.door.into_listener(), self.host.arbiter)
    }

    /// This session's copy, as a register names it.
    #[must_use]
    pub fn named(&self) -> Owner {
        Owner { node: self.this, instance: self.copy.as_ref().map_or(0, |copy| copy.instance) }
    }

    /// How things stand: the newest commit, the end of the primary's access, output, the arbiter.
    #[must_use]
    pub fn standing(&self, output: GateStats) -> Standing {
        let machine = self.driver.machine();
        let (generation, committed) = machine.committed();
        let (figures, now) = (self.driver.figures(), self.host.now());
        let ago = |at: Option<Time>| at.map(|at| ms(now.since(at)));
        let registered = self.copy.as_ref().is_some_and(|copy| copy.registered);
        Standing {
            role: machine.role().into(),
            epochs: Epochs::Standby { generation, committed, last_commit_ago_ms: ago(figures.last_commit_at) },
            output: output.into(),
            arbiter: (&self.host.arbiter).into(),
            standby: Some(StandbyStanding { registered, revoked_ago_ms: ago(figures.revoked_at) }),
        }
    }

    /// Whether the death of the other host would cost nothing now, as far as copy and register go.
    #[must_use]
    pub fn protects(&self) -> bool {
        let machine = self.driver.machine();
        let registered = self.copy.as_ref().is_some_and(|copy| copy.registered);
        machine.role() == Role::Protecting && machine.is_entitled() && registered && !machine.is_unproven()
    }

    /// The other node is suspect: the copy asks for the VM.
    pub fn suspect(&mut self) {
        self.host.suspect();
        self.driver.event(Event::Suspect);
    }

    /// An operator says that this node shall run the VM. False if there is nothing to take.
    pub fn operator_takes_over(&mut self) -> bool {
        let role = self.role();
        if !matches!(role, Role::Protecting | Role::Revoking | Role::Claiming | Role::Disputed) {
            return false;
        }
        if let Some(copy) = &mut self.copy {
            copy.operator_wants_it = true;
        }
        self.host.suspect();
        if role != Role::Claiming {
            self.driver.event(Event::OperatorTakesOver);
        }
        self.heed_operator();
        true
    }

    /// The word that was given counts once the arbiter does not.
    fn heed_operator(&mut self) {
        if self.role() == Role::Claiming && self.operator_wants_it() && self.host.arbiter.operator_may_decide() {
            self.driver.event(Event::OperatorTakesOver);
            self.host.arbiter.operator_decides();
        }
    }

    fn operator_wants_it(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.operator_wants_it)
    }

    fn ask_for(&mut self, swap: Swap) {
        self.host.swap.asked(self.host.now());
        self.host.arbiter.ask(Ask::Cas(swap));
    }

    /// With `manual` an operator is the register: what it would say, were this copy to be asked for, is up to the swap.
    fn read_register(&mut self) {
        match self.copy.as_ref().filter(|_| *self.host.arbiter.spec() == ArbiterSpec::Manual) {
            Some(copy) => {
                let (generation, _) = self.driver.machine().committed();
                let mode = Mode::Protected { standby: self.named() };
                let named = Register { generation, owner: copy.primary, mode };
                self.look_whether_named(Some(&named));
                self.driver.event(Event::RegisterRead(Some(named)));
            }
            None => self.host.arbiter.ask(Ask::Read),
        }
    }

    /// Whether the register, read by this node, names the copy that it keeps.
    fn look_whether_named(&mut self, held: Option<&Register>) {
        let (named, (generation, _)) = (self.named(), self.driver.machine().committed());
        if let Some(copy) = &mut self.copy {
            copy.registered = held.is_some_and(|r| r.generation == generation && r.names_standby(&named));
        }
    }

    /// What an arbiter that is away means.
    fn stance(&self) -> Stance {
        match self.role() {
            Role::Protecting => Stance::Protects,
            Role::Revoking | Role::Claiming => Stance::TakesOver,
            _ => Stance::Idle,
        }
    }

    /// The session's link is gone.
    fn link_lost(&mut self, why: &str, output: GateStats) {
        let machine = self.driver.machine();
        // After a goodbye, or a suspicion that was told, it is how a session ends.
        if machine.was_left() || self.host.suspects() {
            tracing::info!(why, "the session's link is closed");
        } else {
            tracing::warn!(why, "link lost");
        }
        // After a goodbye nobody is suspect.
        if machine.role() != Role::Idle && !machine.was_left() && !self.host.suspects() {
            self.host.suspect();
            let paths = self.beats().map(|beats| self.host.watch.heard(beats, self.host.now()));
            let (why, standing) = (why.to_owned(), Some(self.standing(output)));
            emit(Told::Suspect(Box::new(Suspect { why, paths, standing, ..Suspect::default() })));
        }
    }

    /// The VM is this node's: beats have served.
    fn win(&mut self, generation: Generation, epoch: Epoch) -> Won {
        let silence = self.beats().and_then(BeatHandle::suspicion).map_or(Duration::ZERO, |s| s.silent_for);
        self.host.end_beats();
        self.host.watch.end();
        Won { generation, epoch, silence, at: self.host.now() }
    }

    /// The VM runs here. What it took.
    #[must_use]
    pub fn takeover(&self, won: &Won) -> Takeover {
        let suspected = self.host.session.as_ref().and_then(|session| session.suspected_at);
        let decided = suspected.unwrap_or(won.at);
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let us = |at: Time| whole(at.since(decided));
        Takeover {
            silence_us: whole(won.silence),
            revoked_us: us(self.driver.figures().revoked_at.unwrap_or(decided)),
            won_us: us(won.at),
            running_us: us(self.host.now()),
        }
    }

    /// The copy is no more, and another session may come.
    fn end_session(&mut self) {
        self.copy = None;
        self.host.end_session();
    }

    /// It waits for a primary; `keeps_lost_copy`: with one that is another node's VM.
    pub fn tell_waiting(&self, keeps_lost_copy: Option<bool>) {
        emit(Told::Waiting(Waiting { vm: self.vm, listen: self.listen, keeps_lost_copy }));
    }

    /// Tells the role, if it is another one than it was.
    pub fn report_role(&mut self) {
        let role = self.role();
        if role == std::mem::replace(&mut self.role, role) {
            return;
        }
        self.role_since_ms = unix_ms();
        let after = if self.driver.machine().was_left() { "role, after the primary's goodbye" } else { "role" };
        tracing::info!(role = Word::from(role).as_str(), "{after}");
        if matches!(role, Role::Idle | Role::Lost) {
            self.tell_waiting(Some(role == Role::Lost)); // the copy that was lost, until its room is needed
        }
    }
}

/// # Errors
/// The address cannot be listened on.
fn open(listen: SocketAddr) -> Result<Door> {
    #[cfg(feature = "testing")]
    if let Some(callers) = crate::outside::world::door() {
        return Ok(Door::World(callers, listen));
    }
    Ok(Door::Network(Listener::bind(listen, SessionOptions::default()).map_err(cannot_listen)?))
}

/// A refusal of an epoch, for the log.
fn tell_refused(reason: mc_core::wire::control::NackReason, why: String) {
    tracing::error!(?reason, why, "epoch refused");
    emit(Told::EpochRefused(events::EpochRefused { reason: reason.into(), why }));
}
