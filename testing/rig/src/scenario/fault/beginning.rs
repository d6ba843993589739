//! What is wrong before there is any protection.

use super::{conclude, observe};
use crate::{
    guest::USER_NIC,
    hosts::Place,
    monitor::Monitor,
    scenario::{
        Scenario,
        evidence::Evidence,
        round::Round,
        watch::{WHILE, Watch},
    },
    timeline::{pass, poll},
};
use anyhow::{Context, Result};
use node::events::Event;
use serde_json::{Value, json};

pub(super) fn run(round: &mut Round<'_>) -> Result<(Evidence, Option<f64>)> {
    let replies_from = round.client().mark();
    let mut watch = Watch::begin(round);
    match round.settings.scenario {
        Scenario::MuteBeats => mute_beats(&mut watch, round)?,
        Scenario::UngatedNic => {
            let _network = ungated_nic(&mut watch, round)?;
            return Ok((conclude(watch, round, replies_from, Value::Null)?, None));
        }
        _ => {
            no_standby_yet(&mut watch, round)?;
            watch.mark = round.timeline.mark();
            return Ok((observe(watch, round, replies_from)?, None));
        }
    }
    Ok((conclude(watch, round, replies_from, Value::Null)?, None))
}

/// The VM is served while there is nobody to protect it, and protected when there is.
fn no_standby_yet(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    round.start_protect()?;
    round.client().start().context("without a standby")?;
    // For longer than anybody looks for a standby who gives up when there is none.
    pass(4 * WHILE)?;
    watch.status_degrades(round, Place::Primary)?;
    watch.is_served(round, "without a standby")?;
    let mark = round.timeline.mark();
    round.new_standby()?;
    round.timeline.note("there is a standby");
    round.await_protected(mark)?;
    watch.status_exits(round, Place::Primary, 0)
}

/// A detector that never worked: no beat reaches the standby.
fn mute_beats(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    round.topology.mute_datagrams(Place::Standby)?;
    watch.strike(round, "datagrams to the standby get lost");
    round.start_protect()?;
    round.client().start().context("while beats get lost")?;
    let register = round.register();
    // In words, on the primary: that beats did not come through, and by which port.
    let mut said = String::new();
    poll(round.topology.patience(), || {
        said = round.protect.as_ref().map_or_else(String::new, |p| p.log_tail(200));
        said.lines().any(names_the_port) || was_protected(watch, round)
    })?;
    if !said.lines().any(names_the_port) {
        watch.complain("protect does not say that beats get lost, and by which UDP port");
    }
    pass(WHILE)?;
    if was_protected(watch, round) {
        watch.complain("the VM was called protected, though no beat reached the standby");
    }
    if round.register() != register {
        watch.complain("the register was changed, though no beat reached the standby");
    }
    watch.status_degrades(round, Place::Primary)?;
    watch.is_served(round, "while beats get lost")?;
    let mark = round.timeline.mark();
    round.topology.restore()?;
    round.timeline.note("datagrams come through");
    if let Err(error) = round.await_protected(mark) {
        watch.complain(format!("the VM was not protected when beats came through: {error:#}"));
    }
    watch.stays();
    Ok(())
}

fn was_protected(watch: &Watch, round: &Round<'_>) -> bool {
    round.timeline.since(watch.mark).iter().any(|e| matches!(e.told_by("protect"), Some(Event::Protected(_))))
}

/// Whether a line of a log says something of a UDP port, with its number.
fn names_the_port(line: &str) -> bool {
    let lower = line.to_lowercase();
    let (has_beats, Some(port)) = (lower.contains("beat") && lower.contains("udp"), lower.find("port ")) else {
        return false;
    };
    has_beats && lower[port + 5..].starts_with(|c: char| c.is_ascii_digit())
}

/// Gives the network that the VM is tried with afterwards.
fn ungated_nic(watch: &mut Watch, round: &mut Round<'_>) -> Result<crate::process::Proc> {
    watch.strike(round, "protect is asked for a VM with a NIC that nobody holds");
    let register = round.register();
    round.start_protect()?;
    watch.ends_with(round, "protect", 6)?;
    let said = round.protect.as_ref().map_or_else(String::new, |p| p.log_tail(50));
    if !said.contains(USER_NIC) {
        watch.complain(format!("protect does not name the NIC's network, {USER_NIC}"));
    }
    if round.register() != register {
        watch.complain("the register was changed for a VM that was refused");
    }
    // As it was found: it runs, nobody migrates it, nobody has prepared it for that.
    let mut qemu = Monitor::connect(&round.primary_vm().observer())?;
    let migration = qemu.command("query-migrate", &json!({}))?;
    let capabilities = qemu.command("query-migrate-capabilities", &json!({}))?;
    let colo = capabilities.as_array().into_iter().flatten().find(|c| c["capability"] == "x-colo");
    if !migration["status"].is_null() || colo.is_some_and(|c| c["state"] == true) {
        watch.complain(format!("the VM was touched: migration {migration}, COLO {colo:?}"));
    }
    drop(qemu);
    let network = round.plug()?;
    round.client().start().context("after protect was refused")?;
    watch.stays();
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_with_its_number() {
        assert!(names_the_port("no beat came back: is UDP port 7100 of 10.78.0.2 filtered?"));
        for line in ["no beats over udp", "port 7100", "UDP port filtered, beats lost", "beats: port x (udp)"] {
            assert!(!names_the_port(line), "{line}");
        }
    }
}
