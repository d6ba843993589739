//! A VM that a thread of this process runs, step by step. It is stopped between two steps.

use super::{Cpus, Guest};
use mc_core::ram::SharedRam;
use node::{inbox::Outbox, primary::Life};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A VM that runs in steps. What `serde_json` writes of it is its state; the rest is its RAM.
///
/// The state is written in every pause, read back and compared: what JSON cannot carry, such as a float that is no number, ends the
/// session with that reason. What is large belongs into RAM. A NaN in an `Option` comes back as `None`, and passes.
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

    /// Runs on a little. What it returns is sent. A panic is the VM's death.
    ///
    /// Whoever stops the VM waits for the end of the step: so long the VM's output and this host's beats wait as well. A step that takes
    /// as long as a whole epoch doubles what output waits for; one that takes as long as the detection time costs protection; and after
    /// one of three seconds the session ends, with that reason.
    fn step(&mut self, ram: &mut SharedRam) -> Option<Self::Message>;

    /// The state was restored on this host, in the place of `here`, which was made here: takes from it what is the host's own, and what
    /// serde skips.
    ///
    /// ```
    /// use node::inbox::{Inbox, inbox};
    /// use vmm_memory::{SharedRam, Steps};
    ///
    /// /// Adds up what it is told.
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Adder {
    ///     sum: u64,
    ///     #[serde(skip)] // of the host, not of the VM: a state that is restored has the default, `None`
    ///     input: Option<Inbox<u64>>,
    /// }
    ///
    /// impl Steps for Adder {
    ///     type Message = u64;
    ///     fn step(&mut self, _: &mut SharedRam) -> Option<u64> {
    ///         let Some(number) = self.input.as_ref()?.take() else {
    ///             std::thread::sleep(std::time::Duration::from_millis(1)); // nothing to do: not at full speed
    ///             return None;
    ///         };
    ///         self.sum += number;
    ///         Some(self.sum)
    ///     }
    ///     fn adopt(&mut self, here: Self) {
    ///         self.input = here.input;
    ///     }
    /// }
    ///
    /// let (tell, input) = inbox()?;
    /// tell.put(3);
    /// let mut vm: Adder = serde_json::from_str(r#"{"sum":4}"#)?; // the primary's
    /// vm.adopt(Adder { sum: 0, input: Some(input) }); // as the standby was made
    /// assert_eq!(vm.step(&mut SharedRam::anonymous(4096)?), Some(7));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    fn adopt(&mut self, _here: Self) {}
}

/// Whoever stops the VM waits for so long for the end of a step.
const STUCK: Duration = Duration::from_secs(3);

/// Commands a VM and its thread, which ends when the last clone of this is dropped.
#[derive(Debug)]
pub struct Stepped<S>(Arc<Owner<S>>);

#[derive(Debug)]
struct Owner<S>(Arc<Shared<S>>);

struct Shared<S> {
    /// Never locked for long; a step begins under it.
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// Locked by each step.
    state: Mutex<State<S>>,
    /// A step has panicked.
    died: AtomicBool,
}

struct State<S> {
    vm: S,
    ram: SharedRam,
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
        let (wanted, changed, state) = (Mutex::new(Wanted::Stop), Condvar::new(), Mutex::new(State { vm, ram }));
        let shared = Arc::new(Shared { wanted, changed, state, died: AtomicBool::new(false) });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("vm".into()).spawn(move || run(&of_thread, &out))?;
        Ok(Self(Arc::new(Owner(shared))))
    }
}

impl<S> Stepped<S> {
    /// Never waits.
    fn want(&self, wanted: Wanted) -> io::Result<()> {
        self.0.want(wanted);
        self.0.0.lives()
    }

    /// When this returns, no step is under way that began before.
    fn stop(&self) -> io::Result<MutexGuard<'_, State<S>>> {
        self.want(Wanted::Stop)?;
        let Some(state) = self.0.0.state.try_lock_for(STUCK) else {
            let why = format!("the VM does not stop: a step of it has not ended for {STUCK:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        };
        self.0.0.lives()?;
        Ok(state)
    }
}

impl<S> Owner<S> {
    fn want(&self, wanted: Wanted) {
        *self.0.wanted.lock() = wanted;
        self.0.changed.notify_one();
    }
}

impl<S> Shared<S> {
    fn lives(&self) -> io::Result<()> {
        match self.died.load(Ordering::Acquire) {
            true => Err(io::Error::other("the VM's thread has panicked in a step")),
            false => Ok(()),
        }
    }
}

fn run<S: Steps>(shared: &Shared<S>, out: &Outbox<S::Message>) {
    loop {
        let mut wanted = shared.wanted.lock();
        match *wanted {
            Wanted::Stop => {
                shared.changed.wait(&mut wanted);
                continue;
            }
            Wanted::End => return,
            Wanted::Run => {}
        }
        let mut state = shared.state.lock();
        drop(wanted);
        // Dropped before the lock is: half of a step is nobody's VM.
        let panics = Panics(&shared.died);
        let State { vm, ram } = &mut *state;
        let message = vm.step(ram);
        std::mem::forget(panics);
        // In the outbox before the VM can be stopped: the gate's barrier finds it there.
        if let Some(message) = message {
            out.put(message);
        }
    }
}

/// A step that panics is the VM's death.
struct Panics<'a>(&'a AtomicBool);

impl Drop for Panics<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl<S> Drop for Owner<S> {
    fn drop(&mut self) {
        self.want(Wanted::End);
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

/// The state that was written as `device`.
///
/// # Errors
/// It does not come back as it went: then it could not be continued from.
fn read<S: Steps>(device: &[u8]) -> io::Result<S> {
    let lost =
        |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("the VM's state cannot be restored: {why}"));
    let vm: S =
        serde_json::from_slice(device).map_err(|error| lost(format!("{error}, in what serde_json wrote of it")))?;
    let again = serde_json::to_vec(&vm)?;
    if counts(device) != counts(&again) {
        let (len, other) = (device.len(), again.len());
        return Err(lost(format!("its {len} bytes of JSON, read and written again, are others, {other} bytes")));
    }
    Ok(vm)
}

/// How often each byte occurs: a hash map or a hash set is written in any order.
fn counts(bytes: &[u8]) -> [usize; 256] {
    let mut counts = [0; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    counts
}

impl<S: Steps> Guest for Stepped<S> {
    fn pause(&mut self) -> io::Result<()> {
        self.stop().map(drop)
    }

    fn resume(&mut self) -> io::Result<()> {
        self.want(Wanted::Run)
    }

    /// What cannot be restored is no state to take over: it is looked at here, before any standby has it.
    fn device(&mut self) -> io::Result<Vec<u8>> {
        let device = serde_json::to_vec(&self.stop()?.vm)?;
        read::<S>(&device)?;
        Ok(device)
    }
}

impl<S: Steps> Cpus for Stepped<S> {
    fn restore(&mut self, device: &[u8]) -> io::Result<()> {
        let restored = read(device)?;
        let mut state = self.stop()?;
        let here = std::mem::replace(&mut state.vm, restored);
        state.vm.adopt(here);
        Ok(())
    }

    fn life(&mut self) -> Life {
        if self.0.0.lives().is_ok() { Life::Lives } else { Life::Died }
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
