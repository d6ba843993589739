//! One state of the world: the very machines, what is on the wires between them, and ghosts that only the properties see.

use crate::{
    old::{Beside, Old},
    register::{Neglect, Registry, node, solo},
};
use mc_core::{
    claim::Claim,
    id::{Epoch, Generation, NodeId},
    primary::{self, Primary},
    register::{Mode, Owner, Register},
    standby::{self, Standby},
    testing::Sabotage,
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
    /// How often the primary is stalled.
    pub(crate) stalls: u8,
    /// How often a process of the primary's follows one that died: with its VM alive, or with a new one.
    pub(crate) primary_restarts: u8,
    /// Whether a crashed standby may come back, as a new process.
    pub(crate) standby_restarts: bool,
    /// How often the arbiter may crash, and start again.
    pub(crate) crashes: u8,
    /// How often the arbiter may forget, or go back.
    pub(crate) rewinds: u8,
    /// How often a stranger plays a session of its own to a standby that waits.
    pub(crate) strangers: u8,
    /// Whether the operator may end protection, the VM may die, slabs may be damaged, rehearsals may fail, and either staging may
    /// overflow (the primary gives protection up then).
    pub(crate) trouble: bool,
    /// How often the VM's make changes; if at all, it may be found unfit, too, and each rehearsal may fail.
    pub(crate) changes: u8,
    /// Whether every state is tried for what it leads to: see `walk.rs`. Only with one standby.
    pub(crate) walks: bool,
    /// Whether the world begins with a VM that is protected already.
    pub(crate) protected: bool,
    /// Whether an operator may say that the standby shall go on, once the primary's host is dead.
    pub(crate) operator: bool,
    /// Whether an old process lives on beside a later one of its host.
    pub(crate) beside: Option<Beside>,
    /// The invariant that is switched off.
    pub(crate) sabotage: Option<Sabotage>,
    /// The rule around the arbiter that is switched off.
    pub(crate) neglect: Option<Neglect>,
    /// What else is wrong in this world.
    pub(crate) flaw: Option<Flaw>,
}

/// What used to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The standby has the primary's identity, as two hosts of one name had.
    OneIdentity,
    /// A standby draws the same instance for every session.
    SameDraw,
    /// Both standbys are processes of one node, and the second does not look whether the first lives.
    TwoProcesses,
    /// A data path that died is followed by one that asks nobody, whatever the dead one had asked for.
    NextWithoutAsking,
    /// Who starts does not see that another QEMU of the VM lives on this host.
    LooksAtNothing,
}

/// Primary to standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Down {
    Slab { generation: Generation, epoch: Epoch, index: u32 },
    Commit { generation: Generation, epoch: Epoch, held: bool },
    Rehearse { generation: Generation, epoch: Epoch },
    Goodbye,
}

/// Standby to primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Up {
    Ack { generation: Generation, epoch: Epoch },
    Rehearsed { generation: Generation, epoch: Epoch },
    Nack { generation: Generation, reason: Refusal },
}

/// Why; [`Refusal::Other`] stands for all that end a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Refusal {
    Rehearsal,
    Other,
}

