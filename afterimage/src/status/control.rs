//! The control socket: `RUN_DIR/<vm>.<side>.sock`, a unix stream, one JSON line each way, mode 0600.

use super::Status;
use crate::{
    cli::Side,
    live::{KeepaliveReport, Settings, SettingsReport, Wanted},
    witness::{WitnessReport, WitnessRequest},
};
use mc_core::id::Name;
use node::{
    accepting::accept_until,
    events::Order,
    files,
    keepalive::Measured,
    repeated::{Repeated, and_more},
    wake::Wake,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Metadata, Permissions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tracing::{debug, warn};

/// Bytes of a request at most.
const MAX_REQUEST: u64 = 4096;
/// Bytes of a response at most. Measurements are a dozen histograms; each could have 30,000 buckets of 24 bytes, and has some
/// thousands.
const MAX_RESPONSE: u64 = 16 << 20;
/// For a request to arrive in full, and for its response to be taken.
const CLIENT: Duration = Duration::from_secs(5);
/// Connections at a time.
const MAX_CLIENTS: usize = 16;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// How is it?
    Status,
    /// To a standby with a manual arbiter: the primary is stopped, take over.
    Takeover,
    /// To a primary with a manual arbiter: the standby is stopped, go on alone.
    Solo,
    /// To a primary: end protection through the arbiter, and go on alone.
    Unprotect,
    /// What is in force between the two sides' beats?
    Keepalive,
    /// Change that.
    KeepaliveSet(Wanted),
    /// To a primary: change these, all or none.
    Set(Settings),
    /// To whoever runs the VM solo: leave it to a successor on this node.
    Handover,
    /// To a primary that is not protected: a successor prepares itself. Go on being the VM's way to its network until it asks
    /// for the hand-over, but leave QEMU's control connection and all standbys to it.
    MakeWay,
    /// To a primary: look for a standby (again), and at once.
    Protect,
    /// What did the beats measure?
    Measured,
    /// To a witness.
    Witness(WitnessRequest),
    /// To a standby: write the VM that you hold into this directory.
    Export {
        /// An absolute path.
        dir: PathBuf,
    },
}

