//! What an operator says to a running witness, and hears from it.

use crate::serve::Letter;
use mc_core::{
    id::{Name, NodeId, WitnessId},
    register::Register,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use tokio::sync::mpsc::UnboundedSender;

/// A node, as an operator names it: by its name, if the witness knows one node of that name, or as NAME=ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with `name`, and `id` where the name is not enough")]
pub struct NodeSpec {
    /// For people.
    pub name: Name,
    /// For decisions.
    pub id: Option<NodeId>,
}

impl FromStr for NodeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, id) = text.split_once('=').map_or((text, None), |(name, id)| (name, Some(id)));
        let name = name.parse().map_err(|e| format!("{e}"))?;
        let id = id.map(str::parse).transpose().map_err(|e| format!("{e}"))?;
        Ok(Self { name, id })
    }
}

/// What an operator asks of a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", deny_unknown_fields, rename_all = "kebab-case")]
pub enum WitnessRequest {
    /// What is there?
    List,
    /// This VM belongs to this node from now on.
    Assign {
        /// Which VM.
        vm: Name,
        /// Which node.
        node: NodeSpec,
    },
    /// This VM is no more.
    Forget {
        /// Which VM.
        vm: Name,
    },
}

/// A witness, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessReport {
    /// Its identity.
    pub witness: WitnessId,
    /// Since it last proved that it can store, ms; `null`: never.
    pub probe_age_ms: Option<u32>,
    /// The VMs that it knows of.
    pub registers: Vec<RegisterReport>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterReport {
    /// Which.
    pub vm: Name,
    /// What is held.
    pub register: Option<Register>,
    /// "settled", "waiting", "disputed".
    pub standing: String,
    /// The nodes whose word is waited for: names, or identities without one.
    pub awaited: Vec<String>,
    /// When a node that has seen its register asked last, ms ago; `null`: not since the start.
    pub last_told_ms: Option<u64>,
}

/// What an operator hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`WitnessRequest::List`].
    Report(Box<WitnessReport>),
    /// It was done, and is durable.
    Done(String),
    /// It was not: why.
    Refused(String),
}

/// Where a reply goes; dropped without one if the witness ends first.
pub struct ReplyTo(Box<dyn FnOnce(Reply) + Send>);

impl ReplyTo {
    /// To this function, on a thread of the witness: it must not wait.
    pub fn new(reply: impl FnOnce(Reply) + Send + 'static) -> Self {
        Self(Box::new(reply))
    }

    pub(crate) fn give(self, reply: Reply) {
        (self.0)(reply);
    }
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyTo")
    }
}

/// Hands an operator's words to the witness.
#[derive(Debug)]
pub struct Operator(UnboundedSender<Letter>);

impl Operator {
    pub(crate) fn new(letters: UnboundedSender<Letter>) -> Self {
        Self(letters)
    }

    /// Asks it. A witness that has ended drops `reply`.
    pub fn ask(&self, request: WitnessRequest, reply: ReplyTo) {
        let _ = self.0.send(Letter::Operator { request, reply });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_its_name_or_with_its_identity() {
        let name = |text: &str| Name::new(text).unwrap();
        assert_eq!("a".parse(), Ok(NodeSpec { name: name("a"), id: None }));
        let id = NodeId([0xab; 16]);
        assert_eq!(format!("a={id}").parse(), Ok(NodeSpec { name: name("a"), id: Some(id) }));
        assert!("a=12".parse::<NodeSpec>().unwrap_err().contains("32 hexadecimal digits"));
        assert!("".parse::<NodeSpec>().is_err());
    }
}