impl Refusal {
    pub(crate) fn reason(self) -> NackReason {
        match self {
            Self::Rehearsal => NackReason::Rehearsal,
            Self::Other => NackReason::OutOfOrder,
        }
    }
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
    /// On its disk: what it drew for its newest session.
    pub(crate) drawn: Option<u64>,
    /// Whether the primary can still reach it.
    pub(crate) open: bool,
    /// Everything sent to it in this session: delivered in any order, any number of times, or never.
    pub(crate) inbox: BTreeSet<Down>,
    /// Ghost: the VM's progress in each epoch of this session.
    pub(crate) captures: Vec<u8>,
    /// Ghost: the VM's make in each of them.
    pub(crate) makes: Vec<u8>,
    /// Ghost: the makes that were loaded here in this session, one bit each.
    pub(crate) loaded: u8,
    /// Of the epoch that a throw-away copy of the VM loads.
    pub(crate) rehearsing: Option<Epoch>,
    /// Ghost: slabs it kept in this session, one bit each; an independent account of staging.
    pub(crate) kept: u32,
    /// Ghost: the generation and the session in which it committed epoch 1.
    pub(crate) synced: Option<(Generation, u8)>,
    /// Ghost: its session was played by a stranger.
    pub(crate) forged: bool,
    /// Ghost: the VM's progress in the image that it took over with, and the generation.
    pub(crate) taken: Option<(Generation, u8)>,
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
    /// A copy that had lost the VM was heard again, or a second one beside the first.
    pub(crate) two: bool,
    /// A copy that the register had named was given up, though it never named another owner above it; or renounced by others.
    pub(crate) given_up: bool,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// `None` once it has crashed.
    pub(crate) primary: Option<Primary>,
    /// A process of the primary's that wants to run the VM.
    pub(crate) claim: Option<Claim>,
    /// An earlier process of a host that has another since.
    pub(crate) old: Option<Old>,
    /// Whether the primary's VM lives; which QEMU process it is.
    pub(crate) vm: Option<u64>,
    pub(crate) source: Source,
    pub(crate) seats: Vec<Seat>,
    /// The standby that the primary has a session with.
    pub(crate) link: Option<usize>,
    /// What the standbys said in this session.
    pub(crate) outbox: BTreeSet<Up>,
    pub(crate) registry: Registry,
    pub(crate) sessions: u8,
    pub(crate) stalls: u8,
    pub(crate) primary_restarts: u8,
    pub(crate) strangers: u8,
    /// How often the VM's make has changed: that is its make.
    pub(crate) changes: u8,
    /// Ghost: the VM was found unfit as this epoch was the newest, and has not changed since.
    pub(crate) unfit: Option<Epoch>,
    /// Ghost: what the VM has done at the primary. Every captured epoch and every step into the open adds one.
    pub(crate) progress: u8,
    /// Ghost: the VM's output is held.
    pub(crate) holding: bool,
    /// Ghost: how much of the progress the outside has seen.
    pub(crate) visible: u8,
    /// Ghost: generations in which the primary went solo, by a swap.
    pub(crate) solo: Option<Generation>,
    /// Ghost: the primary was told to fence itself.
    pub(crate) fenced: bool,
    /// Ghost: so was the old process.
    pub(crate) old_is_fenced: bool,
    /// Ghost: when the primary was stalled, the VM was taken over.
    pub(crate) overtaken: bool,
    pub(crate) wrong: Wrong,
}

/// The register's owner while the VM runs at the primary, as this QEMU process.
pub(crate) fn primary_owner(instance: u64) -> Owner {
    Owner { node: node("primary", 1), instance }
}

/// Standby `i`, as this process of QEMU or this session.
pub(crate) fn standby_owner(bounds: &Bounds, i: usize, instance: u64) -> Owner {
    let i = if bounds.flaw == Some(Flaw::TwoProcesses) { 0 } else { i };
    let id = if bounds.flaw == Some(Flaw::OneIdentity) { 1 } else { 2 + u8::try_from(i).unwrap() };
    Owner { node: node(["b", "c"][i], id), instance }
}

/// A process of standby `i`, after one that had drawn `gone` for its newest session.
pub(crate) fn standby(bounds: &Bounds, i: usize, instance: u64, gone: Option<u64>) -> Standby {
    let owner = standby_owner(bounds, i, 100 + instance);
    let config = standby::Config { owner, rehearse: true };
    let standby = gone.map_or_else(|| Standby::new(config), |gone| Standby::without_copy(config, gone));
    standby.sabotaged(bounds.sabotage)
}

