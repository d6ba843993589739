//! An operator's word that this node shall run the VM: the other host is stopped for certain.
//!
//! An arbiter that answers decides; the word counts where it is an operator's to decide, and where the arbiter has been away, unable
//! or not to be believed for a while (docs/adr/0008). It is given once, and kept: it counts when that time has come. An arbiter
//! that is away does not even say what the register holds, so then the swap is asked for without having read it.

use super::{main_loop::Node, why_not};
use api::{Response, done, refused};
use mc_core::standby::Role;

impl Node {
    /// `takeover`.
    pub(super) fn operator_takeover(&mut self) -> Response {
        if !self.run.operator_takes_over() {
            let (message, remedy) = why_not::nothing_to_take(self.run.role());
            return Response::Refused { message, remedy: Some(remedy) };
        }
        match self.run.role() {
            Role::Disputed => refused(
                "this copy may lack what the VM has sent since its last checkpoint; nothing was done. Repeat the \
                 command to run it all the same",
            ),
            _ if self.run.host.arbiter.operator_may_decide() => done("taking over"),
            _ => done("taking over: the arbiter decides if it answers within 3 s; else you do"),
        }
    }
}
