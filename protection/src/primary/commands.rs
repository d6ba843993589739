//! What the data path answers over its control socket, and what it says when its role changes.

use super::{data_path::DataPath, live, orders::Wanted};
use api::{
    ControlRequest, OfSide, Primary, Request, Response, SCHEMA, Status, done, metrics::Buckets, metrics::Scrapes,
    metrics::Snapshot, refused, report,
};
use mc_core::{gate::OutputGate, primary::Role};
use node::{
    events::{self, Event, Operator, emit},
    exit, narration,
};
use vmm_qemu::gate::Mode;

/// Answers it, now or once the arbiter has said a word.
pub(super) fn answer(path: &mut DataPath, asked: ControlRequest) {
    let (request, role) = (asked.request.clone(), path.run.driver.machine().role());
    if let Some(request) = request.decision() {
        emit(Event::Operator(Operator { request, role: Some(role.into()) }));
    }
    if request == Request::Solo {
        path.ask_parked(); // an operator decides, whether the VM runs or not
    }
    let needs_arbiter = matches!(role, Role::Registering | Role::Protected | Role::Claiming);
    let response = match (request, role) {
        (Request::Status, _) => Response::Status(Box::new(status(path))),
        (Request::Measured, _) => report::measured(&path.run.host.watch, path.run.host.beats()),
        (Request::Handover, Role::Solo) => {
            path.leave_vm();
            done("leaving")
        }
        (Request::MakeWay, Role::Solo | Role::Syncing) => match path.make_way() {
            Ok(()) => done("making way"),
            Err(error) => refused(&exit::words(&error)),
        },
        // Nobody but a new supervisor could command it: protection ends in order, and then it makes way.
        (Request::MakeWay, Role::Registering | Role::Protected | Role::Claiming)
            if !path.supervisor.is_supervised() =>
        {
            return path.order(Wanted::Unprotect(asked));
        }
        (Request::Handover | Request::MakeWay, role) => {
            refused(&format!("the VM is {} by that process; end it with `afterimage unprotect`", word(role)))
        }
        (Request::Solo, Role::Claiming) if path.run.host.arbiter.operator_decides() => done("going solo"),
        (Request::Solo, Role::Claiming) => {
            refused("the witness has been asked and decides; an operator's word is only needed with a manual arbiter")
        }
        // Its operator says that the standby is stopped, and the arbiter is one, or has been away for long enough.
        (Request::Solo, Role::Registering | Role::Protected) if path.run.host.arbiter.operator_may_decide() => {
            path.operator_wants_solo = true;
            path.end_protection();
            done("going solo, on your word")
        }
        (Request::Solo | Request::Unprotect, _) if needs_arbiter => return path.order(Wanted::Unprotect(asked)),
        (Request::Solo | Request::Unprotect, Role::HandingBack | Role::Fenced | Role::Ended) => {
            refused(&format!("this copy is {}, so it does not go on", word(role)))
        }
        (Request::Solo | Request::Unprotect, Role::Solo) => {
            path.wants_protection(false);
            done("the VM runs solo, and no standby is looked for: `afterimage reprotect` begins again")
        }
        (Request::Solo | Request::Unprotect, Role::Syncing | Role::Registering | Role::Protected | Role::Claiming) => {
            path.end_protection();
            done("the VM was not protected yet; the full copy in progress was cancelled")
        }
        (Request::Protect, Role::Solo) if path.made_way_at.is_some() => {
            refused("another `afterimage protect` on this node is about to take this one's place")
        }
        (Request::Protect, Role::Solo) => {
            path.wants_protection(true);
            done("looking for the standby")
        }
        (Request::Protect, Role::HandingBack | Role::Fenced | Role::Ended) => {
            refused(&format!("this copy is {}, so it does not go on", word(role)))
        }
        (Request::Protect, role) => done(&format!("there already is a standby; the VM is {}", word(role))),
        (Request::Keepalive, _) => live::keepalive(path),
        (Request::KeepaliveSet(wanted), _) => live::keepalive_set(path, &wanted),
        (Request::Set(settings), _) => live::set(path, &settings),
        (Request::Witness(_), _) => refused("this is the primary; `witness` commands are for the witness"),
        (Request::Export { .. }, _) => {
            refused("`image export` is for the standby, which has the image; this is the primary")
        }
        (Request::Takeover, _) => {
            refused("this is the primary; `takeover` is for the standby. On the primary use `solo`")
        }
    };
    asked.reply(response);
}

