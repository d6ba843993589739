//! The figures that a data path or a standby gives to the metrics endpoint, and the metrics made of them.

use super::Buckets;
use crate::status::Status;
use node::keepalive::BeatStats;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};
use std::fmt::Error;

/// One side's figures for a scrape.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// As `afterimage status` has it.
    pub status: Status,
    /// Counters and parameters of the beats, with a session.
    pub beats: Option<BeatStats>,
    /// When each path heard the peer last, seconds ago.
    pub silence_seconds: Vec<(String, f64)>,
    /// Histograms: pauses, commits, holds, applying, gaps between beats, their round trips.
    pub pause: Buckets,
    /// Histogram of `afterimage_commit_seconds`.
    pub commit: Buckets,
    /// Histogram of `afterimage_commit_seconds`.
    pub hold: Buckets,
    /// Histogram of `afterimage_commit_seconds`.
    pub apply: Buckets,
    /// Histogram of `afterimage_commit_seconds`.
    pub gap: Buckets,
    /// Histogram of `afterimage_commit_seconds`.
    pub round_trip: Buckets,
    /// Of the thread of the beats.
    pub lateness: Buckets,
    /// Swaps that this process asked for: won, lost.
    pub swaps: (u64, u64),
    /// Lines that its journal lost.
    pub journal_lost: u64,
    /// Lines that its stderr did not take.
    pub narration_lost: u64,
}

/// The roles of each side, as in the status.
const ROLES: [(&str, &[&str]); 2] = [
    (
        "primary",
        &[
            "waiting-for-arbiter",
            "solo",
            "syncing",
            "registering",
            "protected",
            "claiming",
            "handing-back",
            "fenced",
            "ended",
            "stalled",
        ],
    ),
    (
        "standby",
        &[
            "idle",
            "syncing",
            "rehearsing",
            "protecting",
            "revoking",
            "claiming",
            "lost",
            "disputed",
            "taking-over",
            "running",
            "stalled",
        ],
    ),
];

