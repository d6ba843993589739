//! What a VM is made of: machine, CPUs, devices, RAM blocks.
//!
//! QEMU loads the state of a VM with another CPU, another number of vCPUs or another device without a word, and the guest
//! breaks later. So both sides ask their QEMU, and compare before protection starts.

mod compare;
mod qtree;
mod query;

pub use qtree::Device;
pub use query::ProfileError;

use crate::blocks::{self, BlocksError, RamBlock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of a profile's JSON at most (the handshake's limit).
pub const MAX_JSON: usize = mc_core::wire::session::MAX_PROFILE;

/// What a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    /// As `7.2.22`.
    pub qemu_version: String,
    /// The versioned machine type, as `pc-i440fx-7.2`.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Every vCPU.
    pub cpus: Vec<Cpu>,
    /// Every device, sorted.
    pub devices: Vec<Device>,
    /// Every RAM block; the index is its `BlockId`.
    pub blocks: Vec<RamBlock>,
    /// Of the primary: outputs that nothing holds, and that it protects the VM but for. For the standby's status; not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unheld: Vec<String>,
}

/// What of a VM may change while it runs: a part of its profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Make {
    /// As [`Profile::devices`].
    pub devices: Vec<Device>,
    /// As [`Profile::blocks`].
    pub blocks: Vec<RamBlock>,
}

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cpu {
    /// QEMU's type, as `qemu64-x86_64-cpu`.
    pub model: String,
    /// Where it is, as `socket-id 0, core-id 1, thread-id 0`.
    pub place: String,
    /// What the guest sees of it: vendor, family, CPUID feature words (those that are not zero).
    pub features: BTreeMap<String, String>,
}

impl Profile {
    /// Its JSON, for the other side.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers only")
    }

    /// Reads and checks what the other side sent.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ProfileJsonError> {
        if bytes.len() > MAX_JSON {
            return Err(ProfileJsonError::TooLong(bytes.len()));
        }
        let profile: Self = serde_json::from_slice(bytes).map_err(|error| ProfileJsonError::Json(error.to_string()))?;
        blocks::check(&profile.blocks)?;
        Ok(profile)
    }

    /// The VM is of this make now. False if it was before.
    pub fn remake(&mut self, make: Make) -> bool {
        let before = Make {
            devices: std::mem::replace(&mut self.devices, make.devices),
            blocks: std::mem::replace(&mut self.blocks, make.blocks),
        };
        (&before.devices, &before.blocks) != (&self.devices, &self.blocks)
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.cpus.len()
    }
}

/// A profile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileJsonError {
    /// Too long.
    #[error("a VM profile of {0} bytes, expected at most {MAX_JSON}")]
    TooLong(usize),
    /// Not the JSON that it should be.
    #[error("a VM profile that cannot be read: {0}")]
    Json(String),
    /// RAM blocks that cannot be.
    #[error("a VM profile with {0}")]
    Blocks(#[from] BlocksError),
}
