//! A tool's server and client as processes.
//!
//! ```text
//!   server started ──(its port listens: /proc/net/tcp)──> client started ──(ends, or the deadline)──> both gone
//! ```
//!
//! Whether the server listens is read from /proc: tools that serve one client would take a probe's connection for it. Without a
//! deadline a client would wait for ever when its peer dies (perftest asks for infinitely many retries).

use super::YardError;
use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

/// How long a server may take until it listens. Emulated machines take seconds to start a process.
const START: Duration = Duration::from_secs(20);

/// A tool to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// The program.
    pub name: &'static str,
    /// The Debian package that it is in.
    pub package: &'static str,
}

/// Ends its process when dropped, and reads what it says meanwhile.
#[derive(Debug)]
struct Running {
    child: Child,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    fn start(tool: &Tool, args: &[String]) -> Result<Self, YardError> {
        let mut command = Command::new(tool.name);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => YardError::Missing { tool: tool.name.to_owned(), package: tool.package },
            _ => YardError::failed(tool.name, format!("cannot be started: {error}")),
        })?;
        let (output, errors) = (child.stdout.take().map(collect), child.stderr.take().map(collect));
        Ok(Self { child, output, errors })
    }

    /// Whether it has ended, and how; never later than `deadline`.
    fn wait(&mut self, deadline: Instant) -> io::Result<Option<std::process::ExitStatus>> {
        loop {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended);
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// What it said: output, then the last line of either stream that is not empty.
    fn said(&mut self) -> (String, String) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let take =
            |handle: &mut Option<JoinHandle<String>>| handle.take().and_then(|h| h.join().ok()).unwrap_or_default();
        let (output, errors) = (take(&mut self.output), take(&mut self.errors));
        let last = |text: &str| {
            text.lines().rev().map(str::trim).find(|l| !l.is_empty() && !l.starts_with("---")).map(str::to_owned)
        };
        let last = last(&errors).or_else(|| last(&output)).unwrap_or_else(|| "it said nothing".to_owned());
        (output, last)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a server and a client that meet at `port` of the loopback interface. The client's output.
///
/// # Errors
/// The tool is missing, fails, or takes longer than `patience` once the server listens.
pub(crate) fn pair(
    tool: &Tool,
    server: &[String],
    client: &[String],
    port: u16,
    patience: Duration,
) -> Result<String, YardError> {
    let mut serving = Running::start(tool, server)?;
    let start = Instant::now();
    while !listens(port) {
        let ended = serving.wait(Instant::now()).ok().flatten();
        if ended.is_some() || start.elapsed() > START {
            let (_, last) = serving.said();
            return Err(YardError::failed(tool.name, format!("its server does not listen: {last}")));
        }
        sleep(Duration::from_millis(10));
    }
    let mut asking = Running::start(tool, client)?;
    let ended = asking.wait(Instant::now() + patience);
    let (output, last) = asking.said();
    match ended {
        Ok(Some(status)) if status.success() => Ok(output),
        Ok(Some(status)) => Err(YardError::failed(tool.name, format!("{status}: {last}"))),
        Ok(None) => Err(YardError::failed(tool.name, format!("no result after {patience:?}: {last}"))),
        Err(error) => Err(YardError::failed(tool.name, error.to_string())),
    }
}

/// A port that nobody listens on now.
///
/// # Errors
/// The system has none.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn listens(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|p| is_listening(&fs::read_to_string(p).unwrap_or_default(), port))
}

/// Whether a table of sockets (Linux, Documentation/networking/proc_net_tcp.rst) has one in state LISTEN (0A) on that port.
fn is_listening(table: &str, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, _, state) = (fields.next(), fields.next(), fields.next());
        local.is_some_and(|l| l.ends_with(&wanted)) && state == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_in_the_kernels_table() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:4853 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:4854 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 2 1
";
        assert!(is_listening(table, 0x4853));
        assert!(!is_listening(table, 0x4854), "connected");
        assert!(!is_listening(table, 0x1234), "the peer's port");
        assert!(!is_listening("", 1));
    }

    #[test]
    fn a_listener_of_ours_is_seen() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(listens(listener.local_addr().unwrap().port()));
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let tool = Tool { name: "no-such-tool-of-ours", package: "perftest" };
        let error = pair(&tool, &[], &[], 1, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.to_string(), "no-such-tool-of-ours is not installed: install the Debian package perftest");
    }

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let tool = Tool { name: "sh", package: "dash" };
        let server = ["-c".to_owned(), "echo no device >&2".to_owned()];
        let error = pair(&tool, &server, &[], free_port().unwrap(), Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("no device"), "{error}");
    }
}
