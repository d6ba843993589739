//! Protection rests on beats: they are proven before it is registered. A standby that is not heard, or does not hear this side,
//! would take the VM from a live host, or never.

use super::{data_path::DataPath, seek::Trouble};
use mc_core::{
    id::Epoch,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::{
    events::{Event as Told, emit},
    exit::Code,
    keepalive::{BeatHandle, Verdict},
};
use std::time::Duration;

/// So long at least beats get to come both ways.
const PATIENCE: Duration = Duration::from_secs(5);
/// And so many detection times.
const DETECTION_TIMES: u32 = 4;

impl DataPath {
    /// Looks whether protection may be registered, as far as beats go; gives it up, before the register is touched, when they do
    /// not come both ways in time.
    pub(super) fn prove_beats(&mut self) {
        let machine = self.driver.machine();
        let Some(beats) = self.beats.as_ref().filter(|_| machine.role() == Role::Syncing) else { return };
        if beats.proof().proven {
            if machine.epochs().1 < Epoch::FULL_SYNC {
                return;
            }
            return match beats.fit() {
                Ok(()) => self.driver.event(Event::BeatsProven),
                Err(unfit) => self.do_without(format!("{}; {}", unfit.what, unfit.remedy)),
            };
        }
        let waited = self.clock.now().since(beats.started());
        let over = waited >= PATIENCE.max(self.detection_time() * DETECTION_TIMES);
        if over || beats.verdict() == Verdict::Suspect {
            let (peer, proof) = (self.peer.clone().unwrap_or_default(), beats.proof());
            let why = self.watch.unproven(beats, &peer, self.clock.now());
            let why = why.unwrap_or_else(|| "beats came too late".to_owned());
            // What never came has to be let through by somebody; a gap passes, as on a busy machine.
            let is_gap = !over && proof.heard > 0 && proof.echoed > 0;
            if is_gap && self.brief.stay { self.try_again(why) } else { self.do_without(why) }
        }
    }

    /// Beats go both ways, and there was a gap: the next session may be without one.
    fn try_again(&mut self, why: String) {
        tracing::warn!(why, "not protected yet");
        emit(Told::NoBeats(why.as_str().into()));
        self.because(Trouble::passing(why));
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
    }

    fn detection_time(&self) -> Duration {
        let config = &self.brief.config;
        config.beat_interval * u32::from(config.detect_multiplier)
    }

    /// The link is gone. A standby that never heard this side ends its session by itself, and says so on its host only: here its
    /// beats tell. (What ended long before the standby's patience did proves nothing about them.)
    pub(super) fn link_lost(&mut self, why: &str) {
        let never = |beats: &&BeatHandle| {
            beats.proof().echoed == 0 && self.clock.now().since(beats.started()) >= beats.startup_limit() / 2
        };
        let peer = self.peer.clone().unwrap_or_default();
        let unproven = self.beats.as_ref().filter(never);
        match unproven.and_then(|beats| self.watch.unproven(beats, &peer, self.clock.now())) {
            Some(unproven) => self.no_beats(unproven),
            None => self.because(Trouble::passing(format!("the link to the standby broke: {why}"))),
        }
    }

    fn do_without(&mut self, why: String) {
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        self.no_beats(why);
    }

    fn no_beats(&mut self, why: String) {
        tracing::error!(why, "not protected: beats prove nothing");
        emit(Told::NoBeats(why.as_str().into()));
        self.give_up_for(Code::Prerequisite, why);
    }
}
