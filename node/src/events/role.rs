//! Roles, and how things stand when one changes.

use super::{ArbiterState, BeatsWish, OutputFigures};
use mc_core::{
    id::{Epoch, Generation, Name},
    primary, standby,
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[doc = $of:literal])* $variant:ident $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[doc = $of])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// As in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// What a process is to its VM.
    #[non_exhaustive]
    Role {
        /// Primary: the VM runs alone.
        Solo "solo",
        /// A standby gets a full copy.
        Syncing "syncing",
        /// Primary: the arbiter is asked to name the standby.
        Registering "registering",
        /// Primary: the arbiter has named it.
        Protected "protected",
        /// The arbiter is asked for the VM.
        Claiming "claiming",
        /// Primary: the VM is dead, and goes to the standby.
        HandingBack "handing-back",
        /// Primary: another copy owns the VM.
        Fenced "fenced",
        /// Primary: the VM has ended.
        Ended "ended",
        /// Primary: nothing begins before the arbiter has answered.
        WaitingForArbiter "waiting-for-arbiter",
        /// Standby: there is no session.
        Idle "idle",
        /// Standby: a throw-away QEMU loads the image.
        Rehearsing "rehearsing",
        /// Standby: it has a copy that may be needed.
        Protecting "protecting",
        /// Standby: the primary's access to this memory is being ended.
        Revoking "revoking",
        /// Standby: the VM is another node's; the copy is kept for now.
        Lost "lost",
        /// Standby: the arbiter cannot be believed.
        Disputed "disputed",
        /// Standby: the VM is this node's, and does not run yet.
        TakingOver "taking-over",
        /// Standby: the VM runs here.
        Running "running",
        /// A keeper passes the VM's packets.
        Keeping "keeping",
    }
}

words! {
    /// Which side of a VM, as journals and control sockets are named.
    Side {
        /// Where `afterimage protect` runs.
        Primary "primary",
        /// Where `afterimage standby` runs.
        Standby "standby",
        /// What passes packets while nobody protects the VM.
        Keeper "keeper",
    }
}

impl Side {
    /// What may run on a host for a VM.
    pub const ALL: [Self; 3] = [Self::Primary, Self::Standby, Self::Keeper];

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|side| side.as_str() == name)
    }
}

words! {
    /// Which process of a side.
    #[non_exhaustive]
    Process {
        /// It holds QEMU's control connection, and outlives the data path.
        Supervisor "supervisor",
        /// It carries epochs and packets.
        DataPath "data-path",
        /// The standby's only one.
        Standby "standby",
        /// The keeper's only one.
        Keeper "keeper",
    }
}

impl From<primary::Role> for Role {
    fn from(role: primary::Role) -> Self {
        match role {
            primary::Role::Solo => Self::Solo,
            primary::Role::Syncing => Self::Syncing,
            primary::Role::Registering => Self::Registering,
            primary::Role::Protected => Self::Protected,
            primary::Role::Claiming => Self::Claiming,
            primary::Role::HandingBack => Self::HandingBack,
            primary::Role::Fenced => Self::Fenced,
            primary::Role::Ended => Self::Ended,
        }
    }
}

impl From<standby::Role> for Role {
    fn from(role: standby::Role) -> Self {
        match role {
            standby::Role::Idle => Self::Idle,
            standby::Role::Syncing => Self::Syncing,
            standby::Role::Rehearsing => Self::Rehearsing,
            standby::Role::Protecting => Self::Protecting,
            standby::Role::Revoking => Self::Revoking,
            standby::Role::Claiming => Self::Claiming,
            standby::Role::Lost => Self::Lost,
            standby::Role::Disputed => Self::Disputed,
            standby::Role::TakingOver => Self::TakingOver,
            standby::Role::Active => Self::Running,
        }
    }
}

/// How things stood when an event was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The role then.
    pub role: Role,
    /// How far epochs were.
    pub epochs: Epochs,
    /// What the gate held, let out and dropped so far.
    pub output: OutputFigures,
    /// How the arbiter was, as known last.
    pub arbiter: ArbiterState,
    /// What only a standby has.
    #[serde(flatten)]
    pub standby: Option<StandbyStanding>,
}

/// What only a standby has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StandbyStanding {
    /// Whether the register names its copy, as it was read last.
    pub registered: bool,
    /// Since when the primary cannot reach this side's memory, ms ago.
    pub revoked_ago_ms: Option<f64>,
}

/// How far a side's epochs are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Epochs {
    /// Of a primary.
    #[non_exhaustive]
    Primary {
        /// The newest one.
        captured: Epoch,
        /// The newest one that the standby has.
        acked: Epoch,
        /// When the last ACK came, ms ago.
        last_ack_ago_ms: Option<f64>,
    },
    /// Of a standby.
    #[non_exhaustive]
    Standby {
        /// The generation of the copy.
        generation: Generation,
        /// The newest whole epoch.
        committed: Epoch,
        /// When it was committed, ms ago.
        last_commit_ago_ms: Option<f64>,
    },
}

/// A role began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleChange {
    /// The VM, of a process that begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    /// What the register holds.
    pub generation: Generation,
    /// The newest epoch, on a primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The newest one that the standby has, on a primary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acked: Option<Epoch>,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// A standby began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// The program's.
    pub version: String,
    /// As configured.
    pub arbiter: String,
    /// How it wants its beats.
    pub beats: BeatsWish,
}

/// A standby waits for a primary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The VM.
    pub vm: Name,
    /// Where.
    pub listen: SocketAddr,
    /// Whether it keeps a copy that is another node's VM. Absent at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeps_lost_copy: Option<bool>,
}

/// Nothing goes on until the arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingForArbiter {
    /// The role meanwhile.
    pub role: Role,
    /// What is wrong with the arbiter.
    pub why: String,
}

/// A standby ends its session, to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The role until then.
    pub role: Role,
}
