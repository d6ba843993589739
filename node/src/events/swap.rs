//! The register: what it holds, and what the arbiter is asked to make of it.

use super::Standing;
use mc_core::{
    id::{Generation, Name},
    register::{CasOutcome, Register, Swap},
};
use serde::{Deserialize, Serialize};

/// A swap that the arbiter is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asking {
    /// What is expected, what shall be there, and whether another node may want the VM too.
    #[serde(flatten)]
    pub swap: Swap,
    /// How things stood; absent from a supervisor.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// What the arbiter said to a swap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Won or lost.
    pub outcome: Outcome,
    /// What the register holds; null: it is vacant.
    pub register: Option<Register>,
    /// How long it took, ms.
    #[serde(default)]
    pub took_ms: Option<f64>,
}

/// How a swap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The register holds what was asked for.
    Won,
    /// Somebody else was first.
    Lost,
}

impl Answered {
    /// Of the arbiter's answer.
    #[must_use]
    pub fn new(outcome: &CasOutcome, took_ms: Option<f64>) -> Self {
        let (outcome, register) = match outcome {
            CasOutcome::Won(register) => (Outcome::Won, Some(*register)),
            CasOutcome::Lost(held) => (Outcome::Lost, *held),
        };
        Self { outcome, register, took_ms }
    }
}

/// The register was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRead {
    /// What it holds; null: it is vacant.
    pub register: Option<Register>,
}

/// The register names another owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// What it holds.
    pub register: Option<Register>,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// Another copy owns the VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fenced {
    /// The VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    /// In words, from a supervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What the register holds, if this process knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<Register>,
    /// Whether a keeper was told to leave the VM's network, where the VM had been taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keeper_relieved: Option<bool>,
    /// How things stood, from a data path.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// The arbiter is not asked for what the standby wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yielding {
    /// Why the VM does not run.
    pub why: Option<String>,
    /// The generation that would have been expected.
    pub expect: Generation,
}

/// What was won goes to the standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandBack {
    /// What was won.
    pub register: Register,
    /// What is asked for.
    pub new: Register,
    /// The standby's host.
    pub standby: Name,
    /// In words.
    pub why: String,
}

/// The standby's copy is lost: the owner is alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renouncing {
    /// The VM.
    pub vm: Name,
    /// The generation that the register must hold.
    pub expect: Generation,
    /// What it shall hold.
    pub new: Register,
}

/// The register names a copy that this process does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyMissed {
    /// The VM.
    pub vm: Name,
    /// What the register holds.
    pub register: Option<Register>,
    /// In words, and what to do.
    pub why: String,
}

/// The VM's standby has its last commit, and has not said what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingForStandby {
    /// What the register holds.
    pub register: Register,
    /// In words, and what to do.
    pub why: String,
}
