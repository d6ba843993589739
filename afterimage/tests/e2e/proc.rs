//! Child processes: their events, their last words, and their end. All of them die with the test that started them.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use vmm_qemu::qmp::Qmp;

/// Longer than anything here takes; only a hang takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Marks every process of one test, and their children: its value is the test's directory.
const MARK: &str = "AFTERIMAGE_E2E";

/// Asks until there is an answer.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends SIGKILL; a process that is gone is fine.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether there is such a process, and it is no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

/// Kills whatever carries the mark of `dir`.
pub(crate) fn kill_marked(dir: &Path) {
    let mark = format!("{MARK}={}", dir.display());
    let is_marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != std::process::id() && environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    pids().filter(is_marked).for_each(kill);
}

/// A child, whose standard output is events, one JSON object a line.
pub(crate) struct Proc {
    pub(crate) name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Proc {
    pub(crate) fn spawn(dir: &Path, name: &str, command: Command) -> Self {
        Self::spawn_from(dir, name, command, Stdio::null())
    }

    /// With this as its standard input.
    pub(crate) fn spawn_from(dir: &Path, name: &str, mut command: Command, stdin: Stdio) -> Self {
        let file = |kind: &str| dir.join(format!("{name}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let child = command
            .env(MARK, dir)
            .stdin(stdin)
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { name: name.to_owned(), child, out, err }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// Both outputs, for messages.
    pub(crate) fn said(&self) -> String {
        format!("--- {} stdout\n{}--- {} stderr\n{}", self.name, self.stdout(), self.name, self.stderr())
    }

    /// The events so far, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.stdout();
        let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        whole.map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{}: {l:?}: {e}", self.name))).collect()
    }

    /// How many events of this name there were.
    pub(crate) fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|e| e["event"] == event).count()
    }

    /// Waits for the first event of this name.
    pub(crate) fn wait_event(&mut self, event: &str) -> Value {
        self.wait_events(event, 1)
    }

    /// Waits until there were `n` events of this name; the last of them.
    pub(crate) fn wait_events(&mut self, event: &str, n: usize) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let ended = !matches!(self.child.try_wait(), Ok(None));
            if let Some(found) = self.events().into_iter().filter(|e| e["event"] == event).nth(n - 1) {
                return found;
            }
            assert!(!ended && Instant::now() < deadline, "no event {event:?} no. {n}; {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end: the exit code, -1 after a signal.
    pub(crate) fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asserts that it ends with this code, and that what it said on standard error has all of `words` in it.
    pub(crate) fn expect_end(&mut self, code: i32, words: &[&str]) {
        let ended = self.wait();
        assert_eq!(ended, code, "{}", self.said());
        let said = self.stderr();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {}", self.said());
        }
        assert!(!said.contains("panicked"), "{}", self.said());
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its child whose command line has `word` in it.
    pub(crate) fn child_with(&self, word: &str) -> Option<u32> {
        let mine = |pid: &u32| state_and_parent(*pid).is_some_and(|(_, parent)| parent == self.pid());
        let named = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        };
        pids().filter(mine).find(named)
    }

    /// `protect`'s data path.
    pub(crate) fn data_path(&self) -> u32 {
        until("a data path", || self.child_with("data-path"))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

/// A control connection of the test's own.
pub(crate) fn qmp(path: &Path) -> Qmp {
    until("a QMP connection", || Qmp::connect(path, Duration::from_secs(5)).ok())
}
