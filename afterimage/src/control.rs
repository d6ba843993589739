//! The control socket's requests, brought to the loop that owns the state, and its answers brought back.

use crate::{
    cli::Side,
    exit::{Code, ExitError},
    inbox::{self, Inbox},
    keeper,
    status::{ControlError, ControlSocket, Request, Response, ask, socket_path},
};
use anyhow::Result;
use mc_core::id::Name;
use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

/// A loop that does not answer within this time is stuck, or stopped.
const PATIENCE: Duration = Duration::from_secs(2);
/// All of a VM's memory is written to a disk.
pub const EXPORT_PATIENCE: Duration = Duration::from_secs(3 * 3600);

/// A request on its way to the loop.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked.
    pub request: Request,
    reply: mpsc::SyncSender<Response>,
}

impl ControlRequest {
    /// Answers it. Who asked may have gone.
    pub fn reply(self, response: Response) {
        let _ = self.reply.send(response);
    }
}

/// The socket, and the requests that come through it.
#[derive(Debug)]
pub struct Control {
    requests: Inbox<ControlRequest>,
    _socket: ControlSocket,
}

impl Control {
    /// Serves the control socket of one side of a VM.
    pub fn listen(run_dir: &Path, vm: Name, side: Side) -> Result<Self> {
        let (outbox, requests) = inbox::inbox()?;
        let outbox = Mutex::new(outbox);
        let handler = move |request: Request| {
            let (reply, answer) = mpsc::sync_channel(1);
            let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { PATIENCE };
            if let Ok(outbox) = outbox.lock() {
                outbox.put(ControlRequest { request, reply });
            }
            answer
                .recv_timeout(patience)
                .unwrap_or_else(|_| refused("the process is there, but its loop does not answer"))
        };
        let socket = ControlSocket::spawn(&socket_path(run_dir, vm, side), Arc::new(handler))?;
        Ok(Self { requests, _socket: socket })
    }

    /// The next request, if any.
    pub fn take(&self) -> Option<ControlRequest> {
        self.requests.take()
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }
}

/// A refusal without a remedy.
#[must_use]
pub fn refused(why: &str) -> Response {
    Response::Refused { message: why.to_owned(), remedy: None }
}

/// It was done.
#[must_use]
pub fn done(what: &str) -> Response {
    Response::Done { message: what.to_owned() }
}

/// If a process on this node runs the VM solo, has it leave. True if one did, or if a keeper passes the VM's packets: that was
/// the VM's network, and the caller must stay even if no standby is found. A keeper goes on meanwhile: whoever opens a gate
/// relieves it just before ([`keeper::relieve`]).
pub fn hand_over(run_dir: &Path, vm: Name) -> Result<bool> {
    let mut left = false;
    for side in [Side::Primary, Side::Standby] {
        let path = socket_path(run_dir, vm, side);
        match ask(&path, Request::Handover, PATIENCE) {
            Err(ControlError::Io { .. }) => continue, // nobody there
            // It may be gone before its answer is out.
            Err(ControlError::Answer { answer, .. }) if answer.is_empty() => wait_until_gone(&path)?,
            Err(error) => return Err(error.into()),
            Ok(Response::Done { .. }) => wait_until_gone(&path)?,
            Ok(Response::Refused { message, .. }) => {
                let what = format!("another afterimage on this node has {vm}: {message}");
                return Err(ExitError::new(Code::Failed, what).into());
            }
            Ok(other) => anyhow::bail!("{} answered with {other:?}", path.display()),
        }
        left = true;
    }
    Ok(left || keeper::running(run_dir, vm).is_some())
}

fn wait_until_gone(path: &Path) -> Result<()> {
    let start = Instant::now();
    while ask(path, Request::Status, PATIENCE).is_ok() {
        anyhow::ensure!(start.elapsed() < PATIENCE, "the process at {} agreed to leave, and stays", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
