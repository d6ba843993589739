//! The arbiter is away, forgets, or goes back.

use super::hosts::{cut, freeze, thaw};
use crate::{
    hosts::{Answer, Place},
    scenario::{Scenario, round::Round, watch::Watch},
    timeline::{Entry, pass},
};
use anyhow::{Context, Result};
use node::events::Event;
use std::{fs, path::Path, process::Command, time::Duration};

pub(super) fn kill(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    watch.strike(round, "witness dies");
    round.witness.kill();
    watch.stays();
    // (Each finds out when it asks the next time; who has not asked by then has nothing to tell.)
    watch.both_say(round, watch.mark, "cannot be reached", |e| matches!(e, Event::ArbiterUnreachable(_)))?;
    if round.arbiter_reachable() != Some(false) {
        watch.complain("status does not say that the arbiter is unreachable");
    }
    watch.is_served(round, "while the witness was dead")?;
    let mark = round.timeline.mark();
    round.timeline.note("witness is back");
    round.restart_witness()?;
    watch.both_say(round, mark, "can be reached", |e| matches!(e, Event::ArbiterReachable))
}

/// A copy of what the witness remembers, for [`set_back`]. (It replaces its files whole; any moment will do.)
pub(super) fn back_up(round: &Round<'_>) -> Result<()> {
    copy(&round.files.witness(), &round.files.witness_backup())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cp")?;
    anyhow::ensure!(status.success(), "cannot copy {}: {status}", from.display());
    Ok(())
}

/// The witness as it was when it was backed up. (It does not run yet.)
fn set_back(round: &mut Round<'_>) -> Result<()> {
    round.witness.kill();
    fs::remove_dir_all(round.files.witness())?;
    copy(&round.files.witness_backup(), &round.files.witness())
}

/// A new disk, no backup; the link is cut before an operator has looked at it.
pub(super) fn forget(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    watch.strike(round, "witness forgets everything");
    round.witness.kill();
    fs::remove_dir_all(round.files.witness())?;
    round.restart_witness()?;
    watch.nothing_happens(round, "after the witness forgot")?;
    watch.status_degrades(round, Place::Primary)?;
    watch.status_degrades(round, Place::Standby)?;
    cut(watch, round)?;
    let suspects = |e: &Entry| matches!(e.told_by("protect"), Some(Event::Suspect(_) | Event::LinkLost(_)));
    round.timeline.wait(watch.mark, round.topology.patience(), suspects)?;
    pass(Duration::from_secs(1))?;
    watch.both_are_kept(round)?;
    watch.status_degrades(round, Place::Primary)?;
    watch.status_degrades(round, Place::Standby)?;
    // Now it may learn from them what it held.
    for place in [Place::Primary, Place::Standby] {
        let answer = round.accept_witness(place)?;
        said_yes(watch, &answer, "accept-witness");
    }
    round.timeline.note("an operator accepts the witness on both hosts");
    watch.await_survivor(round)?;
    watch.await_fenced(round)
}

/// A backup from before the takeover is put back; who was taken over wakes up.
pub(super) fn rewind(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    back_up(round)?;
    freeze(watch, round)?;
    watch.await_survivor(round)?;
    watch.is_served(round, "after the takeover")?;
    round.timeline.note("witness goes back to before the takeover");
    set_back(round)?;
    round.restart_witness()?;
    thaw(watch, round)?;
    watch.nothing_happens(round, "after the witness went back")
}

/// A backup from before the registration is put back while the primary dies: who else it named nobody can tell.
pub(super) fn assign(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    debug_assert_eq!(round.settings.scenario, Scenario::AssignWitness);
    set_back(round)?;
    super::hosts::die(watch, round, Place::Primary)?;
    round.timeline.note("witness is back, as before the registration");
    round.restart_witness()?;
    let suspects = |e: &Entry| matches!(e.told_by("standby"), Some(Event::Suspect(_)));
    round.timeline.wait(watch.mark, round.topology.patience(), suspects)?;
    pass(Duration::from_secs(2))?;
    watch.status_degrades(round, Place::Standby)?;
    if round.executes(Place::Standby, Duration::ZERO)? {
        watch.violations.push("the standby runs the VM, though the witness knew of no protection".to_owned());
    }
    if round.topology.host(Place::Standby).qemus().is_empty() {
        watch.complain("the standby gave its copy up");
    }
    watch.image_is_kept(round);
    let answer = round.assign(Place::Standby)?;
    round.timeline.note("an operator assigns the VM to the standby");
    said_yes(watch, &answer, "witness assign");
    watch.await_survivor(round)
}

fn said_yes(watch: &mut Watch, answer: &Answer, what: &str) {
    if answer.code != Some(0) {
        watch.complain(format!("{what}: exit code {:?}: {}", answer.code, answer.err.trim()));
    }
}
