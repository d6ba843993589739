//! Whether the VM runs: a process that is there and a socket that is connected do not say so. docs/adr/0011 has the cases, and what
//! each proves.
//!
//! | seen | means | what is done |
//! |---|---|---|
//! | `/proc/PID/stat`: T, nobody traces it, for [`SURE`] | a signal stopped QEMU: the VM provably does not run | [`Health::Halted`]: yields |
//! | t, or T and traced | a debugger holds QEMU | [`Health::Paused`] |
//! | QMP: `io-error`, `internal-error`, `guest-panicked`, `watchdog` | QEMU has stopped the VM | [`Health::Halted`]: yields |
//! | QMP: `paused`, `debug`, `suspended`, `prelaunch` | an operator, or the guest, wants it so | [`Health::Paused`] |
//! | QMP does not answer | nothing: a busy QEMU does not answer either | [`Health::Runs`] |
//!
//! *Yields*: the primary sends no beats and asks for nothing that another node may want, so that the standby, which can run the
//! VM, wins the arbitration. Its gate holds meanwhile. Should QEMU run again before anybody took the VM, it goes on.

use mc_core::id::Time;
use node::events::VmHealth;
use serde::{Deserialize, Serialize};
use std::{fs, time::Duration};
use vmm_qemu::qmp::instance_id;

/// Between two looks at the process.
const LOOK: Duration = Duration::from_millis(250);
/// A process that is stopped for so long was not stopped in passing: by a debugger that attaches, or a shell's job control.
const SURE: Duration = Duration::from_secs(1);

/// Whether the VM runs, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "health", content = "why", rename_all = "kebab-case")]
pub enum Health {
    /// It runs, or nothing proves that it does not.
    #[default]
    Runs,
    /// It does not run, and somebody wants that.
    Paused(String),
    /// It provably does not run, and nobody asked for that.
    Halted(String),
}

impl From<Health> for VmHealth {
    fn from(health: Health) -> Self {
        match health {
            Health::Runs => Self::Runs,
            Health::Paused(why) => Self::Paused(why),
            Health::Halted(why) => Self::Halted(why),
        }
    }
}

impl Health {
    /// By QEMU's word for it (`query-status`; QEMU's `RunState`, qapi/run-state.json). `colo` is a checkpoint, and `shutdown` an
    /// event of its own.
    #[must_use]
    pub fn by_run_state(status: &str) -> Self {
        let halted = |why: &str| Self::Halted(format!("the VM does not run: {why} (QEMU says {status})"));
        match status {
            "io-error" => halted("a disk failed"),
            "internal-error" => halted("QEMU or KVM cannot go on with it"),
            "guest-panicked" => halted("the guest's kernel panicked"),
            "watchdog" => halted("its watchdog stopped it"),
            "paused" | "debug" | "suspended" | "prelaunch" => {
                Self::Paused(format!("the VM is paused (QEMU says {status})"))
            }
            _ => Self::Runs,
        }
    }

    /// Why it does not run, in words.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Runs => None,
            Self::Paused(why) | Self::Halted(why) => Some(why),
        }
    }
}

/// A process, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// One letter: proc(5), `stat`, field 3.
    pub state: char,
    /// Its tracer's pid; 0: none (`status`, `TracerPid`).
    pub tracer: u32,
}

impl Process {
    /// Reads it. `None` if there is no such process: QMP tells of its end.
    fn read(pid: u32, instance: u64) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        // Last: what was read is of this process, and not of one that has its pid now.
        (instance_id(pid).ok()? == instance).then(|| Self::parse(&stat, &status)).flatten()
    }

    /// The command in `stat` may hold anything but its last ')'.
    #[must_use]
    pub fn parse(stat: &str, status: &str) -> Option<Self> {
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
        Some(Self { state, tracer })
    }
}

/// Looks after one QEMU.
#[derive(Debug)]
pub struct Watcher {
    pid: u32,
    instance: u64,
    looked: Option<Time>,
    stopped_since: Option<Time>,
    by_process: Health,
    by_qmp: Health,
}

impl Watcher {
    /// `instance`: of the process, so that a pid that was used again is not taken for it.
    #[must_use]
    pub fn new(pid: u32, instance: u64) -> Self {
        let (by_process, by_qmp) = Default::default();
        Self { pid, instance, looked: None, stopped_since: None, by_process, by_qmp }
    }

    /// How the VM is. Reads two files of /proc, at most four times a second.
    pub fn look(&mut self, now: Time) -> &Health {
        if self.looked.is_none_or(|at| now.since(at) >= LOOK) {
            self.looked = Some(now);
            self.note(now, Process::read(self.pid, self.instance));
        }
        self.health()
    }

    /// What was found last. What the process's state proves comes first: a stopped QEMU's last word is old.
    #[must_use]
    pub fn health(&self) -> &Health {
        match (&self.by_process, &self.by_qmp) {
            (Health::Runs, by_qmp) => by_qmp,
            (by_process, _) => by_process,
        }
    }

