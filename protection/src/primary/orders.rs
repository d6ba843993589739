//! Orders of an operator or a signal that need the arbiter's consent. While the arbiter is away an order is refused, and
//! nothing is changed: protection that is ended by a swap which nobody answers would hold the VM's output for as long as that lasts.
//!
//! So the arbiter is asked first what the register holds. Its answer, not some earlier one, is the sign that it is there.

use super::data_path::DataPath;
use api::{ControlRequest, Response, done};
use mc_core::{
    id::Time,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::{
    arbiter::{ArbiterSpec, Ask, Health},
    clock::unix_ms,
    events::{Event as Told, OperatorRefused, emit},
};
use std::time::Duration;

/// For the arbiter to say a word: longer than a swap takes, shorter than the control socket waits.
const FRESH: Duration = Duration::from_millis(1500);
const STOPPED: &str = "an operator ended protection; `afterimage reprotect` begins again";

/// What is wanted.
#[derive(Debug)]
pub(super) enum Wanted {
    /// `unprotect`, or `solo` of a VM that is protected.
    Unprotect(ControlRequest),
    /// An orderly end of this process.
    Stop,
}

/// Until when it waits.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) until: Time,
    wanted: Wanted,
}

/// Whether nothing but an answer is missing.
fn is_able(health: &Health) -> bool {
    !health.reachable || health.failover_possible().is_ok()
}

impl DataPath {
    /// Carries it out once the arbiter has said a word, or refuses it.
    pub(super) fn order(&mut self, wanted: Wanted) {
        if *self.run.host.arbiter.spec() == ArbiterSpec::Manual {
            let vm = self.brief.config.vm;
            let why = "with --arbiter manual only an operator can rule out that the standby takes the VM over";
            let remedy = format!(
                "stop the standby and check that it is stopped; then run `afterimage solo --vm {vm} \
                 --yes-the-other-side-is-stopped`"
            );
            return self.refuse(wanted, why, &remedy);
        }
        self.run.host.arbiter.ask(Ask::Read);
        self.orders.push(Order { until: self.run.host.now().after(FRESH), wanted });
    }

    /// The arbiter answered a read just now. One that could store nothing would not answer a swap.
    pub(super) fn arbiter_is_there(&mut self) {
        if self.run.host.arbiter.health().failover_possible().is_err() {
            return; // it may be so in a moment; refused when it is late
        }
        self.end_if_unfit();
        for order in std::mem::take(&mut self.orders) {
            match order.wanted {
                Wanted::Unprotect(request) => {
                    self.end_protection();
                    request.reply(done("ending protection through the arbiter"));
                }
                Wanted::Stop => self.stop_now(),
            }
        }
    }

    /// Refuses what has waited for too long.
    pub(super) fn refuse_late_orders(&mut self) {
        let now = self.run.host.now();
        let (late, waiting) = std::mem::take(&mut self.orders).into_iter().partition(|order| now >= order.until);
        self.orders = waiting;
        let late: Vec<Order> = late;
        if late.is_empty() {
            return;
        }
        let spec = self.run.host.arbiter.spec().to_string();
        let health = self.run.host.arbiter.health();
        let fails = if is_able(&health) { "does not answer" } else { "cannot decide" };
        let said = health.last_error.clone().or(health.failover_possible().err());
        let said = said.unwrap_or_else(|| format!("no answer within {} ms", FRESH.as_millis()));
        let held = if self.run.driver.machine().role() == Role::Claiming {
            "the VM's output is held until it does"
        } else {
            "nothing was changed"
        };
        let why = format!("protection can only be ended through the arbiter, and {spec} {fails} ({said}); {held}");
        let remedy = "start or repair the witness or the network to it, then repeat the command. Without a witness \
             for 3 s or more: stop the standby, check that it is stopped, and run `afterimage solo`";
        for order in late {
            self.refuse(order.wanted, &why, remedy);
        }
    }

    fn refuse(&mut self, wanted: Wanted, why: &str, remedy: &str) {
        match wanted {
            Wanted::Unprotect(request) => {
                let role = Some(self.run.driver.machine().role().into());
                if let Some(request) = request.request.order() {
                    emit(Told::OperatorRefused(OperatorRefused { request, role, why: why.to_owned() }));
                }
                request.reply(Response::Away { message: why.to_owned(), remedy: remedy.to_owned() });
            }
            Wanted::Stop => self.refuse_stop(why),
        }
    }

    /// An operator's word: the machine ends protection in order, and no standby is looked for until another word.
    pub(super) fn end_protection(&mut self) {
        self.wants_protection(false);
        self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
    }

    /// What the operator wants from now on, here and in the next data path.
    pub(super) fn wants_protection(&mut self, protect: bool) {
        if protect {
            self.run.seek.wanted(self.run.host.now());
        } else {
            self.run.seek.unwanted(unix_ms(), STOPPED);
            self.run.look_no_more();
        }
        let said = self.supervisor.say(&super::channel::ToSupervisor::Wanted { protect });
        if let Err(error) = said {
            tracing::warn!(%error, "the supervisor does not hear what the operator wants");
        }
    }
}
