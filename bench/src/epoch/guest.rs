//! The synthetic guest: a process of its own that works on shared memory, and can be stopped.
//!
//! ```text
//!            control memory: pause ──> <── stopped, operations
//!   primary ────────────────────────────────────────────────── guest
//!            socket: 'p' (a sleeping guest wakes), 'r' ──> <── messages, stamped when they were sent
//! ```
//!
//! Stopping is real: the guest finishes its operation and sleeps in the kernel until 'r' comes. Its messages are what a VM
//! sends to the outside: one every millisecond, of 16 bytes, for the gate to hold.

use super::{
    clock::now_ns,
    workload::{Work, Workload},
};
use crate::sys::shared_word;
use anyhow::{Context, Result, bail};
use capture::track::watch_writes;
use clap::Args;
use mc_core::{id::PAGE_SIZE, ram::SharedRam};
use memmap2::{MmapOptions, MmapRaw};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Signal, set_parent_process_death_signal},
};
use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes of a message: when it was sent (ns of the shared clock), and its number.
pub const MESSAGE: usize = 16;
/// Between messages, ns.
const MESSAGE_EVERY: u64 = 1_000_000;
/// Operations between two looks at the clock.
const STRIDE: u64 = 16;
/// How long a guest may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Words of the control memory.
#[derive(Clone, Copy, Debug)]
enum Word {
    Pause,
    Stopped,
    Operations,
    /// Where guest RAM is in the guest; 0 until it is there.
    Address,
    /// Whether the kernel watches its writes.
    Watched,
}

#[derive(Debug)]
struct Control(MmapRaw);

impl Control {
    fn map(file: &File) -> Result<Self> {
        Ok(Self(MmapOptions::new().len(PAGE_SIZE).map_raw(file)?))
    }

    fn word(&self, word: Word) -> &AtomicU64 {
        shared_word(&self.0, word as usize)
    }

    fn get(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    fn set(&self, word: Word, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }
}

/// What a guest is told on its command line.
#[derive(Clone, Debug, Args)]
pub struct GuestArgs {
    /// Guest RAM
    #[arg(long)]
    ram: PathBuf,
    /// Control memory
    #[arg(long)]
    control: PathBuf,
    /// What it does
    #[arg(long, value_enum)]
    workload: Workload,
    /// Of its random numbers
    #[arg(long)]
    seed: u64,
    /// Operations per second; 0: as fast as it can
    #[arg(long)]
    rate: u64,
    /// Have the kernel watch writes
    #[arg(long)]
    watch: bool,
}

/// The life of the guest's process.
///
/// # Errors
/// Its memory cannot be mapped; the primary is gone.
pub fn serve(args: &GuestArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let open = |path: &PathBuf| File::options().read(true).write(true).open(path);
    let (ram_file, control_file) = (open(&args.ram)?, open(&args.control)?);
    let len = usize::try_from(ram_file.metadata()?.len())?;
    let mut ram = SharedRam::map(&ram_file, len)?;
    // Every page is there before anything is measured.
    let mut byte = [0];
    for at in (0..len).step_by(PAGE_SIZE) {
        ram.read(at, &mut byte);
        ram.write(at, &byte);
    }
    let address = ram.mapping().as_ptr() as u64;
    let watch = args.watch.then(|| watch_writes(address, len as u64)).and_then(Result::ok);
    let control = Control::map(&control_file)?;
    control.set(Word::Watched, u64::from(watch.is_some()));
    control.set(Word::Address, address);
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let work = Work::new(args.workload, (len / PAGE_SIZE) as u64, args.seed);
    let idle = args.workload == Workload::Idle;
    Running { ram, control, socket, work, rate: args.rate, idle, sent: 0, next_message: now_ns(), done: 0 }.run()
}

struct Running {
    ram: SharedRam,
    control: Control,
    socket: UnixStream,
    work: Work,
    rate: u64,
    idle: bool,
    sent: u64,
    next_message: u64,
    done: u64,
}

impl Running {
    fn run(&mut self) -> Result<()> {
        let (mut due, interval) = (now_ns(), 1_000_000_000_u64.checked_div(self.rate).unwrap_or(0));
        loop {
            if self.control.get(Word::Pause) != 0 {
                let before = now_ns();
                self.stop()?;
                // Its pace is that of its own time: it does not catch up with what it was stopped for.
                due += now_ns() - before;
            }
            for _ in 0..STRIDE {
                if self.idle || self.control.get(Word::Pause) != 0 {
                    break;
                }
                self.work.operate(&mut self.ram);
                self.done += 1;
                due += interval;
            }
            self.control.set(Word::Operations, self.done);
            let now = now_ns();
            self.talk(now)?;
            if self.idle || (interval > 0 && due > now) {
                self.doze(if self.idle { self.next_message } else { due.min(self.next_message) }, now)?;
            }
        }
    }

    /// 'p', then 'r'.
    fn stop(&mut self) -> Result<()> {
        let mut byte = [0];
        self.socket.read_exact(&mut byte)?;
        self.control.set(Word::Stopped, 1);
        self.socket.read_exact(&mut byte)?;
        Ok(())
    }

