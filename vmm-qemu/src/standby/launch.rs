//! Starts QEMUs: the operator's command, and what makes it wait over the RAM image.

use super::{STEP, StandbyConfig, StandbyError, line::Line, memory::MainRam};
use crate::{
    argv::{CommandLine, Item, escaped},
    blocks,
    qmp::{Qmp, QmpError, is_stopped},
};
use node::{scope::Scope, sys::child::in_its_own_session};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For QEMU to answer on QMP after it was started. Slow hosts under emulation need seconds.
pub(super) const START: Duration = Duration::from_secs(20);
/// For a QEMU that was killed to be gone.
const KILLED: Duration = Duration::from_secs(2);
/// A QEMU that a signal has stopped for so long while it starts is not waited for.
const STOPPED: Duration = Duration::from_secs(2);
/// Bytes of QEMU's stderr in an error.
const STDERR_TAIL: u64 = 2000;

/// A QEMU that has not answered yet.
pub(super) struct Starting(pub(super) Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = end(child);
        }
    }
}

/// Kills it, and waits for its end, but not for ever: one that a cgroup freezer holds dies when it is thawed. True: it is gone.
///
/// False, and it never runs again all the same: SIGKILL is pending on each of its threads, and none comes back to user mode, or
/// enters the guest, before it has died of that. So what it has mapped is not written by it any more, and another one may be started
/// over the same RAM image. What it holds (a port, a lock) it holds until then.
pub(super) fn end(child: &mut Child) -> io::Result<bool> {
    child.kill()?;
    let deadline = Instant::now() + KILLED;
    loop {
        match child.try_wait()? {
            Some(_) => return Ok(true),
            None if Instant::now() >= deadline => return Ok(false),
            None => thread::sleep(STEP),
        }
    }
}

/// The RAM image must be there, and have the main memory's size.
pub(super) fn check_ram_file(config: &StandbyConfig) -> Result<(), StandbyError> {
    let (path, expected) = (&config.ram_file, config.main_ram.used_length);
    let valid = blocks::check(std::slice::from_ref(&config.main_ram));
    valid.map_err(|error| StandbyError::Feed(error.into()))?;
    // A descriptor of ours in /proc is a link by nature; elsewhere nobody shall lead us to another file.
    let follow = if path.starts_with("/proc") { 0 } else { libc::O_NOFOLLOW };
    let open = OpenOptions::new().read(true).write(true).custom_flags(follow).open(path);
    let file = open.map_err(|error| StandbyError::io("opening", path, error))?;
    let found = file.metadata().map_err(|error| StandbyError::io("reading", path, error))?.len();
    if found == expected { Ok(()) } else { Err(StandbyError::RamFile { path: path.clone(), found, expected }) }
}

/// The operator's command, with what makes it wait over the RAM image.
pub(super) fn waiting(line: &Line, config: &StandbyConfig) -> CommandLine {
    let mut command = line.line.clone();
    command.items.push(Item::option("incoming", "defer"));
    command.items.push(control_socket(&config.run_dir));
    command.items.extend(MainRam::of(&config.main_ram).over_file(line, &config.ram_file, true));
    command
}

/// The option for the control socket that is ours.
pub(super) fn control_socket(dir: &Path) -> Item {
    let path = escaped(&qmp_path(dir).display().to_string());
    Item::option("qmp", format!("unix:{path},server=on,wait=off"))
}

/// Starts it. What it says goes to a file in `dir`. `outlives`: the VM that it may become at any moment; then what ends our
/// control group must not end it.
pub(super) fn spawn(
    line: &CommandLine,
    dir: &Path,
    outlives: Option<&str>,
    stdin: Stdio,
    prepare: impl FnOnce(&mut Command),
) -> Result<Child, StandbyError> {
    let stderr_file = stderr_path(dir);
    let stderr = File::create(&stderr_file).map_err(|error| StandbyError::io("creating", &stderr_file, error))?;
    let stdout = stderr.try_clone().map_err(|error| StandbyError::io("opening", &stderr_file, error))?;
    let words = line.words();
    let scope = outlives.map(|vm| Scope::new(vm, "qemu"));
    let apart = || {
        let mut command = Command::new(&words[0]);
        in_its_own_session(&mut command);
        command
    };
    let mut command = scope.as_ref().map_or_else(apart, |scope| scope.command(&words[0]));
    command.args(&words[1..]).stdin(stdin).stdout(stdout).stderr(stderr);
    prepare(&mut command);
    let started = match &scope {
        Some(scope) => scope.spawn(&mut command),
        None => command.spawn(),
    };
    started.map_err(|error| StandbyError::io("starting", Path::new(&words[0]), error))
}

