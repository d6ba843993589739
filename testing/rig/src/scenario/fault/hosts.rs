//! Hosts die, freeze, and lose sight of each other.

use crate::{
    hosts::Place,
    netns, process,
    scenario::{round::Round, status, suspicion::Spoilt, watch::Watch},
    timeline::{pass, poll},
};
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

pub(super) fn kill_primary(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    die(watch, round, Place::Primary)?;
    watch.await_survivor(round)
}

/// (What runs on a host dies one after the other: the last may miss the first, as it would nowhere else.)
pub(super) fn die(watch: &mut Watch, round: &Round<'_>, place: Place) -> Result<()> {
    let death = round.topology.prepare_death(place)?;
    watch.strike(round, &format!("{} host dies", crate::scenario::watch::name(place)));
    watch.due(round, "protect");
    watch.due(round, "standby");
    death()
}

pub(super) fn cut_link(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    cut(watch, round)?;
    watch.await_survivor(round)?;
    watch.await_fenced(round)
}

/// The replication link falls silent.
pub(super) fn cut(watch: &mut Watch, round: &Round<'_>) -> Result<()> {
    let cut = round.topology.prepare_cut()?;
    watch.strike(round, "replication link is cut");
    watch.due(round, "protect");
    watch.due(round, "standby");
    cut()
}

pub(super) fn cut_rdma(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let cut = round.topology.prepare_rdma_cut()?;
    watch.strike(round, "RDMA is cut");
    cut()?;
    watch.stays();
    let mut status = Value::Null;
    poll(round.topology.patience(), || {
        status = round.status();
        status::transport(&status).is_some_and(|t| t.starts_with("tcp"))
    })?;
    round.timeline.note("checkpoints travel over TCP");
    if status::fallbacks(&status).unwrap_or(0) == 0 {
        watch.complain(format!("no fall-back was counted; transport: {:?}", status::transport(&status)));
    }
    if !status::is_protected(&status) {
        watch.complain("the VM was not protected after the fall-back");
    }
    Ok(())
}

pub(super) fn freeze_primary(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    freeze(watch, round)?;
    watch.await_survivor(round)?;
    pass(Duration::from_secs(1))?;
    thaw(watch, round)
}

/// How often a stop is tried that should find a loop between two turns.
pub(super) const TRIES: u32 = 100;
/// Between two tries.
pub(super) const STEP: Duration = Duration::from_millis(3);

/// Everything on the primary host stops. No frame of its VM is due from here on: a loop that wakes up knows how long it
/// was away (docs/adr/0003). One that is stopped within a turn may be about to let out what was ACKed; so it is stopped
/// between two. Where that cannot be had, a frame after the thaw would prove nothing.
pub(super) fn freeze(watch: &mut Watch, round: &Round<'_>) -> Result<()> {
    watch.strike(round, "primary host freezes");
    watch.due(round, "protect");
    watch.due(round, "standby");
    let primary = round.topology.host(Place::Primary);
    let data_path = round.protect.as_ref().and_then(|protect| netns::data_path(protect.pid()).ok());
    for _ in 0..TRIES {
        primary.freeze()?;
        // (Of a host whose processes are not this machine's nobody can tell.)
        if data_path.is_none_or(process::waits) {
            watch.last_due_frame = Some(primary.frames_out()?);
            return Ok(());
        }
        primary.thaw()?;
        pass(STEP)?;
    }
    Err(never_waits("the data path's main thread"))
}

/// A thread could not be stopped between two turns of its loop, however often that was tried.
pub(super) fn never_waits(thread: &str) -> anyhow::Error {
    Spoilt { reasons: vec![format!("{thread} was not found between two turns of its loop in {TRIES} stops")] }.into()
}

pub(super) fn thaw(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    round.timeline.note("primary host thaws");
    round.topology.host(Place::Primary).thaw()?;
    watch.await_fenced(round)
}

pub(super) fn kill_standby(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    die(watch, round, Place::Standby)?;
    watch.await_survivor(round)?;
    pass(Duration::from_secs(1))?;
    watch.calm();
    round.topology.restore()?;
    round.timeline.note("standby host is back");
    round.new_standby()?;
    if let Err(error) = round.protect() {
        watch.complain(format!("the VM was not protected again: {error:#}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_cannot_be_had_spoils_the_round_and_says_why() {
        let error = never_waits("thread 7");
        let spoilt = error.downcast_ref::<Spoilt>().expect("no failure of the product's");
        assert_eq!(spoilt.reasons, ["thread 7 was not found between two turns of its loop in 100 stops"]);
    }
}
