//! Rules left out on purpose: each switches off one that the machines keep, and a test must notice. Only the feature `testing` can
//! do so; without it nobody can name one, and a machine's answer to whether it has one is a constant.

/// A seeded bug: what the model checker must find when an invariant is not kept.
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public for tests"))]
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

/// The bug that a machine has, if a test gave it one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seeded(#[cfg(feature = "testing")] Option<Sabotage>);

impl Seeded {
    /// With this one.
    #[cfg(feature = "testing")]
    pub(crate) fn new(sabotage: Option<Sabotage>) -> Self {
        Self(sabotage)
    }

    /// Whether it is this one.
    pub(crate) fn is(self, sabotage: Sabotage) -> bool {
        #[cfg(feature = "testing")]
        return self.0 == Some(sabotage);
        #[cfg(not(feature = "testing"))]
        {
            let _ = sabotage;
            false
        }
    }
}
