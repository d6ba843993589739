//! A look at a VM through a monitor of the rig's own: is it running? Independent of what the product claims.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Longest line that is accepted.
const LINE_MAX: u64 = 1024 * 1024;

/// The VM's run state (`running`, `colo`, `inmigrate`, `paused`, ...); None if there is no QEMU behind `socket`.
///
/// # Errors
/// A QEMU that is there and does not answer within `patience`, or answers something else.
pub fn run_state(socket: &Path, patience: Duration) -> Result<Option<String>> {
    let Ok(mut stream) = UnixStream::connect(socket) else { return Ok(None) };
    let start = Instant::now();
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
    let mut lines = BufReader::new(stream);
    while start.elapsed() < patience {
        let mut line = String::new();
        let read = lines.by_ref().take(LINE_MAX).read_line(&mut line);
        match read.with_context(|| format!("QEMU does not answer on {}", socket.display()))? {
            0 => return Ok(None),
            _ => {
                let message: Value = serde_json::from_str(&line).context("QMP")?;
                if let Some(status) = message.pointer("/return/status").and_then(Value::as_str) {
                    return Ok(Some(status.to_owned()));
                }
            }
        }
    }
    bail!("QEMU does not answer on {}", socket.display())
}

/// Whether a VM in this state executes, or did a moment ago and will again: `colo` is the pause of a checkpoint.
#[must_use]
pub fn executes(state: &str) -> bool {
    matches!(state, "running" | "colo" | "finish-migrate")
}
