//! What an end says on its stdout, one JSON object a line, to the program outside.

use serde::{Deserialize, Serialize};
use transport_rdma::UdAddress;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "lowercase")]
pub(crate) enum Said {
    /// The link is there, and the peer was heard.
    Up(Up),
    /// Now and then.
    Progress(Counts),
    /// Everything was sent, and reached the peer's device; everything that the peer sent arrived.
    Complete(Counts),
    /// The detector suspects the peer.
    Suspect { silent_ms: u64, missed: u32 },
    /// The link is down.
    Down(Down),
    /// The last line.
    End(Beats),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Up {
    /// All its queue pairs.
    pub(crate) queues: Vec<u32>,
    pub(crate) timeout: u8,
    pub(crate) retry: u8,
    /// `RdmaLink::gives_up_after`.
    pub(crate) gives_up_ms: u64,
    /// Where its beats arrive.
    pub(crate) beats: UdAddress,
}

/// Items, slabs and records alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    /// And compared.
    pub(crate) received: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Down {
    pub(crate) words: String,
    /// Closed by the peer, or revoked here: no failure.
    pub(crate) orderly: bool,
    pub(crate) counts: Counts,
    /// Slabs that did not come back.
    pub(crate) lost_slabs: usize,
    /// What `revoke` said; nothing if the peer is fenced.
    pub(crate) not_fenced: Option<String>,
    /// Since the last completion of any kind, by the end's own clock.
    pub(crate) quiet_ms: u64,
}

/// What became of the detector.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Beats {
    pub(crate) state: String,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) after_suspicion: u64,
    /// Of another session.
    pub(crate) foreign: u64,
    /// Signed with another key.
    pub(crate) unauthentic: u64,
}

impl Said {
    /// Prints it.
    pub(crate) fn say(&self) {
        println!("{}", serde_json::to_string(self).expect("plain values"));
    }
}
