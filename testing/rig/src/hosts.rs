//! What a scenario needs of hosts, whatever they are made of.
//!
//! | hosts | made of | die by | freeze by | a link falls silent by |
//! |---|---|---|---|---|
//! | [`crate::netns`] | network namespaces of this machine | SIGKILL to everything on them | SIGSTOP to everything | a queue that drops |
//! | [`crate::lab`] | the two virtual machines of `scripts/lab pair` | SIGKILL to the virtual machine | SIGSTOP to it | the wire between them |
//!
//! Both have the same addresses. The client and the witness live in a network namespace of this machine in either case:
//! they are what must not be touched.

use crate::process::Line;
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Debug,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// The client's address; the witness listens there.
pub const CLIENT_IP: &str = "10.77.0.3";
/// The guest's address.
pub const GUEST_IP: &str = "10.77.0.10";
/// The primary's address on the client's network.
pub const PRIMARY_LAN_IP: &str = "10.77.0.1";
/// The standby's address there.
pub const STANDBY_LAN_IP: &str = "10.77.0.2";
/// The primary's end of the replication link.
pub const PRIMARY_REP_IP: &str = "10.78.0.1";
/// The standby's end of the replication link.
pub const STANDBY_REP_IP: &str = "10.78.0.2";
/// The TAP device of each host.
pub const TAP: &str = "tap0";

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where the VM runs at first.
    Primary,
    /// Where its after-image is.
    Standby,
    /// Where the client and the witness are.
    Client,
}

impl Place {
    /// In three letters: for names of directories and devices.
    #[must_use]
    pub fn short(self) -> &'static str {
        match self {
            Self::Primary => "pri",
            Self::Standby => "sby",
            Self::Client => "cli",
        }
    }
}

/// A host. Paths are its own: what is there need not be on this machine.
pub trait Host: Debug {
    /// How it is called in messages.
    fn name(&self) -> &str;

    /// The command of this machine that runs `line` there. Output and exit code come through; killed, it takes what it
    /// started along.
    fn command(&self, line: &Line) -> Command;

    /// Makes a directory, with those above it.
    ///
    /// # Errors
    /// It cannot be made.
    fn make_dir(&self, path: &Path) -> Result<()>;

    /// Whether there is such a file or socket. Of a dead host: no.
    fn exists(&self, path: &Path) -> bool;

    /// A file's contents.
    ///
    /// # Errors
    /// There is none, or the host is dead.
    fn read(&self, path: &Path) -> Result<Vec<u8>>;

    /// Whether the VM behind this monitor executes: a VM that is seen to within `patience` does, and it is looked at
    /// several times in any case, because a pause is no end. A dead host executes nothing.
    ///
    /// # Errors
    /// There is a QEMU that does not answer.
    fn executes(&self, monitor: &Path, patience: Duration) -> Result<bool>;

    /// The processes of this machine that are QEMUs there; none where the host has processes of its own.
    fn qemus(&self) -> Vec<u32>;

    /// Stops everything there, as a host does whose hypervisor stalls.
    ///
    /// # Errors
    /// It is dead.
    fn freeze(&self) -> Result<()>;

    /// Lets what was frozen go on.
    ///
    /// # Errors
    /// It is dead.
    fn thaw(&self) -> Result<()>;

    /// Frames of the guest that the host's gate let out so far, also of a frozen or dead host.
    ///
    /// # Errors
    /// Nobody counts.
    fn frames_out(&self) -> Result<u64>;

    /// How far its clock is ahead of this machine's, in milliseconds.
    fn clock_ahead_ms(&self) -> f64;

    /// CPU time of everything there that is not QEMU, in hundredths of a second; None where nobody measures it.
    fn sidecar_ticks(&self) -> Option<u64>;

    /// Has the data path of the sidecar `protect` crash: the child of its process that is not QEMU.
    ///
    /// # Errors
    /// There is none, or this kind of host cannot.
    fn kill_data_path(&self, protect: u32) -> Result<()>;

    /// Runs a program to its end.
    ///
    /// # Errors
    /// The host cannot be reached. How the program ends is part of the answer.
    fn ask(&self, line: &Line) -> Result<Answer> {
        let output = self.command(line).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("{} on {}", line.0[0].display(), self.name()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Answer { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// Runs a program to its end, and gives its output.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let answer = self.ask(&Line::new(program).args(args))?;
        let what = || format!("{program} {} on {}", args.join(" "), self.name());
        ensure!(answer.code == Some(0), "{}: exit code {:?} {}", what(), answer.code, answer.err.trim());
        Ok(answer.out)
    }
}

/// How a program ended, and what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code; None if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Something that was prepared ahead, so that it takes no time when it is done.
pub type Blow<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// Three hosts and their links. Dropped: all gone, with everything that ran there.
pub trait Topology: Debug {
    /// The host at `place`.
    fn host(&self, place: Place) -> &dyn Host;

    /// The sudden death of a host: nothing leaves it any more (a dead host closes no connection), and nothing is left.
    ///
    /// # Errors
    /// It cannot be prepared.
    fn prepare_death(&self, place: Place) -> Result<Blow<'_>>;

    /// A cut of the replication link, both ways, that neither end can see.
    ///
    /// # Errors
    /// It cannot be prepared.
    fn prepare_cut(&self) -> Result<Blow<'_>>;

    /// A cut of RDMA alone: its port is filtered on the replication link, all else goes on.
    ///
    /// # Errors
    /// These hosts have no RDMA, or it cannot be prepared.
    fn prepare_rdma_cut(&self) -> Result<Blow<'_>>;

    /// From here on datagrams that come to this host over the replication link get lost, and nobody is told; all else
    /// goes on. Until [`Topology::restore`].
    ///
    /// # Errors
    /// These hosts have no way to do that.
    fn mute_datagrams(&self, place: Place) -> Result<()>;

    /// All links work, and dead hosts are back. What runs on the others goes on.
    ///
    /// # Errors
    /// A host does not come back.
    fn restore(&self) -> Result<()>;

    /// Ready for another round: nothing runs, everything is connected.
    ///
    /// # Errors
    /// Something cannot be ended, or does not come back.
    fn reset(&self) -> Result<()>;

    /// How long anything may take that has no reason to take long.
    fn patience(&self) -> Duration;
}
