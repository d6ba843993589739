//! What is said of a VM that is not run: the register has it otherwise, or says nothing.

use crate::{
    arbiter::ArbiterClient,
    events::{Event as Told, Role, WaitingForArbiter, emit},
    exit::{Code, ExitError},
};
use mc_core::{
    claim::Verdict,
    id::{Name, Time},
    register::{Mode, Register},
};
use std::time::Duration;

/// Why the VM is not run here, and what to do.
pub(super) fn refused(vm: Name, verdict: &Verdict) -> ExitError {
    let fail = |what: String, remedy: String| ExitError::new(Code::Prerequisite, format!("{what}. {remedy}"));
    const ASSIGN: &str =
        "give the VM to this node in the arbiter's register (`afterimage witness assign`) and start it again";
    match verdict {
        Verdict::OtherInstance(Register { generation, mode: Mode::Protected { standby }, .. }) => fail(
            format!(
                "an earlier process of this node ran {vm}, and {} stands by for it since generation {}: that one takes over, or says \
                 why not",
                standby.node, generation.0
            ),
            format!("Stand by for it here. Only if {} is lost for good, {ASSIGN}: from its beginning", standby.node),
        ),
        Verdict::Beside(held) | Verdict::OtherInstance(held) => fail(
            format!(
                "another copy of {vm} lives on this node since generation {} (instance {:x})",
                held.generation.0, held.owner.instance
            ),
            "End that one first; if it is gone, `PrimaryVm::lives` has to say so".to_owned(),
        ),
        Verdict::Foreign(Register { generation, owner, .. }) => fail(
            format!("{vm} belongs to another node, {}, since generation {}", owner.node, generation.0),
            format!("Stand by for it here. Only if {} is lost for good, {ASSIGN}", owner.node),
        ),
        Verdict::Open | Verdict::Ours(_) => fail(format!("it is not known whose {vm} is"), "Start it again".to_owned()),
    }
}

/// Says after a second what is waited for, and again when the reason is another.
pub(super) struct Waits {
    since: Time,
    why: Option<String>,
}

impl Waits {
    pub(super) fn new(since: Time) -> Self {
        Self { since, why: None }
    }

    pub(super) fn look(&mut self, now: Time, vm: Name, arbiter: &ArbiterClient) {
        if now.since(self.since) < Duration::from_secs(1) {
            return;
        }
        let why = arbiter.health().last_error.unwrap_or_else(|| "its first answer has not come yet".to_owned());
        if self.why.as_ref() == Some(&why) {
            return;
        }
        tracing::warn!(%vm, why, arbiter = %arbiter.spec(), "the VM is not run before the arbiter has answered");
        self.why = Some(why.clone());
        let why = format!("{vm} is not run before the arbiter {} has answered: {why}", arbiter.spec());
        emit(Told::WaitingForArbiter(WaitingForArbiter { role: Role::WaitingForArbiter, why }));
    }
}
