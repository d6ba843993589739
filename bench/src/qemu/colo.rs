//! The yardstick: QEMU's own COLO, from one stock QEMU to another, on the same hosts over the same link.
//!
//! ```text
//!   primary host                         standby host
//!   QEMU, x-colo ──── tcp ─────────────> QEMU -incoming, x-colo: runs the guest as well
//!     │ STOP, RESUME ──> watched           (no network; every checkpoint replaces its state)
//!     └ NIC ── plug ── TAP <── client
//! ```
//!
//! Without colo-compare there is nothing but the period that asks for a checkpoint, and output is not held: its pauses are what
//! is compared, not its delay. The VM stands still until the secondary has taken everything, loaded it and said so.
//!
//! QEMU 7.2 leaves Nagle's algorithm on for this connection, and its messages are a few bytes each: on some of them the two
//! kernels wait for each other until a delayed ACK is due (40 ms). That is how it comes, and what its users have. Since a patch
//! of one line would change it, the same is measured without: routes with `quickack` (ip-route(8)) on both hosts.

use super::{
    ours::SETTLE,
    watch::{Watched, watch},
};
use anyhow::{Context, Result, bail, ensure};
use rig::{
    guest::VmPaths,
    hosts::{Host, PRIMARY_REP_IP, Place, STANDBY_REP_IP, Topology},
    monitor::Monitor,
    process::{Line, Proc},
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

/// Where the incoming QEMU listens.
const PORT: u16 = 7300;
/// How long COLO may take to engage.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second that nothing here reaches: no limit.
pub const UNLIMITED: u64 = 1_000_000_000_000;

/// How its connection is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// As it comes.
    Plain,
    /// Neither kernel delays ACKs.
    QuickAcks,
}

impl Road {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Plain, Self::QuickAcks];

    /// The yardstick's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "QEMU COLO over TCP",
            Self::QuickAcks => "QEMU COLO over TCP, no delayed ACKs",
        }
    }
}

/// A QEMU with monitors for us, in a directory of its own.
///
/// # Errors
/// It does not start.
pub fn start(
    settings: &Settings,
    host: &dyn Host,
    dir: &Path,
    more: &[&str],
    patience: Duration,
) -> Result<(Proc, VmPaths)> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let vm = VmPaths::new(dir);
    let line: Line = settings.guest.primary(host, &vm)?.args(more);
    let mut qemu = Proc::spawn(host, "qemu", &line, dir, &Timeline::new(false))?;
    let there = || [vm.qmp(), vm.observer(), vm.nic()].iter().all(|socket| socket.exists());
    poll(patience, || there() || !qemu.is_alive())?;
    ensure!(there() && qemu.is_alive(), "QEMU does not start:\n{}", qemu.log_tail(10));
    Ok((qemu, vm))
}

/// Starts both, and watches the primary for so long while a client asks.
///
/// # Errors
/// COLO does not engage, or ends; the message has QEMU's words.
pub fn run(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    period: Duration,
    time: Duration,
    road: Road,
) -> Result<Watched> {
    let (primary, standby) = (topology.host(Place::Primary), topology.host(Place::Standby));
    quick_acks(primary, PRIMARY_REP_IP, road == Road::QuickAcks)?;
    quick_acks(standby, STANDBY_REP_IP, road == Road::QuickAcks)?;
    let seen = between(settings, topology, dir, period, time);
    quick_acks(primary, PRIMARY_REP_IP, false)?;
    quick_acks(standby, STANDBY_REP_IP, false)?;
    seen
}

fn between(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    period: Duration,
    time: Duration,
) -> Result<Watched> {
    let (primary, standby) = (topology.host(Place::Primary), topology.host(Place::Standby));
    let (dirs, patience) = ([Place::Primary, Place::Standby].map(|p| dir.join(p.short())), topology.patience());
    let client_dir = dir.join(Place::Client.short());
    std::fs::create_dir_all(&client_dir).with_context(|| client_dir.display().to_string())?;
    let to = format!("tcp:{STANDBY_REP_IP}:{PORT}");
    let (mut running, vm) = start(settings, primary, &dirs[0], &[], patience)?;
    let (mut waiting, twin) = start(settings, standby, &dirs[1], &["-incoming", &to], patience)?;
    let timeline = Timeline::new(false);
    let _plug = plug(settings, primary, &vm, &dirs[0], &timeline)?;
    wait_booted(settings.guest.kind, primary, &vm)?;
    let mut monitor = engage(&vm, &twin, &to, period).map_err(|error| {
        let said = format!("{} {}", running.log_tail(3), waiting.log_tail(3));
        error.context(format!("COLO does not engage; QEMU says: {}", said.replace('\n', " ")))
    })?;
    let mut client = Asker::new(settings, topology, dir, &timeline);
    client.start()?;
    pass(SETTLE)?;
    let watched = watch(&vm.observer(), time)?;
    let state = monitor.command("query-migrate", &json!({}))?["status"].clone();
    ensure!(state == "colo", "COLO ended, the migration is now {state}: {}", running.log_tail(3));
    ensure!(running.is_alive() && waiting.is_alive(), "a QEMU ended");
    client.stop()?;
    Ok(watched)
}

/// Has the two begin. The primary's monitor.
fn engage(vm: &VmPaths, twin: &VmPaths, to: &str, period: Duration) -> Result<Monitor> {
    let (mut primary, mut secondary) = (Monitor::connect(&vm.qmp())?, Monitor::connect(&twin.qmp())?);
    secondary.migrate_capability("x-colo")?;
    primary.migrate_capability("x-colo")?;
    let delay_ms = u64::try_from(period.as_millis())?;
    let parameters = json!({ "x-checkpoint-delay": delay_ms, "max-bandwidth": UNLIMITED });
    primary.command("migrate-set-parameters", &parameters)?;
    primary.command("migrate", &json!({ "uri": to }))?;
    let begun = Instant::now();
    loop {
        let migration = primary.command("query-migrate", &json!({}))?;
        let runs = |monitor: &mut Monitor| anyhow::Ok(monitor.command("query-status", &json!({}))?["running"] == true);
        match migration["status"].as_str() {
            Some("colo") if runs(&mut primary)? && runs(&mut secondary)? => return Ok(primary),
            Some(state @ ("failed" | "completed" | "cancelled")) => {
                bail!("the migration is {state}: {}", migration.get("error-desc").unwrap_or(&Value::Null))
            }
            state => ensure!(begun.elapsed() < PATIENCE, "the migration is {state:?} after {PATIENCE:?}"),
        }
        pass(Duration::from_millis(20))?;
    }
}

/// Has the kernel of `host` answer at once, or as it usually does, what comes over the replication link.
fn quick_acks(host: &dyn Host, own: &str, on: bool) -> Result<()> {
    let (net, flag) = ("10.78.0.0/24", if on { "1" } else { "0" });
    let route =
        ["route", "change", net, "dev", "rep", "proto", "kernel", "scope", "link", "src", own, "quickack", flag];
    host.run("ip", &route).map(drop)
}