    fn talk(&mut self, now: u64) -> Result<()> {
        if now < self.next_message {
            return Ok(());
        }
        self.next_message = now + MESSAGE_EVERY;
        self.sent += 1;
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&now.to_le_bytes());
        message[8..].copy_from_slice(&self.sent.to_le_bytes());
        Ok(self.socket.write_all(&message)?)
    }

    /// Sleeps until then, or until it is to stop.
    fn doze(&self, until: u64, now: u64) -> Result<()> {
        let timeout = Timespec::try_from(Duration::from_nanos(until.saturating_sub(now)))?;
        poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))?;
        Ok(())
    }
}

/// A guest, as the primary has it.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    control: Control,
    socket: UnixStream,
    file: File,
}

/// What a guest is to be.
#[derive(Clone, Copy, Debug)]
pub struct GuestSpec {
    /// Bytes of RAM.
    pub ram: usize,
    /// What it does.
    pub workload: Workload,
    /// Of its random numbers.
    pub seed: u64,
    /// Operations per second; `None`: as fast as it can.
    pub rate: Option<u64>,
    /// Whether to have the kernel watch its writes.
    pub watch: bool,
}

impl Guest {
    /// Starts one; it runs. Its memory is random bytes at first.
    ///
    /// # Errors
    /// There is no memory; it does not come up.
    pub fn start(spec: &GuestSpec) -> Result<Self> {
        let memory = |name: &str, len: usize| -> Result<File> {
            let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
            file.set_len(len as u64)?;
            Ok(file)
        };
        let (file, control_file) = (memory("guest-ram", spec.ram)?, memory("guest-control", PAGE_SIZE)?);
        let mut random = crate::capture::pattern::Random::new(spec.seed);
        let mut ram = SharedRam::map(&file, spec.ram)?;
        let mut page = [0; PAGE_SIZE];
        for at in (0..spec.ram).step_by(PAGE_SIZE) {
            page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
            ram.write(at, &page);
        }
        let (socket, theirs) = UnixStream::pair()?;
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let workload = spec.workload.name();
        let mut command = Command::new(std::env::current_exe().context("finding this program's file")?);
        command.args(["guest", "--ram", &path(&file), "--control", &path(&control_file), "--workload", workload]);
        command.args(["--seed", &spec.seed.to_string(), "--rate", &spec.rate.unwrap_or(0).to_string()]);
        command.args(spec.watch.then_some("--watch"));
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).process_group(0);
        let child = command.spawn().context("starting this program again as the guest")?;
        let control = Control::map(&control_file)?;
        let mut guest = Self { child, control, socket, file };
        guest.wait_for(Word::Address, "start")?;
        Ok(guest)
    }

    /// Waits until a word is not 0.
    fn wait_for(&mut self, word: Word, what: &str) -> Result<()> {
        let start = Instant::now();
        let mut looks = 0_u32;
        while self.control.get(word) == 0 {
            looks += 1;
            if looks.is_multiple_of(1024) && (self.child.try_wait()?.is_some() || start.elapsed() > PATIENCE) {
                bail!("the guest does not {what}");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Stops it: when this returns it writes no more.
    ///
    /// # Errors
    /// It is gone.
    pub fn pause(&mut self) -> Result<()> {
        self.control.set(Word::Pause, 1);
        self.socket.write_all(b"p")?;
        self.wait_for(Word::Stopped, "stop")
    }

    /// Lets it run.
    ///
    /// # Errors
    /// It is gone.
    pub fn resume(&mut self) -> Result<()> {
        self.control.set(Word::Stopped, 0);
        self.control.set(Word::Pause, 0);
        Ok(self.socket.write_all(b"r")?)
    }

    /// Lets it run unprotected for that long: its messages go nowhere. Operations per second.
    ///
    /// # Errors
    /// The system refuses.
    pub fn run_for(&mut self, time: Duration) -> Result<f64> {
        let (began, before, mut buffer) = (Instant::now(), self.operations(), [0; 1024 * MESSAGE]);
        while began.elapsed() < time {
            // What nobody reads would soon fill the socket, and stop the guest.
            let timeout = Timespec::try_from(time.saturating_sub(began.elapsed()))?;
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))?;
            let _ = rustix::net::recv(&self.socket, &mut buffer, rustix::net::RecvFlags::DONTWAIT);
        }
        Ok((self.operations() - before) as f64 / began.elapsed().as_secs_f64())
    }

    /// Operations it has done.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.control.get(Word::Operations)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its RAM is, in its own memory.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.control.get(Word::Address)
    }

    /// Whether the kernel watches its writes.
    #[must_use]
    pub fn watched(&self) -> bool {
        self.control.get(Word::Watched) != 0
    }

    /// Its RAM, mapped once more.
    ///
    /// # Errors
    /// The system refuses.
    pub fn ram(&self) -> Result<SharedRam> {
        let len = usize::try_from(self.file.metadata()?.len())?;
        Ok(SharedRam::map(&self.file, len)?)
    }

    /// Where its messages come out.
    ///
    /// # Errors
    /// The system refuses.
    pub fn messages(&self) -> Result<UnixStream> {
        Ok(self.socket.try_clone()?)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
