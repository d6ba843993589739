//! How a keeper is started, found and relieved.

use super::{
    handoff::{FromKeeper, Handoff, ToKeeper, pair},
    log_path,
};
use crate::{primary, processes::Program, standby};
use anyhow::{Context, Result};
use api::{Request, Response, Side, ask_any, socket_path};
use mc_core::{
    gate::OutputGate,
    id::{Generation, Name, Time},
};
use node::{
    exit::{Code, ExitError},
    inbox::{self, readable, wait},
    scope::Scope,
    units::spoken,
};
use rustix::net::sockopt::socket_peercred;
use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use vmm_qemu::{
    gate::{NicGate, NicSpec},
    qmp::Watched,
};

/// For a new keeper to take its place, and then to begin.
const START: Duration = Duration::from_secs(20);
/// For a gate in the middle of a frame to come to rest.
const REST: Duration = Duration::from_millis(200);
/// For a keeper to close everything.
const LEAVE: Duration = Duration::from_secs(5);
/// Bytes of a keeper's log in an error.
const TAIL: usize = 500;

/// What a keeper is to keep.
#[derive(Clone, Debug)]
pub struct Charge {
    /// The VM.
    pub vm: Name,
    /// This host.
    pub node: Name,
    /// Of the register, which says (solo, this node).
    pub generation: Generation,
    /// The VM's NICs.
    pub nics: Vec<NicSpec>,
    /// Where sockets and locks are.
    pub run_dir: PathBuf,
    /// Where journals are.
    pub state_dir: PathBuf,
    /// What starts it.
    pub program: Program,
}

impl Charge {
    /// The network of the VM that `protect` leaves.
    #[must_use]
    pub fn of_primary(config: &primary::Settings, generation: Generation, program: Program) -> Self {
        let primary::Settings { vm, node, nics, run_dir, state_dir, .. } = config.clone();
        Self { vm, node, generation, nics, run_dir, state_dir, program }
    }

    /// The network of the VM that a standby took over.
    #[must_use]
    pub fn of_standby(config: &standby::Settings, generation: Generation, program: Program) -> Self {
        let standby::Settings { vm, node, nics, run_dir, state_dir, .. } = config.clone();
        Self { vm, node, generation, nics, run_dir, state_dir, program }
    }

    /// Of the program. (With "=", because a name may begin with a dash.)
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let flag = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value.as_ref());
            flag
        };
        let mut words = vec![OsString::from(self.program.keeper)];
        words.push(flag("vm", &self.vm.to_string()));
        words.push(flag("node", &self.node.to_string()));
        words.push(flag("generation", &self.generation.0.to_string()));
        words.extend(self.nics.iter().map(|nic| flag("nic", &nic.to_string())));
        words.push(flag("run-dir", &self.run_dir));
        words.push(flag("state-dir", &self.state_dir));
        words
    }
}

/// A keeper that passes packets, whoever started it. Dropping this leaves it alone.
#[derive(Debug)]
pub struct Keeper {
    process: Watched,
    /// Ours, if we started it: it is asked for its exit code once it has ended.
    child: Option<Child>,
}

impl Keeper {
    /// Process id of the keeper.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        let ended = self.process.has_ended();
        if let (true, Some(child)) = (ended, &mut self.child) {
            let _ = child.try_wait();
        }
        ended
    }
}

impl AsFd for Keeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// Gives the VM's network to a keeper in a scope of its own, and returns once it passes packets. The caller must know that the
/// register says (solo, this node).
///
/// `gate`: the open gate that the packets pass now, which goes on until the keeper does; then it is shut. Its connections and
/// devices are handed on, so that no packet is lost. Without one, the keeper connects by itself. `None` for a VM without NICs.
///
/// # Errors
/// There is no keeper; the gate passes packets as before, unless its NICs cannot be connected again.
pub fn take_network(charge: &Charge, mut gate: Option<&mut NicGate>) -> Result<Option<Keeper>> {
    if charge.nics.is_empty() {
        return Ok(None);
    }
    let mut starting = Starting::new(charge)?;
    starting.await_ready(gate.as_deref_mut())?;
    match starting.hand_over(gate.as_deref()) {
        Ok(keeper) => {
            if let Some(gate) = gate {
                gate.shut();
            }
            Ok(Some(keeper))
        }
        Err(error) => {
            // It may have read a part of a frame: our own connections are of no use any more.
            drop(starting);
            if let Some(gate) = gate {
                gate.hang_up();
                gate.connect(super::NIC_PATIENCE)?;
            }
            Err(error)
        }
    }
}

