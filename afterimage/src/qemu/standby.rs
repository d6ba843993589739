//! The VM that waits: a stock QEMU in `-incoming`, whose RAM is the file that committed epochs are applied to.
//!
//! ```text
//! launch ─> (QEMU starts, listens for a migration) ─> waiting ─take_over: the stream─> running, and no longer ours to kill
//!              ^                                        │ died
//!              └────────────── restart ─────────────────┘ same RAM file
//! ```

use super::{
    emit,
    profile::{Profile, RamBlock},
    qmp::{Qmp, QmpError},
};
use serde::Serialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// QEMU starts within this time, also under TCG on a busy host.
const START: Duration = Duration::from_secs(15);
/// From the last byte of the stream until it runs.
const RESUME: Duration = Duration::from_secs(30);
/// Of QEMU's own words in an error.
const STDERR_TAIL: usize = 2000;

/// Why the waiting VM does not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyVmError {
    /// The command does not start.
    #[error("{program}: {source}")]
    Spawn {
        /// Of the operator's command line.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// It ended.
    #[error("the standby's QEMU ended ({status}): {stderr}")]
    Ended {
        /// How.
        status: String,
        /// Its last words.
        stderr: String,
    },
    /// Its control connection.
    #[error("the standby's QEMU: {source}{}", said(.stderr))]
    Qmp {
        /// What happened.
        source: QmpError,
        /// Its last words.
        stderr: String,
    },
    /// A file or socket.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") }
}

/// What a takeover needs beside the shared RAM file.
#[derive(Clone, Copy, Debug)]
pub struct TakeoverFeed<'a> {
    /// Versioned machine name.
    pub machine: &'a str,
    /// The profile's.
    pub blocks: &'a [RamBlock],
    /// Blocks that are not in the shared file, by index in `blocks`, whole.
    pub contents: &'a [(usize, &'a [u8])],
    /// Device state, "FULL sections, then EOF".
    pub device: &'a [u8],
}

/// What a takeover took, ms.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TakeoverTimings {
    /// Writing the stream.
    pub fed_ms: f64,
    /// From its end until QEMU's RESUME event was read.
    pub resume_ms: f64,
}

/// The VM.
#[derive(Debug)]
pub struct StandbyVm {
    command: Vec<String>,
    dir: PathBuf,
    ram_file: PathBuf,
    block: RamBlock,
    child: Child,
    qmp: Qmp,
    /// It runs the VM for real: dropping us must not kill it.
    disowned: bool,
}

impl StandbyVm {
    /// Starts the operator's command with what makes it wait added; `block`, its main RAM, is `ram_file`.
    pub fn launch(command: &[String], dir: &Path, ram_file: &Path, block: &RamBlock) -> Result<Self, StandbyVmError> {
        let (child, qmp) = start(command, dir, ram_file, block)?;
        Ok(Self {
            command: command.to_vec(),
            dir: dir.to_owned(),
            ram_file: ram_file.to_owned(),
            block: block.clone(),
            child,
            qmp,
            disowned: false,
        })
    }

