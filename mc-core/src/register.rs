//! The register: one compare-and-swap cell per VM at a third party, asked on role changes only.

use crate::id::{Generation, Name};

/// One run of one VM on one host: the owner in the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// The host.
    pub node: Name,
    /// Tells one QEMU process from the next on that host: a restarted QEMU has lost what its predecessor showed the world.
    pub instance: u64,
}

/// How the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The owner alone; its output needs nobody's ACK.
    Solo,
    /// The owner runs it, and this standby holds every epoch whose output was released (I5).
    Protected {
        /// The node that may take over.
        standby: Name,
    },
}

/// The register's value. A VM that was never protected has none, which counts as generation 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Register {
    /// Rises by one with every won compare-and-swap.
    pub generation: Generation,
    /// Who runs the VM.
    pub owner: Owner,
    /// Alone or protected.
    pub mode: Mode,
}

/// The generation of a register that may be vacant.
#[must_use]
pub fn generation_of(register: Option<&Register>) -> Generation {
    register.map_or(Generation(0), |r| r.generation)
}

/// What the arbiter said to a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CasOutcome {
    /// The register now holds what was asked for (also when an earlier try had won and its reply was lost).
    Won(Register),
    /// Somebody else was first; this is what the register holds.
    Lost(Option<Register>),
}
