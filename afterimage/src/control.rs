//! The control socket's requests, brought to the loop that owns the state, and its answers brought back.

use crate::{
    exit::{self, ExitError},
    status::{self, ControlSocket, Request, Response},
    wake::{self, Inbox},
};
use anyhow::Result;
use mc_core::id::Name;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// A loop that does not answer within this time is stuck, or stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request on its way to the loop.
#[derive(Debug)]
pub struct ControlRequest {
    request: Request,
    reply: mpsc::SyncSender<Response>,
}

impl ControlRequest {
    /// What is asked.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Answers it. Who asked may have gone.
    pub fn reply(self, response: Response) {
        let _ = self.reply.send(response);
    }
}

/// The socket of one VM's role on this node.
#[must_use]
pub fn socket_path(run_dir: &Path, vm: Name, role: &str) -> PathBuf {
    run_dir.join(format!("{vm}.{role}.sock"))
}

/// The socket, and the requests that come through it.
#[derive(Debug)]
pub struct Control {
    /// What is asked.
    pub requests: Inbox<ControlRequest>,
    _socket: ControlSocket,
}

/// Serves the control socket of `role`.
pub fn listen(run_dir: &Path, vm: Name, role: &str) -> Result<Control> {
    let (outbox, requests) = wake::inbox()?;
    let handler = move |request: Request| {
        let (reply, answer) = mpsc::sync_channel(1);
        outbox.put(ControlRequest { request, reply });
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Response::error("the loop does not answer"))
    };
    let socket = ControlSocket::spawn(&socket_path(run_dir, vm, role), Arc::new(handler))?;
    Ok(Control { requests, _socket: socket })
}

/// If a sidecar on this node runs the VM solo, has it leave. True if one did: its gate was the VM's network, and the caller
/// must stay even if no standby is found.
pub fn hand_over(run_dir: &Path, vm: Name) -> Result<bool> {
    let mut left = false;
    for role in ["primary", "standby"] {
        let path = socket_path(run_dir, vm, role);
        let Ok(response) = status::ask(&path, &Request::Handover, PATIENCE) else { continue };
        if let Some(why) = response.error_text() {
            let what = format!("another afterimage on this node has {vm}: {why}");
            return Err(ExitError::new(exit::FAILED, what).into());
        }
        wait_until_gone(&path)?;
        left = true;
    }
    Ok(left)
}

fn wait_until_gone(path: &Path) -> Result<()> {
    let start = Instant::now();
    while status::ask(path, &Request::Status, PATIENCE).is_ok() {
        anyhow::ensure!(start.elapsed() < PATIENCE, "the sidecar at {} agreed to leave, and stays", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
