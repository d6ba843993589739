//! [`Rehearsal`]: proves that a state can be loaded, by loading it, into a QEMU that is thrown away.
//!
//! ```text
//!   image file ──private mapping (share=off)──> QEMU -S, joined to nothing <──stdin── machine, small blocks, device state
//!                                                 completed | its own words | too late; killed in any case
//! ```
//!
//! The mapping is private: what that QEMU writes is its own copy, page by page, and the image stays as it is. But a page that it
//! has not written yet is the image's: nothing may be applied to the image meanwhile. The guest never runs (`-S`), disks
//! stay inactive (`late-block-activate`), and every back end is cut off from the outside ([`super::isolate`]).
//!
//! What it costs: 0.1 s on a quiet machine, most of it that QEMU's start; memory: see [`mod@super::room`].

use super::{
    NotIsolated, STEP, StandbyError,
    isolate::isolate,
    launch::{self, connect, end, stderr_tail},
    line::Line,
    memory::MainRam,
    room::{available, private_bytes, room},
};
use crate::{
    argv::{CommandLine, Item},
    blocks::RamBlock,
    qmp::{Qmp, QmpError},
    stream::StandbyStream,
};
use mc_core::id::BlockId;
use node::{
    inbox::{Inbox, inbox},
    sys::child::ends_with_this_thread,
    units::spoken,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, BufWriter, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// For all of a rehearsal.
pub const DEADLINE: Duration = mc_core::primary::REHEARSAL;

/// What is rehearsed, all of it copied: the standby goes on meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RehearsalConfig {
    /// The operator's QEMU command for the standby.
    pub argv: Vec<String>,
    /// Made, and removed again with all that is in it.
    pub dir: PathBuf,
    /// The RAM image. It must stand still while the rehearsal lasts.
    pub ram_file: PathBuf,
    /// The primary's machine, as in [`StandbyStream::machine`].
    pub machine: String,
    /// As in [`StandbyStream::blocks`].
    pub blocks: Vec<RamBlock>,
    /// As in [`StandbyStream::shared`]: the RAM image.
    pub shared: BlockId,
    /// As in [`StandbyStream::others`].
    pub others: Vec<(BlockId, Vec<u8>)>,
    /// As in [`StandbyStream::device`].
    pub device: Vec<u8>,
    /// For all of it; usually [`DEADLINE`].
    pub deadline: Duration,
}

/// A rehearsal that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// From the start to the end.
    pub took: Duration,
    /// Private memory that its QEMU had at the end, bytes.
    pub private_bytes: u64,
}

/// Why a rehearsal did not pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RehearsalError {
    /// An option has effects outside that cannot be cut off.
    #[error(transparent)]
    Option(#[from] NotIsolated),
    /// Too little memory.
    #[error(
        "not enough memory for a rehearsal: {available} bytes available, up to {needed} needed; free some, or skip \
         rehearsals with --no-rehearsal"
    )]
    Memory {
        /// Bytes (MemAvailable of /proc/meminfo).
        available: u64,
        /// Bytes at most.
        needed: u64,
    },
    /// QEMU did not load it.
    #[error("the standby's QEMU cannot load this VM: {said}")]
    Refused {
        /// The end of what it said.
        said: String,
    },
    /// It took too long.
    #[error("the rehearsal did not end within {}; its QEMU said: {said}", spoken(*after))]
    Deadline {
        /// How long was waited.
        after: Duration,
        /// The end of what it said.
        said: String,
    },
    /// Its QEMU does not start.
    #[error("the rehearsal: {0}")]
    Start(#[from] StandbyError),
    /// It was dropped.
    #[error("the rehearsal was called off")]
    CalledOff,
}

/// A rehearsal under way, on a thread of its own. Dropping it calls it off.
#[derive(Debug)]
pub struct Rehearsal {
    result: Inbox<Result<Rehearsed, RehearsalError>>,
    stage: Arc<Stage>,
    thread: Option<JoinHandle<()>>,
}

impl Rehearsal {
    /// Starts it.
    pub fn start(config: RehearsalConfig) -> io::Result<Self> {
        let (outbox, result) = inbox()?;
        let stage = Arc::new(Stage::default());
        let on = Arc::clone(&stage);
        let thread = thread::Builder::new().name("rehearsal".into()).spawn(move || {
            let outcome = rehearse(&config, &on);
            on.clear();
            let _ = fs::remove_dir_all(&config.dir);
            outbox.put(outcome);
        })?;
        Ok(Self { result, stage, thread: Some(thread) })
    }

