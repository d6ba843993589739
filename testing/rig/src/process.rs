//! Processes on a host, their events and logs. None outlives the rig.

use crate::{
    hosts::Host,
    timeline::{Entry, LINE_MAX, Timeline},
};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// A command line.
#[derive(Clone, Debug)]
pub struct Line(pub Vec<OsString>);

impl Line {
    /// Begins with the program.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self(vec![program.as_ref().to_owned()])
    }

    /// Adds words.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.0.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        self
    }

    /// Adds `--name value`.
    #[must_use]
    pub fn flag(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.args([OsStr::new(name), value.as_ref()])
    }
}

/// A process that was started by us. Dropped: killed.
#[derive(Debug)]
pub struct Proc {
    /// How it is called in the timeline.
    pub name: String,
    child: Child,
    log: PathBuf,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Proc {
    /// Starts `line` on `host`. Its standard output goes to `timeline` as events of `name`; what it says on standard
    /// error goes to `NAME.log` in `dir`.
    ///
    /// # Errors
    /// No log file, or the host cannot be reached. (A program that the host lacks shows as a failure.)
    pub fn spawn(host: &dyn Host, name: &str, line: &Line, dir: &Path, timeline: &Timeline) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let errors = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        // The process group keeps the terminal's Ctrl-C away from everything but the rig, which then cleans up in its
        // own order.
        let mut child = host
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let reader = child.stdout.take().map(|output| {
            let (source, timeline, ahead_ms) = (name.to_owned(), timeline.clone(), host.clock_ahead_ms());
            std::thread::spawn(move || read_events(output, &source, ahead_ms, &timeline))
        });
        Ok(Self { name: name.to_owned(), child, log, reader })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input; closing it tells the rig's own helpers to finish.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its exit status, once there is one within `patience`. All that it said is in the timeline by then.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        };
        self.drain();
        Some(status)
    }

    /// Waits until what it said is in the timeline. Not for ever: a child of its own may still hold the pipe.
    fn drain(&mut self) {
        let start = Instant::now();
        while self.reader.as_ref().is_some_and(|r| !r.is_finished()) && start.elapsed() < Duration::from_millis(500) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of what it said on standard error.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_events(output: impl Read, source: &str, ahead_ms: f64, timeline: &Timeline) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match output.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                timeline.push(Entry::parse(source, String::from_utf8_lossy(&line).trim_end()).on_our_clock(ahead_ms));
            }
        }
    }
}

/// Sends `signal`; a process that is gone is fine.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a thread, stopped or not, stands in a wait for events, as its program's loop does between two turns.
#[must_use]
pub fn waits(thread: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{thread}/syscall")).is_ok_and(|text| is_wait(&text))
}

/// What `/proc/PID/syscall` says: the call's number and arguments, or `running`, or -1 outside of calls
/// (proc_pid_syscall(5)).
fn is_wait(text: &str) -> bool {
    // (A wait with a time limit that was interrupted goes on as `restart_syscall`.)
    let waits = [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_restart_syscall,
    ];
    text.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).is_some_and(|n| waits.contains(&n))
}

/// The children of a process.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    all_pids().filter(|pid| stat(*pid).is_some_and(|s| s.parent == parent)).collect()
}

/// All processes of this machine.
pub(crate) fn all_pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)), as far as we ask.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    /// Name of the program, cut to 15 bytes.
    pub name: String,
    /// Process id of the parent.
    pub parent: u32,
    /// Time on a CPU, in ticks of 1/100 s.
    pub cpu_ticks: u64,
}

/// None if there is no such process.
#[must_use]
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in parentheses and may hold any character, also `)`.
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        name: text.get(open + 1..close)?.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(11)? + number(12)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_from_other_calls() {
        let poll = format!("{} 0x55d960362e00 0x0 0xea60 0x0 0x0 0x0 0x7fffc2855f48 0x7f2e4d31a230\n", libc::SYS_ppoll);
        assert!(is_wait(&poll));
        let write = format!("{} 0x3 0x0", libc::SYS_write);
        for other in ["", "running\n", "-1 0x7ffccace43a0 0x7fdf254fcc77\n", &write] {
            assert!(!is_wait(other), "{other}");
        }
    }

    #[test]
    fn stat_of_a_program_with_an_evil_name() {
        let text = "77 (a) (b) S 12 77 77 0 -1 4194560 0 0 0 0 30 12 0 0 20 0 1 0 1 1 1\n";
        assert_eq!(parse_stat(text), Some(Stat { name: "a) (b".to_owned(), parent: 12, cpu_ticks: 42 }));
        for broken in ["", "77", "77 (a", "77 (a) S", ")("] {
            assert_eq!(parse_stat(broken), None);
        }
        let me = stat(std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
    }
}
