//! A look at a VM through a monitor of the rig's own: is it running? Independent of what the product claims.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Longest line that is accepted.
const LINE_MAX: u64 = 1024 * 1024;
/// How long a QEMU that is there may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The VM's run state (`running`, `colo`, `inmigrate`, `paused`, ...); None if there is no QEMU behind `socket`.
///
/// # Errors
/// A QEMU that is there and does not answer within `patience`, or answers something else.
pub fn run_state(socket: &Path, patience: Duration) -> Result<Option<String>> {
    let Ok(stream) = UnixStream::connect(socket) else { return Ok(None) };
    let answer = match ask(stream, patience) {
        // A QEMU that is being killed still takes connections for a moment.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(has_gone) => return Ok(None),
        answer => answer,
    };
    answer.with_context(|| format!("QEMU on {}", socket.display()))
}

/// Whether the VM behind `socket` is seen to execute within `patience`. It is asked several times in any case: a pause
/// is no end. No QEMU: it does not.
///
/// # Errors
/// There is a QEMU that does not answer.
pub fn executes(socket: &Path, patience: Duration) -> Result<bool> {
    let start = Instant::now();
    let mut times = 0;
    while times < 20 || start.elapsed() < patience {
        match run_state(socket, ANSWER)? {
            None => return Ok(false),
            Some(state) if state == "running" => return Ok(true),
            Some(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        times += 1;
    }
    Ok(false)
}

fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn ask(mut stream: UnixStream, patience: Duration) -> Result<Option<String>> {
    let start = Instant::now();
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
    let mut lines = BufReader::new(stream);
    while start.elapsed() < patience {
        let mut line = String::new();
        if lines.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let message: Value = serde_json::from_str(&line).context("not QMP")?;
        if let Some(status) = message.pointer("/return/status").and_then(Value::as_str) {
            return Ok(Some(status.to_owned()));
        }
    }
    bail!("no answer within {patience:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What a monitor that greets and says `reply` makes of it.
    fn against(reply: &'static [u8]) -> Result<Option<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut to, _) = listener.accept().unwrap();
            to.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n").unwrap();
            to.write_all(reply).unwrap();
            // What was asked is read: closing a socket with something unread would break the connection instead.
            to.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = to.read_to_end(&mut Vec::new());
        });
        let state = run_state(&path, Duration::from_secs(10));
        server.join().unwrap();
        state
    }

    #[test]
    fn states_rubbish_and_nobody() {
        assert_eq!(against(b"{\"return\": {\"status\": \"colo\"}}\n").unwrap().as_deref(), Some("colo"));
        assert!(format!("{:#}", against(b"hello\n").unwrap_err()).contains("not QMP"));
        assert_eq!(against(b"").unwrap(), None, "it went away");
        assert_eq!(run_state(Path::new("/nowhere/qmp"), Duration::ZERO).unwrap(), None);
    }
}
