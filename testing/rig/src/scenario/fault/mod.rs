//! Injects the fault, and watches what becomes of it.
//!
//! | module | faults of |
//! |---|---|
//! | [`hosts`] | hosts and links |
//! | [`processes`] | single processes and threads: killed, stopped, asked to end |
//! | [`witness`] | the arbiter: away, without a memory, with an old one |
//! | [`power`] | all hosts at once |
//! | [`beginning`] | what is wrong before there is any protection |

mod beginning;
mod hosts;
mod power;
mod processes;
mod witness;

use super::{
    Scenario,
    evidence::Evidence,
    round::Round,
    suspicion::{Spoilt, excuses},
    watch::Watch,
    why,
};
use crate::{
    hosts::Place,
    timeline::{Mark, pass},
};
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

/// Does it, from a round whose VM runs. Also gives what both sidecars use of a core while no client asks, if that is
/// measured.
///
/// # Errors
/// The rig could not do its part; [`Spoilt`] if that is because a side suspected the other before anything was done.
/// What the product did wrong is in the evidence.
pub fn run(round: &mut Round<'_>) -> Result<(Evidence, Option<f64>)> {
    let begun = round.timeline.mark();
    let done = if round.settings.scenario.begins_protected() { protected(round) } else { beginning::run(round) };
    done.map_err(|error| explain(round, begun, error))
}

fn protected(round: &mut Round<'_>) -> Result<(Evidence, Option<f64>)> {
    if round.settings.scenario == Scenario::AssignWitness {
        witness::back_up(round)?;
    }
    round.protect()?;
    let watch = Watch::begin(round);
    let idle = round.idle_cpu_percent()?;
    let replies_from = round.client().mark();
    round.client().start()?;
    Ok((observe(watch, round, replies_from)?, idle))
}

/// From a round that is protected and has a client, to its end.
fn observe(mut watch: Watch, round: &mut Round<'_>, replies_from: Mark) -> Result<Evidence> {
    pass(round.settings.before)?;
    let status = round.status();
    if watch.is_spoilt(round) {
        watch.strike(round, "nothing is done: roles have changed already");
        watch.complain("roles changed before anything was done");
        watch.await_survivor(round)?;
        // (Nobody has a story to tell of what was not done.)
        return watch.finish(round, replies_from);
    }
    inflict(&mut watch, round)?;
    conclude(watch, round, replies_from, status)
}

fn conclude(watch: Watch, round: &mut Round<'_>, replies_from: Mark, status: Value) -> Result<Evidence> {
    let mut evidence = watch.finish(round, replies_from)?;
    evidence.status = status;
    why::check(round, &mut evidence)?;
    Ok(evidence)
}

fn inflict(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    match round.settings.scenario {
        Scenario::KillPrimary | Scenario::NoStandbyYet => hosts::kill_primary(watch, round),
        Scenario::CutLink => hosts::cut_link(watch, round),
        Scenario::CutRdma => hosts::cut_rdma(watch, round),
        Scenario::FreezePrimary => hosts::freeze_primary(watch, round),
        Scenario::KillStandby => hosts::kill_standby(watch, round),
        Scenario::KillWitness => witness::kill(watch, round),
        Scenario::KillSidecar => processes::kill_sidecar(watch, round),
        Scenario::KillSidecarAndVm => processes::kill_sidecar_and_vm(watch, round),
        Scenario::KillSurvivorSidecar => processes::kill_survivor_sidecar(watch, round),
        Scenario::StopQemu => processes::stop_qemu(watch, round),
        Scenario::StopLoop => processes::stop_loop(watch, round),
        Scenario::StopStandbyLoop => processes::stop_standby_loop(watch, round),
        Scenario::SigtermPrimary => processes::sigterm_primary(watch, round),
        Scenario::SigtermStandby => processes::sigterm_standby(watch, round),
        Scenario::ForgetWitness => witness::forget(watch, round),
        Scenario::RewindWitness => witness::rewind(watch, round),
        Scenario::AssignWitness => witness::assign(watch, round),
        Scenario::PowerCut => power::cut(watch, round),
        Scenario::MuteBeats | Scenario::UngatedNic => anyhow::bail!("this is no fault of a protected VM"),
    }
}

/// Why the rig could not do its part: the machine's load, if a side suspected the other honestly, or the rig says so
/// itself; and only if nothing is unsafe.
fn explain(round: &Round<'_>, begun: Mark, error: anyhow::Error) -> anyhow::Error {
    let executes = |place| round.executes(place, Duration::ZERO).unwrap_or(true);
    let is_safe = !(executes(Place::Primary) && executes(Place::Standby)) && round.guest_complaints().is_empty();
    match (error.is::<Spoilt>(), is_safe) {
        (true, true) => return error,
        (true, false) => return anyhow::anyhow!("{error:#}; and two copies may run, or the guest complains"),
        (false, _) => {}
    }
    let excuses = excuses(&round.timeline.since(begun), |_| true);
    if excuses.is_empty() || !is_safe {
        return error;
    }
    Spoilt { reasons: excuses.into_iter().chain([format!("{error:#}")]).collect() }.into()
}
