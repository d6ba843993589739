//! The VM's way to its network while nobody protects it.
//!
//! A VM's packets leave its host through our gate only. While `protect` runs, that is the data path's. After a takeover, and
//! after an orderly end of `protect`, nobody protects the VM, and its network must not depend on a process that is restarted,
//! upgraded, or killed with its unit. So a small process keeps it, in a scope of its own ([`node::scope`]): it passes packets
//! between the NICs' sockets and their TAP devices ([`vmm_qemu::gate`], open), and does nothing else. It holds no copy of the VM,
//! asks no arbiter, decides nothing; whoever wants its place asks for it ([`relieve`]).
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | how a keeper begins |
//! | [`duty`] | when it ends: a value |
//! | [`pump`] | its loop |
//! | [`start`] | how others start one, find one, relieve one |
//! | [`handoff`] | what it is handed: the open NICs and TAP devices, so that no frame is lost |
//!
//! **Who may.** A keeper passes output on, so it may exist only where the register says (solo, this node). It cannot know, and
//! does not ask: its starter knows, and says "go" over a socket that only it has. By hand, an operator says so
//! (`--yes-the-other-side-is-stopped`). It serves one QEMU process, the one at the other end of the first connection: when that
//! ends, the keeper does, and it never connects to another one that listens at the same place, such as a QEMU that waits for a
//! takeover.

mod duty;
mod handoff;
mod pump;
mod start;

pub use start::{Charge, Keeper, relieve, running, take_network};

use anyhow::{Context, Result};
use api::{Control, Side, socket_path};
use handoff::{FromKeeper, Handoff, ToKeeper};
use mc_core::id::Name;
use node::{
    events::{self, Event, Keeping, Process, emit},
    exit::{Code, ExitError},
    signals::Signals,
};
use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use vmm_qemu::{
    gate::{GateError, HELD_LIMIT_MIN, Mode, NicGate, NicParts, NicSpec, Options, TapPort},
    mending::peer,
    qmp::Watched,
};

/// For the starter to say "go".
const GO: Duration = Duration::from_secs(30);
/// For a NIC's socket that was not handed over.
const NIC_PATIENCE: Duration = Duration::from_secs(2);

/// What a keeper runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The VM.
    pub vm: Name,
    /// This host.
    pub node: Name,
    /// Of the register, which says (solo, this node); only to show it.
    pub generation: u64,
    /// The VM's NICs, in order.
    pub nics: Vec<NicSpec>,
    /// Where sockets and locks are.
    pub run_dir: PathBuf,
    /// Where its journal is.
    pub state_dir: PathBuf,
    /// An operator starts it, and says that the VM runs on no other host.
    pub by_hand: bool,
}

/// Passes packets until it is relieved, told to end, or the VM's QEMU ends.
pub fn run(args: Settings) -> Result<Code> {
    let node = args.node;
    let record = events::record(args.vm, events::Side::Keeper, node, Process::Keeper, &args.state_dir);
    record.context("threads for events")?;
    // Before the place is taken: from here on nothing that a starter counts on is lost by a signal.
    let signals = Signals::catch().context("catching signals")?;
    let starter = match args.by_hand {
        true => no_other(&args).map(|()| None)?,
        false => Some(starter()?),
    };
    let control = Control::listen((&args.run_dir, &args.state_dir), args.vm, node, Side::Keeper)?;
    let nics = args.nics.clone();
    let parts = match &starter {
        Some(starter) => handed_over(starter, nics.clone())?,
        None => nics.iter().map(|spec| NicParts { spec: spec.clone(), stream: None, tap: None }).collect(),
    };
    let handed = parts.iter().filter(|part| part.stream.is_some() && part.tap.is_some()).count();
    let gate = open(parts, starter.is_some()).map_err(|error| {
        let code = if error.is_prerequisite() { Code::Prerequisite } else { Code::Failed };
        ExitError::new(code, error)
    })?;
    let vm = gate.connections().find_map(peer).map(Watched::new).transpose().context("the VM's QEMU has ended")?;
    if let Some(starter) = starter {
        starter.say(&FromKeeper::Keeping, &[]).context("the starter went away")?;
    }
    let qemu = vm.as_ref().map(Watched::pid);
    let (vm_name, generation) = (args.vm, args.generation);
    emit(Event::Keeping(Keeping { vm: vm_name, generation, qemu, nics: nics.len(), handed_over: handed }));
    pump::Pump::new(args, nics, gate, vm, control, signals).run()
}

