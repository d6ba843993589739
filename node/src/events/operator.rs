//! What people said, and how a process ended.

use super::Role;
use mc_core::id::Name;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An order about a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// To a standby: take over.
    Takeover,
    /// To a primary: go on alone.
    Solo,
    /// To a primary: end protection.
    Unprotect,
    /// From a successor: leave the VM to it.
    Handover,
    /// From a successor: leave QEMU's control connection to it.
    MakeWay,
    /// To a standby: write the image out.
    Export {
        /// Into this directory.
        dir: PathBuf,
    },
}

impl Order {
    /// As in JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Takeover => "takeover",
            Self::Solo => "solo",
            Self::Unprotect => "unprotect",
            Self::Handover => "handover",
            Self::MakeWay => "make-way",
            Self::Export { .. } => "export",
        }
    }
}

/// An operator gave an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The order.
    pub request: Order,
    /// The role of the process that got it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// It was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRefused {
    /// The order.
    pub request: Order,
    /// The role of the process that got it; absent where the order came too early or too late to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// In words.
    pub why: String,
}

/// A signal to end came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The role of the process that got it.
    pub role: Role,
    /// How many, on a primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// Supervision ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The VM, of a keeper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    /// The exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// In words.
    #[serde(default)]
    pub why: String,
}

/// The process ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// In words, of an end that is no success.
    #[serde(default)]
    pub why: Option<String>,
}
