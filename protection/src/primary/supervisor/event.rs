//! What a supervisor's machine is told, and what it wants.

use super::super::{
    channel::{Brief, ToDataPath, ToSupervisor},
    commanded::Condition,
    vm_health::Health,
};
use mc_core::register::{CasOutcome, Register};
use node::{
    arbiter::Ask,
    events::Event as Told,
    exit::{Code, ExitError},
};
use tracing::Level;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// What came of [`Action::Spawn`]; why not.
    Spawned(Result<(), String>),
    /// The data path said this.
    Said(ToSupervisor),
    /// The channel to the data path is closed, and everything that it had said was heard.
    Closed,
    /// The channel to the data path broke: why. The process may be there.
    Broken(String),
    /// What came of [`Action::AwaitEnd`] and [`Action::Kill`]: how the data path's process ended.
    DataPathEnded(String),
    /// QEMU shut down (`orderly`), or died. Heard while [`super::machine::Supervisor::watches_qemu`].
    QemuGone {
        /// A shutdown that the guest or the operator asked for.
        orderly: bool,
    },
    /// What the data path should hear of QEMU.
    QemuSays(ToDataPath),
    /// What came of [`Action::Connect`].
    Connected(Result<(), NotConnected>),
    /// What came of [`Action::AskCondition`].
    QemuIs(Condition),
    /// What came of [`Action::AskHealth`]. A QEMU that does not answer at once says nothing.
    VmIs(Health),
    /// What came of [`Action::Leave`]: why not.
    Left(Option<String>),
    /// What came of [`Action::Fence`]: why not.
    Fenced(Option<String>),
    /// What came of [`Action::BeginClaim`], if it failed.
    NoClaim(String),
    /// From [`Action::BeginClaim`] on.
    Arbiter(Arbiter),
    /// So many signals to end.
    Signals(u32),
}

/// The arbiter, while the VM is claimed.
#[derive(Clone, Debug)]
pub enum Arbiter {
    /// What the register holds; also once a second, unasked.
    Read(Option<Register>),
    /// What came of a swap.
    Cas(CasOutcome),
    /// An operator's word that this node goes on, while the arbiter cannot answer; and the newest register that this host has seen.
    Operator {
        /// As it was read or won.
        seen: Option<Register>,
    },
    /// It cannot be asked: why; or it can again.
    Fails(Option<String>),
}

/// Somebody else may have QEMU's control connection.
#[derive(Clone, Copy, Debug)]
pub struct NotConnected {
    /// QEMU's process has ended.
    pub ended: bool,
    /// Another process on this host is the VM's way to its network. Not asked while there is a data path.
    pub relieved: bool,
}

/// What is to be done, in order. What comes of one is told before anything else.
#[derive(Debug)]
pub enum Action {
    /// Start a data path.
    Spawn(Box<Brief>),
    /// Tell the data path. It may be dead: then that is heard soon.
    Say(ToDataPath),
    /// Wait until the data path's process has ended.
    AwaitEnd,
    /// End it.
    Kill,
    /// Take QEMU's control connection up.
    Connect,
    /// Let go of it.
    Disconnect,
    /// Have QEMU do what the data path wants of it.
    Perform(ToSupervisor),
    /// Have QEMU leave its checkpoints, and see that the VM runs.
    Leave,
    /// Stop the VM for good.
    Fence,
    /// Ask QEMU whether it is there.
    AskCondition,
    /// Ask QEMU how its VM is.
    AskHealth,
    /// Serve the control socket, and get ready to ask the arbiter.
    BeginClaim,
    /// Ask the arbiter.
    Ask(Ask),
    /// For whoever asks for the status meanwhile.
    Note(String),
    /// Leave the control socket to the next data path.
    EndClaim,
    /// Tell the journal.
    Emit(Box<Told>),
    /// Tell the log.
    Log {
        /// Whether it is a warning, or an error.
        level: Level,
        /// What is wrong.
        what: String,
        /// And why.
        why: Option<String>,
    },
    /// End.
    Exit(Result<Code, ExitError>),
}