/// The QEMU that answers must be the process that was started: that one is watched, and killed when it has to be.
fn same_process(qmp: Qmp, pid: Option<u32>) -> Result<Qmp, StandbyError> {
    match (qmp.peer_pid(), pid) {
        (Ok(qemu), Some(started)) if qemu != started => Err(StandbyError::Wrapped { started, qemu }),
        _ => Ok(qmp),
    }
}

/// Waits until the QEMU of `dir`, process `pid`, answers; `ended` tells of its end.
pub(super) fn connect(
    dir: &Path,
    pid: Option<u32>,
    deadline: Instant,
    mut ended: impl FnMut() -> Option<ExitStatus>,
) -> Result<Qmp, StandbyError> {
    let mut stopped = None;
    loop {
        if let Some(status) = ended() {
            return Err(StandbyError::exited(status, stderr_tail(dir)));
        }
        match (pid.is_some_and(is_stopped), stopped) {
            (false, _) => stopped = None,
            (true, Some(since)) if Instant::now() >= since + STOPPED => {
                return Err(StandbyError::Stopped { pid: pid.unwrap_or_default() });
            }
            (true, _) => stopped = stopped.or(Some(Instant::now())),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match Qmp::connect(&qmp_path(dir), left.min(STOPPED)) {
            Ok(qmp) => return same_process(qmp, pid),
            Err(QmpError::Connect { .. }) if Instant::now() < deadline => thread::sleep(STEP),
            Err(error) if passes(&error) && Instant::now() < deadline => thread::sleep(STEP),
            Err(source) => return Err(StandbyError::Qmp { source, stderr: stderr_tail(dir) }),
        }
    }
}

/// What a QEMU that is still starting may answer with. One that refuses its options closes its sockets: what it said is the
/// better error. One that makes a large memory greets late: the greeting may come at the very end of a try's time.
fn passes(error: &QmpError) -> bool {
    use QmpError::{Busy, Closed, NotQmp, Timeout};
    matches!(error, Busy { .. } | Closed | NotQmp { .. } | Timeout { .. })
}

pub(super) fn qmp_path(run_dir: &Path) -> PathBuf {
    run_dir.join("standby.qmp")
}

fn stderr_path(run_dir: &Path) -> PathBuf {
    run_dir.join("standby.stderr")
}

/// The end of what QEMU said.
pub(super) fn stderr_tail(run_dir: &Path) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixListener,
    };

    /// A large VM's memory is made before QEMU greets anybody. Callers that gave up wait in its queue by then.
    #[test]
    fn a_qemu_that_greets_late_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(qmp_path(dir.path())).unwrap();
        rustix::net::listen(&listener, 1).unwrap(); // as QEMU does
        let qemu = thread::spawn(move || {
            thread::sleep(STOPPED * 3);
            for caller in listener.incoming() {
                let mut caller = caller.unwrap();
                caller.set_read_timeout(Some(STOPPED)).unwrap();
                let greeting = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
                let heard = writeln!(caller, "{greeting}").and_then(|()| {
                    let mut line = String::new();
                    BufReader::new(&caller).read_line(&mut line)
                });
                let mut answered = || writeln!(caller, r#"{{"return": {{}}, "id": 1}}"#).is_ok();
                if matches!(heard, Ok(bytes) if bytes > 0) && answered() {
                    return;
                }
            }
        });
        connect(dir.path(), None, Instant::now() + START, || None).unwrap();
        qemu.join().unwrap();
    }

    /// A greeting that comes at the end of a try's time leaves none for the first command.
    #[test]
    fn a_greeting_that_uses_up_a_trys_time_is_followed_by_another_try() {
        let timeout = QmpError::Timeout { what: "qmp_capabilities".into(), after: Duration::ZERO };
        assert!(passes(&timeout));
        assert!(!passes(&QmpError::Command { command: "x".into(), class: "y".into(), desc: "z".into() }));
    }
}
