//! The register: one compare-and-swap cell per VM at a third party, asked on role changes only.

use crate::id::{Generation, Node, NodeId};

/// One copy of one VM on one host, running or waiting: what the register names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// The host.
    pub node: Node,
    /// Tells one copy from the next on that host. Of an owner: its QEMU process; a restarted QEMU has lost what its predecessor
    /// showed the world. Of a standby: drawn by it for each session; a session that is replayed to it has another one.
    /// [`Owner::ANY`]: whichever the host runs the VM with; only an operator names an owner so.
    pub instance: u64,
}

impl Owner {
    /// See [`Owner::instance`].
    pub const ANY: u64 = 0;

    /// Whether this names `node`'s QEMU process `instance`.
    #[must_use]
    pub fn names(&self, other: &Self) -> bool {
        self.node.id == other.node.id && (self.instance == other.instance || self.instance == Self::ANY)
    }
}

/// How the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The owner alone; its output needs nobody's ACK.
    Solo,
    /// The owner runs it, and this standby holds every epoch whose output was released (I5).
    Protected {
        /// Who may take over.
        standby: Owner,
    },
}

/// The register's value. A VM that was never protected has none, which counts as generation 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Register {
    /// Rises by one with every won compare-and-swap.
    pub generation: Generation,
    /// Who runs the VM.
    pub owner: Owner,
    /// Alone or protected.
    pub mode: Mode,
}

/// For people: "g2, a protected by b".
impl std::fmt::Display for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.mode {
            Mode::Solo => write!(f, "{}, {} alone", self.generation, self.owner.node),
            Mode::Protected { standby } => {
                write!(f, "{}, {} protected by {}", self.generation, self.owner.node, standby.node)
            }
        }
    }
}

impl Register {
    /// The nodes that it names: the owner, and the standby if there is one. Only they may change it.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let standby = match self.mode {
            Mode::Protected { standby } => Some(standby.node.id),
            Mode::Solo => None,
        };
        std::iter::once(self.owner.node.id).chain(standby)
    }

    /// Whether it says (protected by `copy`).
    #[must_use]
    pub fn names_standby(&self, copy: &Owner) -> bool {
        matches!(&self.mode, Mode::Protected { standby } if standby.node.id == copy.node.id && standby.instance == copy.instance)
    }

    /// Whether `asker` may put `new` in the place of this: the owner may do as it likes with its VM (go on alone, take a
    /// standby, hand the VM back), the standby may take over alone, or renounce (the owner is alone, and stays the same copy);
    /// nobody else may do anything. Another copy on the owner's host may follow one that ran alone, and only alone: of one that
    /// was protected the standby has the last commit.
    #[must_use]
    pub fn may_become(&self, asker: NodeId, new: &Self) -> bool {
        let own = new.owner.node.id == asker;
        let alone = new.mode == Mode::Solo;
        let same = self.owner.names(&new.owner);
        if asker == self.owner.node.id {
            return if own { same || alone && self.mode == Mode::Solo } else { alone };
        }
        let standby = matches!(&self.mode, Mode::Protected { standby } if standby.node.id == asker);
        standby && alone && (own || new.owner == self.owner)
    }
}

/// The generation of a register that may be vacant.
#[must_use]
pub fn generation_of(register: Option<&Register>) -> Generation {
    register.map_or(Generation(0), |r| r.generation)
}

/// A compare-and-swap, as a node asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Swap {
    /// If the register still has this generation (0: it is vacant) …
    pub expect: Generation,
    /// … hold this, of generation `expect + 1`.
    pub new: Register,
    /// Whether another node may want the VM too, since somebody suspects somebody. It is never on the wire: only an arbiter
    /// that is an operator must be asked then.
    pub contested: bool,
}

impl Swap {
    /// One that no other node can want.
    #[must_use]
    pub fn new(expect: Generation, owner: Owner, mode: Mode) -> Self {
        Self { expect, new: Register { generation: expect.next(), owner, mode }, contested: false }
    }

    /// One that another node may want too.
    #[must_use]
    pub fn contested(expect: Generation, owner: Owner, mode: Mode) -> Self {
        Self { contested: true, ..Self::new(expect, owner, mode) }
    }
}

/// What the arbiter said to a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CasOutcome {
    /// The register now holds what was asked for (also when an earlier try had won and its reply was lost).
    Won(Register),
    /// Somebody else was first; this is what the register holds.
    Lost(Option<Register>),
}
