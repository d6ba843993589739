//! `afterimage status`, and the operator's words: what a running `protect` or `standby` says over its control socket.

mod find;
mod gather;
mod operator;
mod outcome;
mod table;
mod text;
mod watch;

pub(crate) use find::{find, left, nobody};
pub(crate) use gather::{NoAnswer, as_json, ask_all, ask_one, whose};
pub use node::events::Takeover;
pub use operator::operate;

pub use crate::api::{ControlError, ControlSocket, Request, Response, ask, socket_path};

use crate::{
    api::desk::EXPORT_PATIENCE,
    cli::{ExportArgs, ReprotectArgs, Side, StatusArgs, UnprotectArgs},
};
use mc_core::{histogram::Percentiles, id::Name};
use node::{
    exit::{Code, ExitError},
    keepalive::PathStats,
    paths::RdmaInfo,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use vmm_qemu::inventory::Output;

/// The version of [`Status`] as JSON. Fields may be added under the same number; a reader ignores those it does not know.
pub const SCHEMA: u32 = 1;
/// The role of a primary that has not heard yet whose the VM is.
pub const WAITING: &str = "waiting-for-arbiter";
/// The role of a standby whose VM runs there.
pub const RUNNING: &str = "running";
/// For an answer over the control socket: its thread only copies figures.
const PATIENCE: Duration = Duration::from_secs(5);

/// How one VM is doing on one side. Times in µs unless their name says otherwise; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "primary", "standby" or "keeper": which command runs here.
    pub side: String,
    /// Of a keeper "keeping"; of the primary "waiting-for-arbiter", "solo", "syncing", "registering", "protected", "claiming",
    /// "handing-back", "fenced", "ended"; of the standby "idle", "syncing", "rehearsing", "protecting", "revoking", "claiming", "lost",
    /// "disputed", "taking-over", "running"; of both "stalled", if the process is there and its loop does not answer. Of a process
    /// that cannot be asked, "gone" (it died, and left its socket) or "does-not-answer", with no more than why among the notes.
    pub role: String,
    /// Whether output waits until the standby has what it was sent from: a takeover would lose nothing. It does not say that there
    /// would be a takeover: that is the arbiter's to allow, see `arbiter.failover_impossible` and `arbiter.fault`.
    pub protected: bool,
    /// Why this side does not do its work though its process is there: its loop stands still, or the VM's QEMU does not run it.
    pub stalled: Option<String>,
    /// What is wrong with the VM's way to its network, or with one of its NICs. Tried again by itself.
    pub network: Option<String>,
    /// The VM.
    pub vm: String,
    /// This host.
    pub node: String,
    /// The process of the VM's QEMU that runs the VM here, as far as this side knows.
    pub qemu: Option<u32>,
    /// The other one, and where; empty without one.
    pub peer: String,
    /// "rdma", "tcp", or that and why it is not RDMA any more: "tcp (fell back from RDMA: …; 1 times)". Empty without a session.
    pub transport: String,
    /// Why the session began on that.
    pub transport_why: String,
    /// This side of RDMA, if the session began on it.
    pub rdma: Option<RdmaInfo>,
    /// What beats go over: "ud" (RDMA datagrams), "udp", or "both". Empty without a session.
    pub keepalive: String,
    /// With both: what came and went by each.
    pub beat_paths: Vec<PathStats>,
    /// The register's generation, as far as this side knows.
    pub generation: u64,
    /// The newest epoch: captured on the primary, staged or committed on the standby.
    pub epoch: u64,
    /// The newest ACKed epoch.
    pub last_ack_epoch: u64,
    /// How long ago that was, ms; none before the first.
    pub last_ack_age_ms: Option<u64>,
    /// Packets held now.
    pub held_packets: u64,
    /// Bytes held now.
    pub held_bytes: u64,
    /// Packets let out so far.
    pub released_packets: u64,
    /// Packets dropped so far.
    pub dropped_packets: u64,
    /// Bytes of slabs in use.
    pub staging_used_bytes: u64,
    /// Bytes of slabs that exist.
    pub staging_live_bytes: u64,
    /// The cap. `--on-cap grow` lets a checkpoint outgrow it.
    pub staging_cap_bytes: u64,
    /// Bytes at which no slab is made any more: the cap, and what it may be outgrown by. After it was lowered, those that
    /// exist fall to it as slabs come back.
    pub staging_limit_bytes: u64,
    /// The most that ever existed.
    pub staging_most_bytes: u64,
    /// Of a primary, "throttle", "grow:SIZE" or "unprotect": what a checkpoint that outgrows staging means.
    pub on_cap: String,
    /// Of a primary, from one checkpoint to the next at most.
    pub epoch_us: u64,
    /// Of a primary, how long the VM runs between two checkpoints now, at most: less than an epoch while more would outgrow
    /// staging.
    pub run_us: u64,
    /// How often the cap was hit.
    pub staging_cap_hits: u64,
    /// How long the VM stood still per checkpoint.
    pub pause_us: Percentiles,
    /// From the end of the pause to the ACK.
    pub commit_us: Percentiles,
    /// How long output was held.
    pub hold_us: Percentiles,
    /// How long the standby took to apply an epoch.
    pub apply_us: Percentiles,
    /// The keepalive's figures.
    pub beats: Beats,
    /// The arbiter's health.
    pub arbiter: ArbiterStatus,
    /// Why the VM is not protected, as far as this side knows; of a primary with role claiming also that its output is held.
    pub why_not_protected: Option<WhyNot>,
    /// Of a VM that was taken over: its QEMU's QMP socket on this host, for `protect --qmp`.
    pub qmp: Option<String>,
    /// What a takeover took, once there was one.
    pub takeover: Option<Takeover>,
    /// Named counts, such as "throttled_epochs", "full_syncs".
    pub counters: BTreeMap<String, u64>,
    /// Of a primary, every way out of the VM. Of a standby, those that the primary protects the VM but for, by name.
    pub outputs: Vec<OutputStatus>,
    /// What the operator should know: "the serial console is not held", "SCHED_FIFO is not permitted".
    pub notes: Vec<String>,
}