    /// How it ended, once.
    pub fn take(&self) -> Option<Result<Rehearsed, RehearsalError>> {
        self.result.take()
    }
}

impl AsFd for Rehearsal {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.result.as_fd()
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        self.stage.call_off();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The QEMU, where the thread and the handle can both end it.
#[derive(Debug, Default)]
struct Stage {
    state: Mutex<(Option<Child>, bool)>,
}

impl Stage {
    fn with<T>(&self, look: impl FnOnce(&mut Option<Child>, &mut bool) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (child, off) = &mut *state;
        look(child, off)
    }

    /// Starts a QEMU, unless the rehearsal was called off.
    fn enter(&self, start: impl FnOnce() -> Result<Child, StandbyError>) -> Result<(), RehearsalError> {
        self.with(|child, off| match off {
            true => Err(RehearsalError::CalledOff),
            false => {
                *child = Some(start()?);
                Ok(())
            }
        })
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.with(|child, _| child.as_mut()?.try_wait().ok().flatten())
    }

    fn pid(&self) -> Option<u32> {
        self.with(|child, _| child.as_ref().map(Child::id))
    }

    fn clear(&self) {
        self.with(|child, _| child.take().map(|mut child| end(&mut child)));
    }

    fn call_off(&self) {
        self.with(|child, off| {
            *off = true;
            if let Some(child) = child {
                let _ = child.kill();
            }
        });
    }
}

fn rehearse(config: &RehearsalConfig, stage: &Stage) -> Result<Rehearsed, RehearsalError> {
    let begun = Instant::now();
    let deadline = begun + config.deadline;
    let feed = Feed::new(config)?;
    room(config, available())?;
    let dir = &config.dir;
    let made = fs::remove_dir_all(dir).or_else(gone).and_then(|()| fs::DirBuilder::new().mode(0o700).create(dir));
    made.map_err(|error| StandbyError::io("making", dir, error))?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| StandbyError::io("a socket pair in", dir, error))?;
    let line = command(config)?;
    let dies_with_us = |qemu: &mut Command| _ = ends_with_this_thread(qemu);
    stage.enter(|| launch::spawn(&line, dir, None, OwnedFd::from(theirs).into(), dies_with_us))?;
    let act = Act { dir, stage, deadline, patience: config.deadline };
    let mut qmp = connect(dir, stage.pid(), deadline, || stage.ended()).map_err(|error| act.failed_start(error))?;
    act.listen(&mut qmp)?;
    // QEMU may refuse in the middle, and close: what it said is the better error.
    let written = act.write(&feed.stream(config), ours);
    act.wait(&mut qmp, &written)?;
    let private_bytes = stage.pid().map_or(0, private_bytes);
    Ok(Rehearsed { took: begun.elapsed(), private_bytes })
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The standby's command line, cut off from the outside, over a private mapping of the image.
fn command(config: &RehearsalConfig) -> Result<CommandLine, RehearsalError> {
    let main = MainRam::of(&config.blocks[usize::from(config.shared.0)]);
    let line = Line::prepare(&config.argv, Some(&main))?;
    let mut command = isolate(&line, &config.dir)?;
    command.items.push(Item::option("incoming", "defer"));
    command.items.push(launch::control_socket(&config.dir));
    command.items.extend(main.over_file(&line, &config.ram_file, false));
    Ok(command)
}

/// What is loaded.
struct Feed<'a>(Vec<(BlockId, &'a [u8])>);

impl<'a> Feed<'a> {
    fn new(config: &'a RehearsalConfig) -> Result<Self, RehearsalError> {
        let feed = Self(config.others.iter().map(|(id, content)| (*id, content.as_slice())).collect());
        feed.stream(config).check().map_err(StandbyError::from)?;
        Ok(feed)
    }

    fn stream(&'a self, config: &'a RehearsalConfig) -> StandbyStream<'a> {
        StandbyStream {
            machine: &config.machine,
            blocks: &config.blocks,
            shared: config.shared,
            others: &self.0,
            device: &config.device,
        }
    }
}

