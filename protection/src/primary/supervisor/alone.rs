//! Tells whether a data path that died may have asked the arbiter for something. One that has not leaves the register as it
//! was, (solo, self), and the next one begins at once: a VM that nobody protects must not lose its network for as long as the arbiter is away.
//!
//! A data path asks for "protected" only when a standby has the whole VM, and for that QEMU has to be told to send it: by this
//! supervisor, which so knows of it before anything can be asked for. What it asks for afterwards is over when it says that it is alone
//! again. (An operator may have given the VM to another node meanwhile. The next data path reads that within a second, as the dead
//! one would have.)

use super::super::channel::ToSupervisor;
use mc_core::register::Register;

/// State of the check: what the data path has said and asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Alone {
    /// What the register holds, as long as nothing can have been asked for since.
    register: Option<Register>,
    /// QEMU was told to send its VM.
    began: bool,
}

impl Alone {
    /// A data path begins with this.
    pub(super) fn begins(&mut self, register: Register) {
        *self = Self { register: Some(register), began: false };
    }

    /// Takes a message of the data path into account.
    pub(super) fn hear(&mut self, message: &ToSupervisor) {
        match message {
            ToSupervisor::StartSource => *self = Self { register: None, began: true },
            ToSupervisor::Alone { register } => self.register = Some(*register),
            _ => {}
        }
    }

    /// Whether QEMU may have a checkpoint under way.
    pub(super) fn has_begun(&self) -> bool {
        self.began
    }

    /// It died. What the next one begins with, if nobody has to be asked.
    pub(super) fn register(&self) -> Option<Register> {
        self.register
    }
}