impl Request {
    /// The command that asks this.
    #[must_use]
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Takeover => "takeover",
            Self::Solo => "solo",
            Self::Unprotect => "unprotect",
            Self::Protect => "reprotect",
            Self::Export { .. } => "image export",
            Self::Set(_) => "set",
            Self::Keepalive => "keepalive show",
            Self::KeepaliveSet(_) => "keepalive set",
            Self::Measured => "keepalive probe",
            Self::Status | Self::Witness(_) | Self::Handover | Self::MakeWay => "status",
        }
    }

    /// As events have it, if it is an order about a role.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        Some(match self {
            Self::Takeover => Order::Takeover,
            Self::Solo => Order::Solo,
            Self::Unprotect => Order::Unprotect,
            Self::Handover => Order::Handover,
            Self::MakeWay => Order::MakeWay,
            Self::Export { dir } => Order::Export { dir: dir.clone() },
            _ => return None,
        })
    }

    /// The same, if it decides about a role: such a word belongs into the journal. (Changes of settings have events of their own.)
    #[must_use]
    pub fn decision(&self) -> Option<Order> {
        self.order().filter(|order| *order != Order::MakeWay)
    }
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Keepalive`] and [`Request::KeepaliveSet`].
    Keepalive(Box<KeepaliveReport>),
    /// To [`Request::Set`].
    Settings(Box<SettingsReport>),
    /// To [`Request::Measured`].
    Measured(Box<Measured>),
    /// To [`Request::Witness`]: what it holds.
    Witness(Box<WitnessReport>),
    /// It was done, or begun.
    Done {
        /// What, in a sentence.
        message: String,
    },
    /// It was not.
    Refused {
        /// Why.
        message: String,
        /// What to do.
        remedy: Option<String>,
    },
    /// It was not, and nothing was changed: something that it needs is away.
    Away {
        /// What, and why.
        message: String,
        /// What to do.
        remedy: String,
    },
}

/// Why the control socket does not work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process serves it.
    #[error("{}: another afterimage runs this side of this VM", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system says no.
    #[error("control socket {}: {doing}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The answer is none.
    #[error("control socket {}: answered {answer:?}: {source}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The answer's beginning.
        answer: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    let path = path.to_owned();
    move |source| ControlError::Io { path, doing, source }
}

/// Where the control socket of one side of a VM is.
#[must_use]
pub fn socket_path(run_dir: &Path, vm: Name, side: Side) -> PathBuf {
    run_dir.join(format!("{vm}.{}.sock", side.as_str()))
}

/// Answers a request. Called on the socket's threads, so it must not wait for the data path.
pub type Handler = Arc<dyn Fn(Request) -> Response + Send + Sync>;

/// A served control socket. Dropping it ends the service and removes the socket.
pub struct ControlSocket {
    path: PathBuf,
    /// The socket's inode: what is removed in the end.
    bound: Metadata,
    stop: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
    /// Held while this lives: one process per side of a VM.
    _lock: File,
}

impl std::fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlSocket").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ControlSocket {
    /// Serves `path`; makes its directory (mode 0700) if need be, and replaces what a dead predecessor left. Fails with
    /// [`ControlError::Busy`] while another process serves it.
    pub fn spawn(path: &Path, handler: Handler) -> Result<Self, ControlError> {
        if let Some(dir) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(failed("creating its directory", path))?;
        }
        let lock = lock(path)?;
        let (listener, bound) = listen(path).map_err(failed("listening", path))?;
        let stop = Wake::new().map_err(failed("making an event descriptor", path))?;
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("control".into());
        let thread = thread.spawn(move || accept(&listener, &stopped, &handler));
        let thread = thread.map_err(failed("starting a thread", path))?;
        Ok(Self { path: path.to_owned(), bound, stop, thread: Some(thread), _lock: lock })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = files::remove_socket(&self.path, &self.bound);
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(path: &Path) -> Result<File, ControlError> {
    let locked = files::open_locked(&path.with_extension("lock")).map_err(failed("locking its lock file", path))?;
    locked.ok_or_else(|| ControlError::Busy { path: path.to_owned() })
}

/// Listens under another name, and renames: so the socket is never there with another mode than 0600. With the lock held, a
/// socket of either name is a dead predecessor's.
fn listen(path: &Path) -> io::Result<(UnixListener, Metadata)> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let bound = fs::symlink_metadata(&temporary)?;
    fs::rename(&temporary, path)?;
    Ok((listener, bound))
}

fn accept(listener: &UnixListener, stop: &Wake, handler: &Handler) {
    let (clients, mut said) = (Arc::new(AtomicUsize::new(0)), Repeated::default());
    accept_until(
        "control socket",
        listener,
        stop,
        || listener.accept(),
        |(stream, _)| {
            if let Err(why) = spawn(stream, &clients, handler)
                && let Some(more) = said.say(&why, Instant::now())
            {
                warn!("control socket: closed a connection: {why}{}", and_more(more));
            }
        },
    );
}

fn spawn(stream: UnixStream, clients: &Arc<AtomicUsize>, handler: &Handler) -> Result<(), String> {
    if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
        clients.fetch_sub(1, Ordering::Relaxed);
        return Err(format!("{MAX_CLIENTS} are open already"));
    }
    let (counted, handler) = (Arc::clone(clients), Arc::clone(handler));
    let spawned = std::thread::Builder::new().name("control client".into()).spawn(move || {
        if let Err(e) = serve(&stream, &handler) {
            debug!("control socket: {e}");
        }
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    spawned.map(drop).map_err(|e| {
        clients.fetch_sub(1, Ordering::Relaxed);
        format!("no thread for it: {e}")
    })
}

fn serve(stream: &UnixStream, handler: &Handler) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT))?;
    stream.set_write_timeout(Some(CLIENT))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let response = match serde_json::from_slice(&line) {
            Ok(request) => handler(request),
            Err(e) => refuse(&e.to_string()),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        { stream }.write_all(&bytes)?;
        if !whole {
            // Too long, or cut off: what follows would be the middle of something.
            return Ok(());
        }
    }
}

fn refuse(why: &str) -> Response {
    let remedy = Some(r#"send one line of at most 4096 bytes, such as {"command":"status"}"#.to_owned());
    Response::Refused { message: format!("no request: {why}"), remedy }
}

/// Connects. A listener that is stopped, and whose queue is full, would be waited for without end.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Sends one request and waits for its response; each read and write may take `timeout`.
#[expect(clippy::needless_pass_by_value, reason = "callers make a request, send it, and have no more use for it")]
pub fn ask(path: &Path, request: Request, timeout: Duration) -> Result<Response, ControlError> {
    let mut stream = connect(path, timeout).map_err(failed("connecting", path))?;
    stream.set_read_timeout(Some(timeout)).map_err(failed("setting a timeout", path))?;
    let mut line = serde_json::to_vec(&request).map_err(|e| failed("asking", path)(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed("asking", path))?;
    let mut answer = Vec::new();
    let read = BufReader::new(stream).take(MAX_RESPONSE).read_until(b'\n', &mut answer);
    read.map_err(failed("waiting for the answer", path))?;
    serde_json::from_slice(&answer).map_err(|source| {
        let answer = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
        ControlError::Answer { path: path.to_owned(), answer, source }
    })
}
