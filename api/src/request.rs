//! What can be asked over a control socket, and what comes back.

use crate::{
    keepalive::{KeepaliveReport, Wanted},
    settings::{Settings, SettingsReport},
    status::Status,
};
use node::{events::Order, keepalive::Measured};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use witness::{WitnessReport, WitnessRequest};

/// What can be asked. As JSON it is the line that the release before sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How is it?
    Status,
    /// To a standby with a manual arbiter: the primary is stopped, take over.
    Takeover,
    /// To a primary with a manual arbiter: the standby is stopped, go on alone.
    Solo,
    /// To a primary: end protection through the arbiter, and go on alone.
    Unprotect,
    /// What is in force between the two sides' beats?
    Keepalive,
    /// Change that.
    KeepaliveSet(Wanted),
    /// To a primary: change these, all or none.
    Set(Settings),
    /// To whoever runs the VM solo: leave it to a successor on this node.
    Handover,
    /// To a primary that is not protected: a successor prepares itself. Go on being the VM's way to its network until it asks
    /// for the hand-over, but leave QEMU's control connection and all standbys to it.
    MakeWay,
    /// To a primary: look for a standby (again), and at once.
    Protect,
    /// What did the beats measure?
    Measured,
    /// To a witness.
    Witness(WitnessRequest),
    /// To a standby: write the VM that you hold into this directory.
    Export {
        /// An absolute path.
        dir: PathBuf,
    },
}

impl Request {
    /// The command that asks this.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Takeover => "takeover",
            Self::Solo => "solo",
            Self::Unprotect => "unprotect",
            Self::Protect => "reprotect",
            Self::Export { .. } => "image export",
            Self::Set(_) => "set",
            Self::Keepalive => "keepalive show",
            Self::KeepaliveSet(_) => "keepalive set",
            Self::Measured => "keepalive probe",
            Self::Status | Self::Witness(_) | Self::Handover | Self::MakeWay => "status",
        }
    }

    /// As events have it, if it is an order about a role.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        Some(match self {
            Self::Takeover => Order::Takeover,
            Self::Solo => Order::Solo,
            Self::Unprotect => Order::Unprotect,
            Self::Handover => Order::Handover,
            Self::MakeWay => Order::MakeWay,
            Self::Export { dir } => Order::Export { dir: dir.clone() },
            _ => return None,
        })
    }

    /// The same, if it decides about a role: such a word belongs into the journal. (Changes of settings have events of their own.)
    #[must_use]
    pub fn decision(&self) -> Option<Order> {
        self.order().filter(|order| *order != Order::MakeWay)
    }
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Keepalive`] and [`Request::KeepaliveSet`].
    Keepalive(Box<KeepaliveReport>),
    /// To [`Request::Set`].
    Settings(Box<SettingsReport>),
    /// To [`Request::Measured`].
    Measured(Box<Measured>),
    /// To [`Request::Witness`]: what it holds.
    Witness(Box<WitnessReport>),
    /// It was done, or begun.
    Done {
        /// What, in a sentence.
        message: String,
    },
    /// It was not.
    Refused {
        /// Why.
        message: String,
        /// What to do.
        remedy: Option<String>,
    },
    /// It was not, and nothing was changed: something that it needs is away.
    Away {
        /// What, and why.
        message: String,
        /// What to do.
        remedy: String,
    },
}
