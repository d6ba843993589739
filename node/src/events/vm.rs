//! The VM, its QEMU, its image.

use super::{BeatsWish, Standing};
use mc_core::{
    id::{Epoch, Generation, Name},
    register::Register,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A primary has the VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The VM.
    pub vm: Name,
    /// QEMU's machine type.
    pub machine: String,
    /// What the register holds.
    pub generation: Generation,
    /// The program's.
    pub version: String,
    /// Where the standby is looked for.
    pub to: String,
    /// As configured.
    pub arbiter: String,
    /// Between two checkpoints, ms.
    pub epoch_ms: f64,
    /// How it wants its beats.
    pub beats: BeatsWish,
}

/// A VM that was taken over earlier was found running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reattached {
    /// The VM.
    pub vm: Name,
    /// Its QEMU's process.
    pub qemu: u32,
    /// The process that has its network, if there is one.
    pub keeper: Option<u32>,
}

/// The standby took the VM over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// What the register holds.
    pub generation: Generation,
    /// The epoch that it runs from.
    pub epoch: Epoch,
    /// What it took.
    pub since_suspicion: Takeover,
    /// QEMU's part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuTimes>,
    /// Where QEMU takes QMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<PathBuf>,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// What a takeover took, µs since the suspicion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Takeover {
    /// From the last beat to the suspicion.
    pub silence_us: u64,
    /// The primary cannot reach this side's memory any more.
    pub revoked_us: u64,
    /// The arbiter said won.
    pub won_us: u64,
    /// The VM runs.
    pub running_us: u64,
}

/// QEMU's part of a takeover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QemuTimes {
    /// Until it had been sent the device state, ms.
    pub sent_ms: f64,
    /// Until its VM ran, ms.
    pub resumed_ms: f64,
}

/// An attempt to take the VM over failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakeoverFailed {
    /// In words.
    pub why: String,
    /// Attempts so far.
    pub times: u32,
    /// When it is tried again, ms from now; null: not by itself.
    #[serde(default)]
    pub again_in_ms: Option<f64>,
    /// What to do.
    #[serde(default)]
    pub remedy: String,
}

/// The standby forgot its copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Discarded {
    /// The VM.
    pub vm: Name,
    /// How things stood.
    #[serde(flatten)]
    pub standing: Option<Standing>,
}

/// The takeover was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// The VM.
    pub vm: Name,
    /// What became of the image, in words.
    pub kept: String,
}

/// Whether the VM runs has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChanged {
    /// How it is now.
    pub health: VmHealth,
}

/// How a VM is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "health", content = "why", rename_all = "kebab-case")]
pub enum VmHealth {
    /// It runs, or nothing proves that it does not.
    #[default]
    Runs,
    /// It does not run, and somebody wants that.
    Paused(String),
    /// It provably does not run, and nobody asked for that.
    Halted(String),
}

/// The VM's QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGone {
    /// The VM was shut down, or QEMU told to end.
    pub orderly: bool,
}

/// The checkpoint stream from QEMU broke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBroken {
    /// In words.
    pub why: String,
    /// Whether this QEMU cannot make checkpoints at all.
    #[serde(default)]
    pub unsupported: bool,
}

/// The data path died.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPathDied {
    /// The VM.
    pub vm: Name,
    /// How it ended.
    pub how: String,
    /// What the register held when it began.
    pub began_with: Register,
    /// Deaths in a row.
    pub in_a_row: u32,
}

/// The waiting QEMU was started with another command line than the configured one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuCommandChanged {
    /// What is different.
    pub notes: Vec<String>,
}

/// The standby has its image loaded, for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsing {
    /// As of this epoch.
    pub epoch: Epoch,
}

/// That worked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// How long it took, ms.
    pub took_ms: f64,
    /// Memory that the throw-away QEMU needed of its own, bytes.
    pub private_bytes: u64,
}

/// The image outlives this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageKept {
    /// Its RAM.
    pub ram: PathBuf,
    /// Of this generation.
    pub generation: Generation,
    /// Of this epoch.
    pub epoch: Epoch,
}

/// An image that was kept was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFound {
    /// Its RAM.
    pub path: PathBuf,
    /// The session that it is of, in hexadecimal digits.
    pub incarnation: String,
}

/// A dead standby's image was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftoverRemoved {
    /// Which file.
    pub path: PathBuf,
    /// How much that freed, bytes.
    pub bytes: u64,
}

/// The image was written out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The VM's state, in QEMU's format.
    pub stream: PathBuf,
    /// How to run it.
    pub command: PathBuf,
    /// How large the state is, bytes.
    pub bytes: u64,
}
