//! The control socket's requests, brought to the loop that owns the state, and its answers brought back.

use crate::{
    cli::Side,
    clock::Clock,
    exit::{Code, ExitError},
    inbox::{self, Inbox},
    keeper,
    progress::Progress,
    status::{ControlError, ControlSocket, Request, Response, SCHEMA, Status, ask, socket_path},
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
    turns: Progress,
    _socket: ControlSocket,
}

impl Control {
    /// Serves the control socket of one side of a VM. A loop that does not answer does not make the operator guess: its
    /// socket tells how long it has not turned.
    pub fn listen(run_dir: &Path, vm: Name, node: Name, side: Side) -> Result<Self> {
        let (outbox, requests) = inbox::inbox()?;
        let (outbox, turns) = (Mutex::new(outbox), Progress::new());
        let turned = turns.clone();
        let handler = move |request: Request| {
            let (reply, answer) = mpsc::sync_channel(1);
            let asked = matches!(request, Request::Status);
            let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { PATIENCE };
            if let Ok(outbox) = outbox.lock() {
                outbox.put(ControlRequest { request, reply });
            }
            answer.recv_timeout(patience).unwrap_or_else(|_| {
                let why = format!("the loop has not turned for {} s", turned.since(Clock.now()).as_secs());
                match asked {
                    true => Response::Status(Box::new(stalled((vm, node, side), why))),
                    false => refused(&format!("the process is there, but {why}")),
                }
            })
        };
        let socket = ControlSocket::spawn(&socket_path(run_dir, vm, side), Arc::new(handler))?;
        Ok(Self { requests, turns, _socket: socket })
    }

    /// The next request, if any. Called in every turn of the loop.
    pub fn take(&self) -> Option<ControlRequest> {
        self.turns.mark();
        self.requests.take()
    }
}

/// What is known of a side whose loop stands still.
fn stalled((vm, node, side): (Name, Name, Side), why: String) -> Status {
    Status {
        schema: SCHEMA,
        side: side.as_str().into(),
        role: "stalled".into(),
        vm: vm.to_string(),
        node: node.to_string(),
        stalled: Some(why),
        ..Status::default()
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
