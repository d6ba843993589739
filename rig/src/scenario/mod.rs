//! One fault each: what is done, what is observed, what must be true.
//!
//! | module | |
//! |---|---|
//! | [`round`] | starts everything: witness, standby, VM, protection, client |
//! | [`asker`] | the client of a round |
//! | [`fault`] | injects the fault and watches |
//! | [`evidence`] | what was observed, and the verdict: a pure function, so that it has tests of its own |
//! | [`report`] | numbers and JSON |
//! | [`status`] | what the rig reads from `afterimage status --json` |
//! | [`why`] | whether `afterimage why` tells what the rig saw |

pub mod asker;
pub mod evidence;
pub mod fault;
pub mod report;
pub mod round;
pub mod status;
pub mod why;

use crate::{guest::Guest, hosts::Place};
use clap::ValueEnum;
use std::{path::PathBuf, time::Duration};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Everything on the primary host dies at once. The standby takes over.
    KillPrimary,
    /// The replication link falls silent, both hosts live. One of them goes on, the other is fenced.
    CutLink,
    /// RDMA stops working on the replication link, all else goes on. Checkpoints go over TCP from there on, and none is lost.
    CutRdma,
    /// Everything on the primary host stops, and goes on after the takeover. It gets no packet out, and is fenced.
    FreezePrimary,
    /// Everything on the standby host dies. The primary goes on solo, and is protected again by a new standby.
    KillStandby,
    /// The witness dies and comes back. Protection goes on; failover is impossible meanwhile, and that is said.
    KillWitness,
    /// The data path of the primary's sidecar dies. One side goes on, the other is fenced; the VM is never left stopped.
    KillSidecar,
}

impl Scenario {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "kill-primary",
            Self::CutLink => "cut-link",
            Self::CutRdma => "cut-rdma",
            Self::FreezePrimary => "freeze-primary",
            Self::KillStandby => "kill-standby",
            Self::KillWitness => "kill-witness",
            Self::KillSidecar => "kill-sidecar",
        }
    }

    /// Who may be left running.
    #[must_use]
    pub fn allowed(self) -> &'static [Place] {
        match self {
            Self::KillPrimary | Self::FreezePrimary => &[Place::Standby],
            Self::KillStandby | Self::KillWitness | Self::CutRdma => &[Place::Primary],
            Self::CutLink | Self::KillSidecar => &[Place::Primary, Place::Standby],
        }
    }

    /// Whether there is a loser that lives, and must say that it is fenced.
    #[must_use]
    pub fn has_loser(self) -> bool {
        matches!(self, Self::CutLink | Self::FreezePrimary | Self::KillSidecar)
    }

    /// Whether who runs the VM is to be decided at the arbiter.
    #[must_use]
    pub fn is_arbitrated(self) -> bool {
        !matches!(self, Self::KillWitness | Self::CutRdma)
    }
}

/// Everything that a round needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which fault.
    pub scenario: Scenario,
    /// Which guest, on what.
    pub guest: Guest,
    /// The program under test.
    pub afterimage: PathBuf,
    /// The rig's own program, for what runs on hosts.
    pub rig: PathBuf,
    /// As `afterimage protect --epoch` takes it.
    pub epoch: String,
    /// As `--beat-interval` of both sides takes it.
    pub beat_interval: String,
    /// As `--detect-multiplier` of both sides takes it.
    pub detect_multiplier: u32,
    /// More flags, for both sides, with their values.
    pub flags: Vec<(&'static str, String)>,
    /// Requests that the client has under way at a time.
    pub pipeline: usize,
    /// Time after which it repeats one that is not answered (tiny guest).
    pub repeat_after: Duration,
    /// What the hosts are made of, as in the report.
    pub hosts: &'static str,
    /// Time that the client has before the fault.
    pub before: Duration,
    /// Time that the client has after the fault was dealt with.
    pub after: Duration,
    /// Time to measure the unprotected VM's replies; zero: not measured.
    pub baseline: Duration,
    /// Time to measure what the sidecars cost when no client asks; zero: not measured.
    pub idle: Duration,
    /// For logs and sockets.
    pub work_dir: PathBuf,
    /// For the standby's RAM file.
    pub ram_dir: PathBuf,
}