pub(super) fn word(role: Role) -> &'static str {
    events::Role::from(role).as_str()
}

pub(super) fn status(path: &mut DataPath) -> Status {
    let config = &path.brief.config;
    let stalled = path.stalled();
    let machine = path.run.driver.machine();
    let role = machine.role();
    let (captured, acked) = machine.epochs();
    let figures = path.run.driver.figures();
    let (run, sooner) = machine.pacing();
    let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let mut status = Status {
        schema: SCHEMA,
        side: OfSide::Primary(Primary {
            on_cap: config.on_cap.to_string(),
            epoch_us: us(machine.epoch()),
            run_us: us(run),
            pause_us: figures.pause.percentiles(),
            commit_us: figures.commit.percentiles(),
        }),
        role: word(machine.role()).into(),
        protected: machine.is_protected() && stalled.is_none(),
        stalled,
        vm: config.vm.to_string(),
        node: config.node.to_string(),
        qemu: (!path.is_vm_gone()).then_some(path.brief.qemu_pid),
        peer: path.run.host.peer().unwrap_or_default().to_owned(),
        generation: machine.generation().0,
        epoch: captured.0,
        last_ack_epoch: acked.0,
        notes: notes(path),
        outputs: path.outputs.status(path.run.driver.gate.mode() != Mode::Open),
        why_not_protected: path.why_not(),
        ..Status::default()
    };
    let now = path.run.host.now();
    status.last_ack_age_ms = figures.last_ack_at.map(|at| now.since(at).as_millis().try_into().unwrap_or(u64::MAX));
    status.counters.insert("streamed_while_held".into(), figures.streamed_while_held);
    status.counters.insert("stalls".into(), figures.stalls);
    status.counters.insert("sooner_epochs".into(), sooner);
    status.counters.insert("pages".into(), figures.pages);
    status.counters.insert("bytes".into(), figures.bytes);
    status.network = path.mending.trouble().map(str::to_owned);
    let gate = &path.run.driver.gate;
    report::fill_gate(&mut status, gate.stats(), gate.hold_histogram().percentiles());
    report::fill_staging(&mut status, path.run.driver.pool_stats());
    report::fill_arbiter(&mut status, &path.run.host.arbiter);
    if role == Role::Claiming {
        let cause = path.run.trouble().map_or("the session with the standby has ended", |trouble| &trouble.why);
        report::fill_claim(&mut status, cause, path.run.role_since_ms());
    }
    report::fill_paths(&mut status, &path.run.host.watch);
    if let Some(beats) = path.run.host.beats() {
        report::fill_beats(&mut status, beats);
    }
    status
}

/// What it means that the data path goes on alone.
const ORPHANED: &str = "the supervisor died; the data path goes on, but would not be restarted if it died too. Run \
     the same `afterimage protect` again: protection pauses for a moment, and there is a supervisor again";

/// What the operator should know.
fn notes(path: &DataPath) -> Vec<String> {
    let proving = "the VM's devices have changed; it counts as protected again once the standby has loaded the new \
         state in a rehearsal";
    let proving = path.run.driver.machine().is_proving().then(|| proving.to_owned());
    let standing = path.notes.iter().cloned().chain(path.outputs.notes());
    let metrics = path.scrapes.as_ref().and_then(Scrapes::note);
    let orphaned = (!path.supervisor.is_supervised()).then(|| ORPHANED.to_owned());
    standing.chain(orphaned).chain(proving).chain(path.stop.note()).chain(metrics).collect()
}

/// What metrics are made of.
pub(super) fn snapshot(path: &mut DataPath) -> Snapshot {
    let status = status(path);
    let figures = path.run.driver.figures();
    let mut snapshot = Snapshot {
        status,
        pause: Buckets::from(&figures.pause),
        commit: Buckets::from(&figures.commit),
        hold: Buckets::from(path.run.driver.gate.hold_histogram()),
        swaps: path.run.host.swap.counts(),
        journal_lost: events::journal_lost(),
        narration_lost: narration::lost(),
        ..Snapshot::default()
    };
    if let Some(beats) = path.run.host.beats() {
        report::scrape_beats(&mut snapshot, beats, &path.run.host.watch, path.run.host.now());
    }
    snapshot
}
