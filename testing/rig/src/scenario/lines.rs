//! The command lines of the program under test: all of them, and where its files are.

use super::Settings;
use crate::{
    guest::VmPaths,
    hosts::{CLIENT_IP, Place, STANDBY_REP_IP, TAP},
    process::Line,
};
use std::path::{Path, PathBuf};

/// The VM's name.
pub(super) const VM: &str = "demo";
/// Where the witness listens, on the client's host.
pub(super) const WITNESS_PORT: u16 = 7101;
const STANDBY_PORT: u16 = 7100;

/// A host's name in the register.
pub(super) fn node(place: Place) -> &'static str {
    if place == Place::Standby { "host-b" } else { "host-a" }
}

/// The files of a round.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A host's own directory, with the logs of what runs there.
    pub(super) fn host(&self, place: Place) -> PathBuf {
        self.root.join(place.short())
    }

    /// The files of the VM where it runs at first.
    pub(super) fn primary_vm(&self) -> VmPaths {
        VmPaths::new(&self.host(Place::Primary))
    }

    /// The directory of a standby, the first one being 0: sockets, logs, and the files of its VM.
    pub(super) fn standby(&self, number: u32) -> PathBuf {
        self.host(Place::Standby).join(number.to_string())
    }

    /// Sockets and locks on the primary. They do not outlive a host: each time that it starts they are elsewhere.
    pub(super) fn run_dir(&self, boot: u32) -> PathBuf {
        self.host(Place::Primary).join(format!("run{boot}"))
    }

    /// What a host remembers: its own, and kept when its sidecar is started anew.
    pub(super) fn state(&self, place: Place) -> PathBuf {
        self.host(place).join("state")
    }

    /// What the witness remembers.
    pub(super) fn witness(&self) -> PathBuf {
        self.host(Place::Client).join("witness")
    }

    /// What it remembered when somebody made a backup.
    pub(super) fn witness_backup(&self) -> PathBuf {
        self.host(Place::Client).join("witness.backup")
    }
}

fn arbiter() -> String {
    format!("witness://{CLIENT_IP}:{WITNESS_PORT}")
}

fn nic(vm: &VmPaths) -> String {
    format!("{}={TAP}", vm.nic().display())
}

/// What both sidecars are told alike.
fn common(s: &Settings, line: Line) -> Line {
    let line = line
        .flag("--arbiter", arbiter())
        .flag("--beat-interval", &s.beat_interval)
        .flag("--detect-multiplier", s.detect_multiplier.to_string());
    s.flags.iter().fold(line, |line, (name, value)| line.flag(name, value))
}

/// `afterimage witness`.
pub(super) fn witness(s: &Settings, files: &Files) -> Line {
    Line::new(s.programs.on(Place::Client))
        .args(["witness", "--listen", &format!("{CLIENT_IP}:{WITNESS_PORT}")])
        .flag("--state", files.witness())
}

/// `afterimage protect`.
pub(super) fn protect(s: &Settings, files: &Files, boot: u32) -> Line {
    let vm = files.primary_vm();
    let line = Line::new(s.programs.on(Place::Primary))
        .args(["protect", "--vm", VM, "--node", node(Place::Primary)])
        .flag("--qmp", vm.qmp())
        .flag("--to", format!("{STANDBY_REP_IP}:{STANDBY_PORT}"))
        .flag("--epoch", &s.epoch)
        .flag("--nic", nic(&vm))
        .flag("--run-dir", files.run_dir(boot))
        .flag("--state-dir", files.state(Place::Primary));
    common(s, line)
}

/// `afterimage standby`, the given one.
pub(super) fn standby(s: &Settings, files: &Files, number: u32, qemu: Line) -> Line {
    let dir = files.standby(number);
    let line = Line::new(s.programs.on(Place::Standby))
        .args(["standby", "--vm", VM, "--node", node(Place::Standby)])
        .flag("--listen", format!("{STANDBY_REP_IP}:{STANDBY_PORT}"))
        .flag("--nic", nic(&VmPaths::new(&dir)))
        .flag("--run-dir", &dir)
        .flag("--state-dir", files.state(Place::Standby))
        .flag("--ram-dir", &s.ram_dir)
        .flag("--spill", dir.join("spill"));
    common(s, line).args(["--"]).args(qemu.0)
}

/// `afterimage status --json` over a directory of control sockets.
pub(super) fn status(s: &Settings, place: Place, run_dir: &Path) -> Line {
    Line::new(s.programs.on(place)).args(["status", "--vm", VM, "--json"]).flag("--run-dir", run_dir)
}

/// `afterimage why`, with more options.
pub(super) fn why(s: &Settings, place: Place, state_dir: &Path, more: &[&str]) -> Line {
    Line::new(s.programs.on(place)).args(["why", "--vm", VM]).flag("--state-dir", state_dir).args(more)
}

/// `afterimage witness assign`: an operator's word on who owns the VM, given where the witness is.
pub(super) fn assign(s: &Settings, files: &Files, place: Place) -> Line {
    Line::new(s.programs.on(Place::Client))
        .args(["witness", "assign", VM, node(place), "--yes-the-others-are-stopped"])
        .flag("--state", files.witness())
}

/// `afterimage accept-witness`: an operator's word that the witness with another identity is the right one.
pub(super) fn accept_witness(s: &Settings, files: &Files, place: Place) -> Line {
    Line::new(s.programs.on(place)).args(["accept-witness", "--vm", VM]).flag("--state-dir", files.state(place))
}