/// One way out of the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputStatus {
    /// QEMU's name for it.
    pub name: String,
    /// "netdev", "nic", "disk", "chardev", "display", "audio", "device", "object".
    pub kind: String,
    /// "held", "harmless", "operator", or "unheld": then `--unheld` allows it, or the VM is not protected.
    pub class: String,
    /// Why it is in that class.
    pub why: String,
}

impl From<&Output> for OutputStatus {
    fn from(output: &Output) -> Self {
        let (class, why) = (output.class.word().to_owned(), output.class.why().to_owned());
        Self { name: output.name.clone(), kind: output.kind.clone(), class, why }
    }
}

/// The keepalive's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Beats {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
    /// That should have come and did not.
    pub missed: u64,
    /// How often this side found itself late, and accused nobody.
    pub self_late: u64,
    /// Between two received beats.
    pub gap_us: Percentiles,
    /// There and back.
    pub rtt_us: Percentiles,
    /// Silence that makes the other side suspect.
    pub detection_time_us: u64,
    /// How long ago the other side was heard last, ms; none before its first beat.
    pub last_heard_ago_ms: Option<u64>,
}

/// The arbiter's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArbiterStatus {
    /// As in --arbiter.
    pub spec: String,
    /// Whether it answers: if not, there is no failover.
    pub reachable: bool,
    /// Why not, or what it waits for.
    pub last_error: Option<String>,
    /// The witness that this node knows; none with an operator for an arbiter.
    pub witness: Option<String>,
    /// Whether the witness tries swaps of this VM's register: "settled" (it does), "waiting", "disputed".
    pub standing: Option<String>,
    /// Why it cannot be believed.
    pub fault: Option<String>,
    /// Since the witness last proved that it can store, ms.
    pub probe_age_ms: Option<u64>,
    /// Why a failover would not find an arbiter that can decide; none if it would, or if this host, cut off from both others, cannot
    /// know.
    pub failover_impossible: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
}

