//! Injects the fault, and watches what becomes of it.

use super::{
    Scenario,
    evidence::{Evidence, Side},
    round::Round,
    status, why,
};
use crate::{
    hosts::Place,
    timeline::{Mark, now_ms, pass, poll},
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

/// How soon the loser must be fenced, and the loss of the witness noticed.
const SOON: Duration = Duration::from_secs(15);

/// Does it, from a round that is protected and has a client.
///
/// # Errors
/// The rig could not do its part. What the product did wrong is in the evidence.
pub fn run(round: &mut Round<'_>, replies_from: Mark) -> Result<Evidence> {
    let status = round.status();
    let mut watch =
        Watch { mark: round.timeline.mark(), at_ms: now_ms(), survivor: None, frozen_at: None, complaints: Vec::new() };
    match round.settings.scenario {
        Scenario::KillPrimary => watch.kill_primary(round)?,
        Scenario::CutLink => watch.cut_link(round)?,
        Scenario::CutRdma => watch.cut_rdma(round)?,
        Scenario::FreezePrimary => watch.freeze_primary(round)?,
        Scenario::KillStandby => watch.kill_standby(round)?,
        Scenario::KillWitness => watch.kill_witness(round)?,
        Scenario::KillSidecar => watch.kill_sidecar(round)?,
    }
    let mut evidence = watch.finish(round, replies_from)?;
    evidence.status = status;
    why::check(round, &mut evidence)?;
    Ok(evidence)
}

struct Watch {
    mark: Mark,
    at_ms: f64,
    survivor: Option<Place>,
    /// Frames that the primary had let out when it was frozen.
    frozen_at: Option<u64>,
    complaints: Vec<String>,
}

impl Watch {
    fn strike(&mut self, round: &Round<'_>, what: &str) {
        self.at_ms = round.timeline.note(what);
    }

    fn kill_primary(&mut self, round: &mut Round<'_>) -> Result<()> {
        let death = round.topology.prepare_death(Place::Primary)?;
        self.strike(round, "primary host dies");
        death()?;
        self.await_survivor(round)
    }

    fn cut_link(&mut self, round: &mut Round<'_>) -> Result<()> {
        let cut = round.topology.prepare_cut()?;
        self.strike(round, "replication link is cut");
        cut()?;
        self.await_survivor(round)?;
        self.await_fenced(round)
    }

    fn cut_rdma(&mut self, round: &mut Round<'_>) -> Result<()> {
        let cut = round.topology.prepare_rdma_cut()?;
        self.strike(round, "RDMA is cut");
        cut()?;
        self.survivor = Some(Place::Primary);
        let mut status = Value::Null;
        poll(round.topology.patience(), || {
            status = round.status();
            status::transport(&status).is_some_and(|t| t.starts_with("tcp"))
        })?;
        round.timeline.note("checkpoints travel over TCP");
        if status::fallbacks(&status).unwrap_or(0) == 0 {
            self.complaints.push(format!("no fall-back was counted; transport: {:?}", status::transport(&status)));
        }
        if !status::is_protected(&status) {
            self.complaints.push("the VM was not protected after the fall-back".to_owned());
        }
        Ok(())
    }

    fn freeze_primary(&mut self, round: &mut Round<'_>) -> Result<()> {
        self.strike(round, "primary host freezes");
        let primary = round.topology.host(Place::Primary);
        primary.freeze()?;
        self.frozen_at = Some(primary.frames_out()?);
        self.await_survivor(round)?;
        pass(Duration::from_secs(1))?;
        round.timeline.note("primary host thaws");
        primary.thaw()?;
        self.await_fenced(round)
    }

    fn kill_standby(&mut self, round: &mut Round<'_>) -> Result<()> {
        let death = round.topology.prepare_death(Place::Standby)?;
        self.strike(round, "standby host dies");
        death()?;
        self.await_survivor(round)?;
        pass(Duration::from_secs(1))?;
        round.topology.restore()?;
        round.timeline.note("standby host is back");
        round.new_standby()?;
        if let Err(error) = round.protect() {
            self.complaints.push(format!("the VM was not protected again: {error:#}"));
        }
        Ok(())
    }

    fn kill_witness(&mut self, round: &mut Round<'_>) -> Result<()> {
        self.strike(round, "witness dies");
        round.witness.kill();
        self.survivor = Some(Place::Primary);
        self.expect(round, "arbiter-unreachable")?;
        if round.arbiter_reachable() != Some(false) {
            self.complaints.push("status does not say that the arbiter is unreachable".to_owned());
        }
        if !round.client().hear_a_reply()? {
            self.complaints.push("no reply while the witness was dead".to_owned());
        }
        round.timeline.note("witness is back");
        round.restart_witness()?;
        self.expect(round, "arbiter-reachable")
    }

    fn kill_sidecar(&mut self, round: &mut Round<'_>) -> Result<()> {
        let supervisor = round.protect.as_ref().context("nothing protects the VM")?.pid();
        self.strike(round, "data path dies");
        round.topology.host(Place::Primary).kill_data_path(supervisor)?;
        self.await_survivor(round)?;
        self.await_fenced(round)
    }

    /// Whoever goes on alone says so: the standby `running`, the primary `solo`.
    fn await_survivor(&mut self, round: &Round<'_>) -> Result<()> {
        let found = round
            .timeline
            .wait(self.mark, round.topology.patience(), |e| e.is("standby", "running") || e.is("protect", "solo"))?;
        self.survivor = found.map(|e| if e.source == "standby" { Place::Standby } else { Place::Primary });
        Ok(())
    }

    /// The loser says that it is fenced; a standby that it discarded what it held.
    fn await_fenced(&mut self, round: &Round<'_>) -> Result<()> {
        let loser = if self.survivor == Some(Place::Primary) { "standby" } else { "protect" };
        let fenced = |source: &str, event: &str| source == loser && matches!(event, "fenced" | "discarded");
        round.timeline.wait(self.mark, SOON, |e| fenced(&e.source, &e.event)).map(drop)
    }

    fn expect(&mut self, round: &Round<'_>, event: &str) -> Result<()> {
        if round.timeline.wait(self.mark, SOON, |e| e.is("protect", event))?.is_none() {
            self.complaints.push(format!("protect did not say '{event}' within {SOON:?}"));
        }
        Ok(())
    }

    /// The survivor alone with the client: who is heard, who runs, and what the client's books say.
    fn finish(mut self, round: &mut Round<'_>, replies_from: Mark) -> Result<Evidence> {
        let (primary, standby) = (round.topology.host(Place::Primary), round.topology.host(Place::Standby));
        let first = (self.frozen_at.map_or_else(|| primary.frames_out(), Ok)?, standby.frames_out()?);
        let quiet_from = now_ms();
        round.client().hear_a_reply()?;
        pass(round.settings.after)?;
        let last = (primary.frames_out()?, standby.frames_out()?);
        let summary = round.client().stop()?;
        let events = round.timeline.since(self.mark);
        let side = |place: Place, source: &str, frames_out: u64| -> Result<Side> {
            let said = |event: &str| events.iter().any(|e| e.is(source, event));
            Ok(Side { executes: round.executes(place)?, frames_out, fenced: said("fenced") || said("discarded") })
        };
        self.complaints.extend(round.guest_complaints());
        Ok(Evidence {
            scenario: round.settings.scenario,
            fault_at_ms: self.at_ms,
            quiet_from_ms: quiet_from,
            survivor: self.survivor,
            primary: side(Place::Primary, "protect", last.0.saturating_sub(first.0))?,
            standby: side(Place::Standby, "standby", last.1.saturating_sub(first.1))?,
            replies: round.client().replies(replies_from),
            summary,
            complaints: self.complaints,
            status: Value::Null,
            stories: Vec::new(),
            events,
        })
    }
}
