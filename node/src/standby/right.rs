//! What a standby's runner leaves to the primary's runner of the same process.

use crate::arbiter::ArbiterClient;
use mc_core::{id::Name, register::Register};

/// A VM that was taken over.
#[derive(Debug)]
pub struct TakenOver<V> {
    /// It runs here. What it says waits for its gate.
    pub vm: V,
    /// For [`crate::primary::Runner::after_takeover`].
    pub right: Right,
}

/// That this process has won a VM's register, for the copy that it runs since: whoever holds it needs no second swap before the VM's
/// output may leave.
///
/// Only a [`super::Runner`] that has taken the VM over makes one, of the swap that it won. It is used up by the primary that goes on
/// from it, and dies with its process: a process that is started anew asks the arbiter.
#[derive(Debug)]
pub struct Right {
    pub(crate) vm: Name,
    /// (solo, this node, the copy that was taken over).
    pub(crate) register: Register,
    /// The client that has heard so.
    pub(crate) arbiter: ArbiterClient,
}
