//! Starts the standby's QEMU: the operator's command, and what makes it wait over the RAM image.

use super::{STEP, StandbyConfig, StandbyError};
use crate::qemu::{
    blocks,
    qmp::{Qmp, QmpError},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For QEMU to answer on QMP after it was started. Slow hosts under emulation need seconds.
const START: Duration = Duration::from_secs(20);
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

pub(super) fn end(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

pub(super) fn check_arguments(argv: &[String]) -> Result<(), StandbyError> {
    let refuse = |found: &String, why| Err(StandbyError::Argument { found: found.clone(), why });
    if argv.is_empty() {
        return Err(StandbyError::NoCommand);
    }
    for argument in &argv[1..] {
        match argument.strip_prefix("--").or(argument.strip_prefix('-')).unwrap_or_default() {
            "S" => return refuse(argument, "the VM has to run when it is taken over"),
            "incoming" => return refuse(argument, "the standby waits by itself"),
            "daemonize" => return refuse(argument, "its process is looked after here"),
            "mem-path" => return refuse(argument, "its memory is the RAM image"),
            _ if argument.contains("memory-backend=") => return refuse(argument, "its memory is the RAM image"),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn prepare_ram_file(config: &StandbyConfig) -> Result<(), StandbyError> {
    let (path, expected) = (&config.ram_file, config.main_ram.used_length);
    let valid = blocks::check(std::slice::from_ref(&config.main_ram));
    valid.map_err(|error| StandbyError::Feed(error.into()))?;
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = open.map_err(|error| StandbyError::io("opening", path, error))?;
    let found = file.metadata().map_err(|error| StandbyError::io("reading", path, error))?.len();
    if found == 0 {
        return file.set_len(expected).map_err(|error| StandbyError::io("growing", path, error));
    }
    if found != expected {
        return Err(StandbyError::RamFile { path: path.clone(), found, expected });
    }
    Ok(())
}

/// The operator's command, with what makes it wait over the RAM image. (A second `-machine` adds to the first.)
pub(super) fn spawn(config: &StandbyConfig) -> Result<Child, StandbyError> {
    let stderr_file = stderr_path(&config.run_dir);
    let stderr = File::create(&stderr_file).map_err(|error| StandbyError::io("creating", &stderr_file, error))?;
    let stdout = stderr.try_clone().map_err(|error| StandbyError::io("opening", &stderr_file, error))?;
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
    command.spawn().map_err(|error| StandbyError::io("starting", Path::new(&config.argv[0]), error))
}

/// In QEMU's options a comma is written twice.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

pub(super) fn connect(config: &StandbyConfig, path: &Path, starting: &mut Starting) -> Result<Qmp, StandbyError> {
    let deadline = Instant::now() + START;
    loop {
        let running = starting.0.as_mut().map(Child::try_wait);
        if let Some(Ok(Some(status))) = running {
            return Err(StandbyError::exited(status, stderr_tail(&config.run_dir)));
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