    /// What QEMU says.
    pub fn qemu_says(&mut self, health: Health) {
        self.by_qmp = health;
    }

    fn note(&mut self, now: Time, process: Option<Process>) {
        let Self { pid, .. } = self;
        let Some(Process { state: 'T' | 't', tracer }) = process else {
            (self.stopped_since, self.by_process) = (None, Health::Runs);
            return;
        };
        if now.since(*self.stopped_since.get_or_insert(now)) < SURE {
            return;
        }
        self.by_process = if tracer != 0 {
            Health::Paused(format!("the VM is paused: a debugger (process {tracer}) holds its QEMU (process {pid})"))
        } else {
            Health::Halted(format!(
                "the VM does not run: its QEMU (process {pid}) was stopped by a signal; continue it with `kill -CONT \
                 {pid}`"
            ))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const STATUS: &str = "Name:\tqemu) S\nState:\tT (stopped)\nTracerPid:\t0\nUid:\t0\n";

    #[test]
    fn the_kernels_word_is_read_whatever_the_process_is_called() {
        let stat = "7 (a) (b c) d) T 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        assert_eq!(Process::parse(stat, STATUS), Some(Process { state: 'T', tracer: 0 }));
        let traced = STATUS.replace("TracerPid:\t0", "TracerPid:\t4242");
        assert_eq!(Process::parse(stat, &traced), Some(Process { state: 'T', tracer: 4242 }));
        for wrong in ["", "7 (sleep", "7 (sleep)"] {
            assert_eq!(Process::parse(wrong, STATUS), None);
        }
        assert_eq!(Process::parse(stat, "Name:\tx\n"), None);
    }

    #[test]
    fn qemus_word_tells_a_wish_from_a_failure() {
        for halted in ["io-error", "internal-error", "guest-panicked", "watchdog"] {
            assert!(matches!(Health::by_run_state(halted), Health::Halted(why) if why.contains(halted)));
        }
        for paused in ["paused", "debug", "suspended", "prelaunch"] {
            assert!(matches!(Health::by_run_state(paused), Health::Paused(why) if why.contains(paused)));
        }
        // A checkpoint, a migration's steps, an end that has an event of its own, and a word that no QEMU has said yet.
        for runs in ["running", "colo", "finish-migrate", "shutdown", "something-new"] {
            assert_eq!(Health::by_run_state(runs), Health::Runs);
        }
    }

    fn at(ms: u64) -> Time {
        Time(1_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn a_process_that_is_stopped_in_passing_runs() {
        let mut watcher = Watcher::new(7, 1);
        let stopped = Some(Process { state: 'T', tracer: 0 });
        for (ms, process) in
            [(0, stopped), (900, stopped), (1000, Some(Process { state: 'S', tracer: 0 })), (1100, stopped)]
        {
            watcher.note(at(ms), process);
            assert_eq!(watcher.health(), &Health::Runs);
        }
        watcher.note(at(2100), stopped);
        assert!(matches!(watcher.health(), Health::Halted(why) if why.contains("process 7")));
        watcher.note(at(2200), Some(Process { state: 'R', tracer: 0 }));
        assert_eq!(watcher.health(), &Health::Runs, "it goes on");
    }

    #[test]
    fn a_debugger_is_somebodys_wish() {
        let mut watcher = Watcher::new(7, 1);
        for ms in [0, 1000] {
            watcher.note(at(ms), Some(Process { state: 't', tracer: 99 }));
        }
        assert!(matches!(watcher.health(), Health::Paused(why) if why.contains("process 99")));
        watcher.qemu_says(Health::by_run_state("io-error"));
        assert!(matches!(watcher.health(), Health::Paused(_)), "a QEMU that stands still said that before");
        watcher.note(at(1100), None);
        assert!(matches!(watcher.health(), Health::Halted(_)));
    }

    #[test]
    fn a_real_process_that_a_signal_stops_is_seen_to_stand_still() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().expect("sleep");
        let mut watcher = Watcher::new(child.id(), instance_id(child.id()).expect("it runs"));
        let signal = |signal| {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, signal).expect("ours");
        };
        signal(rustix::process::Signal::STOP);
        let mut now = 0;
        // Each look is a second of the watcher's time after the one before; when the kernel has stopped it is the kernel's affair.
        while watcher.look(at(now)) == &Health::Runs {
            now += 1000;
            std::thread::sleep(Duration::from_millis(5));
            assert!(now < 10_000_000, "never seen");
        }
        assert!(matches!(watcher.health(), Health::Halted(_)));
        let mut stranger = Watcher::new(child.id(), 1);
        for n in 0..4 {
            assert_eq!(stranger.look(at(n * 1000)), &Health::Runs, "another process of that pid");
        }
        signal(rustix::process::Signal::CONT);
        while watcher.look(at(now)) != &Health::Runs {
            now += 1000;
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("ours");
        child.wait().expect("ours");
    }
}
