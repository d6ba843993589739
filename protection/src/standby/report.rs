//! The standby's status.

use super::{main_loop::Node, why_not::why_not};
use api::{OfSide, OutputStatus, SCHEMA, Standby, Status, metrics::Buckets, metrics::Snapshot, report};
use mc_core::{gate::OutputGate, slab::PoolStats, standby::Role};
use node::{events, narration, standby::StandbyLoop};

pub(super) const UNPROVEN: &str =
    "the VM has changed, or cannot be protected as it is: `afterimage status` on the primary's host says which";

pub(super) fn word(role: Role) -> &'static str {
    events::Role::from(role).as_str()
}

/// Staging's figures: before the first session, what it may take.
fn staging(node: &Node) -> PoolStats {
    let bytes = node.config.staging_bytes;
    let none = PoolStats { cap_bytes: bytes, limit_bytes: bytes, ..PoolStats::default() };
    node.run.driver.pool_stats().unwrap_or(none)
}

/// What metrics are made of.
pub(super) fn snapshot(node: &Node) -> Snapshot {
    let mut snapshot = Snapshot {
        status: status(node),
        apply: Buckets::from(&node.run.driver.figures().apply),
        swaps: node.run.host.swap.counts(),
        journal_lost: events::journal_lost(),
        narration_lost: narration::lost(),
        ..Snapshot::default()
    };
    if let Some(beats) = node.run.beats() {
        report::scrape_beats(&mut snapshot, beats, &node.run.host.watch, node.run.host.now());
    }
    snapshot
}

pub(super) fn status(node: &Node) -> Status {
    let machine = node.run.driver.machine();
    let (generation, committed) = machine.committed();
    let figures = node.run.driver.figures();
    let mut status = Status {
        schema: SCHEMA,
        side: OfSide::Standby(Standby {
            apply_us: figures.apply.percentiles(),
            takeover: node.takeover,
            ..Standby::default()
        }),
        role: word(machine.role()).into(),
        protected: node.is_protected(),
        stalled: node.stalled(),
        network: node.mending.trouble().map(str::to_owned),
        vm: node.config.vm.to_string(),
        node: node.config.node.to_string(),
        peer: node.run.host.peer().unwrap_or_default().to_owned(),
        generation: node.won.unwrap_or(generation).0,
        epoch: committed.0,
        last_ack_epoch: committed.0,
        why_not_protected: why_not(node),
        notes: report::standing_notes()
            .into_iter()
            .chain(node.leave.note())
            .chain(node.run.missed().map(str::to_owned))
            .collect(),
        ..Status::default()
    };
    if machine.role() != Role::Active {
        status.outputs = node.vm.iter().flat_map(|vm| vm.unheld()).map(|name| unheld(name)).collect();
    }
    let unproven = machine.role() == Role::Protecting && machine.is_unproven();
    status.notes.extend(unproven.then(|| UNPROVEN.to_owned()));
    let (now, staging) = (node.run.host.now(), staging(node));
    if node.rehearsal.is_some() && staging.used_bytes >= staging.cap_bytes {
        status.notes.push(
            "staging is full during a rehearsal, so the primary waits until the rehearsal ends; raise --staging to \
             avoid that"
                .into(),
        );
    }
    status.notes.extend(node.vm.iter().flat_map(|vm| vm.notes()).map(|note| format!("on QEMU's command line, {note}")));
    let unloadable = node.unloadable.as_ref();
    status
        .notes
        .extend(unloadable.map(|why| format!("this host's QEMU could not load the VM when it was tried last: {why}")));
    status.notes.extend(node.pending.as_ref().and_then(|pending| pending.note(&status.vm, now)));
    status.last_ack_age_ms = figures.last_commit_at.map(|at| now.since(at).as_millis().try_into().unwrap_or(u64::MAX));
    status.counters.insert("spilled_slabs".into(), figures.spilled_slabs);
    report::fill_gate(&mut status, node.gate.stats(), node.gate.hold_histogram().percentiles());
    report::fill_staging(&mut status, staging);
    report::fill_arbiter(&mut status, &node.run.host.arbiter);
    report::fill_paths(&mut status, &node.run.host.watch);
    if let Some(beats) = node.run.beats() {
        report::fill_beats(&mut status, beats);
    }
    status
}

/// An output, as far as the primary has told of it.
fn unheld(name: &str) -> OutputStatus {
    let why = "the primary protects the VM but for it: --unheld";
    OutputStatus { name: name.to_owned(), class: "unheld".into(), why: why.into(), ..OutputStatus::default() }
}
