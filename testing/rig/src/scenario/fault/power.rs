//! All hosts lose power at once.

use crate::{
    hosts::Place::{self, Client, Primary, Standby},
    scenario::{round::Round, watch::Watch},
    timeline::pass,
};
use anyhow::Result;
use std::time::Duration;

/// Every order in which three hosts can come back.
const ORDERS: [[Place; 3]; 6] = [
    [Client, Primary, Standby],
    [Client, Standby, Primary],
    [Primary, Client, Standby],
    [Primary, Standby, Client],
    [Standby, Client, Primary],
    [Standby, Primary, Client],
];
/// Between two of them.
const GAP: Duration = Duration::from_secs(1);

/// Six power cuts. What is on disks outlives them: what the witness and the nodes remember. The rest is gone: every
/// process, the VM, the image, the sockets.
pub(super) fn cut(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    for (number, order) in ORDERS.iter().enumerate() {
        let earlier = round.client().stop()?.unwrap_or_default();
        watch.earlier = Some(watch.earlier.take().unwrap_or_default().and(&earlier));
        fall(watch, round)?;
        let names = order.map(|p| if p == Client { "witness" } else { crate::scenario::watch::name(p) });
        round.timeline.note(&format!("power is back ({} of 6): {}", number + 1, names.join(", ")));
        if !rise(watch, round, order)? {
            return Ok(());
        }
    }
    watch.stays();
    Ok(())
}

fn fall(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let blows = [round.topology.prepare_death(Primary)?, round.topology.prepare_death(Standby)?];
    watch.strike(round, "power fails");
    watch.due(round, "protect");
    watch.due(round, "standby");
    // At once; but one follows the other here, and a witness that lived for those milliseconds could give the VM to a
    // standby that dies before it runs it. That an operator has to decide (docs/adr/0012).
    round.witness.kill();
    let [primary, standby] = blows;
    primary()?;
    standby()?;
    watch.calm();
    (round.protect, round.standby) = (None, None);
    for file in std::fs::read_dir(&round.settings.ram_dir)?.flatten() {
        std::fs::remove_file(file.path())?;
    }
    round.topology.restore()
}

/// False: it does not come up, so there is no use in another power cut.
fn rise(watch: &mut Watch, round: &mut Round<'_>, order: &[Place; 3]) -> Result<bool> {
    let (mark, mut has_witness, mut let_out) = (round.timeline.mark(), false, None);
    for place in order {
        match place {
            Client => {
                if let Some(before) = let_out
                    && round.topology.host(Primary).frames_out()? != before
                {
                    watch.complain("the primary let output out before it had won the arbiter");
                }
                round.restart_witness()?;
                has_witness = true;
            }
            Primary => {
                round.restart_vm()?;
                if !has_witness {
                    let_out = Some(round.topology.host(Primary).frames_out()?);
                }
                round.start_protect()?;
            }
            Standby => round.new_standby()?,
        }
        pass(GAP)?;
    }
    if let Err(error) = round.await_protected(mark) {
        watch.complain(format!("the VM was not protected after the power cut: {error:#}"));
        return Ok(false);
    }
    round.client().start()?;
    watch.status_exits(round, Primary, 0)?;
    if round.executes(Standby, Duration::ZERO)? {
        watch.violations.push("the standby runs a VM after the power cut".to_owned());
    }
    Ok(true)
}
