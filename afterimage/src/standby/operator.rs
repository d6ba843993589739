//! An operator's word that this node shall run the VM: the other host is stopped for certain.
//!
//! An arbiter that answers decides; the word counts where it is an operator's to decide, and where the arbiter has been away, unable
//! or not to be believed for a while (docs/adr/0008). It is given once, and kept: it counts when that time has come. An arbiter
//! that is away does not even say what the register holds, so then the swap is asked for without having read it.

use super::{main_loop::Node, why_not};
use crate::{
    control::{done, refused},
    status::Response,
};
use mc_core::standby::{Event, Role};

impl Node {
    /// `takeover`.
    pub(super) fn operator_takeover(&mut self) -> Response {
        let role = self.driver.machine().role();
        if !matches!(role, Role::Protecting | Role::Revoking | Role::Claiming | Role::Disputed) {
            let (message, remedy) = why_not::nothing_to_take(role);
            return Response::Refused { message, remedy: Some(remedy) };
        }
        self.operator_wants_it = true;
        self.suspected_at.get_or_insert(self.clock.now());
        if role != Role::Claiming {
            self.driver.event(Event::OperatorTakesOver);
        }
        self.heed_operator();
        match self.driver.machine().role() {
            Role::Disputed => refused(
                "this copy lacks what the VM has sent since its last checkpoint, or may: nothing was decided. Say it again, and it runs \
                 from there all the same",
            ),
            _ if self.arbiter.operator_may_decide() => done("taking over"),
            _ => done("taking over: the arbiter decides if it answers; once it has been away for 3 s, your word does"),
        }
    }

    /// The word that was given counts once the arbiter does not.
    pub(super) fn heed_operator(&mut self) {
        let claims = self.driver.machine().role() == Role::Claiming;
        if claims && self.operator_wants_it && self.arbiter.operator_may_decide() {
            self.driver.event(Event::OperatorTakesOver);
            self.arbiter.operator_decides();
        }
    }
}
