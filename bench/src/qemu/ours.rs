//! A VM under our protection: the rig's round without a fault.

use super::watch::{Watched, watch};
use anyhow::{Context, Result, bail, ensure};
use mc_core::histogram::Histogram;
use rig::{
    hosts::Topology,
    scenario::{Settings, report::Reply, round::Round},
    timeline::{Timeline, pass},
};
use serde_json::Value;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long a VM is left alone after it was protected: the first pause, in which the last of all RAM goes, is nobody's usual one.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

/// What one run found.
#[derive(Clone, Debug)]
pub(crate) struct Ours {
    /// Pauses, by QEMU's events.
    pub watched: Watched,
    /// Epochs a second.
    pub epochs_per_s: f64,
    /// Pages captured a second: a page that is written again within an epoch counts once.
    pub pages_per_s: f64,
    /// Bytes of the stream to the standby, a second.
    pub bytes_per_s: f64,
    /// Median and 99th percentile of the pause as the sidecar itself has it, in microseconds.
    pub own_pause_us: (f64, f64),
    /// The same of how long output was held.
    pub hold_us: (f64, f64),
    /// From a client's request to the reply.
    pub replies: Histogram,
    /// The same of the same VM before it was protected.
    pub unprotected: Histogram,
}

/// Protects a new VM, and watches it for so long while a client asks.
///
/// # Errors
/// Something does not start, protection ends, or the client was told something wrong.
pub(crate) fn run(settings: &Settings, topology: &dyn Topology, dir: &Path, time: Duration) -> Result<Ours> {
    let mut round = Round::start(settings, topology, dir, Timeline::new(false))?;
    round.boot()?;
    let unprotected = times(&round.client().replies(rig::timeline::Mark::default()));
    round.protect()?;
    round.client().start()?;
    pass(SETTLE)?;
    let (mark, begun, before) = (round.client().mark(), Instant::now(), round.status());
    let watched = watch(&round.primary_vm().observer(), time)?;
    let (after, seconds) = (round.status(), begun.elapsed().as_secs_f64());
    let replies = times(&round.client().replies(mark));
    let Some(summary) = round.client().stop()? else { bail!("the client ended without a summary") };
    ensure!(summary.lost + summary.duplicated + summary.corrupt == 0 && !summary.stuck, "the client says: {summary:?}");
    let complaints = round.guest_complaints();
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    ensure!(after["protected"] == true, "the VM is not protected any more: {}", round.logs());
    let number = |status: &Value, path: &str| {
        status.pointer(path).and_then(Value::as_f64).with_context(|| format!("status has no {path}"))
    };
    let rate = |path: &str| anyhow::Ok((number(&after, path)? - number(&before, path)?) / seconds);
    let two =
        |path: &str| anyhow::Ok((number(&after, &format!("{path}/p50"))?, number(&after, &format!("{path}/p99"))?));
    Ok(Ours {
        watched,
        epochs_per_s: rate("/epoch")?,
        pages_per_s: rate("/counters/pages")?,
        bytes_per_s: rate("/counters/bytes")?,
        own_pause_us: two("/pause_us")?,
        hold_us: two("/hold_us")?,
        replies,
        unprotected,
    })
}

fn times(replies: &[Reply]) -> Histogram {
    let mut times = Histogram::new();
    replies.iter().for_each(|r| times.record(Duration::from_micros(r.latency_us)));
    times
}
