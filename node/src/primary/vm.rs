//! The VM that a primary runs, as the runner sees it: whoever builds a virtual machine monitor implements this.

use super::session::{Judge, Unlike};
use mc_core::{gate::OutputGate, register::Register, source::CheckpointSource};

/// How a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is there.
    Lives,
    /// Its guest or its operator shut it down: nobody shall run a copy of it.
    ShutDown,
    /// It ended without having been told to: the standby that has its last commit runs it.
    Died,
}

/// A VM that runs on this host.
///
/// Its calls come from the runner's loop and must not wait: what takes long is begun, and its end is told through the source.
///
/// ```
/// use mc_core::register::Register;
/// # use mc_core::source::*;
/// use node::{gate::MessageGate, primary::PrimaryVm};
/// use std::sync::{Arc, atomic::{AtomicBool, Ordering::SeqCst}};
///
/// # #[derive(Debug)]
/// # struct Checkpoints;
/// # impl CheckpointSource for Checkpoints {
/// #     fn begin(&mut self) -> Result<(), SourceError> { Ok(()) }
/// #     fn poll(&mut self, _: &mut dyn CheckpointSink) -> Result<SourceEvent, SourceError> { Ok(SourceEvent::Idle) }
/// #     fn pause(&mut self) -> Result<(), SourceError> { Ok(()) }
/// #     fn resume(&mut self) -> Result<(), SourceError> { Ok(()) }
/// #     fn wait_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> { None }
/// # }
/// /// Its virtual processors look at this flag.
/// struct Vm { runs: Arc<AtomicBool> }
///
/// impl PrimaryVm for Vm {
///     type Source = Checkpoints; // see mc_core::source::CheckpointSource
///     type Gate = MessageGate<Vec<u8>>; // see mc_core::gate::OutputGate
///
///     fn profile(&self) -> Vec<u8> {
///         b"2 processors, 512 MiB".to_vec()
///     }
///     fn source(&mut self) -> anyhow::Result<Checkpoints> {
///         Ok(Checkpoints)
///     }
///     fn leave(&mut self, _: &Register) -> anyhow::Result<()> {
///         Ok(self.runs.store(true, SeqCst))
///     }
///     fn fence(&mut self) -> anyhow::Result<()> {
///         Ok(self.runs.store(false, SeqCst))
///     }
/// }
///
/// let mut vm = Vm { runs: Arc::default() };
/// assert!(vm.judge()(b"2 processors, 512 MiB").is_ok(), "profiles must be equal, unless `judge` knows better");
/// vm.fence()?; // another node runs it
/// # Ok::<(), anyhow::Error>(())
/// ```
pub trait PrimaryVm {
    /// Where its checkpoints come from.
    type Source: CheckpointSource;
    /// What holds its output.
    type Gate: OutputGate;

    /// What the VM is made of: the standby compares. Bytes of any form, up to 1 MiB.
    fn profile(&self) -> Vec<u8>;

    /// Who compares the standby's profile with this VM's: they must be equal, unless this says otherwise.
    fn judge(&self) -> Judge {
        let ours = self.profile();
        Box::new(move |theirs| match theirs == ours {
            true => Ok(()),
            false => Err(Unlike::Differs("its profile is another one".to_owned())),
        })
    }

    /// Whether a copy of this VM that the register names, and this runner did not start, lives on this host: then this one does not run.
    /// Without a way to know, it may.
    ///
    /// A runner asks while it has the VM's place in the state directory, which no other process has then, and which the kernel frees with
    /// a process. So a VM that lives and dies with the process of its runner says `false`, and can be started again after it died. One
    /// that outlives that process, as QEMU does, has to be looked for.
    fn lives(&self, _instance: u64) -> bool {
        true
    }

    /// How it is. Asked in every turn; must not wait.
    fn life(&mut self) -> Life {
        Life::Lives
    }

    /// A source for a session that begins. One that fails, or is dropped, while it keeps the VM stopped must let it run on: its output
    /// is held.
    ///
    /// # Errors
    /// There is no session then; the VM runs on, alone.
    fn source(&mut self) -> anyhow::Result<Self::Source>;

    /// The source has begun: the VM is to send it its checkpoints.
    ///
    /// # Errors
    /// Whoever runs this cannot command the VM any more, and ends.
    fn start(&mut self, _source: &mut Self::Source) -> anyhow::Result<()> {
        Ok(())
    }

    /// The register says `register`, (solo, self): the VM runs, and sends no checkpoints. So it begins, too; a VM may run before.
    ///
    /// # Errors
    /// As for [`PrimaryVm::start`].
    fn leave(&mut self, register: &Register) -> anyhow::Result<()>;

    /// Another node owns the VM: this copy is stopped for good. It may be dead already.
    ///
    /// # Errors
    /// As for [`PrimaryVm::start`].
    fn fence(&mut self) -> anyhow::Result<()>;
}
