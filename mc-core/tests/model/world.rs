//! One state of the world: the very machines, what is on the wires between them, and ghosts that only the properties see.

use crate::register::{Registry, solo};
use mc_core::{
    id::{Epoch, Generation, Name},
    primary::{self, Primary, Sabotage},
    register::{Mode, Owner, Register},
    standby::{self, Standby},
    wire::control::NackReason,
};
use std::{collections::BTreeSet, time::Duration};

/// How much of the world is explored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Standbys that the primary may use, one at a time.
    pub(crate) standbys: usize,
    /// Sessions, all in all.
    pub(crate) sessions: u8,
    /// Epochs captured per session.
    pub(crate) epochs: u64,
    /// Slabs in every epoch.
    pub(crate) slabs: u32,
    /// See [`primary::Config::window`].
    pub(crate) window: u64,
    /// See [`standby::Config::retries`].
    pub(crate) retries: u8,
    /// How often the primary is stalled.
    pub(crate) stalls: u8,
    /// Whether a crashed standby may come back, as a new process.
    pub(crate) standby_restarts: bool,
    /// Whether the arbiter may crash, and start again.
    pub(crate) arbiter_crashes: bool,
    /// Whether the operator may end protection, the VM may die, slabs may be damaged, and either staging may overflow (the
    /// primary gives protection up then).
    pub(crate) trouble: bool,
    /// Whether every state is tried for what it leads to: see `walk.rs`. Only with one standby.
    pub(crate) walks: bool,
    /// The invariant that is switched off.
    pub(crate) sabotage: Option<Sabotage>,
}

/// Primary to standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Down {
    Slab { generation: Generation, epoch: Epoch, index: u32 },
    Commit { generation: Generation, epoch: Epoch },
    Registered { generation: Generation },
    Goodbye,
}

/// Standby to primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Up {
    Ack { generation: Generation, epoch: Epoch },
    Nack { generation: Generation },
}

/// The QEMU under the primary, as the checkpoint source shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Not asked for checkpoints.
    Off,
    /// Sends its initial copy.
    Copying,
    /// Runs, and has not said that a checkpoint can be taken.
    Running,
    /// Runs, and has.
    Offered,
    /// Told to stop; the checkpoint is not complete.
    Stopped,
    /// The checkpoint is complete, and nobody let the VM run on.
    Waiting,
}

/// A standby and its end of the link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    /// `None` once it has crashed.
    pub(crate) machine: Option<Standby>,
    /// Whether the primary can still reach it.
    pub(crate) open: bool,
    /// Everything sent to it in this session: delivered in any order, any number of times, or never.
    pub(crate) inbox: BTreeSet<Down>,
    /// Ghost: the VM's progress when this session began.
    pub(crate) base: u8,
    /// Ghost: slabs it kept in this session, one bit each; an independent account of staging.
    pub(crate) kept: u32,
    /// Ghost: the generation and the session in which it committed epoch 1.
    pub(crate) synced: Option<(Generation, u8)>,
    /// Ghost: the VM's progress in the image that it took over with, and the generation.
    pub(crate) taken: Option<(Generation, u8)>,
    /// Ghost: it asked the arbiter again.
    pub(crate) retried: bool,
}

/// What must never be seen, noted when it happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wrong {
    /// I2: an ACK for an epoch that is not complete, or not the next.
    pub(crate) ack: bool,
    /// I5: the register names a standby that has not committed epoch 1 in this session.
    pub(crate) registered: bool,
    /// A fenced primary released output or let its VM run on.
    pub(crate) after_fence: bool,
    /// A stalled primary released something although a standby had taken over meanwhile.
    pub(crate) after_stall: bool,
    /// A takeover from an epoch that the standby does not hold, or a second one.
    pub(crate) takeover: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// `None` once it has crashed.
    pub(crate) primary: Option<Primary>,
    pub(crate) source: Source,
    pub(crate) seats: Vec<Seat>,
    /// The standby that the primary has a session with.
    pub(crate) link: Option<usize>,
    /// What the standbys said in this session.
    pub(crate) outbox: BTreeSet<Up>,
    pub(crate) registry: Registry,
    pub(crate) sessions: u8,
    pub(crate) stalls: u8,
    /// Ghost: what the VM has done at the primary. Every captured epoch and every step into the open adds one.
    pub(crate) progress: u8,
    /// Ghost: `progress` when the newest session began.
    pub(crate) base: u8,
    /// Ghost: how much of that the outside has seen.
    pub(crate) visible: u8,
    /// Ghost: generations in which the primary went solo, by a swap.
    pub(crate) solo: Option<Generation>,
    /// Ghost: the primary was told to fence itself.
    pub(crate) fenced: bool,
    /// Ghost: when the primary was stalled, the VM was taken over.
    pub(crate) overtaken: bool,
    pub(crate) wrong: Wrong,
}

/// The register's owner while the VM runs at the primary.
pub(crate) fn primary_owner() -> Owner {
    Owner { node: Name::new("primary").unwrap(), instance: 1 }
}

/// The name of standby `i`.
pub(crate) fn standby_name(i: usize) -> Name {
    Name::new(["b", "c"][i]).unwrap()
}

/// A process of standby `i`.
pub(crate) fn standby(bounds: &Bounds, i: usize, instance: u64) -> Standby {
    let config = standby::Config {
        owner: Owner { node: standby_name(i), instance },
        retry: Duration::ZERO,
        retries: bounds.retries,
        sabotage: bounds.sabotage,
    };
    Standby::new(config)
}

fn seat(bounds: &Bounds, i: usize) -> Seat {
    Seat {
        machine: Some(standby(bounds, i, 1)),
        open: false,
        inbox: BTreeSet::new(),
        base: 0,
        kept: 0,
        synced: None,
        taken: None,
        retried: false,
    }
}

impl World {
    /// The VM runs solo, in generation 1; nobody stands by.
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let register = solo(1, primary_owner());
        let config = primary::Config { epoch: Duration::ZERO, window: bounds.window, sabotage: bounds.sabotage };
        let mut primary = Primary::new(config, register);
        if bounds.trouble {
            primary.set_on_cap(primary::OnCap::Unprotect);
        }
        Self {
            primary: Some(primary),
            source: Source::Off,
            seats: (0..bounds.standbys).map(|i| seat(bounds, i)).collect(),
            link: None,
            outbox: BTreeSet::new(),
            registry: Registry::new(register, 1 + bounds.standbys),
            sessions: 0,
            stalls: 0,
            progress: 0,
            base: 0,
            visible: 0,
            solo: None,
            fenced: false,
            overtaken: false,
            wrong: Wrong::default(),
        }
    }

    /// The primary's role, if it lives.
    pub(crate) fn role(&self) -> Option<primary::Role> {
        self.primary.as_ref().map(Primary::role)
    }

    /// The standby that the register names.
    pub(crate) fn protected_by(&self) -> Option<(usize, Generation)> {
        let Register { generation, mode, .. } = self.registry.disk;
        let Mode::Protected { standby } = mode else { return None };
        (0..self.seats.len()).find(|i| standby_name(*i) == standby).map(|i| (i, generation))
    }

    /// What the outside has seen grows to `progress`.
    pub(crate) fn show(&mut self, progress: u8) {
        self.visible = self.visible.max(progress);
    }
}

impl Seat {
    /// The standby's role, if it lives.
    pub(crate) fn role(&self) -> Option<standby::Role> {
        self.machine.as_ref().map(Standby::role)
    }
}

/// The refusal that stands for all.
pub(crate) const REFUSAL: NackReason = NackReason::OutOfOrder;