/// Why no standby protects the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WhyNot {
    /// In words.
    pub why: String,
    /// Since when it is this, ms since 1970.
    pub since_ms: u64,
    /// How often it was met.
    pub times: u64,
    /// When the next attempt begins, ms from now; none: it waits for an operator, or for what `what_to_do` says.
    pub next_try_in_ms: Option<u64>,
    /// What an operator should do, where that is more than to wait.
    pub what_to_do: Option<String>,
}

impl Status {
    /// What `afterimage status` exits with for this VM.
    #[must_use]
    pub fn code(&self) -> Code {
        match (self.role.as_str(), self.protected && self.stalled.is_none()) {
            ("fenced", _) => Code::Fenced,
            (_, true) if self.network.is_some() => Code::Degraded,
            (_, true) if self.no_failover().is_some() => Code::Degraded,
            (_, true) if self.unheld() == 0 => Code::Done,
            _ => Code::Degraded,
        }
    }

    /// Of a protected VM: why nobody could take it over now.
    #[must_use]
    pub fn no_failover(&self) -> Option<&str> {
        let arbiter = &self.arbiter;
        arbiter.failover_impossible.as_deref().or(arbiter.fault.as_deref()).filter(|_| self.protected)
    }

    /// How many outputs nothing holds: if the VM is protected, it is so but for these.
    #[must_use]
    pub fn unheld(&self) -> usize {
        self.outputs.iter().filter(|output| output.class == "unheld").count()
    }
}

/// The sockets of `side` (`None`: all) of `vm` (`None`: all) in the run directory, by name.
pub(crate) fn sockets(args: &StatusArgs) -> Result<Vec<PathBuf>, ExitError> {
    let dir = &args.run_dir;
    if let Some(vm) = args.vm {
        let wanted: &[Side] = args.role.as_ref().map_or(&find::SIDES, std::slice::from_ref);
        left(dir, vm, wanted, "status")?;
    }
    let entries = std::fs::read_dir(dir).map_err(|_| nobody(None, dir))?;
    let wanted = |path: &PathBuf| {
        let named = path.file_name().and_then(|n| n.to_str()).and_then(side_of);
        named.is_some_and(|(vm, side)| args.vm.is_none_or(|v| v == vm) && args.role.is_none_or(|r| r == side))
    };
    let mut found: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).filter(wanted).collect();
    found.sort();
    if found.is_empty() {
        return Err(nobody(None, dir));
    }
    Ok(found)
}

/// The command: prints the status of every VM asked about; of one all there is, of several a table. The worst one decides
/// the exit code; a process that cannot be asked is one that does not protect.
pub fn show(args: &StatusArgs) -> anyhow::Result<Code> {
    if let Some(interval) = args.watch {
        return watch::run(args, interval);
    }
    let statuses = gather::statuses(&sockets(args)?);
    let codes = statuses.iter().filter(|s| !gather::is_left_over(s, &statuses)).map(Status::code);
    let worst = codes.max_by_key(|code| *code as u8).unwrap_or(Code::Done);
    let out = if args.json { as_json(&statuses, args.vm.is_some())? } else { for_people(&statuses, args.vm.is_some()) };
    match io::stdout().write_all(out.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(worst),
    }
}

/// All there is of the processes of one VM, that was `named` or is the only one; of several VMs a table.
fn for_people(statuses: &[Status], named: bool) -> String {
    match statuses {
        [one] => text::render(one),
        several if named => several.iter().map(text::render).collect::<Vec<_>>().join("\n"),
        several => table::render(several),
    }
}

/// The command `unprotect`.
pub fn unprotect(args: &UnprotectArgs) -> anyhow::Result<Code> {
    order((&args.run_dir, args.vm, args.no_wait), Side::Primary, &Request::Unprotect)
}

/// The command `reprotect`.
pub fn reprotect(args: &ReprotectArgs) -> anyhow::Result<Code> {
    tell(&args.run_dir, args.vm, Side::Primary, &Request::Protect)
}

