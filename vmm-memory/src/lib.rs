//! A VM whose RAM is one memfd, and whose other state is bytes: for a virtual machine monitor that this is linked into.
//!
//! It implements [`Machine`]: how its VM is stopped, let go on, and what it has besides RAM. [`MemoryVm`] is then both sides' VM: what
//! a [`node::primary::Runner`] protects, and what a [`node::standby::Runner`] continues.

#![forbid(unsafe_code)]

pub use capture::source::Guest;

use anyhow::Result;
use capture::source::MemorySource;
use mc_core::{
    id::{Epoch, Generation},
    image::Image,
    ram::SharedRam,
    register::Register,
};
use node::{
    clock::Clock,
    gate::MessageGate,
    primary::PrimaryVm,
    standby::{Ready, StandbyVm},
};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    rand::{GetRandomFlags, getrandom},
};
use std::{fs::File, io, marker::PhantomData, sync::Arc};

/// A VM that can be continued elsewhere.
pub trait Machine: Guest + Clone {
    /// Takes over this state, which [`Guest::device`] gave elsewhere. RAM is as it was then; the VM is stopped.
    ///
    /// # Errors
    /// It makes no sense to this machine.
    fn restore(&mut self, device: &[u8]) -> io::Result<()>;
}

/// The RAM of a VM that sends messages of type `T`, and its machine.
#[derive(Debug)]
pub struct MemoryVm<M, T> {
    machine: M,
    ram: Arc<File>,
    profile: Vec<u8>,
    messages: PhantomData<fn() -> T>,
}

/// RAM of so many bytes, all of them zero: what a machine maps, and [`MemoryVm::new`] takes.
///
/// # Errors
/// No descriptor, no memory.
pub fn memory(bytes: u64) -> io::Result<Arc<File>> {
    let file = File::from(memfd_create("vm-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(Arc::new(file))
}

impl<M: Machine, T> MemoryVm<M, T> {
    /// `profile`: what both sides must have in common, such as the machine's version.
    #[must_use]
    pub fn new(machine: M, ram: Arc<File>, profile: impl Into<Vec<u8>>) -> Self {
        Self { machine, ram, profile: profile.into(), messages: PhantomData }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &M {
        &self.machine
    }

    fn map(&self) -> Result<SharedRam> {
        Ok(SharedRam::map(&self.ram, usize::try_from(self.ram.metadata()?.len())?)?)
    }
}

impl<M: Machine, T> PrimaryVm for MemoryVm<M, T> {
    type Source = MemorySource<M, Clock>;
    type Gate = MessageGate<T>;

    fn profile(&self) -> Vec<u8> {
        self.profile.clone()
    }

    fn source(&mut self) -> Result<Self::Source> {
        Ok(MemorySource::over(self.machine.clone(), Clock, &self.ram)?)
    }

    fn leave(&mut self, _register: &Register) -> Result<()> {
        Ok(self.machine.resume()?)
    }

    fn fence(&mut self) -> Result<()> {
        Ok(self.machine.pause()?)
    }
}

impl<M: Machine, T> StandbyVm for MemoryVm<M, T> {
    fn prepare(&mut self, profile: &[u8]) -> Result<Ready> {
        anyhow::ensure!(profile == self.profile, "the primary's VM has another profile");
        let mut instance = [0; 8];
        getrandom(&mut instance, GetRandomFlags::empty())?;
        let image = Image::new(vec![self.map()?]);
        Ok(Ready { profile: self.profile.clone(), image, instance: u64::from_le_bytes(instance) })
    }

    fn take_over(&mut self, image: &Image, _generation: Generation, _epoch: Epoch) -> Result<()> {
        self.machine.restore(image.device())?;
        Ok(self.machine.resume()?)
    }

    fn discard(&mut self) {}
}
