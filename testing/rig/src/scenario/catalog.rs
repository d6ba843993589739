//! The scenarios: what each is called, and what may come of it.

use crate::hosts::Place;
use clap::{ValueEnum, builder::PossibleValue};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Everything on the primary host dies at once. The standby takes over.
    KillPrimary,
    /// The replication link falls silent, both hosts live. One of them goes on, the other is fenced.
    CutLink,
    /// RDMA stops working on the replication link, all else goes on. Checkpoints go over TCP from there on, and none is
    /// lost.
    CutRdma,
    /// Everything on the primary host stops, and goes on after the takeover. It gets no packet out, and is fenced.
    FreezePrimary,
    /// Everything on the standby host dies. The primary goes on solo, and is protected again by a new standby.
    KillStandby,
    /// The witness dies and comes back. Protection goes on; failover is impossible meanwhile, and that is said.
    KillWitness,
    /// The data path of the primary's sidecar dies. One side goes on, the other is fenced; the VM is never left
    /// stopped.
    KillSidecar,
    /// The data path and the VM die together, the supervisor lives. The standby takes over.
    KillSidecarAndVm,
    /// After a takeover the standby's process dies. The VM is served on.
    KillSurvivorSidecar,
    /// The primary's QEMU stops (SIGSTOP), everything else goes on. The standby takes over, or everybody is told.
    StopQemu,
    /// One thread of the primary's data path stops, the one that moves checkpoints. The standby takes over.
    StopLoop,
    /// The same thread of the standby's process stops. The primary goes on solo.
    StopStandbyLoop,
    /// `protect` is asked to end (SIGTERM). The VM runs on, its network intact.
    SigtermPrimary,
    /// `standby` is asked to end (SIGTERM). The primary goes on solo, and protects itself when there is a standby
    /// again.
    SigtermStandby,
    /// `protect` begins without a standby: the VM is served, and protected by itself when there is one; then its host
    /// dies.
    NoStandbyYet,
    /// Datagrams to the standby get lost from the beginning: protection is not registered, and the port is named.
    MuteBeats,
    /// A VM with a second NIC that nobody holds: it is refused, and left as it was.
    UngatedNic,
    /// The witness forgets everything; later the link is cut. Both copies are kept until an operator accepts it; then
    /// one goes on.
    ForgetWitness,
    /// After a takeover the witness is set back to before it, and the old primary thaws. It gets nothing.
    RewindWitness,
    /// The witness is set back, and the primary dies meanwhile. The standby keeps its copy until an operator decides.
    AssignWitness,
    /// All three hosts lose power, and come back in every order. The VM, booted anew, is protected each time.
    PowerCut,
}

