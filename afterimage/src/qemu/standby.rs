//! [`StandbyVm`]: a stock QEMU that waits over the RAM image, and becomes the VM at takeover.
//!
//! The operator's command line describes the VM; what is added here makes it wait, and makes the RAM image its main memory.
//! That memory is written by us while QEMU waits; at takeover QEMU is only sent what is not in it: the small RAM blocks and
//! the device state ([`StandbyStream`]), a few hundred KiB. So a takeover takes milliseconds, whatever the VM's size.
//!
//! ```text
//!            launch                          take_over                     (RESUME event)
//!  command ──────────> waiting (inmigrate) ────────────> loading ─────────────────────────> running, disowned
//!                        │ ^                               │
//!                  (dies)│ │ restart                       │ refused: stderr is in the error
//!                        v │                               v
//!                        dead <──────────────────────────────
//! ```
//!
//! Until it is disowned the QEMU dies with the `StandbyVm`; from the takeover on it outlives us.

use super::{
    blocks::{self, RamBlock},
    colo::remove_stale,
    profile::{Profile, ProfileError},
    qmp::{Qmp, QmpError, instance_id},
    stream::{StandbyStream, StandbyStreamError},
};
use serde_json::json;
use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Seek, SeekFrom},
    os::unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For QEMU to answer on QMP after it was started. Slow hosts under emulation need seconds.
const START: Duration = Duration::from_secs(20);
/// For each command.
const TIMEOUT: Duration = Duration::from_secs(5);
/// From the stream's last byte to the VM running.
const RESUME: Duration = Duration::from_secs(20);
/// For QEMU to take the next piece of the stream.
const WRITE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(2);
/// Bytes of QEMU's stderr in an error.
const STDERR_TAIL: u64 = 2000;

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// The operator's QEMU command for this VM, without `-incoming`, memory backend and main QMP socket.
    pub argv: Vec<String>,
    /// For our sockets and QEMU's stderr. Must exist; nobody else's.
    pub run_dir: PathBuf,
    /// The RAM image: becomes the main memory. Created if it does not exist.
    pub ram_file: PathBuf,
    /// The main memory's RAM block in the primary's profile: gives the memory backend its id, and its size.
    pub main_ram: RamBlock,
}

/// Why there is no standby VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StandbyError {
    /// The command line does not go with ours.
    #[error("the standby's QEMU command must not have {found:?}: {why}")]
    Argument {
        /// What stands there.
        found: String,
        /// Why it cannot.
        why: &'static str,
    },
    /// No command.
    #[error("the standby's QEMU command is empty")]
    NoCommand,
    /// The RAM image has another size.
    #[error("RAM image {}: {found} bytes, the VM's main memory has {expected}", path.display())]
    RamFile {
        /// Which file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// The block's.
        expected: u64,
    },
    /// Files and processes.
    #[error("{doing} {what}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// QEMU ended.
    #[error("the standby's QEMU ended ({status}): {stderr}")]
    Exited {
        /// How.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// QEMU does not answer as it should.
    #[error("the standby's QEMU: {source}; it said: {stderr}")]
    Qmp {
        /// What.
        source: QmpError,
        /// The end of what it said.
        stderr: String,
    },
    /// Its profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// What it should load is incomplete.
    #[error("takeover: {0}")]
    Feed(#[from] StandbyStreamError),
    /// QEMU did not take the stream.
    #[error("takeover: sending the VM to its QEMU: {source}; it said: {stderr}")]
    Stream {
        /// Why.
        source: io::Error,
        /// The end of what it said.
        stderr: String,
    },
}

/// How long a takeover's parts took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeoverTimes {
    /// Until the last byte was handed to QEMU.
    pub sent: Duration,
    /// Until its RESUME event was seen.
    pub resumed: Duration,
}

/// A waiting QEMU.
#[derive(Debug)]
pub struct StandbyVm {
    config: StandbyConfig,
    child: Child,
    qmp: Qmp,
    disowned: bool,
}

impl StandbyVm {
    /// Starts QEMU and brings it to where it waits for the takeover.
    pub fn launch(config: StandbyConfig) -> Result<Self, StandbyError> {
        check_arguments(&config.argv)?;
        prepare_ram_file(&config)?;
        let qmp_path = qmp_path(&config.run_dir);
        for path in [&qmp_path, &incoming_path(&config.run_dir)] {
            remove_stale(path).map_err(|error| io_error("removing", path, error))?;
        }
        let child = spawn(&config)?;
        // From here on `Drop` cleans up.
        let mut starting = Starting(Some(child));
        let qmp = connect(&config, &qmp_path, &mut starting)?;
        let child = starting.0.take().expect("taken here only");
        let mut vm = Self { config, child, qmp, disowned: false };
        vm.listen()?;
        Ok(vm)
    }

