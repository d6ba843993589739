//! Status and event texts that both sides share.

use crate::{
    control::refused,
    metrics::Snapshot,
    request::Response,
    status::{ArbiterStatus, Beats, Status, WhyNot},
};
use mc_core::{
    gate::GateStats,
    histogram::Percentiles,
    id::{Time, WitnessId},
    slab::PoolStats,
};
use node::{
    arbiter::ArbiterClient,
    clock::Clock,
    keepalive::{BeatHandle, PathStats, PathsReader},
    paths::Watch,
};

/// Of a primary whose role is claiming: what is held, why, and the way out. What a host that is cut off cannot know, it does not
/// say: whether a failover is possible.
pub fn fill_claim(status: &mut Status, cause: &str, since_ms: u64) {
    const LOOK: &str =
        "look at the other host first, by `afterimage status` there: the standby may have taken the VM over";
    let solo = format!("`afterimage solo --vm {} --yes-the-other-side-is-stopped`", status.vm);
    let arbiter = &mut status.arbiter;
    let error = arbiter.last_error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    let why = match arbiter.reachable {
        true => format!("{cause}, and the arbiter has not said who owns the VM{error}"),
        false => {
            format!("{cause}, and this host cannot reach the arbiter{error}: the standby may have taken the VM over")
        }
    };
    let what_to_do = format!("{LOOK}. Only when you are certain that the other host is stopped: {solo}");
    if !arbiter.reachable {
        (arbiter.failover_impossible, arbiter.remedy) = (None, Some(LOOK.to_owned()));
    }
    status.why_not_protected = Some(WhyNot {
        why: format!("{why}. Output is held: the VM has no network"),
        since_ms,
        times: 1,
        next_try_in_ms: None,
        what_to_do: Some(what_to_do),
    });
}

/// What is true of every protected VM, and an operator might not expect.
#[must_use]
pub fn standing_notes() -> Vec<String> {
    vec!["consoles and other channels for an operator are not held: a takeover may take back what they showed".into()]
}

/// Fills in what the gate knows, and how long it held output.
pub fn fill_gate(status: &mut Status, stats: GateStats, hold_us: Percentiles) {
    status.held_packets = stats.held_packets;
    status.held_bytes = stats.held_bytes;
    status.released_packets = stats.released_packets;
    status.dropped_packets = stats.dropped_packets;
    status.hold_us = hold_us;
}

/// Fills in what the staging pool knows.
pub fn fill_staging(status: &mut Status, stats: PoolStats) {
    status.staging_used_bytes = stats.used_bytes;
    status.staging_live_bytes = stats.live_bytes;
    status.staging_cap_bytes = stats.cap_bytes;
    status.staging_limit_bytes = stats.limit_bytes;
    status.staging_most_bytes = stats.most_bytes;
    status.staging_cap_hits = stats.cap_hits;
}

/// What metrics say of the beats.
pub fn scrape_beats(snapshot: &mut Snapshot, beats: &BeatHandle, watch: &Watch, now: Time) {
    snapshot.beats = Some(beats.stats());
    snapshot.silence_seconds = watch.silence_seconds(beats, now);
    [snapshot.gap, snapshot.round_trip, snapshot.lateness] = beats.buckets();
}

/// Fills in what the arbiter's client knows.
pub fn fill_arbiter(status: &mut Status, arbiter: &ArbiterClient) {
    let health = arbiter.health();
    status.arbiter = ArbiterStatus {
        spec: arbiter.spec().to_string(),
        reachable: health.reachable,
        fault: health.fault.map(|fault| fault.to_string()),
        failover_impossible: health.failover_possible().err(),
        remedy: health.remedy().map(str::to_owned),
        witness: (health.witness != WitnessId::NONE).then(|| health.witness.to_string()),
        standing: health.told.map(|told| told.standing_word().to_owned()),
        probe_age_ms: health.told.and_then(|told| told.probe_age_ms).map(u64::from),
        last_error: health.last_error,
    };
}

/// Fills in what the beat thread knows.
pub fn fill_beats(status: &mut Status, beats: &BeatHandle) {
    let stats = beats.stats();
    let ago = Clock.now().since(beats.last_heard()).as_millis();
    status.beats = Beats {
        sent: stats.sent,
        received: stats.received,
        missed: stats.missed,
        self_late: stats.self_late,
        gap_us: stats.gap_us,
        rtt_us: stats.rtt_us,
        detection_time_us: stats.detection_time_us,
        last_heard_ago_ms: (stats.received > 0).then(|| u64::try_from(ago).unwrap_or(u64::MAX)),
    };
    status.counters.insert("beats_withheld".into(), stats.withheld);
    status.notes.extend(beats.notes().iter().cloned());
}

/// The answer to who asks for the measurements of a session's beats.
#[must_use]
pub fn measured(watch: &Watch, beats: Option<&BeatHandle>) -> Response {
    let measured = watch.report().zip(beats).and_then(|(report, beats)| report.measured(beats));
    measured.map_or_else(
        || refused("there is no session whose beats could be measured: the VM is not protected"),
        |measured| Response::Measured(Box::new(measured)),
    )
}

/// Fills in which way the session goes.
pub fn fill_paths(status: &mut Status, watch: &Watch) {
    status.counters.insert("fallbacks".into(), watch.fallbacks());
    let Some(report) = watch.report() else { return };
    status.transport = match watch.fell_back() {
        None => report.transport.to_owned(),
        Some(why) => format!("tcp (fell back from RDMA: {why}; {} times)", watch.fallbacks()),
    };
    status.transport_why.clone_from(&report.why);
    status.rdma.clone_from(&report.rdma);
    (status.keepalive, status.beat_paths) = beat_paths(watch);
}

/// What beats go over, and what came and went by each path.
#[must_use]
pub fn beat_paths(watch: &Watch) -> (String, Vec<PathStats>) {
    let Some(report) = watch.report() else { return Default::default() };
    (report.keepalive.to_owned(), report.beat_paths.as_ref().map(PathsReader::stats).unwrap_or_default())
}
