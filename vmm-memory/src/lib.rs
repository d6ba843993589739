//! A VM whose RAM is one file in memory, for a virtual machine monitor that this is linked into.
//!
//! | you have | you implement | |
//! |---|---|---|
//! | a VM that runs in steps on a thread | [`Steps`] | [`MemoryVm::stepped`] |
//! | threads of your own, such as KVM's | [`Cpus`]: how they are stopped and let go on | [`MemoryVm::new`] |
//!
//! A [`MemoryVm`] is both sides' VM: what a [`node::primary::Runner`] protects, and what a [`node::standby::Runner`] continues and gives
//! back, for a primary's runner to protect it again. `examples/embed.rs` is a whole program.

#![forbid(unsafe_code)]

mod stepped;

pub use capture::source::Guest;
pub use mc_core::ram::SharedRam;
pub use stepped::{Stepped, Steps};

use anyhow::Result;
use capture::source::MemorySource;
use mc_core::{
    id::{Epoch, Generation, PAGE_SIZE},
    image::Image,
    register::Register,
};
use node::{
    clock::Clock,
    gate::MessageGate,
    inbox::Outbox,
    primary::{Life, PrimaryVm},
    standby::{Ready, StandbyVm},
};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    rand::{GetRandomFlags, getrandom},
};
use std::{
    fs::File,
    io,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What runs a VM, here or, later, elsewhere: its processors and its devices. Clones command the same ones.
///
/// ```
/// use std::{io, sync::{Arc, Mutex}};
/// use vmm_memory::{Cpus, Guest};
///
/// #[derive(Clone, Default)]
/// struct Vcpus(Arc<Mutex<Vec<u8>>>); // what KVM_GET_REGS and its like said
///
/// impl Guest for Vcpus {
///     fn pause(&mut self) -> io::Result<()> {
///         Ok(()) // kick them out of KVM_RUN, and wait until all are out
///     }
///     fn resume(&mut self) -> io::Result<()> {
///         Ok(()) // back into KVM_RUN
///     }
///     fn device(&mut self) -> io::Result<Vec<u8>> {
///         Ok(self.0.lock().unwrap().clone())
///     }
/// }
///
/// impl Cpus for Vcpus {
///     fn restore(&mut self, device: &[u8]) -> io::Result<()> {
///         *self.0.lock().unwrap() = device.to_vec(); // KVM_SET_REGS
///         Ok(())
///     }
/// }
///
/// let (mut here, mut there) = (Vcpus::default(), Vcpus::default());
/// here.0.lock().unwrap().extend(b"rip");
/// there.restore(&here.device()?)?;
/// assert_eq!(there.device()?, b"rip");
/// # Ok::<(), io::Error>(())
/// ```
pub trait Cpus: Guest + Clone {
    /// Takes over this state, which [`Guest::device`] gave elsewhere. RAM is as it was then; the VM is stopped. Comes again with the
    /// same state, or a later one, after an attempt that failed and after a rehearsal.
    ///
    /// # Errors
    /// It makes no sense here.
    fn restore(&mut self, device: &[u8]) -> io::Result<()>;

    /// Whether this state could be restored here: asked by a standby before its copy protects the VM. The VM is stopped, and stays so.
    ///
    /// # Errors
    /// In words for the primary: it could not.
    fn rehearse(&mut self, device: &[u8]) -> io::Result<()> {
        self.restore(device)
    }

    /// How it is. Asked in every turn; must not wait.
    fn life(&mut self) -> Life {
        Life::Lives
    }
}

/// The RAM of a VM that sends messages of type `T`, and what runs it.
#[derive(Debug)]
pub struct MemoryVm<C, T> {
    cpus: Commanded<C>,
    ram: Arc<File>,
    profile: Vec<u8>,
    messages: PhantomData<fn() -> T>,
}

/// RAM of so many bytes, all of them zero: what its processors map, and [`MemoryVm::new`] takes.
///
/// # Errors
/// Not whole pages; no descriptor, no memory.
pub fn memory(bytes: u64) -> io::Result<Arc<File>> {
    whole_pages(bytes)?;
    let file = File::from(memfd_create("vm-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(Arc::new(file))
}

impl<S: Steps> MemoryVm<Stepped<S>, S::Message> {
    /// A VM with so many bytes of RAM. A runner lets it run, once the VM is this node's. What it sends goes into `out`, the other end of a [`node::gate::messages`].
    ///
    /// # Errors
    /// Not whole pages; no descriptor, no memory, no thread.
    pub fn stepped(vm: S, bytes: u64, profile: &str, out: Outbox<S::Message>) -> Result<Self> {
        let ram = memory(bytes)?;
        let stepped = Stepped::spawn(vm, map(&ram)?, out)?;
        Self::new(stepped, ram, profile)
    }
}

impl<C: Cpus, T> MemoryVm<C, T> {
    /// Over processors that are stopped: a runner lets it run, once the VM is this node's. `profile`: what both sides must have in common besides the size of the RAM, such as the VMM's version.
    ///
    /// # Errors
    /// The file cannot be asked for its size, or is not made of whole pages.
    pub fn new(cpus: C, ram: Arc<File>, profile: &str) -> Result<Self> {
        let bytes = ram.metadata()?.len();
        whole_pages(bytes)?;
        let profile = format!("{profile}, {bytes} bytes of RAM").into_bytes();
        let cpus = Commanded { cpus, fenced: Arc::default() };
        Ok(Self { cpus, ram, profile, messages: PhantomData })
    }
}

/// Pages are what is copied, so a rest would never be.
fn whole_pages(bytes: u64) -> io::Result<()> {
    if bytes > 0 && bytes.is_multiple_of(PAGE_SIZE as u64) {
        return Ok(());
    }
    let why = format!("{bytes} bytes of RAM are not whole pages: take a multiple of {PAGE_SIZE}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

impl<C: Cpus, T> MemoryVm<C, T> {
    /// A VM that is dead obeys nobody, and whoever asks how it is hears so.
    fn unless_it_died(&mut self, done: io::Result<()>) -> Result<()> {
        match done {
            Err(_) if self.cpus.cpus.life() != Life::Lives => Ok(()),
            done => Ok(done?),
        }
    }
}

fn map(ram: &File) -> Result<SharedRam> {
    Ok(SharedRam::map(ram, usize::try_from(ram.metadata()?.len())?)?)
}

/// Processors that do not run again once another node owns their VM.
#[derive(Clone, Debug)]
pub struct Commanded<C> {
    cpus: C,
    fenced: Arc<AtomicBool>,
}

impl<C: Cpus> Guest for Commanded<C> {
    fn pause(&mut self) -> io::Result<()> {
        self.cpus.pause()
    }

    fn resume(&mut self) -> io::Result<()> {
        if self.fenced.load(Ordering::Acquire) { Ok(()) } else { self.cpus.resume() }
    }

    fn device(&mut self) -> io::Result<Vec<u8>> {
        self.cpus.device()
    }
}

impl<C: Cpus, T> PrimaryVm for MemoryVm<C, T> {
    type Source = MemorySource<Commanded<C>, Clock>;
    type Gate = MessageGate<T>;

    fn profile(&self) -> Vec<u8> {
        self.profile.clone()
    }

    /// It lives in its process, and this process alone has the VM's place: whatever the register names is no more, or is this very VM.
    fn lives(&self, _instance: u64) -> bool {
        false
    }

    fn life(&mut self) -> Life {
        self.cpus.cpus.life()
    }

    fn source(&mut self) -> Result<Self::Source> {
        Ok(MemorySource::over(self.cpus.clone(), Clock, &self.ram)?)
    }

    fn leave(&mut self, _register: &Register) -> Result<()> {
        let done = self.cpus.resume();
        self.unless_it_died(done)
    }

    fn fence(&mut self) -> Result<()> {
        self.cpus.fenced.store(true, Ordering::Release);
        let done = self.cpus.pause();
        self.unless_it_died(done)
    }
}

impl<C: Cpus, T> StandbyVm for MemoryVm<C, T> {
    fn prepare(&mut self, profile: &[u8]) -> Result<Ready> {
        if profile != self.profile {
            let [theirs, ours] = [profile, &self.profile].map(String::from_utf8_lossy);
            anyhow::bail!("the primary's VM is another one: {theirs}; here: {ours}");
        }
        let mut instance = [0; 8];
        getrandom(&mut instance, GetRandomFlags::empty())?;
        let instance = u64::from_le_bytes(instance);
        Ok(Ready { profile: self.profile.clone(), image: Image::new(vec![map(&self.ram)?]), instance })
    }

    fn rehearse(&mut self, image: &Image) -> Result<()> {
        Ok(self.cpus.cpus.rehearse(image.device())?)
    }

    fn take_over(&mut self, image: &Image, _generation: Generation, _epoch: Epoch) -> Result<()> {
        self.cpus.cpus.restore(image.device())?;
        Ok(self.cpus.resume()?)
    }

    fn discard(&mut self) {}
}
