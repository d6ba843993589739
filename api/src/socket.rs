//! The unix socket: `RUN_DIR/<vm>.<side>.sock`, mode 0600, one process at a time.

use crate::{
    desk::{Desk, Shared},
    plane::{self, Task},
    problem::{Kind, Problem},
    serve::{Accept, serve},
};
use node::files;
use rustix::process::{Uid, geteuid};
use std::{
    fs::{self, File, Metadata, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{UnixListener, UnixStream};

/// Bytes of an answer that an error quotes.
const QUOTED: usize = 80;

/// Why the control socket does not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[error("control socket {}: answered {answer:?}: {why}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The answer's beginning; empty if nothing came.
        answer: String,
        /// What is wrong with it.
        why: String,
    },
    /// Its process is of the release before.
    #[error("control socket {}: its process speaks the control protocol of an older afterimage: upgrade it", path.display())]
    Older {
        /// The socket.
        path: PathBuf,
    },
}

impl ControlError {
    pub(crate) fn answer(path: &Path, heard: &[u8], why: String) -> Self {
        let answer = String::from_utf8_lossy(&heard[..heard.len().min(QUOTED)]).into_owned();
        Self::Answer { path: path.to_owned(), answer, why }
    }
}

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    let path = path.to_owned();
    move |source| ControlError::Io { path, doing, source }
}

/// A served control socket. Dropping it ends the service and removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// The socket's inode: what is removed in the end.
    bound: Metadata,
    _task: Task,
    /// Held while this lives: one process per side of a VM.
    _lock: File,
}

impl ControlSocket {
    /// Serves `path`; makes its directory (mode 0700) if need be, and replaces what a dead predecessor left. Fails with
    /// [`ControlError::Busy`] while another process serves it.
    pub fn spawn(path: &Path, desk: Desk) -> Result<Self, ControlError> {
        if let Some(dir) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(failed("creating its directory", path))?;
        }
        let lock = lock(path)?;
        let (listener, bound) = listen(path).map_err(failed("listening", path))?;
        let site = Arc::new(Shared(Arc::new(desk)));
        let task = plane::spawn(async move {
            match UnixListener::from_std(listener) {
                Ok(listener) => serve(site, Owned { listener, owner: geteuid() }).await,
                Err(error) => tracing::error!("control socket: {error}"),
            }
        });
        let task = task.map_err(failed("starting the control plane", path))?;
        Ok(Self { path: path.to_owned(), bound, _task: task, _lock: lock })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = files::remove_socket(&self.path, &self.bound);
    }
}

fn lock(path: &Path) -> Result<File, ControlError> {
    let locked = files::open_locked(&path.with_extension("lock")).map_err(failed("locking its lock file", path))?;
    locked.ok_or_else(|| ControlError::Busy { path: path.to_owned() })
}

/// Listens under another name, and renames: so the socket is never there with another mode than 0600. With the lock held, a
/// socket of either name is a dead predecessor's.
fn listen(path: &Path) -> io::Result<(StdListener, Metadata)> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = StdListener::bind(&temporary)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    let bound = fs::symlink_metadata(&temporary)?;
    fs::rename(&temporary, path)?;
    Ok((listener, bound))
}

/// The socket's mode lets nobody else in but root; this holds where somebody has changed that.
struct Owned {
    listener: UnixListener,
    owner: Uid,
}

impl Accept for Owned {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<Problem>)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        let stranger = uid != self.owner.as_raw() && uid != Uid::ROOT.as_raw();
        let why =
            || Problem::new(Kind::Forbidden, format!("user {uid} asks, and only user {} and root may", self.owner));
        Ok((stream, stranger.then(why)))
    }
}
