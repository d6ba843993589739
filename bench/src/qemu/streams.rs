//! All of a VM's RAM, once: QEMU's own `migrate`, and our full synchronisation.
//!
//! The guest has written all of its RAM, so that nobody gains by skipping zero pages; it goes on to rewrite 64 pages. Both are
//! timed by events, without the start of any process: `migrate` from `setup` to `completed` by QEMU's clock, ours from
//! the beginning of the session (`syncing`) until the standby has all of it, and the register says so (`protected`).

use super::stand::{UNLIMITED, start};
use crate::units::mib_per_s;
use anyhow::{Context, Result, bail, ensure};
use rig::{
    hosts::{Place, Topology},
    monitor::Monitor,
    scenario::{
        Settings,
        round::{Round, wait_booted},
    },
    timeline::{Mark, Timeline},
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

/// Where the incoming QEMU listens.
const PORT: u16 = 7301;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// `migrate` over TCP, from one host to an address of another (or the same). MB/sec of guest RAM.
///
/// # Errors
/// It fails, or found zero pages; the message has QEMU's words.
pub(crate) fn migrate(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    (from, to): (Place, Place),
    address: &str,
) -> Result<f64> {
    let (host, patience, to_uri) = (topology.host(from), topology.patience(), format!("tcp:{address}:{PORT}"));
    let (_source, vm) = start(settings, host, &dir.join("from"), &[], patience)?;
    let (_target, _) = start(settings, topology.host(to), &dir.join("to"), &["-incoming", &to_uri], patience)?;
    wait_booted(settings.guest.kind, host, &vm)?;
    let mut monitor = Monitor::connect(&vm.qmp())?;
    monitor.migrate_capability("events")?;
    monitor.command("migrate-set-parameters", &json!({ "max-bandwidth": UNLIMITED }))?;
    monitor.command("migrate", &json!({ "uri": to_uri }))?;
    let begun = at(&mut monitor, &["setup"])?;
    let ended = at(&mut monitor, &["completed", "failed"])?;
    let found = monitor.command("query-migrate", &json!({}))?;
    ensure!(found["status"] == "completed", "QEMU's migrate: {found}");
    let copied =
        found.pointer("/ram/normal-bytes").and_then(Value::as_u64).context("query-migrate has no normal-bytes")?;
    let ram = settings.guest.ram_bytes();
    ensure!(
        copied >= ram / 10 * 9,
        "of {ram} bytes of RAM only {copied} were copied: build the guest again (scripts/guests)"
    );
    Ok(mib_per_s(ram, (ended - begun) / 1e3))
}

fn at(monitor: &mut Monitor, states: &[&str]) -> Result<f64> {
    let wanted = |data: &Value| data["status"].as_str().is_some_and(|status| states.contains(&status));
    let found = monitor.wait(PATIENCE, |e| e.name == "MIGRATION" && wanted(&e.data))?;
    Ok(found.with_context(|| format!("QEMU's migrate is not {states:?} after {PATIENCE:?}"))?.at_ms)
}

/// Our full synchronisation over the replication link. MB/sec of guest RAM.
///
/// # Errors
/// The VM is not protected.
pub(crate) fn full_sync(settings: &Settings, topology: &dyn Topology, dir: &Path) -> Result<f64> {
    let mut round = Round::start(settings, topology, dir, Timeline::new(false))?;
    wait_booted(settings.guest.kind, topology.host(Place::Primary), &round.primary_vm())?;
    round.protect()?;
    let events = round.timeline.since(Mark::default());
    let at = |event: &str| events.iter().find(|e| e.is("protect", event)).map(|e| e.at_ms);
    let (Some(begun), Some(ended)) = (at("syncing"), at("protected")) else { bail!("protect did not say when") };
    Ok(mib_per_s(settings.guest.ram_bytes(), (ended - begun) / 1e3))
}
