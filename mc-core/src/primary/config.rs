//! What a primary is told at its start, and what an operator may change later.

use std::time::Duration;

/// So long a rehearsal may take. Beside the epochs it may fill the standby's staging, and so keep the next ACK for as long.
pub const REHEARSAL: Duration = Duration::from_secs(15);

/// What does not change while a primary lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// From one pause to the next, unless staging would not hold the checkpoint.
    pub epoch: Duration,
    /// Checkpoints captured and not yet ACKed, at most. At least 1.
    pub window: u64,
    /// While protected, so long may the oldest epoch wait for its ACK; then the standby is as good as silent.
    pub commit_deadline: Duration,
}

/// What to do about a checkpoint that is larger than staging may become (Hines, 2014: throttle; extra memory; neither, so
/// fail now and tell).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase")]
pub enum OnCap {
    /// The VM is held while the checkpoint is sent in pieces.
    #[default]
    Throttle,
    /// Staging may outgrow its cap by so much, and then the VM is held.
    Grow {
        /// Bytes.
        bytes: u64,
    },
    /// The VM is not held: protection is given up, through the arbiter.
    Unprotect,
}
