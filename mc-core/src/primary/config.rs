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
    /// Removes one invariant, to see that its test notices. `None` but in tests.
    pub sabotage: Option<Sabotage>,
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

/// A seeded bug: what the model checker must find when an invariant is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sabotage {
    /// I1: releases an epoch when it was sent, not when it was ACKed.
    ReleaseUnacked,
    /// I2: the standby ACKs an epoch without having all its slabs.
    AckIncomplete,
    /// I3: the standby asks for takeover with the link still up, and ACKs on, until its VM runs.
    AckWhileClaiming,
    /// I4: releases everything before the swap to solo is won.
    ReleaseBeforeSolo,
    /// I5: registers protection before the full synchronisation was ACKed.
    RegisterEarly,
    /// I5, seen from the standby: asks for takeover without having read that the register names it.
    SwapUnnamed,
    /// I1, seen from the primary: marks epochs as held whose output was let out.
    MarkUnheld,
    /// I1, seen from the standby: takes an epoch for enough that was captured while output flowed.
    ClaimUnheld,
    /// Gives the VM up when the arbiter holds less than it should.
    BelieveLess,
    /// Hands the VM back although its gate was open.
    HandBackOpen,
    /// The standby renounces a copy that it has.
    RenounceHeld,
    /// The standby renounces without having looked whose copy the register names.
    RenounceUnread,
    /// Takes every copy of its host for itself.
    CompareHosts,
    /// Takes any rehearsal for one of the VM as it is now.
    ProvenByAny,
    /// Takes an operator's word for a copy that lacks what the VM said as if it had all.
    DecideUnheld,
}
