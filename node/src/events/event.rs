//! All events, each with its name and when it is told. `docs/EVENTS.md` has the same as a table.

use super::{
    link::{EpochRefused, FellBack, KeepaliveSet, NoSession, Refused, Rejoining, Set, Syncing, Transport},
    operator::{Ended, Exit, Operator, OperatorRefused, Signal},
    output::{GateOutputs, KeeperEnded, KeeperStarted, Keeping},
    role::{Goodbye, RoleChange, Standing, Started, Waiting, WaitingForArbiter},
    suspicion::{Stalled, Suspect},
    swap::{
        Answered, Asking, CopyMissed, Fenced, HandBack, Lost, RegisterRead, Renouncing, WaitingForStandby, Yielding,
    },
    vm::{
        Abandoned, Attached, DataPathDied, Discarded, Exported, HealthChanged, ImageFound, ImageKept, LeftoverRemoved,
        QemuCommandChanged, Reattached, Rehearsed, Rehearsing, Running, SourceBroken, TakeoverFailed, VmGone,
    },
    why::{Other, Unexplained, Why, WhyNow},
    witness::{ArbiterFault, NewIdentity, WitnessAccepted},
};
use serde::{Deserialize, Serialize};

macro_rules! events {
    ($($(#[doc = $doc:literal])* $name:literal $variant:ident $(($fields:ty))?;)*) => {
        /// Something that happened on this host. As JSON: an object with the event's name as `event`, and its fields.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        #[non_exhaustive]
        pub enum Event {
            $($(#[doc = $doc])* #[serde(rename = $name)] $variant $(($fields))?,)*
            /// One that this version does not know, or whose fields are not what they ought to be.
            #[serde(untagged)]
            Other(Other),
        }

        impl Event {
            /// The names of all events.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its name.
            #[must_use]
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$variant { .. } => $name,)*
                    Self::Other(other) => &other.event,
                }
            }
        }
    };
}

events! {
    // --- a process begins, and ends ---

    /// `afterimage protect` has the VM.
    "attached" Attached(Attached);
    /// `afterimage standby` began.
    "started" Started(Started);
    /// The standby has no session: it waits for a primary.
    "waiting" Waiting(Waiting);
    /// A VM that was taken over earlier was found running.
    "reattached" Reattached(Reattached);
    /// A keeper passes the VM's packets.
    "keeping" Keeping(Keeping);
    /// A fenced primary becomes the next standby.
    "rejoining" Rejoining(Rejoining);
    /// The host drew an identity.
    "new-identity" NewIdentity(NewIdentity);
    /// A signal to end came.
    "signal" Signal(Signal);
    /// It was refused; the next one is obeyed.
    "stop-refused" StopRefused(Why);
    /// It was obeyed, whatever that costs.
    "stop-obeyed" StopObeyed(Why);
    /// Supervision of the VM ended.
    "ended" Ended(Ended);
    /// The process ends.
    "exit" Exit(Exit);

    // --- roles ---

    /// The VM runs alone on the primary.
    "solo" Solo(RoleChange);
    /// The arbiter is asked to name the standby.
    "registering" Registering(RoleChange);
    /// The arbiter has; output is held, and no epoch of that time is ACKed yet.
    "holding" Holding(RoleChange);
    /// The death of this host (on the standby: of the other one) would cost nothing that anybody has seen.
    "protected" Protected(RoleChange);
    /// The standby is suspect; the arbiter is asked whether the primary may go on alone.
    "claiming" Claiming(RoleChange);
    /// The standby took the VM over: it runs there.
    "running" Running(Box<Running>);
    /// Another copy owns the VM: this one is stopped, and lets nothing out.
    "fenced" Fenced(Box<Fenced>);
    /// The register names another owner; the standby keeps its copy until the room is needed.
    "lost" Lost(Lost);
    /// The standby forgot its copy.
    "discarded" Discarded(Discarded);
    /// The takeover was given up: another node has the VM.
    "abandoned" Abandoned(Abandoned);
    /// The VM died while the arbiter was asked: what is won goes to the standby.
    "hands-back" HandsBack(Standing);
    /// The standby leaves: it ends the session.
    "goodbye" Goodbye(Goodbye);
    /// An attempt to take the VM over failed. Everything is kept.
    "takeover-failed" TakeoverFailed(TakeoverFailed);

    // --- suspicion ---

    /// The other side was silent for too long, or its link broke.
    "suspect" Suspect(Box<Suspect>);
    /// The primary's link to the standby broke.
    "link-lost" LinkLost(WhyNow);
    /// This process's own loop was away.
    "stalled" Stalled(Stalled);
    /// Beats are not proven to go both ways: no protection.
    "no-beats" NoBeats(Why);

    // --- the register ---

    /// The arbiter is asked for a swap.
    "asking" Asking(Asking);
    /// The arbiter answered a swap.
    "cas" Cas(Answered);
    /// The register was read.
    "register" Register(RegisterRead);
    /// The VM does not run: the arbiter is not asked for what the standby wants.
    "yielding" Yielding(Yielding);
    /// The VM that was won here goes to the standby, which has its last commit.
    "hand-back" HandBack(Box<HandBack>);
    /// The standby tells the arbiter that its copy is lost, and the owner alone.
    "renouncing" Renouncing(Box<Renouncing>);
    /// The register names a copy of this node that this process does not have.
    "copy-missed" CopyMissed(Box<CopyMissed>);
    /// Nothing is asked for until the standby has said what it has.
    "waiting-for-standby" WaitingForStandby(WaitingForStandby);

    // --- the arbiter ---

    /// Nothing goes on until the arbiter answers.
    "waiting-for-arbiter" WaitingForArbiter(WaitingForArbiter);
    /// It cannot be reached.
    "arbiter-unreachable" ArbiterUnreachable(Why);
    /// It can again.
    "arbiter-reachable" ArbiterReachable;
    /// It answers, and a failover is impossible.
    "arbiter-fault" ArbiterFault(Box<ArbiterFault>);
    /// It is as it should be again.
    "arbiter-mended" ArbiterMended;
    /// Another witness was accepted, as an operator had said.
    "witness-accepted" WitnessAccepted(WitnessAccepted);

    // --- the link ---

    /// A session began, with a full copy.
    "syncing" Syncing(Syncing);
    /// Which way the session goes.
    "transport" Transport(Transport);
    /// RDMA failed: checkpoints go over TCP.
    "fell-back" FellBack(FellBack);
    /// No session with a standby came about.
    "no-session" NoSession(NoSession);
    /// On the standby: a primary was turned away. On the primary: the standby refused a checkpoint.
    "refused" Refused(Refused);
    /// The standby refused an epoch.
    "epoch-refused" EpochRefused(EpochRefused);
    /// Nothing is committed any more: the VM is not protected.
    "no-commits" NoCommits(WhyNow);
    /// Epochs are committed again.
    "commits-again" CommitsAgain(Standing);

    // --- protection ---

    /// Protection is given up.
    "gave-up" GaveUp(Why);
    /// The VM as it is cannot be protected; protection ends as soon as the arbiter is there.
    "unfit" Unfit(Why);
    /// It is another one than it was, and may be.
    "may-be-fit" MayBeFit(Why);
    /// The standby has its image loaded, for a test.
    "rehearsing" Rehearsing(Rehearsing);
    /// That worked.
    "rehearsed" Rehearsed(Rehearsed);
    /// It did not: no protection.
    "rehearsal-failed" RehearsalFailed(Why);

    // --- the VM, its QEMU, its image ---

    /// Whether the VM runs has changed.
    "vm-health" VmHealth(HealthChanged);
    /// Its QEMU ended.
    "vm-gone" VmGone(VmGone);
    /// QEMU does not answer its control connection.
    "qemu-silent" QemuSilent(Why);
    /// The checkpoint stream from QEMU broke.
    "source-broken" SourceBroken(SourceBroken);
    /// QEMU did not leave its checkpoints, and is told again.
    "not-left" NotLeft(Why);
    /// It has left them.
    "left" Left;
    /// The data path died.
    "data-path-died" DataPathDied(Box<DataPathDied>);
    /// The supervisor died; the data path goes on without it.
    "supervisor-died" SupervisorDied;
    /// Nobody looks at the VM's outputs.
    "unwatched" Unwatched(Why);
    /// Somebody does again.
    "watched" Watched;
    /// The waiting QEMU was started with another command line than the configured one.
    "qemu-command-changed" QemuCommandChanged(QemuCommandChanged);
    /// The waiting QEMU died, and is started again.
    "waiting-qemu-died" WaitingQemuDied(Unexplained);
    /// It is there, and does nothing.
    "waiting-qemu-silent" WaitingQemuSilent(Why);
    /// It does not start any more: this host cannot run the VM.
    "waiting-qemu-fails" WaitingQemuFails(Why);
    /// It starts again.
    "waiting-qemu-starts" WaitingQemuStarts;
    /// The image outlives this process.
    "image-kept" ImageKept(ImageKept);
    /// An image that was kept was found.
    "image-found" ImageFound(ImageFound);
    /// A dead standby's image was removed.
    "leftover-removed" LeftoverRemoved(LeftoverRemoved);
    /// The image was written out as files.
    "exported" Exported(Exported);

    // --- output ---

    /// The VM's outputs are others than before.
    "outputs" Outputs(GateOutputs);
    /// The gate had trouble; what it holds stays held.
    "gate-failed" GateFailed(Why);
    /// A NIC does not work.
    "nic-lost" NicLost(Why);
    /// All NICs work again.
    "nics-connected" NicsConnected;
    /// A keeper has the VM's network.
    "keeper-started" KeeperStarted(KeeperStarted);
    /// No keeper could be started.
    "keeper-failed" KeeperFailed(Why);
    /// It ended.
    "keeper-ended" KeeperEnded(KeeperEnded);

    // --- operators ---

    /// An operator gave an order about a role.
    "operator" Operator(Operator);
    /// It was refused.
    "operator-refused" OperatorRefused(OperatorRefused);
    /// Beats were given other parameters.
    "keepalive-set" KeepaliveSet(KeepaliveSet);
    /// Settings were changed while it runs.
    "set" Set(Set);
}

impl Event {
    /// How things stood then, where the event tells.
    #[must_use]
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Solo(change)
            | Self::Registering(change)
            | Self::Holding(change)
            | Self::Protected(change)
            | Self::Claiming(change) => change.standing.as_ref(),
            Self::Running(event) => event.standing.as_ref(),
            Self::Fenced(event) => event.standing.as_ref(),
            Self::Lost(event) => event.standing.as_ref(),
            Self::Discarded(event) => event.standing.as_ref(),
            Self::Suspect(event) => event.standing.as_ref(),
            Self::Asking(event) => event.standing.as_ref(),
            Self::LinkLost(event) | Self::NoCommits(event) => event.standing.as_ref(),
            Self::HandsBack(standing) | Self::CommitsAgain(standing) => Some(standing),
            _ => None,
        }
    }

    /// Whether it belongs into the journal of roles as well: it changes a role, decides about one, or is asked for when one has
    /// changed. What a stranger can bring about is not among it, nor what is tried again and again.
    #[must_use]
    pub fn is_of_roles(&self) -> bool {
        matches!(
            self,
            Self::Attached(_)
                | Self::Started(_)
                | Self::Waiting(_)
                | Self::Reattached(_)
                | Self::Keeping(_)
                | Self::Rejoining(_)
                | Self::NewIdentity(_)
                | Self::StopObeyed(_)
                | Self::Ended(_)
                | Self::Exit(_)
                | Self::Solo(_)
                | Self::Protected(_)
                | Self::Running(_)
                | Self::Fenced(_)
                | Self::Discarded(_)
                | Self::HandsBack(_)
                | Self::Goodbye(_)
                | Self::TakeoverFailed(_)
                | Self::Suspect(_)
                | Self::LinkLost(_)
                | Self::Stalled(_)
                | Self::Asking(_)
                | Self::Cas(_)
                | Self::Register(_)
                | Self::Yielding(_)
                | Self::HandBack(_)
                | Self::ArbiterUnreachable(_)
                | Self::ArbiterReachable
                | Self::ArbiterFault(_)
                | Self::ArbiterMended
                | Self::WitnessAccepted(_)
                | Self::Syncing(_)
                | Self::FellBack(_)
                | Self::GaveUp(_)
                | Self::RehearsalFailed(_)
                | Self::VmHealth(_)
                | Self::VmGone(_)
                | Self::SourceBroken(_)
                | Self::DataPathDied(_)
                | Self::SupervisorDied
                | Self::ImageKept(_)
                | Self::Exported(_)
                | Self::GateFailed(_)
                | Self::NicLost(_)
                | Self::NicsConnected
                | Self::KeeperStarted(_)
                | Self::KeeperFailed(_)
                | Self::KeeperEnded(_)
                | Self::Operator(_)
                | Self::OperatorRefused(_)
        )
    }
}
