//! What a standby runs with.

use crate::units::{As, Maybe, Mib, Time};
use mc_core::id::{Name, Node};
use node::{
    arbiter::{ArbiterConfig, ArbiterSpec},
    beats::Wish,
    paths::PathsConfig,
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use vmm_qemu::gate::NicSpec;

/// The settings of a standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The VM.
    pub vm: Name,
    /// This host's node name in the register.
    pub node: Name,
    /// Where it waits for the primary.
    pub listen: SocketAddr,
    /// The arbiter of the VM.
    pub arbiter: ArbiterSpec,
    /// The next witness that answers may be another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_witness: bool,
    /// The VM's NICs.
    pub nics: Vec<NicSpec>,
    /// Where the RAM image's file is: memory, so a tmpfs.
    pub ram_dir: PathBuf,
    /// Where a checkpoint goes that staging cannot hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill: Option<PathBuf>,
    /// Protect without having tried whether the VM's state can be loaded here.
    #[serde(default)]
    pub no_rehearsal: bool,
    /// Staging's cap, bytes.
    #[serde(rename = "staging", alias = "staging_mib", with = "As::<Mib>")]
    pub staging_bytes: u64,
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
    /// Where sockets and locks are.
    pub run_dir: PathBuf,
    /// Where its journal is.
    pub state_dir: PathBuf,
    /// Where metrics are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// QEMU and its arguments, as on the primary.
    pub qemu: Vec<String>,
    /// Which way checkpoints and beats go.
    pub paths: PathsConfig,
    /// The file of --config, for what is saved later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
}

impl Settings {
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
