//! What goes into the standby and what comes out of it.

use crate::{
    id::{Epoch, Generation},
    register::{CasOutcome, Register, Swap},
    wire::control::Body,
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A primary's session is up, and its profile matches.
    Session {
        /// The generation that will be replicated.
        generation: Generation,
        /// What this standby drew for the session, and told the primary: the register has to name it.
        instance: u64,
    },
    /// A slab arrived, and its records fit the image.
    Slab {
        /// From its header.
        generation: Generation,
        /// From its header.
        epoch: Epoch,
        /// From its header.
        index: u32,
    },
    /// A slab arrived whose records do not fit the image.
    BadSlab,
    /// The commit record of an epoch arrived.
    Commit {
        /// Of this generation.
        generation: Generation,
        /// This one.
        epoch: Epoch,
        /// It has so many slabs.
        slabs: u32,
        /// Output was held when it was captured.
        held: bool,
    },
    /// The primary asks for a rehearsal of this epoch, or a later one.
    RehearsalAsked {
        /// Of this generation.
        generation: Generation,
        /// The first that will do.
        epoch: Epoch,
    },
    /// A throw-away copy of the VM has loaded the image that [`Action::Rehearse`] was about; or could not.
    Rehearsed {
        /// It could.
        passed: bool,
    },
    /// The epoch in staging is incomplete, nothing is free for its next slab, and it cannot be spilled.
    StagingFull,
    /// Spilling or applying failed.
    StorageFailed,
    /// The VM could not be run here: the QEMU that waits for it died, and does not start again.
    Unable,
    /// The connection broke.
    LinkDown,
    /// The primary missed K beats, or an operator wants a takeover.
    Suspect,
    /// The primary ended protection, and said so.
    Goodbye,
    /// The primary's access is ended, and everything that had arrived was handled.
    Revoked,
    /// The arbiter was read, and says what it may say ([`crate::seen`]).
    RegisterRead(Option<Register>),
    /// The arbiter was read, and cannot be believed.
    ArbiterFault,
    /// An operator has made sure that the VM runs nowhere else, and wants it here. While the register is being read: the arbiter
    /// cannot be waited for.
    OperatorTakesOver,
    /// The room of a copy that was lost is needed.
    MakeRoom,
    /// The arbiter answered a swap.
    Cas(CasOutcome),
    /// The VM runs here.
    Running,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Keep the slab just reported until its epoch is committed.
    Stage,
    /// Put the slab just reported into the image, and free it.
    ApplyNow,
    /// Free the slab just reported: it belongs to no epoch that we want.
    Drop,
    /// Tell the primary (an ACK, or a NACK).
    Send {
        /// The generation spoken of.
        generation: Generation,
        /// The epoch spoken of.
        epoch: Epoch,
        /// [`Body::Ack`] (the driver fills in its free slabs) or [`Body::Nack`].
        body: Body,
    },
    /// The epoch is committed: put its staged slabs into the image, and its device state beside it.
    Apply(Epoch),
    /// Have a throw-away copy of the VM load the image as it is at this epoch; apply nothing until [`Event::Rehearsed`].
    Rehearse(Epoch),
    /// That is not needed any more: apply what was committed meanwhile.
    EndRehearsal,
    /// Free the staged slabs of an epoch that will never be complete.
    DiscardStaged,
    /// End the primary's access to our memory, handle what had arrived, then say [`Event::Revoked`] (I3).
    Revoke,
    /// Ask the arbiter what the register holds.
    ReadRegister,
    /// Ask the arbiter for the VM.
    Cas(Swap),
    /// The register names a copy that this node does not have any more: tell the arbiter that the owner is alone. Answer with
    /// [`Event::Cas`].
    Renounce(Swap),
    /// The VM is ours: run it from this epoch.
    TakeOver {
        /// The generation that the register now has.
        generation: Generation,
        /// The committed epoch that the image holds.
        epoch: Epoch,
    },
    /// The image is void: forget it, close the session, wait for another.
    Discard,
    /// Another copy owns the VM since: end the takeover, and whatever it has started.
    Abandon,
}

/// The role, for status and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Waits for a primary.
    Idle,
    /// Receives the full synchronisation.
    Syncing,
    /// Has it; a throw-away copy of the VM is loading it.
    Rehearsing,
    /// Holds the newest committed epoch.
    Protecting,
    /// Stopped ACKing; ends the primary's access.
    Revoking,
    /// Asks the arbiter.
    Claiming,
    /// Another node owns the VM. The copy is kept while there is room.
    Lost,
    /// The arbiter, or the primary's end, left it open whose the VM is. The copy is kept; an operator decides.
    Disputed,
    /// Won; the VM is being started.
    TakingOver,
    /// The VM runs here.
    Active,
}
