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
//! Until it is disowned the QEMU dies with the `StandbyVm`, and with our process, whose end of the stream it waits for; from the
//! takeover on it outlives us.

mod answers;
mod error;
mod isolate;
mod launch;
mod line;
mod memory;
mod rehearsal;
mod room;

pub use answers::Look;
pub use error::StandbyError;
pub use isolate::NotIsolated;
pub use rehearsal::{DEADLINE, Rehearsal, RehearsalConfig, RehearsalError, Rehearsed};

use super::{
    argv::Item,
    blocks::RamBlock,
    profile::Profile,
    qmp::{Qmp, QmpError, instance_id},
    stale::remove_stale,
    stream::StandbyStream,
};
use answers::ANSWER;
use launch::{START, Starting, end, qmp_path, stderr_tail};
use line::Line;
use memory::MainRam;
use serde_json::json;
use std::{
    io::{self, BufWriter},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For each command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// For QEMU to take the next piece of the stream.
const WRITE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(2);
/// QEMU's name for its end of the stream.
const INCOMING: &str = "afterimage";

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// The operator's QEMU command for this VM. What is in the way of waiting over the RAM image is left out, and said.
    pub argv: Vec<String>,
    /// For our sockets and QEMU's stderr. Must exist; nobody else's.
    pub run_dir: PathBuf,
    /// The RAM image: becomes the main memory. Must exist, in its full size.
    pub ram_file: PathBuf,
    /// The main memory's RAM block in the primary's profile: gives the memory backend its id, and its size.
    pub main_ram: RamBlock,
}

/// How long a takeover's parts took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeoverTimes {
    /// Until the last byte was handed to QEMU.
    pub sent: Duration,
    /// Until its RESUME event was seen.
    pub resumed: Duration,
}

/// Whether a standby can be made of the operator's command, as far as the command alone can tell.
pub fn check_command(argv: &[String]) -> Result<(), StandbyError> {
    Line::prepare(argv, None).map(drop)
}

/// The operator's command as a line for a shell, told to load a state from `incoming` (QEMU's `-incoming`): over ordinary
/// memory, or over a file that holds the main memory already.
pub fn stock_command(
    argv: &[String],
    main_ram: &RamBlock,
    ram_file: Option<&Path>,
    incoming: &str,
) -> Result<String, StandbyError> {
    let main = MainRam::of(main_ram);
    let mut line = Line::prepare(argv, Some(&main))?;
    let memory = ram_file.map_or_else(|| main.ordinary(&line), |file| main.over_file(&line, file, true));
    line.line.items.extend(memory);
    line.line.items.push(Item::option("incoming", incoming));
    Ok(line.line.shell())
}

/// A waiting QEMU.
#[derive(Debug)]
pub struct StandbyVm {
    config: StandbyConfig,
    notes: Vec<String>,
    child: Child,
    qmp: Qmp,
    /// Our end of the stream that it waits for; none once it was used.
    incoming: Option<UnixStream>,
    /// The question that it has not answered yet, and since when.
    asked: Option<(u64, Instant)>,
    killed: bool,
    disowned: bool,
}

impl StandbyVm {
    /// Starts QEMU and brings it to where it waits for the takeover.
    pub fn launch(config: StandbyConfig) -> Result<Self, StandbyError> {
        let line = Line::prepare(&config.argv, Some(&MainRam::of(&config.main_ram)))?;
        launch::check_ram_file(&config)?;
        let qmp_path = qmp_path(&config.run_dir);
        remove_stale(&qmp_path).map_err(|error| StandbyError::io("removing", &qmp_path, error))?;
        let vm = config.run_dir.file_name().unwrap_or_default().to_string_lossy();
        let command = launch::waiting(&line, &config);
        let child = launch::spawn(&command, &config.run_dir, Some(&vm), Stdio::null(), |_| {})?;
        // From here on `Drop` cleans up.
        let mut starting = Starting(Some(child));
        let pid = starting.0.as_ref().map(Child::id);
        let ended = || starting.0.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let qmp = launch::connect(&config.run_dir, pid, Instant::now() + START, ended)?;
        let child = starting.0.take().expect("taken here only");
        let mut vm =
            Self { config, notes: line.notes, child, qmp, incoming: None, asked: None, killed: false, disowned: false };
        vm.receive()?;
        Ok(vm)
    }

