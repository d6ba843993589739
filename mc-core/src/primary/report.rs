//! What goes into the primary and what comes out of it.

use crate::{
    id::{Epoch, Generation},
    register::{CasOutcome, Owner, Register, Swap},
    wire::control::{GoodbyeReason, NackReason},
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The operator wants protection, and a session with this standby is up.
    Protect {
        /// Who will stand by.
        standby: Owner,
    },
    /// The source can take a checkpoint; the VM runs.
    SourceReady,
    /// The whole checkpoint is in staging; the VM is stopped.
    Captured,
    /// Whether staging has room for another checkpoint.
    Staging {
        /// It has.
        room: bool,
    },
    /// What the checkpoint captured last takes of staging.
    Measured {
        /// Bytes of slabs.
        bytes: u64,
        /// Bytes that staging may hold.
        cap: u64,
    },
    /// Staging cannot take the rest of the checkpoint: the VM stays stopped until some of it is sent.
    Full,
    /// The standby has an epoch.
    Ack {
        /// Of this generation.
        generation: Generation,
        /// This one.
        epoch: Epoch,
    },
    /// The standby refused an epoch.
    Nack {
        /// Of this generation.
        generation: Generation,
        /// Why.
        reason: NackReason,
    },
    /// The connection broke.
    LinkDown,
    /// The standby missed K beats.
    Suspect,
    /// This process was not running for longer than the detection time: the standby may have taken over meanwhile.
    Stalled,
    /// Beats of both sides were heard, and echoed, for as long as silence is borne.
    BeatsProven,
    /// The VM's make has changed: the standby has to show that it could load it.
    OutputsChanged,
    /// The VM as it is now cannot be protected, but the arbiter, through which protection ends, may not be there: until it is, epochs go
    /// on, and are not called protected, here or there. [`Event::OutputsChanged`] takes it back.
    Unfit,
    /// The standby has shown it.
    Rehearsed {
        /// Of this generation.
        generation: Generation,
        /// With this epoch.
        epoch: Epoch,
    },
    /// The arbiter answered a swap.
    Cas(CasOutcome),
    /// The arbiter was read, and says what it may say ([`crate::seen`]).
    RegisterRead(Option<Register>),
    /// The operator ends protection, or the guest shuts down: end it through the arbiter.
    Unprotect(GoodbyeReason),
    /// The VM died under us (not: shut down). The standby shall have it.
    SourceLost,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Start the full synchronisation, as epoch 1 of this generation.
    BeginSync {
        /// What every slab and record carries.
        generation: Generation,
    },
    /// Stop the VM and capture this epoch.
    Pause {
        /// The epoch that the checkpoint will be.
        epoch: Epoch,
    },
    /// From now on hold output.
    Hold,
    /// Close the batch of output that this epoch covers. The VM is stopped. Only while output is held.
    Barrier(Epoch),
    /// Let the VM run.
    Resume,
    /// Send what is staged, then the commit record.
    Commit {
        /// Of this epoch.
        epoch: Epoch,
        /// Output was held when it was captured.
        held: bool,
    },
    /// Let the output of every epoch up to this one go.
    Release(Epoch),
    /// For the log: the checkpoint outgrew staging, so protection is being given up.
    GaveUp,
    /// Ask the arbiter.
    Cas(Swap),
    /// Have the standby rehearse an epoch, this one or a later.
    AskRehearsal {
        /// The first that will do; [`Epoch::NEVER`]: none will.
        epoch: Epoch,
    },
    /// For the log: an ACK is overdue, so the standby is suspected.
    Late,
    /// For the log: the VM died while the arbiter was asked; what is won goes to the standby.
    Dead,
    /// End the session with the standby; with a farewell if it still listens, so that it does not suspect us.
    CloseLink(Option<GoodbyeReason>),
    /// The register says (solo, self): let all output go, leave the source, see that the VM runs.
    Solo,
    /// Another node owns the VM: drop output, stop this copy.
    Fence,
    /// The VM is gone for good, and so is the reason for this process.
    End,
}

/// The role, for status and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs unprotected; output flows.
    Solo,
    /// The full synchronisation is on its way.
    Syncing,
    /// The standby has epoch 1; the register does not say so yet, as far as we know.
    Registering,
    /// Output waits for ACKs.
    Protected,
    /// Wants to go on alone. Releases nothing.
    Claiming,
    /// Has no VM any more, and gives the standby what it had asked for.
    HandingBack,
    /// Lost the arbitration, for good.
    Fenced,
    /// The VM is gone for good.
    Ended,
}
