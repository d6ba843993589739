//! A VM that a thread of this process runs, step by step. It is stopped between two steps.

use super::{Cpus, Guest};
use mc_core::ram::SharedRam;
use node::{inbox::Outbox, primary::Life};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt, io, sync::Arc};

/// A VM that runs in steps. What serde writes of it is its state; the rest is its RAM.
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

    /// Runs on a little: whoever stops the VM waits for the end of the step. What it returns is sent. A panic is the VM's death.
    fn step(&mut self, ram: &mut SharedRam) -> Option<Self::Message>;
}

/// Commands a VM and its thread, which ends when the last clone of this is dropped.
#[derive(Debug)]
pub struct Stepped<S>(Arc<Owner<S>>);

#[derive(Debug)]
struct Owner<S>(Arc<Shared<S>>);

struct Shared<S> {
    state: Mutex<State<S>>,
    changed: Condvar,
}

struct State<S> {
    vm: S,
    ram: SharedRam,
    wanted: Wanted,
    /// Its thread is there, and not in the middle of a step.
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
    pub(super) fn spawn(vm: S, ram: SharedRam, out: Outbox<S::Message>) -> io::Result<Self> {
        let state = Mutex::new(State { vm, ram, wanted: Wanted::Stop, lives: true });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
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
    fn want(&self, wanted: Wanted) -> io::Result<MutexGuard<'_, State<S>>> {
        let shared = &self.0.0;
        let mut state = shared.state.lock();
        if !state.lives {
            return Err(io::Error::other("the VM's thread has panicked"));
        }
        state.wanted = wanted;
        shared.changed.notify_one();
        Ok(state)
    }
}

fn run<S: Steps>(shared: &Shared<S>, out: &Outbox<S::Message>) {
    let mut locked = shared.state.lock();
    loop {
        let state = &mut *locked;
        match state.wanted {
            Wanted::Stop => shared.changed.wait(&mut locked),
            Wanted::End => return,
            Wanted::Run => {
                // A step that panics leaves the lock with this, and half of its work with it: nobody may take that for the VM.
                state.lives = false;
                let message = state.vm.step(&mut state.ram);
                state.lives = true;
                // In the outbox before the VM can be stopped: the gate's barrier finds it there.
                if let Some(message) = message {
                    out.put(message);
                }
                MutexGuard::bump(&mut locked);
            }
        }
    }
}

/// A step that panics is the VM's death.
struct Died<'a, S>(&'a Shared<S>);

impl<S> Drop for Died<'_, S> {
    fn drop(&mut self) {
        self.0.state.lock().lives = false;
    }
}

impl<S> Drop for Owner<S> {
    fn drop(&mut self) {
        self.0.state.lock().wanted = Wanted::End;
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
        let state = self.0.0.state.lock();
        if !state.lives {
            return Err(io::Error::other("the VM's thread has panicked in a step"));
        }
        Ok(serde_json::to_vec(&state.vm)?)
    }
}

impl<S: Steps> Cpus for Stepped<S> {
    fn restore(&mut self, device: &[u8]) -> io::Result<()> {
        self.want(Wanted::Stop)?.vm = serde_json::from_slice(device)?;
        Ok(())
    }

    fn life(&mut self) -> Life {
        if self.0.0.state.lock().lives { Life::Lives } else { Life::Died }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts in RAM first, and breaks before its register follows.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Half(u64);

    impl Steps for Half {
        type Message = ();

        fn step(&mut self, ram: &mut SharedRam) -> Option<()> {
            ram.write(0, &(self.0 + 1).to_le_bytes());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(self.0 < 2, "a bug in the middle of a step");
            self.0 += 1;
            None
        }
    }

    #[test]
    fn a_step_that_panics_half_way_is_in_no_checkpoint() {
        for _ in 0..3 {
            let ram = SharedRam::anonymous(4096).unwrap();
            let (out, _said) = node::inbox::inbox::<()>().unwrap();
            let mut vm = Stepped::spawn(Half(0), ram, out).unwrap();
            vm.resume().unwrap();
            // Each waits for the step that is under way; the third one panics.
            while vm.pause().is_ok() {
                let in_ram = |state: &State<Half>| {
                    let mut number = [0; 8];
                    state.ram.read(0, &mut number);
                    u64::from_le_bytes(number)
                };
                let state = vm.0.0.state.lock();
                assert_eq!(in_ram(&state), state.vm.0, "it was taken for the VM");
                drop(state);
                vm.resume().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert!(vm.device().is_err() && vm.life() == Life::Died);
        }
    }
}