    fn listen(&mut self) -> Result<(), StandbyError> {
        let ignore = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        let uri = format!("unix:{}", incoming_path(&self.config.run_dir).display());
        let set = self.qmp.execute("migrate-set-capabilities", ignore, TIMEOUT);
        set.and_then(|_| self.qmp.execute("migrate-incoming", json!({ "uri": uri }), TIMEOUT))
            .map(drop)
            .map_err(|error| self.qmp_error(error))
    }

    /// What the waiting VM is made of.
    pub fn profile(&mut self) -> Result<Profile, StandbyError> {
        Ok(Profile::query(&mut self.qmp)?)
    }

    /// Sends the VM's state, and returns when the VM runs. It is then disowned. [`StandbyStream::shared`] must be the block
    /// of the RAM image, which must hold the same checkpoint.
    ///
    /// # Errors
    /// The VM does not run here; kill this one, or [`StandbyVm::restart`] and try again: the RAM image is unharmed unless
    /// the VM ran.
    pub fn take_over(&mut self, feed: &StandbyStream<'_>) -> Result<TakeoverTimes, StandbyError> {
        feed.check()?;
        let begun = Instant::now();
        if let Err(source) = self.send(feed) {
            return Err(self.stream_error(source));
        }
        let sent = begun.elapsed();
        match self.qmp.wait_event("RESUME", RESUME) {
            Ok(_) => {}
            Err(error) => return Err(self.qmp_error(error)),
        }
        self.disown();
        Ok(TakeoverTimes { sent, resumed: begun.elapsed() })
    }

    fn send(&self, feed: &StandbyStream<'_>) -> io::Result<()> {
        let stream = UnixStream::connect(incoming_path(&self.config.run_dir))?;
        stream.set_write_timeout(Some(WRITE))?;
        feed.write(BufWriter::with_capacity(256 << 10, stream))
    }

    /// Whether its QEMU still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills QEMU, if it still runs, and starts it again over the same RAM image.
    pub fn restart(mut self) -> Result<Self, StandbyError> {
        self.kill()?;
        Self::launch(self.config.clone())
    }

    /// Kills QEMU. It is gone when this returns.
    pub fn kill(&mut self) -> Result<(), StandbyError> {
        end(&mut self.child).map_err(|source| io_error("killing", Path::new("QEMU"), source))
    }

    /// QEMU's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells this QEMU process from every other one ([`instance_id`]).
    pub fn instance(&self) -> io::Result<u64> {
        instance_id(self.pid())
    }

    /// QEMU's QMP socket. It serves others only when [`StandbyVm::qmp`] is gone.
    #[must_use]
    pub fn qmp_path(&self) -> PathBuf {
        qmp_path(&self.config.run_dir)
    }

    /// Our QMP connection.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// From now on the QEMU outlives this value.
    pub fn disown(&mut self) {
        self.disowned = true;
    }

    fn stderr(&self) -> String {
        stderr_tail(&self.config.run_dir)
    }

    /// What went wrong, with what QEMU said: that it ended, if it did.
    fn qmp_error(&mut self, source: QmpError) -> StandbyError {
        self.exited().unwrap_or_else(|| StandbyError::Qmp { source, stderr: self.stderr() })
    }

    fn stream_error(&mut self, source: io::Error) -> StandbyError {
        self.exited().unwrap_or_else(|| StandbyError::Stream { source, stderr: self.stderr() })
    }

    /// Waits a moment for QEMU's end: its sockets close before the process is gone.
    fn exited(&mut self) -> Option<StandbyError> {
        let deadline = Instant::now() + Duration::from_millis(200);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(exited(status, &self.config.run_dir)),
                Ok(None) if Instant::now() < deadline => thread::sleep(STEP),
                _ => return None,
            }
        }
    }
}

impl Drop for StandbyVm {
    fn drop(&mut self) {
        if !self.disowned {
            let _ = end(&mut self.child);
        }
    }
}

/// A QEMU that has not answered yet.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = end(child);
        }
    }
}

