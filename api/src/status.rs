//! How one VM is doing on one side: what `status`, the API and the metrics say.

use crate::gather::{GONE, MUTE};
use mc_core::histogram::Percentiles;
use node::{
    events::{Side, Takeover},
    exit::Code,
    keepalive::PathStats,
    paths::RdmaInfo,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of [`Status`] as JSON. Fields may be added under the same number; a reader ignores those it does not know.
pub const SCHEMA: u32 = 2;
/// The role of a primary that has not heard yet whose the VM is.
pub const WAITING: &str = "waiting-for-arbiter";
/// The role of a standby whose VM runs there.
pub const RUNNING: &str = "running";

/// How one VM is doing on one side. Times in µs unless their name says otherwise; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "primary", "standby" or "keeper", which command runs here; and what only that has.
    #[serde(flatten)]
    pub side: OfSide,
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
    /// How often the cap was hit.
    pub staging_cap_hits: u64,
    /// How long output was held.
    pub hold_us: Percentiles,
    /// The keepalive's figures.
    pub beats: Beats,
    /// The arbiter's health.
    pub arbiter: ArbiterStatus,
    /// Why the VM is not protected, as far as this side knows; of a primary with role claiming also that its output is held.
    pub why_not_protected: Option<WhyNot>,
    /// Named counts, such as "throttled_epochs", "full_syncs".
    pub counters: BTreeMap<String, u64>,
    /// Of a primary, every way out of the VM. Of a standby, those that the primary protects the VM but for, by name.
    pub outputs: Vec<OutputStatus>,
    /// What the operator should know: "the serial console is not held", "SCHED_FIFO is not permitted".
    pub notes: Vec<String>,
}

/// What only one side has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "side", rename_all = "lowercase")]
pub enum OfSide {
    /// `afterimage protect`
    Primary(Primary),
    /// `afterimage standby`
    Standby(Standby),
    /// `afterimage keeper`
    Keeper,
}

/// What only a primary has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Primary {
    /// "throttle", "grow:SIZE" or "unprotect": what a checkpoint that outgrows staging means. Empty before there is a data path.
    pub on_cap: String,
    /// From one checkpoint to the next at most.
    pub epoch_us: u64,
    /// How long the VM runs between two checkpoints now, at most: less than an epoch while more would outgrow staging.
    pub run_us: u64,
    /// How long the VM stood still per checkpoint.
    pub pause_us: Percentiles,
    /// From the end of the pause to the ACK.
    pub commit_us: Percentiles,
}

/// What only a standby has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standby {
    /// How long it took to apply an epoch.
    pub apply_us: Percentiles,
    /// Of a VM that was taken over: its QEMU's QMP socket on this host, for `protect --qmp`.
    pub qmp: Option<String>,
    /// What a takeover took, once there was one.
    pub takeover: Option<Takeover>,
}

impl From<Side> for OfSide {
    fn from(side: Side) -> Self {
        match side {
            Side::Primary => Self::Primary(Primary::default()),
            Side::Standby => Self::Standby(Standby::default()),
            Side::Keeper => Self::Keeper,
        }
    }
}

impl Default for OfSide {
    fn default() -> Self {
        Side::Primary.into()
    }
}

impl OfSide {
    /// Which.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::Primary(_) => Side::Primary,
            Self::Standby(_) => Side::Standby,
            Self::Keeper => Side::Keeper,
        }
    }

    /// "primary", "standby", "keeper".
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.side().as_str()
    }

    /// Of a primary.
    #[must_use]
    pub fn primary(&self) -> Option<&Primary> {
        if let Self::Primary(primary) = self { Some(primary) } else { None }
    }

    /// Of a standby.
    #[must_use]
    pub fn standby(&self) -> Option<&Standby> {
        if let Self::Standby(standby) = self { Some(standby) } else { None }
    }
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

    /// Whether its process said this; else all there is to know is in the notes.
    #[must_use]
    pub fn is_told(&self) -> bool {
        !matches!(self.role.as_str(), GONE | MUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_side_has_is_absent_on_the_other_and_is_read_back() {
        for (side, own, others) in [
            (Side::Primary, "pause_us", "apply_us"),
            (Side::Standby, "apply_us", "pause_us"),
            (Side::Keeper, "held_bytes", "qmp"),
        ] {
            let status = Status { side: side.into(), qemu: Some(1), ..Status::default() };
            let json = serde_json::to_value(&status).unwrap();
            assert_eq!(json["side"], side.as_str());
            assert!(json.get(own).is_some() && json.get(others).is_none(), "{json}");
            assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
        }
    }

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