/// The command `image export`: the running standby writes it.
pub fn export(args: &ExportArgs) -> anyhow::Result<Code> {
    let dir = std::fs::canonicalize(&args.to).map_err(|e| {
        ExitError::usage(format!("--to {}: {e}", args.to.display()))
            .remedy("name a directory that is there, with room for the VM's memory")
    })?;
    tell(&args.run_dir, args.vm, Side::Standby, &Request::Export { dir })
}

fn tell(run_dir: &Path, vm: Name, side: Side, request: &Request) -> anyhow::Result<Code> {
    let (path, _) = find(run_dir, vm, &[side], request.word())?;
    let _ = writeln!(io::stdout(), "{}", say(&path, request)?);
    Ok(Code::Done)
}

/// Gives an order that somebody else decides, and waits for what comes of it unless `no_wait`.
fn order((run_dir, vm, no_wait): (&Path, Name, bool), side: Side, request: &Request) -> anyhow::Result<Code> {
    let (path, _) = find(run_dir, vm, &[side], request.word())?;
    // Once it has lost, a standby has no other side any more.
    let peer = match ask(&path, Request::Status, PATIENCE) {
        Ok(Response::Status(status)) => status.peer.split(' ').next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let taken = say(&path, request)?;
    let told = if no_wait { taken } else { outcome::wait(&path, request, (&vm.to_string(), &peer))? };
    let _ = writeln!(io::stdout(), "{told}");
    Ok(Code::Done)
}

/// What the process behind a socket says to a request that it can do or refuse.
fn say(path: &Path, request: &Request) -> Result<String, ExitError> {
    let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { PATIENCE };
    match ask_one(path, request.clone(), patience)? {
        Response::Done { message } => Ok(message),
        Response::Refused { message, remedy } => {
            let refused = ExitError::new(Code::Failed, message);
            Err(remedy.into_iter().fold(refused, |e: ExitError, r: String| e.remedy(r)))
        }
        Response::Away { message, remedy } => Err(ExitError::new(Code::Prerequisite, message).remedy(remedy)),
        other => Err(ExitError::new(Code::Failed, format!("{} answered {request:?} with {other:?}", path.display()))),
    }
}

/// The VM and the side of a control socket, by its file's name: see [`socket_path`].
pub(crate) fn side_of(file_name: &str) -> Option<(Name, Side)> {
    let (vm, side) = file_name.strip_suffix(".sock")?.rsplit_once('.')?;
    let side = [Side::Primary, Side::Standby, Side::Keeper].into_iter().find(|s| s.as_str() == side)?;
    Some((Name::new(vm).ok()?, side))
}

/// Every control socket in a run directory, with its VM.
pub(crate) fn sockets_in(run_dir: &Path) -> Vec<(PathBuf, Name)> {
    let entries = std::fs::read_dir(run_dir).into_iter().flatten();
    let named = |path: PathBuf| {
        let (vm, _) = path.file_name().and_then(|name| name.to_str()).and_then(side_of)?;
        Some((path, vm))
    };
    entries.filter_map(|entry| named(entry.ok()?.path())).collect()
}

/// Whose control socket it is.
pub(crate) fn side(path: &Path) -> Option<Side> {
    path.file_name().and_then(|name| name.to_str()).and_then(side_of).map(|(_, side)| side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_by_an_arbiter_that_would_not_decide_is_degraded() {
        let mut status = Status { role: "protected".into(), protected: true, ..Status::default() };
        assert_eq!(status.code(), Code::Done);
        status.arbiter.failover_impossible = Some("the witness cannot store any more".into());
        assert_eq!(status.code(), Code::Degraded);
        status.arbiter = ArbiterStatus { fault: Some("it forgot".into()), ..ArbiterStatus::default() };
        assert_eq!(status.code(), Code::Degraded);
        status.arbiter = ArbiterStatus::default();
        status.network = Some("the port behind NIC /run/web.net: it has failed".into());
        assert_eq!(status.code(), Code::Degraded, "protected, and mute");
        status.role = "fenced".into();
        assert_eq!(status.code(), Code::Fenced);
    }
}
