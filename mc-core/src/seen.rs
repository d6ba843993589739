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
#[expect(clippy::large_enum_variant, reason = "looked at where it is made")]
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
    /// It answered a read as if it were a swap, or a swap as if it were a read.
    OtherQuestion,
    /// It says that a swap is won, with another register than was asked for.
    WonAnother {
        /// What was asked for.
        asked: Register,
        /// What it says is won.
        won: Register,
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
            Self::OtherQuestion => f.write_str("the arbiter answered another question than it was asked"),
            Self::WonAnother { asked, won } => write!(
                f,
                "the arbiter says that a swap is won with {} (owner {}), but the swap was to {} (owner {})",
                won.generation, won.owner.node, asked.generation, asked.owner.node
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{Generation, Name, Node, NodeId},
        register::{Mode, Owner},
    };

    const W: WitnessId = WitnessId([1; 16]);
    const OTHER: WitnessId = WitnessId([2; 16]);

    fn register(generation: u64, instance: u64) -> Register {
        let node = Node { name: Name::new("a").unwrap(), id: NodeId([9; 16]) };
        Register { generation: Generation(generation), owner: Owner { node, instance }, mode: Mode::Solo }
    }

    #[test]
    fn what_is_later_is_news_and_what_is_less_is_a_fault() {
        let mut seen = Seen::default();
        assert_eq!(seen.hear(W, None), Heard::News, "which witness it is");
        assert_eq!(seen.hear(W, None), Heard::Same);
        assert_eq!(seen.hear(W, Some(register(1, 1))), Heard::News);
        assert_eq!(seen.hear(W, Some(register(5, 1))), Heard::News);
        assert_eq!(seen.hear(W, Some(register(5, 1))), Heard::Same);
        let before = seen;
        let five = register(5, 1);
        for held in [None, Some(register(1, 1)), Some(register(4, 1))] {
            assert_eq!(seen.hear(W, held), Heard::Fault(Fault::Behind { seen: five, held }));
        }
        let other = register(5, 2);
        assert_eq!(seen.hear(W, Some(other)), Heard::Fault(Fault::Contradicts { seen: five, held: other }));
        assert_eq!(seen, before, "what cannot be believed is not taken");
    }

    #[test]
    fn another_witness_is_heard_only_when_an_operator_accepts_it_and_knows_what_was_seen() {
        let mut seen = Seen::default();
        seen.hear(W, Some(register(5, 1)));
        let foreign = Heard::Fault(Fault::Foreign { known: W, found: OTHER });
        assert_eq!(seen.hear(OTHER, Some(register(9, 1))), foreign);
        seen.accept_any_witness();
        let behind = Fault::Behind { seen: register(5, 1), held: None };
        assert_eq!(seen.hear(OTHER, None), Heard::Fault(behind), "accepted, and told what it lacks");
        assert_eq!(seen, Seen { witness: Some(OTHER), register: Some(register(5, 1)) });
        assert_eq!(seen.hear(W, Some(register(5, 1))), Heard::Fault(Fault::Foreign { known: OTHER, found: W }));
        assert_eq!(seen.hear(OTHER, Some(register(5, 1))), Heard::Same);
    }

    #[test]
    fn a_fault_says_what_was_seen_and_what_is_held() {
        let seen = register(5, 1);
        let text = |fault: Fault| fault.to_string();
        assert!(text(Fault::Behind { seen, held: None }).contains("has seen g5 (owner a)"));
        assert!(text(Fault::Behind { seen, held: Some(register(4, 1)) }).contains("holds g4, this node has seen g5"));
        assert!(text(Fault::Contradicts { seen, held: register(5, 2) }).contains("another value of g5"));
        assert!(text(Fault::Foreign { known: W, found: OTHER }).contains(&OTHER.to_string()));
    }
}
