//! Protection rests on beats: they are proven before it is registered. A standby that is not heard, or does not hear this side,
//! would take the VM from a live host, or never.

use super::data_path::DataPath;
use crate::{events::emit, exit::Code, keepalive::Verdict};
use mc_core::{
    id::Epoch,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use serde_json::json;
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
        let config = &self.brief.config;
        let detection = config.beat_interval * u32::from(config.detect_multiplier);
        let over = waited >= PATIENCE.max(detection * DETECTION_TIMES);
        if over || beats.verdict() == Verdict::Suspect {
            let peer = self.peer.clone().unwrap_or_default();
            let why = self.watch.unproven(beats, &peer, self.clock.now());
            self.do_without(why.unwrap_or_else(|| "beats came too late".to_owned()));
        }
    }

    fn do_without(&mut self, why: String) {
        tracing::error!(why, "not protected: beats prove nothing");
        emit("no-beats", json!({ "why": why }));
        self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        self.give_up_for(Code::Prerequisite, why);
    }
}