fn end(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

fn check_arguments(argv: &[String]) -> Result<(), StandbyError> {
    let refuse = |found: &String, why| Err(StandbyError::Argument { found: found.clone(), why });
    if argv.is_empty() {
        return Err(StandbyError::NoCommand);
    }
    for argument in &argv[1..] {
        match argument.trim_start_matches('-') {
            "incoming" => return refuse(argument, "the standby waits by itself"),
            "daemonize" => return refuse(argument, "its process is looked after here"),
            "mem-path" => return refuse(argument, "its memory is the RAM image"),
            _ if argument.contains("memory-backend=") => return refuse(argument, "its memory is the RAM image"),
            _ => {}
        }
    }
    Ok(())
}

fn prepare_ram_file(config: &StandbyConfig) -> Result<(), StandbyError> {
    let (path, expected) = (&config.ram_file, config.main_ram.used_length);
    let valid = blocks::check(std::slice::from_ref(&config.main_ram));
    valid.map_err(|error| StandbyError::Feed(error.into()))?;
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = open.map_err(|error| io_error("opening", path, error))?;
    let found = file.metadata().map_err(|error| io_error("reading", path, error))?.len();
    if found == 0 {
        return file.set_len(expected).map_err(|error| io_error("growing", path, error));
    }
    if found != expected {
        return Err(StandbyError::RamFile { path: path.clone(), found, expected });
    }
    Ok(())
}

/// The operator's command, with what makes it wait over the RAM image. (A second `-machine` adds to the first.)
fn spawn(config: &StandbyConfig) -> Result<Child, StandbyError> {
    let stderr_file = stderr_path(&config.run_dir);
    let stderr = File::create(&stderr_file).map_err(|error| io_error("creating", &stderr_file, error))?;
    let stdout = stderr.try_clone().map_err(|error| io_error("opening", &stderr_file, error))?;
    // A backend of the board's own name gives the block that name; one of another id is called /objects/ID.
    let name = &config.main_ram.name;
    let id = name.strip_prefix("/objects/").unwrap_or(name);
    let (file, size) = (option_value(&config.ram_file), config.main_ram.used_length);
    let mut command = Command::new(&config.argv[0]);
    command
        .args(&config.argv[1..])
        .args(["-incoming", "defer"])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", option_value(&qmp_path(&config.run_dir)))])
        .args(["-object", &format!("memory-backend-file,id={id},mem-path={file},size={size},share=on")])
        .args(["-machine", &format!("memory-backend={id}")])
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        // A ^C at our terminal is not meant for a VM that has taken over.
        .process_group(0);
    command.spawn().map_err(|error| io_error("starting", Path::new(&config.argv[0]), error))
}

/// In QEMU's options a comma is written twice.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn connect(config: &StandbyConfig, path: &Path, starting: &mut Starting) -> Result<Qmp, StandbyError> {
    let deadline = Instant::now() + START;
    loop {
        let running = starting.0.as_mut().map(Child::try_wait);
        if let Some(Ok(Some(status))) = running {
            return Err(exited(status, &config.run_dir));
        }
        match Qmp::connect(path, deadline.saturating_duration_since(Instant::now())) {
            Ok(qmp) => return Ok(qmp),
            Err(QmpError::Connect { .. }) if Instant::now() < deadline => thread::sleep(STEP),
            // QEMU refuses its options after it has opened its sockets: what it said is the better error.
            Err(QmpError::Closed | QmpError::NotQmp { .. }) if Instant::now() < deadline => thread::sleep(STEP),
            Err(source) => return Err(StandbyError::Qmp { source, stderr: stderr_tail(&config.run_dir) }),
        }
    }
}

fn exited(status: ExitStatus, run_dir: &Path) -> StandbyError {
    StandbyError::Exited { status: status.to_string(), stderr: stderr_tail(run_dir) }
}

fn io_error(doing: &'static str, what: &Path, source: io::Error) -> StandbyError {
    StandbyError::Io { doing, what: what.display().to_string(), source }
}

fn qmp_path(run_dir: &Path) -> PathBuf {
    run_dir.join("standby.qmp")
}

fn incoming_path(run_dir: &Path) -> PathBuf {
    run_dir.join("standby.incoming")
}

fn stderr_path(run_dir: &Path) -> PathBuf {
    run_dir.join("standby.stderr")
}

/// The end of what QEMU said.
fn stderr_tail(run_dir: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(stderr_path(run_dir))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(STDERR_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(STDERR_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    match read() {
        Ok(text) if text.is_empty() => "nothing".into(),
        Ok(text) => text,
        Err(error) => format!("(its stderr cannot be read: {error})"),
    }
}