    /// What was changed in the operator's command, each in a sentence.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Makes it wait for a stream, of which it is handed one end: no path of ours has to be reached by it.
    fn receive(&mut self) -> Result<(), StandbyError> {
        let pair = UnixStream::pair().map_err(|error| StandbyError::io("making", Path::new("a socket pair"), error));
        let (near, far) = pair?;
        let ignore = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        let (name, uri) = (json!({ "fdname": INCOMING }), json!({ "uri": format!("fd:{INCOMING}") }));
        let set = self.qmp.execute("migrate-set-capabilities", ignore, TIMEOUT);
        set.and_then(|_| self.qmp.execute_with("getfd", name, far.as_fd(), TIMEOUT))
            .and_then(|_| self.qmp.execute("migrate-incoming", uri, TIMEOUT))
            .map_err(|error| self.qmp_error(error))?;
        self.incoming = Some(near);
        Ok(())
    }

    /// What the waiting VM is made of.
    pub fn profile(&mut self) -> Result<Profile, StandbyError> {
        Ok(Profile::query(&mut self.qmp)?)
    }

    /// Sends the VM's state, and returns when the VM runs. It is then disowned. [`StandbyStream::shared`] must be the block
    /// of the RAM image, which must hold the same checkpoint.
    ///
    /// # Errors
    /// The VM does not run here; kill this one, or [`StandbyVm::restart`] and try again: the RAM image is unharmed, but for
    /// [`StandbyError::Spoiled`].
    pub fn take_over(&mut self, feed: &StandbyStream<'_>) -> Result<TakeoverTimes, StandbyError> {
        feed.check()?;
        let begun = Instant::now();
        if let Err(source) = self.send(feed) {
            let error = self.stream_error(source);
            return Err(self.give_up(error));
        }
        let sent = begun.elapsed();
        if let Err(error) = self.wait_resume() {
            self.runs_all_the_same(error)?;
        }
        self.disown();
        Ok(TakeoverTimes { sent, resumed: begun.elapsed() })
    }

    /// No RESUME came.
    fn runs_all_the_same(&mut self, error: QmpError) -> Result<(), StandbyError> {
        let error = self.qmp_error(error);
        let state = self.qmp.execute("query-status", serde_json::Value::Null, ANSWER);
        if state.is_ok_and(|state| state["running"] == true) {
            return Ok(());
        }
        Err(self.give_up(error))
    }

    /// Its stream is used up, so another QEMU has to try over this RAM image, and must know that the guest has not written to it.
    /// This one is ended, and then has said all that it had to say (RESUME is sent before a vCPU runs, softmmu/cpus.c
    /// `vm_prepare_start`).
    fn give_up(&mut self, error: StandbyError) -> StandbyError {
        // Killed and not gone, it does not say more than it has said.
        match self.kill() {
            Ok(true) => drop(self.qmp.wait_closed(TIMEOUT)),
            Ok(false) => drop(self.qmp.poll_events()),
            Err(error) => return error,
        }
        match self.qmp.take_events().iter().any(|event| event.name == "RESUME") {
            true => StandbyError::Spoiled(Box::new(error)),
            false => error,
        }
    }

    fn send(&mut self, feed: &StandbyStream<'_>) -> io::Result<()> {
        let stream = self.incoming.take().ok_or(io::ErrorKind::NotConnected)?;
        stream.set_write_timeout(Some(WRITE))?;
        feed.write(BufWriter::with_capacity(256 << 10, stream))
    }

    /// Whether its QEMU still runs.
    pub fn is_alive(&mut self) -> bool {
        !self.killed && matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills QEMU, if it still runs, and starts it again over the same RAM image.
    pub fn restart(mut self) -> Result<Self, StandbyError> {
        self.kill()?;
        Self::launch(self.config.clone())
    }

    /// Kills QEMU. True: it is gone. False: it dies as soon as the kernel lets it, and never runs again.
    pub fn kill(&mut self) -> Result<bool, StandbyError> {
        if self.killed {
            return Ok(!matches!(self.child.try_wait(), Ok(None)));
        }
        let gone = end(&mut self.child).map_err(|source| StandbyError::io("killing", Path::new("QEMU"), source))?;
        self.killed = true;
        if !gone {
            // It still listens there, and answers nobody.
            let _ = std::fs::remove_file(self.qmp_path());
        }
        Ok(gone)
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
    #[cfg(feature = "testing")]
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
                Ok(Some(status)) => return Some(StandbyError::exited(status, self.stderr())),
                Ok(None) if Instant::now() < deadline => thread::sleep(STEP),
                _ => return None,
            }
        }
    }
}

impl Drop for StandbyVm {
    fn drop(&mut self) {
        if !self.disowned {
            let _ = self.kill();
        }
    }
}