    /// Its profile.
    pub fn profile(&mut self) -> Result<Profile, StandbyVmError> {
        Profile::query(&mut self.qmp).map_err(|source| qmp_error(&self.dir, source))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether its process lives.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts it again over the same RAM file.
    pub fn restart(&mut self) -> Result<(), StandbyVmError> {
        self.end();
        (self.child, self.qmp) = start(&self.command, &self.dir, &self.ram_file, &self.block)?;
        Ok(())
    }

    /// Feeds it what the RAM file does not hold, and waits until it runs.
    pub fn take_over(&mut self, feed: TakeoverFeed<'_>) -> Result<TakeoverTimings, StandbyVmError> {
        let begin = Instant::now();
        let stream = emit::takeover(feed.machine, feed.blocks, feed.contents, feed.device);
        let path = incoming_path(&self.dir);
        let feed = UnixStream::connect(&path).and_then(|mut socket| socket.write_all(&stream).map(|()| socket));
        let _open_until_it_runs = feed.map_err(|source| self.broken(path, source))?;
        let fed = Instant::now();
        let resumed = self.qmp.wait_event("RESUME", RESUME);
        resumed.map_err(|source| qmp_error(&self.dir, source))?;
        self.disowned = true;
        let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        Ok(TakeoverTimings { fed_ms: ms(begin, fed), resume_ms: ms(fed, Instant::now()) })
    }

    fn broken(&mut self, path: PathBuf, source: io::Error) -> StandbyVmError {
        match self.child.try_wait() {
            Ok(Some(status)) => StandbyVmError::Ended { status: status.to_string(), stderr: last_words(&self.dir) },
            _ => StandbyVmError::Io { path, source },
        }
    }

    fn end(&mut self) {
        // A QEMU that waits in -incoming has nothing to lose; it is our child, so its pid is its own until we wait for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for StandbyVm {
    fn drop(&mut self) {
        if !self.disowned {
            self.end();
        }
    }
}

fn incoming_path(dir: &Path) -> PathBuf {
    dir.join("standby.incoming")
}

fn last_words(dir: &Path) -> String {
    let text = fs::read(dir.join("standby.stderr")).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(STDERR_TAIL)..]).trim().to_owned()
}

fn qmp_error(dir: &Path, source: QmpError) -> StandbyVmError {
    StandbyVmError::Qmp { source, stderr: last_words(dir) }
}

fn start(command: &[String], dir: &Path, ram_file: &Path, block: &RamBlock) -> Result<(Child, Qmp), StandbyVmError> {
    let (qmp_path, stderr_path) = (dir.join("standby.qmp"), dir.join("standby.stderr"));
    for stale in [&qmp_path, &incoming_path(dir)] {
        let _ = fs::remove_file(stale);
    }
    let stderr = File::create(&stderr_path).map_err(|source| StandbyVmError::Io { path: stderr_path, source })?;
    let program = command.first().cloned().unwrap_or_default();
    let mut child = Command::new(&program)
        .args(command.iter().skip(1))
        .args(["-incoming", "defer", "-qmp", &format!("unix:{},server=on,wait=off", qmp_path.display())])
        .args(["-object", &memory_backend(ram_file, block), "-machine", &format!("memory-backend={}", block.name)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|source| StandbyVmError::Spawn { program, source })?;
    match connect(&mut child, dir, &qmp_path).and_then(|mut qmp| listen(&mut qmp, dir).map(|()| qmp)) {
        Ok(qmp) => Ok((child, qmp)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn memory_backend(ram_file: &Path, block: &RamBlock) -> String {
    let (id, path, size) = (&block.name, ram_file.display(), block.used_length);
    format!("memory-backend-file,id={id},mem-path={path},size={size},share=on")
}

fn connect(child: &mut Child, dir: &Path, path: &Path) -> Result<Qmp, StandbyVmError> {
    let deadline = Instant::now() + START;
    loop {
        match Qmp::connect(path, START) {
            Ok(qmp) => return Ok(qmp),
            Err(QmpError::Connect { .. }) if Instant::now() < deadline => {}
            Err(source) => return Err(qmp_error(dir, source)),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(StandbyVmError::Ended { status: status.to_string(), stderr: last_words(dir) });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn listen(qmp: &mut Qmp, dir: &Path) -> Result<(), StandbyVmError> {
    let timeout = Duration::from_secs(5);
    let ignore = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    let uri = json!({ "uri": format!("unix:{}", incoming_path(dir).display()) });
    qmp.execute("migrate-set-capabilities", &ignore, timeout)
        .and_then(|_| qmp.execute("migrate-incoming", &uri, timeout))
        .map(|_| ())
        .map_err(|source| qmp_error(dir, source))
}
