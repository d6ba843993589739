//! The arbiter, and identities.

use crate::arbiter::ArbiterClient;
use mc_core::{
    id::{Name, NodeId, WitnessId},
    seen::Fault,
};
use serde::{Deserialize, Serialize};

/// How the arbiter is, as known last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterState {
    /// As configured.
    pub spec: String,
    /// Whether it answered the last try.
    pub reachable: bool,
    /// Why an ask waits.
    pub last_error: Option<String>,
    /// Why it cannot be believed.
    pub fault: Option<Fault>,
    /// Why a failover would not find it able.
    pub failover_impossible: Option<String>,
}

impl From<&ArbiterClient> for ArbiterState {
    fn from(arbiter: &ArbiterClient) -> Self {
        let health = arbiter.health();
        Self {
            spec: arbiter.spec().to_string(),
            reachable: health.reachable,
            failover_impossible: health.failover_possible().err(),
            last_error: health.last_error,
            fault: health.fault,
        }
    }
}

/// It answers, and a failover is impossible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArbiterFault {
    /// In words.
    pub why: String,
    /// What to do, if that is known.
    #[serde(default)]
    pub remedy: Option<String>,
    /// Why it cannot be believed, if it is that.
    #[serde(default)]
    pub fault: Option<Fault>,
}

/// Another witness was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessAccepted {
    /// The VM.
    pub vm: Name,
    /// That one.
    pub witness: WitnessId,
}

/// The host drew an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewIdentity {
    /// The identity.
    pub id: NodeId,
    /// The machine that it is tied to, if that is known.
    pub machine: Option<String>,
    /// The one before it, which is another machine's.
    pub instead_of: Option<NodeId>,
}
