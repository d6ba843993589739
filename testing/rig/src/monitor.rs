//! A QEMU monitor that is held: commands, and events with QEMU's own times.
//!
//! `STOP` is sent once the processors stand still, `RESUME` just before they run on, whoever asked for it. So the time
//! between them is how long a VM stood still, told by the QEMU that stopped it, and it means the same under any
//! sidecar.

use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// Longest line that is accepted.
const LINE_MAX: usize = 1024 * 1024;
/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a wait looks whether somebody interrupted the rig.
const LOOK: Duration = Duration::from_millis(50);

/// Something that QEMU told unasked.
#[derive(Clone, Debug, PartialEq)]
pub struct QemuEvent {
    /// Its name.
    pub name: String,
    /// When, in unix milliseconds, to a microsecond.
    pub at_ms: f64,
    /// What else it says.
    pub data: Value,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    /// What was read and is no whole line yet.
    pending: Vec<u8>,
    events: Vec<QemuEvent>,
}

impl Monitor {
    /// Connects, and leaves the negotiation behind.
    ///
    /// # Errors
    /// Nobody is there, or it is no QEMU.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut monitor = Self { stream, pending: Vec::new(), events: Vec::new() };
        monitor.command("qmp_capabilities", &json!({})).with_context(|| socket.display().to_string())?;
        Ok(monitor)
    }

    /// Carries out a command; its answer.
    ///
    /// # Errors
    /// QEMU refuses it, is gone, or does not answer.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let mut line = json!({ "execute": name, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes()).with_context(|| name.to_owned())?;
        let deadline = Instant::now() + PATIENCE;
        while let Some(mut message) = self.message(deadline).with_context(|| name.to_owned())? {
            if let Some(error) = message.pointer("/error/desc").and_then(Value::as_str) {
                bail!("QEMU refuses {name}: {error}");
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
        }
        bail!("{name}: no answer within {PATIENCE:?}")
    }

    /// Switches a capability of migrations on.
    ///
    /// # Errors
    /// As [`Monitor::command`].
    pub fn migrate_capability(&mut self, name: &str) -> Result<()> {
        let capabilities = json!({ "capabilities": [{ "capability": name, "state": true }] });
        self.command("migrate-set-capabilities", &capabilities).map(drop)
    }

    /// Events of the coming `time`, after those that came before; all are forgotten then.
    ///
    /// # Errors
    /// QEMU is gone, or somebody interrupted the rig.
    pub fn listen(&mut self, time: Duration) -> Result<Vec<QemuEvent>> {
        let deadline = Instant::now() + time;
        while self.message(deadline)?.is_some() {}
        Ok(std::mem::take(&mut self.events))
    }

    /// Waits for an event that `wanted` accepts, and gives it. None: it did not come.
    ///
    /// # Errors
    /// As [`Monitor::listen`].
    pub fn wait(&mut self, patience: Duration, wanted: impl Fn(&QemuEvent) -> bool) -> Result<Option<QemuEvent>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = self.events.iter().position(&wanted) {
                return Ok(Some(self.events.remove(found)));
            }
            if self.message(deadline)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// The next message; an event is kept as well. None: none came.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>> {
        let Some(line) = self.line(deadline)? else { return Ok(None) };
        let message: Value = serde_json::from_slice(&line).context("not QMP")?;
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            let number = |field: &str| message.pointer(&format!("/timestamp/{field}")).and_then(Value::as_f64);
            let (Some(seconds), Some(us)) = (number("seconds"), number("microseconds")) else {
                bail!("event {name} without a time")
            };
            let data = message.get("data").cloned().unwrap_or_default();
            self.events.push(QemuEvent { name: name.to_owned(), at_ms: seconds * 1e3 + us / 1e3, data });
        }
        Ok(Some(message))
    }

    fn line(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut bytes = [0; 65536];
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                return Ok(Some(self.pending.drain(..=end).collect()));
            }
            ensure!(self.pending.len() < LINE_MAX, "a line of more than {LINE_MAX} bytes");
            if sys::interrupted() {
                bail!("interrupted");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.min(LOOK)))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("QEMU is gone"),
                Ok(len) => self.pending.extend_from_slice(&bytes[..len]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => bail!("QEMU is gone"),
                Err(error) => return Err(error).context("QEMU's monitor"),
            }
        }
    }
}

/// How long the VM stood still, and when: pairs of `STOP` and `RESUME`. One without the other is left out.
#[must_use]
pub fn pauses(events: &[QemuEvent]) -> Vec<Pause> {
    let mut stopped = None;
    let mut pauses = Vec::new();
    for event in events {
        match event.name.as_str() {
            "STOP" => stopped = Some(event.at_ms),
            "RESUME" => pauses.extend(stopped.take().map(|at_ms| Pause { at_ms, took_ms: event.at_ms - at_ms })),
            _ => {}
        }
    }
    pauses
}

/// The VM stood still.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pause {
    /// Since when, in unix milliseconds.
    pub at_ms: f64,
    /// For so long.
    pub took_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that greets, answers the negotiation, and says `text`.
    fn against(text: &'static str) -> (Result<Monitor>, std::thread::JoinHandle<UnixStream>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut to, _) = listener.accept().unwrap();
            to.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n").unwrap();
            to.write_all(text.as_bytes()).unwrap();
            to
        });
        (Monitor::connect(&path), server)
    }

    #[test]
    fn answers_and_events_come_in_any_order() {
        let text = concat!(
            r#"{"timestamp": {"seconds": 7, "microseconds": 500}, "event": "STOP"}"#,
            "\n",
            r#"{"return": {"status": "colo"}}"#,
            "\n",
            r#"{"timestamp": {"seconds": 7, "microseconds": 2500}, "event": "RESUME"}"#,
            "\n",
        );
        let (monitor, server) = against(text);
        let mut monitor = monitor.unwrap();
        assert_eq!(monitor.command("query-migrate", &json!({})).unwrap()["status"], "colo");
        let resume = monitor.wait(PATIENCE, |e| e.name == "RESUME").unwrap().unwrap();
        assert_eq!((resume.at_ms, monitor.events.len()), (7002.5, 1));
        drop(server.join().unwrap());
        assert!(monitor.listen(PATIENCE).unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn refusals_have_qemus_words() {
        let (monitor, server) = against("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n");
        let error = monitor.unwrap().command("migrate", &json!({ "uri": "tcp:" })).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refuses migrate: no");
        drop(server.join());
        let (monitor, server) = against("rubbish\n");
        assert!(format!("{:#}", monitor.unwrap().command("stop", &json!({})).unwrap_err()).contains("not QMP"));
        drop(server.join());
    }

    #[test]
    fn a_pause_has_two_ends() {
        let event = |name: &str, at_ms| QemuEvent { name: name.to_owned(), at_ms, data: Value::Null };
        let events = [
            event("RESUME", 1.0),
            event("STOP", 2.0),
            event("MIGRATION", 2.5),
            event("RESUME", 4.0),
            event("STOP", 9.0),
        ];
        assert_eq!(pauses(&events), [Pause { at_ms: 2.0, took_ms: 2.0 }]);
        assert_eq!(pauses(&[]), []);
    }
}
