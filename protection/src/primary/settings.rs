//! What the primary runs with. As JSON, with the keys of the program's file, a supervisor hands it to its data path.

use crate::units::{As, Kib, Maybe, Mib, Time};
use api::OnCapWish;
use mc_core::id::{Name, Node};
use node::{
    address::LocalAddr,
    arbiter::{ArbiterConfig, ArbiterSpec, HostPort},
    beats::Wish,
    paths::PathsConfig,
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use vmm_qemu::{gate::NicSpec, inventory::Forced};

/// The settings of a primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The VM.
    pub vm: Name,
    /// This host's node name in the register.
    pub node: Name,
    /// QEMU's QMP socket.
    pub qmp: PathBuf,
    /// Address of the standby's --listen.
    pub to: HostPort,
    /// The arbiter of the VM.
    pub arbiter: ArbiterSpec,
    /// The next witness that answers may be another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_witness: bool,
    /// From one pause to the next, at least.
    #[serde(alias = "epoch_ms", with = "As::<Time>")]
    pub epoch: Duration,
    /// The VM's NICs.
    pub nics: Vec<NicSpec>,
    /// How often a beat is sent.
    #[serde(alias = "beat_interval_ms", with = "As::<Time>")]
    pub beat_interval: Duration,
    /// How often beats are received at most; `None`: as often as they are sent.
    #[serde(alias = "beat_min_rx_ms", default, skip_serializing_if = "Option::is_none", with = "Maybe::<Time>")]
    pub beat_min_rx: Option<Duration>,
    /// Missed beats until suspicion.
    pub detect_multiplier: u8,
    /// After so long without progress of the loop no beat leaves; `None`: four detection times, at least a second.
    #[serde(alias = "stall_after_ms", default, skip_serializing_if = "Option::is_none", with = "Maybe::<Time>")]
    pub stall_after: Option<Duration>,
    /// So long an epoch may wait for its ACK; `None`: see [`Settings::commit_deadline`].
    #[serde(alias = "commit_deadline_ms", default, skip_serializing_if = "Option::is_none", with = "Maybe::<Time>")]
    pub commit_deadline: Option<Duration>,
    /// Staging's cap, bytes.
    #[serde(rename = "staging", alias = "staging_mib", with = "As::<Mib>")]
    pub staging_bytes: u64,
    /// What a checkpoint that outgrows it means.
    pub on_cap: OnCapWish,
    /// Bytes of a slab.
    #[serde(rename = "slab", alias = "slab_kib", with = "As::<Kib>")]
    pub slab_bytes: u64,
    /// Checkpoints captured and not yet ACKed, at most.
    pub window: u64,
    /// Held output at most, bytes; what comes beyond it is dropped.
    #[serde(rename = "held_limit", alias = "held_limit_mib", with = "As::<Mib>")]
    pub held_limit_bytes: u64,
    /// Where sockets and locks are.
    pub run_dir: PathBuf,
    /// Where its journal is.
    pub state_dir: PathBuf,
    /// Where metrics are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// The local address of the connection to the standby and of its beats; `None`: the one that the route uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<LocalAddr>,
    /// Protect a VM whose disks can be written.
    pub force_writable_disks: bool,
    /// End when there is no standby, or no arbiter at the start, instead of staying and trying again.
    pub once: bool,
    /// After a fence, stand by for the VM as the file's section `[standby]` says.
    pub rejoin: bool,
    /// Outputs that may stay unheld, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unheld: Vec<String>,
    /// Which way checkpoints and beats go.
    pub paths: PathsConfig,
    /// The file of --config, for what is saved later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
}

/// The shortest commit deadline. A shorter one would suspect a standby that does all that it should.
#[must_use]
pub fn least_commit_deadline(epoch: Duration, detection: Duration) -> Duration {
    detection + epoch * 2
}

impl Settings {
    /// While protected, so long an epoch may wait for its ACK: the standby is suspected then, whatever beats say. RDMA may have
    /// to fall back within that time. Epochs and beats that were made longer since are waited for all the same.
    #[must_use]
    pub fn commit_deadline(&self, rdma: bool) -> Duration {
        let detection = self.beat_interval * u32::from(self.detect_multiplier);
        let falls_back = if rdma { self.paths.rdma_give_up() } else { Duration::ZERO };
        let usual = Duration::from_secs(2).max(self.epoch * 10).max(detection * 10);
        let wish = self.commit_deadline.map(|wish| wish.max(least_commit_deadline(self.epoch, detection)));
        wish.unwrap_or(usual) + falls_back
    }

    /// The sockets of the VM's NICs.
    #[must_use]
    pub fn nic_sockets(&self) -> Vec<PathBuf> {
        self.nics.iter().map(|nic| nic.socket.clone()).collect()
    }

    /// Which outputs may stay unheld.
    #[must_use]
    pub fn forced(&self) -> Forced {
        Forced { names: self.unheld.clone(), disks: self.force_writable_disks }
    }

    /// How `node`, which is this host, asks the arbiter.
    #[must_use]
    pub fn asks(&self, node: Node) -> ArbiterConfig {
        ArbiterConfig {
            spec: self.arbiter.clone(),
            vm: self.vm,
            node,
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
            accept_witness: self.accept_witness,
        }
    }

    /// How this side wants its beats.
    #[must_use]
    pub fn wish(&self) -> Wish {
        Wish { interval: self.beat_interval, min_rx: self.beat_min_rx, multiplier: self.detect_multiplier }
    }

    /// From now on, for this session's successors too.
    pub fn set_wish(&mut self, wish: Wish) {
        (self.beat_interval, self.beat_min_rx, self.detect_multiplier) = (wish.interval, wish.min_rx, wish.multiplier);
    }
}