/// A QEMU that is told what to load.
struct Act<'a> {
    dir: &'a Path,
    stage: &'a Stage,
    deadline: Instant,
    patience: Duration,
}

impl Act<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// QEMU's standard input is the stream. (A number is a descriptor of QEMU's own, qapi/migration.json.)
    fn listen(&self, qmp: &mut Qmp) -> Result<(), RehearsalError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let wanted = json!({ "capabilities": [on("x-ignore-shared"), on("late-block-activate")] });
        self.execute(qmp, "migrate-set-capabilities", wanted)?;
        self.execute(qmp, "migrate-incoming", json!({ "uri": "fd:0" })).map(drop)
    }

    fn execute(&self, qmp: &mut Qmp, name: &str, arguments: Value) -> Result<Value, RehearsalError> {
        qmp.execute(name, arguments, self.left()).map_err(|error| self.failed(error))
    }

    fn write(&self, feed: &StandbyStream<'_>, to: UnixStream) -> io::Result<()> {
        feed.write(BufWriter::with_capacity(256 << 10, Until { to, deadline: self.deadline }))
    }

    fn wait(&self, qmp: &mut Qmp, written: &io::Result<()>) -> Result<(), RehearsalError> {
        loop {
            let state = self.execute(qmp, "query-migrate", Value::Null)?;
            match (state["status"].as_str(), written) {
                (Some("completed"), Ok(())) => return Ok(()),
                (Some("failed"), _) => return Err(self.refused()),
                (_, Err(error)) if self.left().is_zero() => {
                    let said = format!("{}; the stream: {error}", stderr_tail(self.dir));
                    return Err(RehearsalError::Deadline { after: self.patience, said });
                }
                _ if self.left().is_zero() => return Err(self.too_late()),
                _ => thread::sleep(STEP),
            }
        }
    }

    fn refused(&self) -> RehearsalError {
        RehearsalError::Refused { said: stderr_tail(self.dir) }
    }

    fn too_late(&self) -> RehearsalError {
        RehearsalError::Deadline { after: self.patience, said: stderr_tail(self.dir) }
    }

    /// Once it listens, a QEMU that ends has refused what it was to load.
    fn failed(&self, error: QmpError) -> RehearsalError {
        match error {
            _ if self.stage.with(|_, off| *off) => RehearsalError::CalledOff,
            QmpError::Closed => self.refused(),
            QmpError::Timeout { .. } => self.too_late(),
            source => StandbyError::Qmp { source, stderr: stderr_tail(self.dir) }.into(),
        }
    }

    fn failed_start(&self, error: StandbyError) -> RehearsalError {
        if self.stage.with(|_, off| *off) { RehearsalError::CalledOff } else { error.into() }
    }
}

/// What QEMU does not read in time is not written.
struct Until {
    to: UnixStream,
    deadline: Instant,
}

impl Write for Until {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.to.set_write_timeout(Some(left))?;
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn config() -> RehearsalConfig {
        let block = |name: &str, used_length| RamBlock { name: name.into(), used_length };
        RehearsalConfig {
            argv: vec!["qemu-system-x86_64".into(), "-netdev".into(), "user,id=n0".into()],
            dir: "/run/x".into(),
            ram_file: "/dev/shm/x".into(),
            machine: "pc".into(),
            blocks: vec![block("pc.ram", 64 << 30), block("pc.bios", 65536)],
            shared: BlockId(0),
            others: vec![(BlockId(1), vec![0; 65536])],
            device: vec![4, 0],
            deadline: DEADLINE,
        }
    }

    #[test]
    fn what_is_not_read_in_time_is_given_up_at_once() {
        let (to, _unread) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let mut writer = BufWriter::with_capacity(2 << 20, Until { to, deadline });
        writer.write_all(&[0; 1 << 20]).unwrap();
        writer.flush().unwrap_err();
        assert!(Instant::now() >= deadline);
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::TimedOut, "nor when it is dropped");
    }

    #[test]
    fn its_memory_is_private_and_its_guest_never_runs() {
        let words = command(&config()).unwrap().words();
        let text = words.join(" ");
        assert!(
            text.contains("-S") && text.contains("-incoming defer") && text.contains("user,id=n0,restrict=on"),
            "{text}"
        );
        assert!(text.contains("mem-path=/dev/shm/x,share=off") && !text.contains("prealloc"), "{text}");
    }
}
