//! The data path's turns: what it does besides the loop of [`node::primary`], each at its place.

use super::{channel::ToSupervisor, data_path::DataPath, unfit::Unfit};
use anyhow::Result;
use mc_core::{driver::PrimaryErrand, id::Time};
use node::{
    beats::Wish,
    exit::Code,
    inbox::readable,
    primary::{
        Kind, Primary, PrimaryLoop, Trouble,
        session::{Judge, Terms, Unlike},
    },
};
use rustix::event::PollFd;
use std::{os::fd::AsFd, time::Duration};
use vmm_qemu::{colo::ColoSource, gate::NicGate, profile::Profile};

/// How long a standby that is not there yet is waited for, with `--once`.
const PATIENCE: Duration = Duration::from_secs(10);

impl PrimaryLoop for DataPath {
    type Source = ColoSource;
    type Gate = NicGate;

    fn primary(&self) -> &Primary<ColoSource, NicGate> {
        &self.run
    }

    fn primary_mut(&mut self) -> &mut Primary<ColoSource, NicGate> {
        &mut self.run
    }

    fn terms(&mut self) -> Result<Terms, Trouble> {
        if let Some(why) = self.outputs.left_open() {
            return Err(Trouble::lasting(why));
        }
        let config = &self.brief.config;
        Ok(Terms {
            to: config.to.clone(),
            bind: config.bind,
            patience: if config.once { PATIENCE } else { Duration::ZERO },
            paths: config.paths.clone(),
            vm: config.vm,
            owner: self.brief.register.owner,
            generation: self.run.driver.machine().register().generation.next(),
            witness: self.run.host.arbiter.health().witness,
            beats: config.wish(),
            slab_bytes: config.slab_bytes,
            staging_bytes: config.staging_bytes,
            profile: self.profile().to_json(),
            judge: judge(self.brief.profile.clone()),
        })
    }

    fn beating(&self) -> (Wish, Option<Duration>) {
        (self.brief.config.wish(), self.brief.config.stall_after)
    }

    fn commit_deadline(&self) -> Duration {
        self.brief.config.commit_deadline(self.run.host.watch.has_rdma())
    }

    fn source(&mut self) -> Result<ColoSource> {
        Ok(ColoSource::new(self.brief.profile.blocks.clone())?)
    }

    fn errand(&mut self, errand: PrimaryErrand) -> Result<()> {
        self.run_errand(errand)
    }

    fn wait_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.supervisor.wait_fd().map(readable));
        fds.push(readable(self.control.as_fd()));
        fds.push(readable(self.signals.as_fd()));
        fds.extend(self.scrapes.as_ref().map(|scrapes| readable(scrapes.as_fd())));
    }

    fn deadline(&self) -> Option<Time> {
        self.orders.iter().map(|order| order.until).chain(self.mend_at()).min()
    }

    fn hear(&mut self) -> Result<()> {
        self.hear_supervisor()?;
        self.hear_signals();
        Ok(())
    }

    fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn mind_the_vm(&mut self) {
        self.watch_supervisor();
        self.look_at_the_vm();
    }

    fn register_read(&mut self) {
        self.forget_what_is_decided();
        self.arbiter_is_there();
    }

    fn mind_the_settings(&mut self) -> Result<()> {
        self.follow_the_settings()?;
        self.refuse_late_orders();
        Ok(())
    }

    fn unproven(&mut self, why: String) {
        self.give_up_for(Code::Prerequisite, why);
    }

    fn bears_gaps(&self) -> bool {
        self.brief.stay
    }

    fn may_look(&self) -> bool {
        !self.stop.is_ending() && !self.left.is_pending()
    }

    fn attached(&mut self) {
        self.outputs.begin_session();
    }

    /// With `--once` it ends this process, and a keeper has the VM's network.
    fn without_session(&mut self, trouble: &Trouble) {
        if !self.brief.stay {
            self.end_once(Code::Failed, &trouble.why);
        }
    }

    /// `--once` looks for no second session.
    fn judged(&self, trouble: Trouble) -> Trouble {
        if self.brief.config.once { Trouble { kind: Kind::Hopeless, ..trouble } } else { trouble }
    }

    fn pumped(&mut self) -> Result<()> {
        self.mind_the_successor();
        self.mend_nics();
        self.notice_standstill();
        self.watch_sizes()
    }

    fn answer(&mut self) -> Result<()> {
        self.hear_control();
        Ok(())
    }

    fn new_role(&mut self) {
        let machine = self.run.driver.machine();
        if machine.is_protected() {
            let generation = machine.register().generation;
            if let Err(error) = self.supervisor.say(&ToSupervisor::Protected { generation }) {
                tracing::debug!(%error, "the supervisor is gone");
            }
        }
    }
}

impl DataPath {
    /// The VM's, and what it will be protected but for.
    fn profile(&self) -> Profile {
        let unheld = self.brief.outputs.unheld().map(|output| output.name.clone()).collect();
        Profile { unheld, ..self.brief.profile.clone() }
    }

    /// The session is over, and the VM runs solo.
    pub(super) fn without_standby(&mut self) {
        let unfit = self.unfit.take().map(Unfit::trouble);
        self.session_ended(unfit);
    }
}

fn judge(ours: Profile) -> Judge {
    Box::new(move |theirs| {
        let theirs = Profile::from_json(theirs).map_err(|error| Unlike::Unreadable(error.to_string()))?;
        let differences = ours.mismatches(&theirs);
        if differences.is_empty() { Ok(()) } else { Err(Unlike::Differs(differences.join("; "))) }
    })
}
