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
    stand::{await_colo, begin, primary, runs, start},
    watch::Watched,
};
use anyhow::{Result, ensure};
use rig::{
    hosts::{Host, PRIMARY_REP_IP, Place, STANDBY_REP_IP, Topology},
    monitor::Monitor,
    scenario::Settings,
};
use std::{path::Path, time::Duration};

/// Where the incoming QEMU listens.
const PORT: u16 = 7300;

/// Starts both, and watches the primary for so long while a client asks. `quick_acks`: neither kernel delays ACKs.
///
/// # Errors
/// COLO does not engage, or ends; the message has QEMU's words.
pub(crate) fn run(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    (period, time): (Duration, Duration),
    quick_acks: bool,
) -> Result<Watched> {
    let ends = [(Place::Primary, PRIMARY_REP_IP), (Place::Standby, STANDBY_REP_IP)];
    let quicken = |on| ends.iter().try_for_each(|(place, own)| answer_at_once(topology.host(*place), own, on));
    quicken(quick_acks)?;
    let watched = between(settings, topology, dir, period, time);
    quicken(false)?;
    watched
}

fn between(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    period: Duration,
    time: Duration,
) -> Result<Watched> {
    let to = format!("tcp:{STANDBY_REP_IP}:{PORT}");
    let (host, own_dir) = (topology.host(Place::Standby), dir.join(Place::Standby.short()));
    let (mut waiting, twin) = start(settings, host, &own_dir, &["-incoming", &to], topology.patience())?;
    let mut secondary = Monitor::connect(&twin.qmp())?;
    let watched = primary(settings, topology, dir, time, |monitor| {
        secondary.migrate_capability("x-colo")?;
        begin(monitor, &to, period)?;
        await_colo(monitor)?;
        ensure!(runs(&mut secondary)?, "the secondary does not run");
        Ok(())
    });
    ensure!(waiting.is_alive(), "the secondary ended: {}", waiting.log_tail(3).replace('\n', " "));
    watched
}

/// Has the kernel of `host` answer at once, or as it usually does, what comes over the replication link.
fn answer_at_once(host: &dyn Host, own: &str, on: bool) -> Result<()> {
    let (net, flag) = ("10.78.0.0/24", if on { "1" } else { "0" });
    let route =
        ["route", "change", net, "dev", "rep", "proto", "kernel", "scope", "link", "src", own, "quickack", flag];
    host.run("ip", &route).map(drop)
}