/// The end of a socket pair that whoever started this keeper holds the other end of.
fn starter() -> Result<Handoff> {
    let end = std::io::stdin().as_fd().try_clone_to_owned().context("stdin")?;
    let by_hand = || {
        let what = "a keeper is normally started by `afterimage standby` or `afterimage protect`; nobody has \
             confirmed to this one that the VM belongs to this host";
        let remedy = "run `afterimage protect`, which gives the VM its network and protects it. For the network \
             alone, make sure that the VM does not run on the other host, then add --yes-the-other-side-is-stopped";
        ExitError::usage(what).remedy(remedy)
    };
    let is_pair = rustix::net::sockopt::socket_type(&end) == Ok(rustix::net::SocketType::SEQPACKET);
    is_pair.then(|| Handoff::over(end)).ok_or_else(|| by_hand().into())
}

/// By hand it is started only where nobody else has the VM's network: its place would be behind theirs, and open when they
/// have left it for good reason.
fn no_other(args: &Settings) -> Result<()> {
    for side in [Side::Primary, Side::Standby] {
        let path = socket_path(&args.run_dir, args.vm, side);
        if UnixStream::connect(&path).is_ok() {
            let what = format!("an afterimage process already runs here for {}: {}", args.vm, path.display());
            let remedy = "the VM's network passes through that process; see `afterimage status`";
            return Err(ExitError::new(Code::Failed, what).remedy(remedy).into());
        }
    }
    Ok(())
}

/// Takes its place, says so, and waits for what it is to carry on with, and for "go".
fn handed_over(starter: &Handoff, nics: Vec<NicSpec>) -> Result<Vec<NicParts>> {
    let mut parts: Vec<NicParts> = nics.into_iter().map(|spec| NicParts { spec, stream: None, tap: None }).collect();
    starter.say(&FromKeeper::Ready, &[]).context("the starter went away")?;
    let deadline = Instant::now() + GO;
    loop {
        let heard = starter.hear(deadline).context("waiting to be told to begin")?;
        let (message, along): (ToKeeper, Vec<OwnedFd>) =
            heard.context("the process that started this keeper ended before it said go")?;
        let ToKeeper::Nic { number, stream, tap } = message else { return Ok(parts) };
        let mut along = along.into_iter();
        let part = parts.get_mut(number).with_context(|| format!("there is no NIC {number}"))?;
        part.stream = if stream { along.next() } else { None };
        part.tap = if tap { along.next() } else { None };
    }
}

/// The open gate. At least one NIC is connected. `begun`: the VM's packets pass already, but for those of a NIC whose TAP device is
/// missing: that one comes back by itself.
fn open(mut parts: Vec<NicParts>, begun: bool) -> Result<NicGate, GateError> {
    for part in parts.iter_mut().filter(|part| part.tap.is_none()) {
        match TapPort::open_fd(&part.spec.tap) {
            Ok(tap) => part.tap = Some(tap),
            Err(error) if begun && error.is_missing_tap() => {}
            Err(error) => return Err(error),
        }
    }
    let options = Options { held_limit_bytes: HELD_LIMIT_MIN, mode: Mode::Open };
    let mut gate = NicGate::from_parts(parts, options)?;
    if gate.connections().next().is_none() {
        gate.connect(NIC_PATIENCE)?;
    }
    Ok(gate)
}

/// Where a keeper of this VM says why it does not start, and what it goes through.
fn log_path(run_dir: &Path, vm: Name) -> PathBuf {
    run_dir.join(format!("{vm}.keeper.log"))
}
