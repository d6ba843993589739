//! What the data path answers over its control socket, and what it says when its role changes.

use super::{data_path::DataPath, live};
use crate::{
    control::{done, refused},
    events::{self, emit},
    metrics::{Buckets, Snapshot},
    report,
    status::{Request, Response, SCHEMA, Status},
};
use mc_core::{
    gate::OutputGate,
    id::Epoch,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use serde_json::json;

pub(super) fn answer(path: &mut DataPath, request: Request) -> Response {
    let role = path.driver.machine().role();
    if request.decides() {
        emit("operator", json!({ "request": request, "role": word(role) }));
    }
    match (request, role) {
        (Request::Status, _) => Response::Status(Box::new(status(path))),
        (Request::Measured, _) => path.watch.measured(path.beats.as_ref()),
        (Request::Handover, Role::Solo) => {
            path.leave();
            done("leaving")
        }
        (Request::Handover, role) => refused(&format!("it is {} there; `afterimage unprotect` ends that", word(role))),
        (Request::Solo, Role::Solo) => done("the VM runs solo already"),
        (Request::Solo, Role::Claiming) if path.arbiter.operator_decides() => done("going solo"),
        (Request::Solo, Role::Claiming) => refused("the arbiter was asked, and decides; it is no operator"),
        (Request::Solo, _) => {
            path.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
            path.operator_wants_solo = true;
            done("ending protection through the arbiter")
        }
        (Request::Unprotect, Role::Solo) => done("the VM is not protected"),
        (Request::Unprotect, _) => {
            path.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
            done("ending protection through the arbiter")
        }
        (Request::Keepalive, _) => live::keepalive(path),
        (Request::KeepaliveSet(wanted), _) => live::keepalive_set(path, &wanted),
        (Request::Set(settings), _) => live::set(path, &settings),
        (Request::Takeover, _) => refused("`takeover` is for the standby; this is the primary: see `solo`"),
    }
}

pub(super) fn word(role: Role) -> &'static str {
    match role {
        Role::Solo => "solo",
        Role::Syncing => "syncing",
        Role::Registering => "registering",
        Role::Protected => "protected",
        Role::Claiming => "claiming",
        Role::Fenced => "fenced",
        Role::Ended => "ended",
    }
}

pub(super) fn status(path: &mut DataPath) -> Status {
    let config = &path.brief.config;
    let machine = path.driver.machine();
    let (captured, acked) = machine.epochs();
    let figures = path.driver.figures();
    let (run, sooner) = machine.pacing();
    let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let mut status = Status {
        schema: SCHEMA,
        side: "primary".into(),
        role: word(machine.role()).into(),
        protected: machine.role() == Role::Protected,
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        peer: path.peer.clone().unwrap_or_default(),
        generation: machine.generation().0,
        epoch: captured.0,
        last_ack_epoch: acked.0,
        on_cap: config.on_cap.to_string(),
        epoch_us: us(machine.epoch()),
        run_us: us(run),
        pause_us: figures.pause.percentiles(),
        commit_us: figures.commit.percentiles(),
        notes: [path.notes.clone(), path.outputs.notes()].concat(),
        outputs: path.outputs.status(),
        ..Status::default()
    };
    let now = path.clock.now();
    status.last_ack_age_ms = figures.last_ack_at.map(|at| now.since(at).as_millis().try_into().unwrap_or(u64::MAX));
    status.counters.insert("streamed_while_held".into(), figures.streamed_while_held);
    status.counters.insert("stalls".into(), figures.stalls);
    status.counters.insert("sooner_epochs".into(), sooner);
    status.counters.insert("pages".into(), figures.pages);
    status.counters.insert("bytes".into(), figures.bytes);
    report::fill_gate(&mut status, path.driver.gate.stats(), &path.driver.gate);
    report::fill_staging(&mut status, path.driver.pool_stats());
    report::fill_arbiter(&mut status, &path.arbiter);
    path.watch.fill(&mut status);
    if let Some(beats) = &path.beats {
        report::fill_beats(&mut status, beats);
    }
    status
}

/// What metrics are made of.
pub(super) fn snapshot(path: &mut DataPath) -> Snapshot {
    let status = status(path);
    let figures = path.driver.figures();
    let mut snapshot = Snapshot {
        status,
        pause: Buckets::from(&figures.pause),
        commit: Buckets::from(&figures.commit),
        hold: Buckets::from(path.driver.gate.hold_histogram()),
        swaps: path.swap.counts(),
        journal_lost: events::journal_lost(),
        ..Snapshot::default()
    };
    if let Some(beats) = &path.beats {
        report::scrape_beats(&mut snapshot, beats, &path.watch, path.clock.now());
    }
    snapshot
}

/// How things stand, as an event's fields: epochs, output, own absence, the arbiter.
pub(super) fn standing(path: &DataPath) -> serde_json::Value {
    let machine = path.driver.machine();
    let (captured, acked) = machine.epochs();
    let last_ack = path.driver.figures().last_ack_at;
    json!({
        "role": word(machine.role()),
        "epochs": { "captured": captured, "acked": acked, "last_ack_ago_ms": last_ack.map(|at| report::ms(path.clock.now().since(at))) },
        "output": report::output(path.driver.gate.stats()),
        "arbiter": report::arbiter_field(&path.arbiter),
    })
}

/// An event for every change of role that a watcher cares about.
pub(super) fn report_role(path: &DataPath) {
    let machine = path.driver.machine();
    let (captured, acked): (Epoch, Epoch) = machine.epochs();
    let role = word(machine.role());
    tracing::info!(role, generation = machine.generation().0, epoch = captured.0, "role");
    // These have events of their own, with more to say.
    if !matches!(machine.role(), Role::Syncing | Role::Fenced | Role::Ended) {
        let fields = json!({ "generation": machine.generation(), "epoch": captured, "acked": acked });
        emit(role, report::with(fields, standing(path)));
    }
}
