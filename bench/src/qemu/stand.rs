//! A stock QEMU as a primary, without us: started, plugged into the network, watched while a client asks.

use super::{
    ours::SETTLE,
    watch::{Watched, watch},
};
use anyhow::{Context, Result, bail, ensure};
use rig::{
    guest::VmPaths,
    hosts::{Host, Place, Topology},
    monitor::Monitor,
    process::Proc,
    scenario::{
        Settings,
        asker::Asker,
        round::{plug, wait_booted},
    },
    timeline::{Timeline, pass, poll},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long a migration may take to become COLO.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second that nothing here reaches: no limit.
pub(crate) const UNLIMITED: u64 = 1_000_000_000_000;

/// A QEMU with monitors for us, in a directory of its own.
///
/// # Errors
/// It does not start.
pub(crate) fn start(
    settings: &Settings,
    host: &dyn Host,
    dir: &Path,
    more: &[&str],
    patience: Duration,
) -> Result<(Proc, VmPaths)> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let vm = VmPaths::new(dir);
    let line = settings.guest.primary(host, &vm)?.args(more);
    let mut qemu = Proc::spawn(host, "qemu", &line, dir, &Timeline::new(false))?;
    let there = || [vm.qmp(), vm.observer(), vm.nic()].iter().all(|socket| socket.exists());
    poll(patience, || there() || !qemu.is_alive())?;
    ensure!(there() && qemu.is_alive(), "QEMU does not start:\n{}", qemu.log_tail(10));
    Ok((qemu, vm))
}

/// Starts a primary, has it take checkpoints for a peer that `engage` leads it to, and watches it for so long.
///
/// # Errors
/// COLO does not engage, or ends; the message has QEMU's words.
pub(crate) fn primary(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    time: Duration,
    engage: impl FnOnce(&mut Monitor) -> Result<()>,
) -> Result<Watched> {
    let (host, own_dir) = (topology.host(Place::Primary), dir.join(Place::Primary.short()));
    let client_dir = dir.join(Place::Client.short());
    std::fs::create_dir_all(&client_dir).with_context(|| client_dir.display().to_string())?;
    let (mut qemu, vm) = start(settings, host, &own_dir, &[], topology.patience())?;
    let timeline = Timeline::new(false);
    let _plug = plug(settings, host, &vm, &own_dir, &timeline)?;
    wait_booted(settings.guest.kind, host, &vm)?;
    let mut monitor = Monitor::connect(&vm.qmp())?;
    let engaged = engage(&mut monitor);
    engaged.with_context(|| format!("COLO does not engage; QEMU says: {}", qemu.log_tail(3).replace('\n', " ")))?;
    let mut client = Asker::new(settings, topology, dir, &timeline);
    client.start()?;
    pass(SETTLE)?;
    let watched = watch(&vm.observer(), time)?;
    let state = monitor.command("query-migrate", &json!({}))?["status"].clone();
    ensure!(qemu.is_alive() && state == "colo", "COLO ended, the migration is {state}: {}", qemu.log_tail(3));
    client.stop()?;
    Ok(watched)
}

/// Begins the migration with `x-colo`.
///
/// # Errors
/// QEMU refuses.
pub(crate) fn begin(monitor: &mut Monitor, to: &str, period: Duration) -> Result<()> {
    monitor.migrate_capability("x-colo")?;
    let delay_ms = u64::try_from(period.as_millis())?;
    let parameters = json!({ "x-checkpoint-delay": delay_ms, "max-bandwidth": UNLIMITED });
    monitor.command("migrate-set-parameters", &parameters)?;
    monitor.command("migrate", &json!({ "uri": to })).map(drop)
}

/// Waits until it takes checkpoints, and the VM runs.
///
/// # Errors
/// The migration ends otherwise.
pub(crate) fn await_colo(monitor: &mut Monitor) -> Result<()> {
    let begun = Instant::now();
    loop {
        let migration = monitor.command("query-migrate", &json!({}))?;
        match migration["status"].as_str() {
            Some("colo") if runs(monitor)? => return Ok(()),
            Some(state @ ("failed" | "completed" | "cancelled")) => {
                bail!("the migration is {state}: {}", migration.get("error-desc").unwrap_or(&Value::Null))
            }
            state => ensure!(begun.elapsed() < PATIENCE, "the migration is {state:?} after {PATIENCE:?}"),
        }
        pass(Duration::from_millis(20))?;
    }
}

/// Whether the VM executes.
///
/// # Errors
/// QEMU does not answer.
pub(crate) fn runs(monitor: &mut Monitor) -> Result<bool> {
    Ok(monitor.command("query-status", &json!({}))?["running"] == true)
}
