//! Carries out what the primary's driver asks: swaps, fencing, events.

use super::{channel::ToSupervisor, data_path::DataPath};
use anyhow::Result;
use mc_core::{driver::PrimaryErrand, primary::Role, register::Swap, wire::control::NackReason};
use node::units::bytes_text;
use node::{
    events::{Event, Fenced, Refused, emit},
    exit::Code,
    primary::{PrimaryLoop, Trouble},
};
use vmm_qemu::colo::ColoSource;

impl DataPath {
    pub(super) fn run_errand(&mut self, errand: PrimaryErrand) -> Result<()> {
        match errand {
            PrimaryErrand::Cas(swap) if swap.contested && self.yields() => self.park(swap),
            PrimaryErrand::Cas(swap) => self.ask_for(swap),
            PrimaryErrand::StartSource => {
                let stream = self.run.driver.source_mut().and_then(ColoSource::far_end);
                self.supervisor.say_with(&ToSupervisor::StartSource, stream)?;
            }
            PrimaryErrand::GaveUp => self.gave_up(),
            PrimaryErrand::LeaveSource => self.went_solo()?,
            PrimaryErrand::Fence => self.fenced()?,
            PrimaryErrand::End => self.ended(),
            PrimaryErrand::LinkLost(why) => {
                if let Some(unproven) = self.run.link_lost(&why) {
                    self.no_beats(unproven);
                }
            }
            PrimaryErrand::Late => self.run.late(),
            PrimaryErrand::HandsBack => {
                tracing::error!("the VM died while the arbiter was asked; what is won goes to the standby");
                emit(Event::HandsBack(self.run.standing()));
            }
            PrimaryErrand::Refused(reason, words) => self.refused(reason, &words),
            PrimaryErrand::SourceFailed(why) => self.supervisor.say(&ToSupervisor::SourceFailed { why })?,
            PrimaryErrand::GateFailed(why) => self.gate_failed(why),
        }
        Ok(())
    }

    pub(super) fn ask_for(&mut self, swap: Swap) {
        self.run.ask_for(swap);
        if std::mem::take(&mut self.operator_wants_solo) {
            self.run.host.arbiter.operator_decides();
        }
    }

    /// The standby cannot go on, and the machine gives it up through the arbiter; or it could not run the VM.
    fn refused(&mut self, reason: NackReason, words: &str) {
        let why = match reason {
            NackReason::TooLarge => {
                "a checkpoint did not fit into the standby's staging; raise --staging there, or give it a --spill file"
            }
            NackReason::OutOfOrder => "the standby missed a part of a checkpoint",
            NackReason::Malformed => "the standby says that a checkpoint does not fit the VM's profile",
            NackReason::Rehearsal => "the standby cannot run the VM",
            NackReason::Storage => "the standby could not write its image or its spill file",
        };
        let why = if words.is_empty() { why.to_owned() } else { format!("{why}: {words}") };
        let known = self.run.trouble().is_some_and(|trouble| trouble.why == why);
        if known || self.unfit.as_ref().is_some_and(|unfit| unfit.is_for(&why)) {
            return; // said for each epoch that was on its way
        }
        tracing::error!(why, "giving protection up");
        emit(Event::Refused(Refused { why: why.clone(), ..Refused::default() }));
        match (reason, self.run.driver.machine().role()) {
            (NackReason::Rehearsal, Role::Protected) => self.is_unfit(why),
            _ => self.run.because(Trouble::lasting(why)),
        }
    }

    /// `--on-cap unprotect`; the machine has asked the arbiter.
    fn gave_up(&mut self) {
        let cap = bytes_text(self.run.driver.pool_stats().cap_bytes);
        let why = format!(
            "a checkpoint did not fit into staging ({cap}), and on-cap is unprotect. Raise it with `afterimage set \
             max-staging=SIZE`, or let the VM be paused with on-cap=throttle"
        );
        tracing::error!(why, "ending protection, because on-cap=unprotect does not let the VM be paused");
        emit(Event::GaveUp(why.as_str().into()));
        self.run.because(Trouble::lasting(why));
    }

    fn went_solo(&mut self) -> Result<()> {
        self.run.host.end_session();
        let register = *self.run.driver.machine().register();
        self.supervisor.say(&ToSupervisor::Alone { register })?;
        self.left.told(self.run.host.now());
        self.supervisor.say(&ToSupervisor::LeaveSource)?;
        self.without_standby();
        let solo = self.run.driver.machine().role() == Role::Solo;
        match self.end_when_solo.take().filter(|_| self.ending.is_none()) {
            Some((code, why)) if solo => self.end_once(code, &why),
            end => self.ending = self.ending.take().or(end),
        }
        if self.stop.is_ending() && self.ending.is_none() && solo {
            self.leave_network();
        }
        Ok(())
    }

    fn fenced(&mut self) -> Result<()> {
        let (vm, standing) = (Some(self.brief.config.vm), Some(self.run.standing()));
        emit(Event::Fenced(Box::new(Fenced { vm, register: self.run.held(), standing, ..Fenced::default() })));
        self.run.host.end_beats();
        self.supervisor.say(&ToSupervisor::Fence)?;
        let this = self.brief.register.owner.node.id;
        let here = self.run.driver.machine().overtaken_by().is_some_and(|owner| owner.node.id == this);
        let why = match (self.vm_died, here) {
            (true, _) if self.run.protected_since().is_some() => {
                "the VM's QEMU died; its standby has the last commit, and takes over"
            }
            // The register names the standby, which may lack what the outside has seen: then it asks for nothing.
            (true, _) => {
                "the VM's QEMU died before its standby had a commit whose output was held: the standby may not take it \
                 over by itself; see `afterimage status` there"
            }
            (false, true) => "another copy of it on this node owns the VM now; this copy was stopped",
            (false, false) => "another node owns the VM now; this copy was stopped",
        };
        self.ending = Some((Code::Fenced, why.to_owned()));
        Ok(())
    }

    fn ended(&mut self) {
        let end = match self.vm_died {
            true => (Code::Failed, "the VM's QEMU died, and no standby had a copy of the VM"),
            false => (Code::Done, "the VM is gone"),
        };
        self.ending.get_or_insert((end.0, end.1.to_owned()));
    }
}