impl Scenario {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "kill-primary",
            Self::CutLink => "cut-link",
            Self::CutRdma => "cut-rdma",
            Self::FreezePrimary => "freeze-primary",
            Self::KillStandby => "kill-standby",
            Self::KillWitness => "kill-witness",
            Self::KillSidecar => "kill-sidecar",
            Self::KillSidecarAndVm => "kill-sidecar-and-vm",
            Self::KillSurvivorSidecar => "kill-survivor-sidecar",
            Self::StopQemu => "stop-qemu",
            Self::StopLoop => "stop-loop",
            Self::StopStandbyLoop => "stop-standby-loop",
            Self::SigtermPrimary => "sigterm-primary",
            Self::SigtermStandby => "sigterm-standby",
            Self::NoStandbyYet => "no-standby-yet",
            Self::MuteBeats => "mute-beats",
            Self::UngatedNic => "ungated-nic",
            Self::ForgetWitness => "forget-witness",
            Self::RewindWitness => "rewind-witness",
            Self::AssignWitness => "assign-witness",
            Self::PowerCut => "power-cut",
        }
    }

    /// Who may be left running.
    #[must_use]
    pub fn allowed(self) -> &'static [Place] {
        match self {
            Self::KillPrimary
            | Self::FreezePrimary
            | Self::KillSidecarAndVm
            | Self::KillSurvivorSidecar
            | Self::StopLoop
            | Self::NoStandbyYet
            | Self::RewindWitness
            | Self::AssignWitness => &[Place::Standby],
            Self::KillStandby
            | Self::KillWitness
            | Self::CutRdma
            | Self::StopStandbyLoop
            | Self::SigtermPrimary
            | Self::SigtermStandby
            | Self::MuteBeats
            | Self::UngatedNic
            | Self::PowerCut => &[Place::Primary],
            Self::CutLink | Self::KillSidecar | Self::StopQemu | Self::ForgetWitness => {
                &[Place::Primary, Place::Standby]
            }
        }
    }

    /// Whether there is a loser that lives, and must say that it gave its copy up.
    #[must_use]
    pub fn has_loser(self) -> bool {
        matches!(
            self,
            Self::CutLink
                | Self::FreezePrimary
                | Self::KillSidecar
                | Self::StopLoop
                | Self::StopStandbyLoop
                | Self::ForgetWitness
                | Self::RewindWitness
        )
    }

    /// Whether anybody has a reason to ask the arbiter for the VM.
    #[must_use]
    pub fn is_arbitrated(self) -> bool {
        !matches!(self, Self::KillWitness | Self::CutRdma)
    }

    /// Whether the hosts must be RDMA-capable virtual machines.
    #[must_use]
    pub fn needs_rdma(self) -> bool {
        self == Self::CutRdma
    }

    /// Whether it reaches into processes and files, which it can only on hosts made of this machine's namespaces.
    #[must_use]
    pub fn needs_local_hosts(self) -> bool {
        !matches!(
            self,
            Self::KillPrimary
                | Self::CutLink
                | Self::CutRdma
                | Self::FreezePrimary
                | Self::KillStandby
                | Self::KillWitness
                | Self::KillSidecar
        )
    }

    /// Whether a standby waits, and the VM is protected, before anything is done to it.
    #[must_use]
    pub fn begins_protected(self) -> bool {
        !matches!(self, Self::NoStandbyYet | Self::MuteBeats | Self::UngatedNic)
    }
}

/// One scenario, or all that these hosts can play, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    One(Scenario),
    /// `all`.
    All,
}

impl From<Scenario> for Choice {
    fn from(scenario: Scenario) -> Self {
        Self::One(scenario)
    }
}

impl Choice {
    /// The scenarios, in order. `rdma`: the hosts are virtual machines with RDMA devices.
    #[must_use]
    pub fn scenarios(self, rdma: bool) -> Vec<Scenario> {
        let fits = |s: &Scenario| if rdma { !s.needs_local_hosts() } else { !s.needs_rdma() };
        match self {
            Self::One(scenario) => vec![scenario],
            Self::All => Scenario::value_variants().iter().copied().filter(fits).collect(),
        }
    }

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::One(scenario) => scenario.name(),
            Self::All => "all",
        }
    }
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: std::sync::OnceLock<Vec<Choice>> = std::sync::OnceLock::new();
        ALL.get_or_init(|| {
            let one = Scenario::value_variants().iter().map(|s| Self::One(*s));
            one.chain([Self::All]).collect()
        })
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::One(scenario) => scenario.to_possible_value(),
            Self::All => Some(PossibleValue::new("all").help("Each of them in turn, one a round")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for scenario in Scenario::value_variants() {
            assert_eq!(scenario.to_possible_value().unwrap().get_name(), scenario.name());
        }
        assert_eq!(Choice::from_str("stop-loop", false), Ok(Choice::One(Scenario::StopLoop)));
        assert_eq!(Choice::from_str("all", false), Ok(Choice::All));
    }

    #[test]
    fn all_is_what_the_hosts_can_play() {
        let (local, lab) = (Choice::All.scenarios(false), Choice::All.scenarios(true));
        assert!(!local.contains(&Scenario::CutRdma) && local.contains(&Scenario::PowerCut));
        assert!(lab.contains(&Scenario::CutRdma) && !lab.contains(&Scenario::PowerCut));
        assert_eq!(Choice::from(Scenario::CutRdma).scenarios(false), [Scenario::CutRdma]);
    }
}