pub(crate) fn primary(bounds: &Bounds, register: Register) -> Primary {
    let config =
        primary::Config { epoch: Duration::ZERO, window: bounds.window, commit_deadline: Duration::from_secs(1) };
    let mut primary = Primary::new(config, register).sabotaged(bounds.sabotage);
    if bounds.trouble {
        primary.set_on_cap(primary::OnCap::Unprotect);
    }
    primary
}

fn seat(bounds: &Bounds, i: usize) -> Seat {
    Seat {
        machine: Some(standby(bounds, i, 1, None)),
        drawn: None,
        open: false,
        inbox: BTreeSet::new(),
        captures: Vec::new(),
        makes: Vec::new(),
        loaded: 0,
        rehearsing: None,
        kept: 0,
        synced: None,
        forged: false,
        taken: None,
    }
}

impl World {
    /// The VM runs solo, in generation 1; nobody stands by. Or it was protected since, without any trouble.
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let mut world = Self::unprotected(bounds);
        if bounds.protected {
            world.become_protected(bounds);
        }
        if bounds.beside == Some(Beside::Overtaken) {
            world.was_overtaken_before(bounds);
        }
        world
    }

    fn unprotected(bounds: &Bounds) -> Self {
        let generation = if bounds.beside == Some(Beside::Overtaken) { 3 } else { 1 };
        let register = solo(generation, primary_owner(1));
        let standbys = (0..bounds.standbys).map(|i| standby_owner(bounds, i, 1).node.id);
        let nodes: Vec<NodeId> = std::iter::once(primary_owner(1).node.id).chain(standbys).collect();
        Self {
            primary: Some(primary(bounds, register)),
            claim: None,
            old: None,
            vm: Some(1),
            source: Source::Off,
            seats: (0..bounds.standbys).map(|i| seat(bounds, i)).collect(),
            link: None,
            outbox: BTreeSet::new(),
            registry: Registry::new(register, &nodes, (bounds.crashes, bounds.rewinds), bounds.neglect),
            sessions: 0,
            stalls: 0,
            primary_restarts: 0,
            strangers: 0,
            changes: 0,
            unfit: None,
            progress: 0,
            holding: false,
            visible: 0,
            solo: None,
            fenced: false,
            old_is_fenced: false,
            overtaken: false,
            wrong: Wrong::default(),
        }
    }

    /// The primary's role, if it lives.
    pub(crate) fn role(&self) -> Option<primary::Role> {
        self.primary.as_ref().map(Primary::role)
    }

    /// The standby that the register names, and the session whose copy.
    pub(crate) fn protected_by(&self, bounds: &Bounds) -> Option<(usize, Generation)> {
        let Register { generation, mode, .. } = self.registry.disk?;
        let Mode::Protected { standby } = mode else { return None };
        (0..self.seats.len()).find(|i| standby_owner(bounds, *i, 0).node == standby.node).map(|i| (i, generation))
    }

    /// Whether the primary, whose VM is gone, gave it to a session's copy. (A standby asks for itself as its process.)
    pub(crate) fn was_handed_back(&self) -> bool {
        let copy = |r: &Register| r.mode == Mode::Solo && r.owner.node != node("primary", 1) && r.owner.instance < 100;
        self.registry.history.iter().any(copy)
    }

    /// Whether a standby renounced.
    pub(crate) fn was_renounced(&self) -> bool {
        self.registry.history.windows(2).any(|pair| self.registry.renounces(&pair[0], &pair[1]))
    }

    /// What the outside has seen grows to `progress`.
    pub(crate) fn show(&mut self, progress: u8) {
        self.visible = self.visible.max(progress);
    }

    /// Whether the register was ever another's, above this generation.
    pub(crate) fn was_overtaken(&self, generation: Generation, is_another: impl Fn(&Owner) -> bool) -> bool {
        let mut history = self.registry.history.iter();
        history.any(|r| r.generation > generation && is_another(&r.owner))
    }
}

impl Seat {
    /// The standby's role, if it lives.
    pub(crate) fn role(&self) -> Option<standby::Role> {
        self.machine.as_ref().map(Standby::role)
    }
}
