//! The data path looks for a standby: begins, hears what came of it, and says why there is none.

use super::{channel::ToSupervisor, data_path::DataPath};
use anyhow::Result;
use api::WhyNot;
use mc_core::{
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::primary::PrimaryLoop;
use std::time::Duration;

/// A successor that way was made for, and that has not come after this, does not come. For a data path without a supervisor.
const SUCCESSOR: Duration = Duration::from_secs(10);

impl DataPath {
    /// A successor that does not come leaves this process what it was.
    pub(super) fn mind_the_successor(&mut self) {
        let left_alone = self.made_way_at.is_some_and(|at| self.run.host.now().since(at) > SUCCESSOR);
        if left_alone && !self.supervisor.is_supervised() {
            self.take_back_place();
        }
    }

    /// A successor prepares itself: this process goes on as the VM's way to its network, and nothing else.
    pub(super) fn make_way(&mut self) -> Result<()> {
        self.run.seek.make_way(self.run.host.now(), true);
        self.run.look_no_more();
        self.made_way_at = Some(self.run.host.now());
        self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected)); // a copy that was on its way
        self.run_errands()?;
        self.supervisor.say(&ToSupervisor::MakeWay)
    }

    /// The successor did not start: this process keeps its place.
    pub(super) fn take_back_place(&mut self) {
        self.made_way_at = None;
        self.run.seek.make_way(self.run.host.now(), false);
    }

    /// For the status: why no standby protects the VM.
    pub(super) fn why_not(&self) -> Option<WhyNot> {
        let unfit = self.why_unfit();
        if unfit.is_some() {
            return unfit;
        }
        let reason = self.run.seek.reason()?;
        let now = self.run.host.now();
        let next = self.run.seek.next().map(|at| u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX));
        let begun = matches!(self.run.driver.machine().role(), Role::Syncing | Role::Registering);
        let under_way = (begun || self.run.is_looking()).then_some(0);
        Some(WhyNot {
            why: reason.why.clone(),
            since_ms: reason.since_ms,
            times: reason.times,
            next_try_in_ms: next.or(under_way),
            what_to_do: None,
        })
    }
}
