//! A machine that a thread of this process runs, step by step. It is stopped between two steps.

use super::{Guest, Machine};
use mc_core::ram::SharedRam;
use node::{inbox::Outbox, primary::Life};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, io, sync::Arc};

/// A machine that runs in steps. What serde writes of it is its state; the rest is its RAM.
///
/// ```
/// use vmm_memory::{MemoryVm, SharedRam, Steps};
///
/// /// Says how often it was run.
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Counter(u64);
///
/// impl Steps for Counter {
///     type Message = u64;
///     fn step(&mut self, _: &mut SharedRam) -> Option<u64> {
///         self.0 += 1;
///         Some(self.0)
///     }
/// }
///
/// let (out, said) = node::inbox::inbox()?; // for a gate: node::gate::messages
/// let mut vm = MemoryVm::stepped(Counter(7), 1 << 20, "counter 1", out)?;
/// assert!(said.take().is_none(), "it is stopped until a runner has won the register");
/// node::primary::PrimaryVm::fence(&mut vm)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
pub trait Steps: Serialize + DeserializeOwned + Send + 'static {
    /// What it sends.
    type Message: Send + 'static;

    /// Runs on a little: whoever stops the machine waits for the end of the step. What it returns is sent. A panic is the machine's
    /// death.
    fn step(&mut self, ram: &mut SharedRam) -> Option<Self::Message>;
}

/// Commands a machine and its thread, which ends when the last clone of this is dropped.
#[derive(Debug)]
pub struct Stepped<S>(Arc<Owner<S>>);

#[derive(Debug)]
struct Owner<S>(Arc<Shared<S>>);

struct Shared<S> {
    cpu: Mutex<Cpu<S>>,
    changed: Condvar,
}

struct Cpu<S> {
    machine: S,
    ram: SharedRam,
    wanted: Wanted,
    /// Its thread is there.
    lives: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Stop,
    Run,
    End,
}

impl<S: Steps> Stepped<S> {
    /// It is stopped, and sends through `out`.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn spawn(machine: S, ram: SharedRam, out: Outbox<S::Message>) -> io::Result<Self> {
        let cpu = Mutex::new(Cpu { machine, ram, wanted: Wanted::Stop, lives: true });
        let shared = Arc::new(Shared { cpu, changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("vm".into()).spawn(move || {
            let died = Died(&of_thread);
            run(died.0, &out);
        })?;
        Ok(Self(Arc::new(Owner(shared))))
    }
}

impl<S> Stepped<S> {
    /// When this returns, no step is under way that began before.
    fn want(&self, wanted: Wanted) -> io::Result<MutexGuard<'_, Cpu<S>>> {
        let shared = &self.0.0;
        let mut cpu = shared.cpu.lock();
        if !cpu.lives {
            return Err(io::Error::other("the machine's thread has panicked"));
        }
        cpu.wanted = wanted;
        shared.changed.notify_one();
        Ok(cpu)
    }
}

fn run<S: Steps>(shared: &Shared<S>, out: &Outbox<S::Message>) {
    let mut locked = shared.cpu.lock();
    loop {
        let cpu = &mut *locked;
        match cpu.wanted {
            Wanted::Stop => shared.changed.wait(&mut locked),
            Wanted::End => return,
            Wanted::Run => {
                // In the outbox before the machine can be stopped: the gate's barrier finds it there.
                if let Some(message) = cpu.machine.step(&mut cpu.ram) {
                    out.put(message);
                }
                MutexGuard::bump(&mut locked);
            }
        }
    }
}

/// A step that panics is the machine's death.
struct Died<'a, S>(&'a Shared<S>);

impl<S> Drop for Died<'_, S> {
    fn drop(&mut self) {
        self.0.cpu.lock().lives = false;
    }
}

impl<S> Drop for Owner<S> {
    fn drop(&mut self) {
        self.0.cpu.lock().wanted = Wanted::End;
        self.0.changed.notify_one();
    }
}

impl<S> Clone for Stepped<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl<S: Steps> Guest for Stepped<S> {
    fn pause(&mut self) -> io::Result<()> {
        self.want(Wanted::Stop).map(drop)
    }

    fn resume(&mut self) -> io::Result<()> {
        self.want(Wanted::Run).map(drop)
    }

    fn device(&mut self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.0.0.cpu.lock().machine)?)
    }
}

impl<S: Steps> Machine for Stepped<S> {
    fn restore(&mut self, device: &[u8]) -> io::Result<()> {
        self.want(Wanted::Stop)?.machine = serde_json::from_slice(device)?;
        Ok(())
    }

    fn life(&mut self) -> Life {
        if self.0.0.cpu.lock().lives { Life::Lives } else { Life::Died }
    }
}
