//! The primary's loop: a VM that runs on this host, and the standby that it has or looks for.
//!
//! ```text
//!            ┌──────────────────────────── turn ────────────────────────────┐
//!   sleep ──>│ hear ─> arbiter ─> beats ─> look for a standby ─> pump ─> errands │──> sleep
//!            └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! | | |
//! |---|---|
//! | [`PrimaryVm`] | what a virtual machine monitor implements |
//! | [`PrimaryLoop`] | one turn, in the order that safety needs; whoever has more to do in a turn implements it |
//! | [`Runner`] | the loop of whoever has not |
//! | [`Primary`] | what the loop knows |
//! | [`seek`] | when to look for a standby; [`session`]: finding it |
//!
//! The order of a turn is part of the protocol. A loop that was away asks before it releases anything ([`PrimaryDriver::notice_stall`]
//! comes first); what the register says is heard before beats are, so that a verdict is never older than the register; and the driver
//! pumps before its errands are run.

mod proving;
mod runner;
pub mod seek;
pub mod session;
mod start;
mod turn;
mod vm;

pub use runner::{End, Runner, Settings, Start};
pub use seek::{Kind, Trouble};
pub use turn::PrimaryLoop;
pub use vm::{Life, PrimaryVm};

use crate::{
    arbiter::{ArbiterClient, Ask, Stance},
    clock::{WatchedClock, unix_ms},
    events::{self as told, Asking, Epochs, Event, RoleChange, Standing, emit, ms},
    host::Host,
    inbox::Inbox,
    keepalive::BeatHandle,
    outside,
    repeated::{Repeated, and_more},
    stalls::Stalls,
};
use mc_core::{
    driver::PrimaryDriver,
    gate::OutputGate,
    id::Time,
    primary::{Config, OnCap, Primary as Machine, Role},
    register::{Register, Swap},
    slab::SlabPool,
    source::CheckpointSource,
    staging::Staging,
};
use rustix::rand::GetRandomFlags;
use seek::Seek;
use session::Found;
use std::time::Duration;

/// The stall limit while nobody stands by: nobody could declare this side dead. And the longest sleep.
pub const WITHOUT_BEATS: Duration = Duration::from_millis(100);

/// What the loop knows.
#[derive(Debug)]
pub struct Primary<S, G> {
    /// The machine, its staging, its gate, its link.
    pub driver: PrimaryDriver<S, G, WatchedClock>,
    /// The half that the standby has as well.
    pub host: Host,
    /// When to look for a standby.
    pub seek: Seek,
    /// A standby is being looked for.
    looking: Option<Inbox<Result<Found, Trouble>>>,
    /// Why the session that there is will have ended.
    trouble: Option<Trouble>,
    protected_since: Option<Time>,
    /// The stall limit as it was when the turn before began.
    limit_before: Duration,
    last_turn: Time,
    stalls: Stalls,
    /// Those that the driver had noticed, this session, when the turn before began.
    stalls_before: u64,
    role: (Role, bool),
    /// Since when it has been so, ms since 1970.
    role_since_ms: u64,
    /// What the register holds, as this process heard last.
    held: Option<Register>,
    /// What was said of the gate.
    gate: Repeated,
}

/// What a primary begins with.
#[derive(Debug)]
pub struct Begin {
    /// Epochs, window, deadlines.
    pub machine: Config,
    /// What the register holds: (solo, self).
    pub register: Register,
    /// Bytes of a slab.
    pub slab_bytes: usize,
    /// Bytes of staging, and what more of a checkpoint means.
    pub staging: (usize, OnCap),
    /// How long to wait before the first look for a standby.
    pub patience: Duration,
    /// Whether an operator wants protection.
    pub protect: bool,
}

impl<S: CheckpointSource, G: OutputGate> Primary<S, G> {
    /// The VM runs solo, behind `gate`.
    #[must_use]
    pub fn new(begin: &Begin, gate: G, arbiter: ArbiterClient) -> Self {
        let &Begin { machine, register, slab_bytes, staging: (cap, on_cap), patience, protect } = begin;
        let host = Host::new(arbiter);
        let pool = SlabPool::new(slab_bytes, cap);
        let machine = Machine::new(machine, register);
        #[cfg(feature = "testing")]
        let machine = machine.sabotaged(outside::world::sabotaged());
        let clock = WatchedClock(host.progress.clone());
        let mut driver = PrimaryDriver::new(machine, Staging::new(pool), gate, clock);
        driver.set_cap(cap, on_cap);
        let now = host.now();
        Self {
            driver,
            host,
            seek: Seek::new(now.after(patience), protect),
            looking: None,
            trouble: None,
            protected_since: None,
            limit_before: Duration::MAX,
            last_turn: now,
            stalls: Stalls::default(),
            stalls_before: 0,
            role: (Role::Solo, false),
            role_since_ms: unix_ms(),
            held: None,
            gate: Repeated::default(),
        }
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

    /// What the register holds, as this process heard last.
    #[must_use]
    pub fn held(&self) -> Option<Register> {
        self.held
    }

    /// Since when the VM is protected, if it is.
    #[must_use]
    pub fn protected_since(&self) -> Option<Time> {
        self.protected_since
    }

    /// Whether a standby is being looked for at this moment.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.looking.is_some()
    }

