//! Protection rests on beats: they are proven before it is registered. A standby that is not heard, or does not hear this side,
//! would take the VM from a live host, or never.

use super::{Primary, Trouble};
use crate::{
    beats::Wish,
    events::{Event as Told, Suspect, WhyNow, emit},
    keepalive::{BeatHandle, Verdict},
};
use mc_core::{
    gate::OutputGate,
    id::Epoch,
    primary::{Event, Role},
    source::CheckpointSource,
    wire::control::GoodbyeReason,
};
use std::time::Duration;

/// So long at least beats get to come both ways.
const PATIENCE: Duration = Duration::from_secs(5);
/// And so many detection times.
const DETECTION_TIMES: u32 = 4;

/// Whether beats come both ways.
#[derive(Debug)]
pub(super) enum Proof {
    /// Not known yet, or nothing rests on it now.
    Pending,
    /// They do, and would be borne.
    Given,
    /// They do, with a gap that passes, as on a busy machine.
    Gap(String),
    /// They do not; what has to be let through.
    Failed(String),
}

impl<S: CheckpointSource, G: OutputGate> Primary<S, G> {
    pub(super) fn proof(&self, wish: Wish) -> Proof {
        let (machine, host) = (self.driver.machine(), &self.host);
        let Some(beats) = host.beats().filter(|_| machine.role() == Role::Syncing) else { return Proof::Pending };
        if beats.proof().proven {
            return match beats.fit() {
                _ if machine.epochs().1 < Epoch::FULL_SYNC => Proof::Pending,
                Ok(()) => Proof::Given,
                Err(unfit) => Proof::Failed(format!("{}; {}", unfit.what, unfit.remedy)),
            };
        }
        let detection_time = wish.interval * u32::from(wish.multiplier);
        let over = host.now().since(beats.started()) >= PATIENCE.max(detection_time * DETECTION_TIMES);
        if !over && beats.verdict() != Verdict::Suspect {
            return Proof::Pending;
        }
        let proof = beats.proof();
        let why = host.watch.unproven(beats, host.peer().unwrap_or_default(), host.now());
        let why = why.unwrap_or_else(|| "beats came too late".to_owned());
        // What never came has to be let through by somebody.
        if !over && proof.heard > 0 && proof.echoed > 0 { Proof::Gap(why) } else { Proof::Failed(why) }
    }

    /// The next session may be without a gap.
    pub(super) fn try_again(&mut self, why: String) {
        tracing::warn!(why, "not protected yet");
        emit(Told::NoBeats(why.as_str().into()));
        self.because(Trouble::passing(why));
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
    }

    /// The link is gone. A standby that never heard this side ends its session by itself, and says so on its host only: here its
    /// beats tell. (What ended long before the standby's patience did proves nothing about them.) Returns what they tell.
    pub fn link_lost(&mut self, why: &str) -> Option<String> {
        tracing::warn!(why, "link lost");
        let standing = Some(self.standing());
        emit(Told::LinkLost(WhyNow { why: why.to_owned(), standing }));
        let host = &self.host;
        let never = |beats: &&BeatHandle| {
            beats.proof().echoed == 0 && host.now().since(beats.started()) >= beats.startup_limit() / 2
        };
        let unproven = host.beats().filter(never);
        let unproven =
            unproven.and_then(|beats| host.watch.unproven(beats, host.peer().unwrap_or_default(), host.now()));
        if unproven.is_none() {
            self.because(Trouble::passing(format!("the link to the standby broke: {why}")));
        }
        unproven
    }

    /// An ACK is overdue: the machine asks the arbiter.
    pub fn late(&mut self) {
        let why = "no epoch was ACKed within the commit deadline, although beats may still arrive";
        tracing::error!(why, "the standby is suspected");
        let standing = Some(self.standing());
        emit(Told::Suspect(Box::new(Suspect { why: why.to_owned(), standing, ..Suspect::default() })));
        self.because(Trouble::passing("the standby ACKed no epoch in time"));
    }
}