/// Labels: name and value, the value as the text format wants it.
pub(super) type Labels = Vec<(&'static str, String)>;

/// prometheus-client writes label values as they are.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes metrics that all bear the same labels.
pub(super) struct Writer<'a, 'b> {
    pub(super) encoder: &'a mut DescriptorEncoder<'b>,
    pub(super) labels: Labels,
}

impl Writer<'_, '_> {
    fn labels(&self, more: &[(&'static str, &str)]) -> Labels {
        let more = more.iter().map(|(name, value)| (*name, escaped(value)));
        self.labels.iter().cloned().chain(more).collect()
    }

    fn family(
        &mut self,
        (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
        samples: &[(&[(&'static str, &str)], f64)],
    ) -> Result<(), Error> {
        let labels: Vec<Labels> = samples.iter().map(|(labels, _)| self.labels(labels)).collect();
        let mut metric = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for ((_, value), labels) in samples.iter().zip(&labels) {
            let labels = labels.as_slice();
            with_labels(&mut metric, &labels, |metric| match kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, f64, f64>(value, None),
                _ => metric.encode_gauge(value),
            })?;
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        self.family((name, help, None, MetricType::Gauge), &[(&[], value)])
    }

    pub(super) fn bytes(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        self.family((name, help, Some(&Unit::Bytes), MetricType::Gauge), &[(&[], float(value))])
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        self.family((name, help, Some(&Unit::Seconds), MetricType::Gauge), &[(&[], value)])
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        self.family((name, help, None, MetricType::Counter), &[(&[], float(value))])
    }

    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: &[(&str, u64)],
    ) -> Result<(), Error> {
        let labels: Vec<[(&'static str, &str); 1]> = values.iter().map(|(value, _)| [(label, *value)]).collect();
        let samples: Vec<(&[(&'static str, &str)], f64)> =
            labels.iter().zip(values).map(|(labels, (_, n))| (&labels[..], float(*n))).collect();
        self.family((name, help, None, MetricType::Counter), &samples)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &'static str,
        values: &[(&str, f64)],
    ) -> Result<(), Error> {
        let labels: Vec<[(&'static str, &str); 1]> = values.iter().map(|(value, _)| [(label, *value)]).collect();
        let samples: Vec<(&[(&'static str, &str)], f64)> =
            labels.iter().zip(values).map(|(labels, (_, n))| (&labels[..], *n)).collect();
        self.family((name, help, unit, MetricType::Gauge), &samples)
    }

    fn histogram(&mut self, name: &str, help: &str, buckets: &Buckets) -> Result<(), Error> {
        let labels = self.labels(&[]);
        let mut metric = self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        with_labels(&mut metric, &labels.as_slice(), |metric| {
            metric.encode_histogram::<NoLabelSet>(buckets.sum_seconds, buckets.count(), &buckets.bounded(), None)
        })
    }

    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&'static str, &str)]) -> Result<(), Error> {
        let labels = self.labels(labels);
        self.encoder.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels.as_slice())
    }

    pub(super) fn build(&mut self) -> Result<(), Error> {
        self.info("afterimage_build", "The version of afterimage that runs", &[("version", env!("CARGO_PKG_VERSION"))])
    }
}

/// An empty set of labels must not be encoded at all: it would leave empty braces.
fn with_labels(
    metric: &mut MetricEncoder<'_>,
    labels: &&[(&'static str, String)],
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}

/// Prometheus knows only floating point; beyond 2^53 it is no longer exact, and nothing here gets there.
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

fn yes(value: bool) -> f64 {
    f64::from(u8::from(value))
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let s = &self.status;
        let labels = [("vm", s.vm.as_str()), ("node", s.node.as_str()), ("side", s.side.word())];
        let labels = labels.map(|(name, value)| (name, escaped(value))).to_vec();
        let w = &mut Writer { encoder: &mut encoder, labels };
        w.build()?;
        self.pair(w)?;
        self.output(w)?;
        self.checkpoints(w)?;
        self.beats(w)?;
        w.gauge(
            "afterimage_arbiter_reachable",
            "1 if the arbiter answers; without it there is no failover",
            yes(s.arbiter.reachable),
        )?;
        w.gauge(
            "afterimage_arbiter_fault",
            "1 if the arbiter answers, but cannot be believed or would not decide; then there is no failover",
            yes(s.arbiter.reachable && s.arbiter.failover_impossible.is_some()),
        )?;
        if let Some(ms) = s.arbiter.probe_age_ms {
            let help = "Time since the witness last proved that it can store";
            w.seconds("afterimage_arbiter_probe_age", help, float(ms) / 1e3)?;
        }
        let (won, lost) = self.swaps;
        w.counters(
            "afterimage_swaps",
            "Swaps of the register that this process asked for, by outcome",
            "outcome",
            &[("won", won), ("lost", lost)],
        )?;
        w.counter(
            "afterimage_journal_lost_lines",
            "Events that this process could not write to its journal",
            self.journal_lost,
        )?;
        let help = "Lines of this process's log that were lost because stderr was not read";
        w.counter("afterimage_narration_lost_lines", help, self.narration_lost)
    }
}

impl Snapshot {
    fn pair(&self, w: &mut Writer<'_, '_>) -> Result<(), Error> {
        let s = &self.status;
        let roles = ROLES.iter().find(|(side, _)| *side == s.side.word()).map_or(&[][..], |(_, roles)| *roles);
        let roles: Vec<(&str, f64)> = roles.iter().map(|role| (*role, yes(*role == s.role))).collect();
        w.gauges("afterimage_role", "1 for the role that this side has, 0 for the others", None, "role", &roles)?;
        w.gauge(
            "afterimage_protected",
            "1 if a takeover now would lose nothing: output is held for the standby, and the arbiter allows a takeover",
            yes(s.protected && s.no_failover().is_none()),
        )?;
        w.gauge(
            "afterimage_stalled",
            "1 if this side does not do its work: its loop stands still, its VM does not run, or nothing is committed",
            yes(s.stalled.is_some()),
        )?;
        w.gauge(
            "afterimage_network_trouble",
            "1 if a NIC of the VM has lost its TAP device or its connection to QEMU",
            yes(s.network.is_some()),
        )?;
        w.gauge(
            "afterimage_unheld_outputs",
            "Outputs of the VM that are not held, so that a takeover may take back what left by them",
            f64::from(u32::try_from(s.unheld()).unwrap_or(u32::MAX)),
        )?;
        w.gauge(
            "afterimage_generation",
            "Generation of the VM's register at the arbiter, as far as this side knows",
            float(s.generation),
        )?;
        if !s.peer.is_empty() {
            let transport = s.transport.split(' ').next().unwrap_or("");
            let labels = [("peer", s.peer.as_str()), ("transport", transport), ("keepalive", s.keepalive.as_str())];
            w.info(
                "afterimage_session",
                "The session between primary and standby: the other host, and how checkpoints and beats go",
                &labels,
            )?;
        }
        w.counter("afterimage_fallbacks", "Sessions that fell back from RDMA to TCP", count(s, "fallbacks"))?;
        if let Some(t) = s.side.standby().and_then(|standby| standby.takeover) {
            let phases =
                [("silence", t.silence_us), ("revoked", t.revoked_us), ("won", t.won_us), ("running", t.running_us)];
            let phases = phases.map(|(phase, us)| (phase, seconds(us)));
            let help = "How long the takeover took: silence before the suspicion; then the time since it until access was revoked, the swap was won, the VM ran";
            w.gauges("afterimage_takeover", help, Some(&Unit::Seconds), "phase", &phases)?;
        }
        Ok(())
    }

    fn output(&self, w: &mut Writer<'_, '_>) -> Result<(), Error> {
        let s = &self.status;
        w.gauge("afterimage_held_packets", "Packets of the VM that wait for an ACK", float(s.held_packets))?;
        w.bytes("afterimage_held", "Bytes of the VM's packets that wait for an ACK", s.held_bytes)?;
        w.counter(
            "afterimage_released_packets",
            "Packets of the VM that were sent to the network",
            s.released_packets,
        )?;
        w.counter(
            "afterimage_dropped_packets",
            "Packets of the VM that were dropped: it was fenced, or more was held than the limit allows",
            s.dropped_packets,
        )
    }

    fn checkpoints(&self, w: &mut Writer<'_, '_>) -> Result<(), Error> {
        let s = &self.status;
        w.counter("afterimage_epochs", "Epochs of this session: captured (primary) or committed (standby)", s.epoch)?;
        w.counter("afterimage_acked_epochs", "Epochs of this session that the standby has ACKed", s.last_ack_epoch)?;
        if let Some(ms) = s.last_ack_age_ms {
            w.seconds(
                "afterimage_last_ack_age",
                "Time since the newest ACK (primary) or commit (standby)",
                float(ms) / 1e3,
            )?;
        }
        w.bytes("afterimage_staging_used", "Bytes of staging that hold checkpoints", s.staging_used_bytes)?;
        w.bytes("afterimage_staging_live", "Bytes of staging that are allocated", s.staging_live_bytes)?;
        w.bytes("afterimage_staging_cap", "Bytes that staging never exceeds", s.staging_cap_bytes)?;
        w.counter("afterimage_staging_cap_hits", "How often staging had no room for what came", s.staging_cap_hits)?;
        if s.side.standby().is_some() {
            w.counter(
                "afterimage_spilled_slabs",
                "Slabs that went through the standby's spill file because staging was full",
                count(s, "spilled_slabs"),
            )?;
            w.histogram("afterimage_apply", "Time to apply a committed epoch to the standby's image", &self.apply)?;
            return Ok(());
        }
        let help = "Guest pages captured in this session, without the full synchronisation";
        w.counter("afterimage_captured_pages", help, count(s, "pages"))?;
        w.counter(
            "afterimage_sent_bytes",
            "Bytes of checkpoints sent in this session, without the full synchronisation",
            count(s, "bytes"),
        )?;
        let help = "Checkpoints that were sent while the VM stood still, because they did not fit into staging";
        w.counter("afterimage_streamed_while_held", help, count(s, "streamed_while_held"))?;
        w.histogram("afterimage_pause", "Time for which the VM stood still for a checkpoint", &self.pause)?;
        w.histogram("afterimage_commit", "Time from the end of a checkpoint's pause to its ACK", &self.commit)?;
        w.histogram("afterimage_hold", "Time for which a packet of the VM was held", &self.hold)
    }

    fn beats(&self, w: &mut Writer<'_, '_>) -> Result<(), Error> {
        let Some(b) = &self.beats else { return Ok(()) };
        w.counter("afterimage_beats_sent", "Beats sent to the other side in this session", b.sent)?;
        w.counter(
            "afterimage_beats_received",
            "Beats received from the other side in this session, without repetitions",
            b.received,
        )?;
        w.counter(
            "afterimage_beats_missed",
            "How often a beat of the other side was overdue, this side's own lateness discounted",
            b.missed,
        )?;
        w.counter(
            "afterimage_beats_rejected",
            "Datagrams at the port for beats that are not a beat of this session",
            b.rejected,
        )?;
        let help = "Beats that were not sent because this side's loop stood still or its VM did not run";
        w.counter("afterimage_beats_withheld", help, b.withheld)?;
        w.counter("afterimage_beats_late", "How often this side's beat thread woke late", b.self_late)?;
        w.seconds(
            "afterimage_beats_late_max",
            "Longest lateness of this side's beat thread in this session",
            seconds(b.max_self_late_us),
        )?;
        w.seconds(
            "afterimage_beats_interval",
            "Interval at which this side sends beats, before jitter",
            seconds(b.transmit_interval_us),
        )?;
        w.seconds(
            "afterimage_detection",
            "Silence after which this side suspects the other one",
            seconds(b.detection_time_us),
        )?;
        w.gauge(
            "afterimage_suspect",
            "1 if this side suspects the other one",
            yes(b.verdict == node::keepalive::Verdict::Suspect),
        )?;
        w.histogram("afterimage_beat_gap", "Time between two beats received from the other side", &self.gap)?;
        w.histogram(
            "afterimage_beat_round_trip",
            "Round-trip time of a beat, without the time that the other side waited",
            &self.round_trip,
        )?;
        let help = "How late this side's beat thread woke";
        w.histogram("afterimage_beat_lateness", help, &self.lateness)?;
        let silence: Vec<(&str, f64)> = self.silence_seconds.iter().map(|(path, s)| (path.as_str(), *s)).collect();
        w.gauges(
            "afterimage_path_silence",
            "Time since a beat arrived by this path",
            Some(&Unit::Seconds),
            "path",
            &silence,
        )?;
        let paths = &self.status.beat_paths;
        let of = |get: fn(&node::keepalive::PathStats) -> u64| -> Vec<(&str, u64)> {
            paths.iter().map(|path| (path.name.as_str(), get(path))).collect()
        };
        w.counters(
            "afterimage_path_sent",
            "Beats sent by this path; only where beats go by two paths",
            "path",
            &of(|p| p.sent),
        )?;
        w.counters(
            "afterimage_path_heard",
            "Beats received by this path; only where beats go by two paths",
            "path",
            &of(|p| p.heard),
        )?;
        w.counters(
            "afterimage_path_first",
            "Beats that arrived by this path first; only where beats go by two paths",
            "path",
            &of(|p| p.first),
        )?;
        let errors = of(|p| p.send_errors + p.receive_errors);
        w.counters(
            "afterimage_path_errors",
            "Failed sends and receives of this path; only where beats go by two paths",
            "path",
            &errors,
        )
    }
}

fn count(status: &Status, name: &str) -> u64 {
    status.counters.get(name).copied().unwrap_or(0)
}

/// So that a slice of our labels is a set of labels for prometheus-client.
const _: fn() = || {
    fn is_set<T: EncodeLabelSet>() {}
    is_set::<&[(&'static str, String)]>();
};