/// Has the keeper of this VM leave, if there is one: its NICs and TAP devices are closed when this returns.
///
/// # Errors
/// There is one, and it does not leave.
pub fn relieve(run_dir: &Path, vm: Name) -> Result<bool> {
    let Some(mut keeper) = running(run_dir, vm) else { return Ok(false) };
    let path = socket_path(run_dir, vm, Side::Keeper);
    let stays = |why: &str| {
        let what = format!("the keeper of {vm}'s network (process {}) does not hand over ({why})", keeper.pid());
        ExitError::new(Code::Failed, what).remedy("end that process")
    };
    match ask_any(&path, &Request::Handover, LEAVE) {
        Ok(Response::Done { .. }) => Ok(true),
        Ok(other) => Err(stays(&format!("it answered {other:?}")).into()),
        // It may have ended by itself just now.
        Err(error) => {
            let why = stays(&error.to_string());
            if keeper.has_ended() { Ok(true) } else { Err(why.into()) }
        }
    }
}

/// The keeper of this VM, if there is one.
#[must_use]
pub fn running(run_dir: &Path, vm: Name) -> Option<Keeper> {
    let stream = UnixStream::connect(socket_path(run_dir, vm, Side::Keeper)).ok()?;
    let pid = socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get().unsigned_abs();
    Some(Keeper { process: Watched::new(pid).ok()?, child: None })
}

/// A keeper that does not pass packets yet. Dropped: killed.
struct Starting {
    child: Option<Child>,
    handoff: Handoff,
    log: PathBuf,
}

impl Starting {
    fn new(charge: &Charge) -> Result<Self> {
        let (handoff, theirs) = pair().context("a socket pair")?;
        let log = log_path(&charge.run_dir, charge.vm);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&log);
        let file = file.with_context(|| log.display().to_string())?;
        let scope = Scope::new(&charge.vm.to_string(), "keeper");
        let mut command = scope.command((charge.program.path)());
        // Its events go to its journal: a pipe of ours may end with us, or be read by nobody.
        command.args(charge.arguments()).stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(file);
        let child = scope.spawn(&mut command).context("starting a keeper of the VM's network")?;
        Ok(Self { child: Some(child), handoff, log })
    }

    /// Waits until it has its place. Meanwhile packets go on through `gate`.
    fn await_ready(&self, mut gate: Option<&mut NicGate>) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let mut fds = vec![readable(self.handoff.as_fd())];
            if let Some(gate) = &gate {
                inbox::gate(&mut fds, &**gate);
            }
            wait(&mut fds, Time(0), None, Duration::from_millis(100))?;
            let said = !fds[0].revents().is_empty();
            drop(fds);
            if let Some(gate) = &mut gate {
                let _ = gate.poll(); // a NIC that fails now is the keeper's to mend
            }
            if said {
                self.expect(FromKeeper::Ready)?;
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "the keeper did not start within {}", spoken(START));
        }
        let deadline = Instant::now() + REST;
        while let Some(gate) = gate.as_deref_mut().filter(|gate| !gate.at_rest()) {
            let _ = gate.poll();
            if Instant::now() >= deadline {
                break; // what is not at rest is not handed over: the keeper connects by itself
            }
        }
        Ok(())
    }

    /// From the first word of this on, the packets are the keeper's.
    fn hand_over(&mut self, gate: Option<&NicGate>) -> Result<Keeper> {
        for (number, (stream, tap)) in gate.iter().flat_map(|gate| gate.lend()).enumerate() {
            let nic = ToKeeper::Nic { number, stream: stream.is_some(), tap: tap.is_some() };
            let along: Vec<_> = stream.into_iter().chain(tap).collect();
            self.handoff.say(&nic, &along).with_context(|| self.last_words())?;
        }
        self.handoff.say(&ToKeeper::Go, &[]).with_context(|| self.last_words())?;
        self.expect(FromKeeper::Keeping)?;
        let pid = self.child.as_ref().context("a child")?.id();
        let process = Watched::new(pid).context("the keeper ended")?;
        Ok(Keeper { process, child: self.child.take() })
    }

    fn expect(&self, what: FromKeeper) -> Result<()> {
        match self.handoff.hear::<FromKeeper>(Instant::now() + START) {
            Ok(Some((said, _))) if said == what => Ok(()),
            Ok(Some((said, _))) => anyhow::bail!("the keeper answered {said:?}; expected {what:?}"),
            Ok(None) => Err(ExitError::new(Code::Failed, self.last_words()).into()),
            Err(error) => Err(error).with_context(|| format!("waiting for the keeper to say {what:?}")),
        }
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).trim().replace('\n', "; ");
        format!("the keeper ended before it passed any packets; its output ({}): {text}", self.log.display())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