    /// What is found from now on is not wanted.
    pub fn look_no_more(&mut self) {
        self.looking = None;
    }

    /// Why the session that there is now will have ended: the first reason counts.
    pub fn because(&mut self, trouble: Trouble) {
        self.trouble.get_or_insert(trouble);
    }

    /// The reason that was given, if one was.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// The gate could not do what it was told: said once in a while, since it may fail with every epoch. Whether it was.
    pub fn gate_failed(&mut self, why: &str) -> bool {
        let more = self.gate.say(why, outside::instant());
        if let Some(more) = more {
            tracing::error!(why, "the gate has trouble; its output stays held{}", and_more(more));
        }
        more.is_some()
    }

    /// Asks the arbiter.
    pub fn ask_for(&mut self, swap: Swap) {
        self.host.swap.asked(self.host.now());
        self.host.arbiter.ask(Ask::Cas(swap));
        emit(Event::Asking(Asking { swap, standing: Some(self.standing()) }));
    }

    /// How things stand, for an event.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let machine = self.driver.machine();
        let (captured, acked) = machine.epochs();
        let last_ack = self.driver.figures().last_ack_at;
        let last_ack_ago_ms = last_ack.map(|at| ms(self.host.now().since(at)));
        Standing {
            role: machine.role().into(),
            epochs: Epochs::Primary { captured, acked, last_ack_ago_ms },
            output: self.driver.gate.stats().into(),
            arbiter: (&self.host.arbiter).into(),
            standby: None,
        }
    }

    /// How long the loop may be away before it must ask whether it still owns the VM: no longer than the standby may bear its silence,
    /// by the parameters in force, or the shortest of those that may be while they change.
    #[must_use]
    pub fn stall_limit(&self) -> Duration {
        self.host.beats().map_or(WITHOUT_BEATS, BeatHandle::patience)
    }

    /// A process that was frozen may have been declared dead meanwhile: it asks before it releases anything.
    fn notice_stall(&mut self) {
        let limit = self.stall_limit();
        // While this loop was away the limit may have been raised, by what the standby had heard before.
        let limit = limit.min(std::mem::replace(&mut self.limit_before, limit));
        let now = self.host.now();
        let away = now.since(std::mem::replace(&mut self.last_turn, now));
        self.driver.notice_stall(limit);
        let stalls = self.driver.figures().stalls;
        if stalls > std::mem::replace(&mut self.stalls_before, stalls) {
            self.stalls.tell(now, away, limit);
        }
    }

    /// What an arbiter that is away means.
    fn stance(&self) -> Stance {
        match self.role() {
            Role::Registering | Role::Protected => Stance::Protects,
            Role::Claiming => Stance::Claims,
            _ => Stance::Idle,
        }
    }

    /// The session is over, and the VM runs solo. Returns why, and for how long it had been protected.
    fn end_session(&mut self) -> (Trouble, Option<Duration>) {
        self.host.end_session();
        let trouble = self.trouble.take().unwrap_or_else(|| Trouble::passing("the session with the standby ended"));
        let protected = self.protected_since.take().map(|since| self.host.now().since(since));
        (trouble, protected)
    }

    /// An event for every change of role that a watcher cares about.
    fn tell_role(&self) {
        let machine = self.driver.machine();
        let (captured, acked) = machine.epochs();
        let event: Option<fn(RoleChange) -> Event> = match machine.role() {
            Role::Solo => Some(Event::Solo),
            Role::Registering => Some(Event::Registering),
            // Registered is not protected yet: the standby has to have an epoch whose output was held.
            Role::Protected if !machine.is_protected() => Some(Event::Holding),
            Role::Protected => Some(Event::Protected),
            Role::Claiming => Some(Event::Claiming),
            // These have events of their own, with more to say.
            Role::Syncing | Role::Fenced | Role::Ended | Role::HandingBack => None,
        };
        let holding = machine.role() == Role::Protected && !machine.is_protected();
        let role = if holding { "holding" } else { told::Role::from(machine.role()).as_str() };
        let (generation, epoch) = (machine.generation().0, captured.0);
        if machine.role() == Role::Fenced {
            tracing::debug!(role, generation, epoch, "role"); // the end that follows says why
        } else {
            tracing::info!(role, generation, epoch, "role");
        }
        if let Some(event) = event {
            let (epoch, acked, standing) = (Some(captured), Some(acked), Some(self.standing()));
            emit(event(RoleChange { vm: None, generation: machine.generation(), epoch, acked, standing }));
        }
    }

    /// Whether the role is another one than in the turn before.
    fn has_new_role(&mut self) -> bool {
        let machine = self.driver.machine();
        let role = (machine.role(), machine.is_protected());
        let changed = role != std::mem::replace(&mut self.role, role);
        if changed {
            self.role_since_ms = unix_ms();
        }
        if changed && role.1 {
            self.protected_since.get_or_insert(self.host.now());
            self.seek.protected();
        }
        changed
    }
}

/// Any number, for the jitter; without the kernel's help they are all alike.
fn chance() -> u8 {
    let mut byte = [128];
    let _ = outside::random(&mut byte, GetRandomFlags::NONBLOCK);
    byte[0]
}
