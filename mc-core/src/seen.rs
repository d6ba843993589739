//! What a node has seen of a VM's register: the highest value that it ever read or won, and at which witness.
//!
//! A witness may forget (an empty disk) or go back (a restored one). Then it answers with less than a node has seen before,
//! and whoever believed it would give up the last copy of a VM, or run a second one. So each node keeps this per VM, durably,
//! and compares every answer with it *before* acting on the answer. Only what passes reaches the machines.
//!
//! It travels with every request, too: a witness that starts has the nodes' word for what it may have lost ([`crate::arbiter`]).

use crate::{
    id::WitnessId,
    register::{Register, generation_of},
};
use std::fmt;

/// Of one VM, by one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// Who said so; `None` before the first answer.
    pub witness: Option<WitnessId>,
    /// The highest value; `None` if the register was vacant, or was never read.
    pub register: Option<Register>,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// Nothing new.
    Same,
    /// A later value: it is to be made durable before anybody acts on it.
    News,
    /// The arbiter cannot be believed.
    Fault(Fault),
}

/// Why an arbiter cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// It is another witness than the one that was asked so far.
    Foreign {
        /// That one.
        known: WitnessId,
        /// This one.
        found: WitnessId,
    },
    /// It holds less than it held before: it forgot, or a backup was put back.
    Behind {
        /// What it held.
        seen: Register,
        /// What it says now.
        held: Option<Register>,
    },
    /// It holds another value of the same generation.
    Contradicts {
        /// What it held.
        seen: Register,
        /// What it says now.
        held: Register,
    },
}

impl Seen {
    /// Compares an answer with what was seen before, and takes it if it is later. The first witness that answers is the one
    /// from then on, whatever it holds. Whoever calls this makes `self` durable if it changed, before acting on the answer.
    pub fn hear(&mut self, witness: WitnessId, held: Option<Register>) -> Heard {
        let first = self.witness.is_none();
        let known = *self.witness.get_or_insert(witness);
        if known != witness {
            return Heard::Fault(Fault::Foreign { known, found: witness });
        }
        match (self.register, held) {
            (Some(seen), held) if generation_of(held.as_ref()) < seen.generation => {
                Heard::Fault(Fault::Behind { seen, held })
            }
            (Some(seen), Some(held)) if held.generation == seen.generation && held != seen => {
                Heard::Fault(Fault::Contradicts { seen, held })
            }
            (seen, held) => {
                self.register = held;
                if first || seen != held { Heard::News } else { Heard::Same }
            }
        }
    }

    /// An operator accepts whichever witness answers next. What was seen stays seen: a witness that holds less is still
    /// told so.
    pub fn accept_any_witness(&mut self) {
        self.witness = None;
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = |held: &Option<Register>| generation_of(held.as_ref());
        match self {
            Self::Foreign { known, found } => {
                write!(f, "this is another witness ({found}) than the one that this node knows ({known})")
            }
            Self::Behind { seen, held: None } => {
                write!(
                    f,
                    "the arbiter forgot the VM: this node has seen {} (owner {})",
                    seen.generation, seen.owner.node
                )
            }
            Self::Behind { seen, held } => {
                let held = generation(held);
                write!(f, "the arbiter went back: it holds {held}, this node has seen {}", seen.generation)
            }
            Self::Contradicts { seen, held } => write!(
                f,
                "the arbiter holds another value of {} (owner {}) than this node has seen (owner {})",
                seen.generation, held.owner.node, seen.owner.node
            ),
        }
    }
}
