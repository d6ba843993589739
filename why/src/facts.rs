//! The facts of an incident as JSON numbers, for `why --json`.

use super::incident::Incident;
use mc_core::{
    id::{Epoch, Generation},
    register::Register,
};
use node::events::{
    ArbiterState, BeatsWish, Epochs, Event, Exit, Outcome, OutputFigures, Process, QemuTimes, Record, Standing,
    Suspect, Takeover,
};
use serde::Serialize;

/// Times in ms; epochs and generations as their numbers. What no event says is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// The other host.
    pub peer: Option<String>,
    /// Whom this side suspected of having died, and why.
    pub suspicion: Option<Suspicion>,
    /// How the other side beats, as it said.
    pub peer_beats: Option<BeatsWish>,
    /// How long this side itself was away just before, or meanwhile, at most.
    pub stalled_ms: Option<f64>,
    /// The swap.
    pub swap: Option<Swap>,
    /// What the register held when it was read last.
    pub read: Option<Register>,
    /// How far epochs were, as known last.
    pub epochs: Option<Epochs>,
    /// The epoch that the VM runs from, after a takeover.
    pub from_epoch: Option<Epoch>,
    /// Packets.
    pub output: Option<Output>,
    /// What a takeover took.
    pub takeover: Option<Took>,
    /// The arbiter, as known last before the outcome.
    pub arbiter: Option<ArbiterState>,
    /// The last exit code, and its reason.
    pub exit: Option<Exit>,
}

/// The fields of the event `suspect`, or of `link-lost`.
#[derive(Clone, Debug, Serialize)]
pub struct Suspicion {
    /// When, Unix ms.
    pub at_ms: f64,
    /// The event's name.
    pub event: String,
    /// What it says, but for how things stood.
    #[serde(flatten)]
    pub told: Suspect,
}

/// A swap, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Swap {
    /// When, Unix ms.
    pub asked_at_ms: f64,
    /// What the register held, if this side's own swap had made that.
    pub before: Option<Register>,
    /// The generation that was expected.
    pub expect: Generation,
    /// What the register holds since.
    pub holds: Option<Register>,
    /// What was asked for.
    pub new: Register,
    /// What the arbiter said, if it said anything.
    pub outcome: Option<Outcome>,
    /// How long that took, ms.
    pub took_ms: Option<f64>,
}

/// Packets in an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    /// Dropped from its beginning to its end.
    pub dropped: u64,
    /// Held when it began.
    pub held: u64,
    /// Let out from its beginning to its end.
    pub released: u64,
}

/// What a takeover took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Took {
    /// QEMU's part of it.
    pub qemu: Option<QemuTimes>,
    /// All of it.
    pub since_suspicion: Takeover,
}

impl Facts {
    /// Of one incident.
    #[must_use]
    pub(crate) fn of(incident: &Incident) -> Self {
        let session = incident.session();
        let peer = session.and_then(|s| s.standby.map(|owner| owner.node).or(s.primary));
        let running = incident.first_of(|event| match event {
            Event::Running(running) => Some(running),
            _ => None,
        });
        let standing = incident.newest_of(Event::standing);
        Self {
            peer: peer.map(|node| node.to_string()),
            suspicion: suspicion(incident),
            peer_beats: session.and_then(|s| s.peer_beats),
            stalled_ms: incident.records.iter().filter_map(away_ms).reduce(f64::max),
            swap: swap(incident),
            read: incident.newest_of(read),
            epochs: standing.map(|standing| standing.epochs),
            from_epoch: running.map(|running| running.epoch),
            output: output(incident),
            takeover: running.map(|r| Took { qemu: r.qemu, since_suspicion: r.since_suspicion }),
            arbiter: standing.map(|standing| standing.arbiter.clone()),
            exit: exit(incident),
        }
    }
}

fn away_ms(record: &Record) -> Option<f64> {
    match &record.event {
        Event::Stalled(stalled) => Some(stalled.away_ms),
        _ => None,
    }
}

fn read(event: &Event) -> Option<Register> {
    match event {
        Event::Register(read) => read.register,
        Event::Lost(lost) => lost.register,
        Event::Fenced(fenced) => fenced.register,
        _ => None,
    }
}

/// Of the supervisor, if several processes ended.
fn exit(incident: &Incident) -> Option<Exit> {
    let exits = incident.records.iter().rev().filter_map(|record| match &record.event {
        Event::Exit(exit) => Some((record, exit)),
        _ => None,
    });
    let last = exits.max_by_key(|(record, _)| record.who.is_some_and(|who| who.process == Process::Supervisor));
    last.map(|(_, exit)| exit.clone())
}

fn suspicion(incident: &Incident) -> Option<Suspicion> {
    let found = incident.find(|event| matches!(event, Event::Suspect(_)));
    let record = found.or_else(|| incident.find(|event| matches!(event, Event::LinkLost(_))))?;
    let told = match &record.event {
        Event::Suspect(suspect) => Suspect { standing: None, unproven: None, ..(**suspect).clone() },
        Event::LinkLost(lost) => Suspect { why: lost.why.clone(), ..Suspect::default() },
        _ => return None,
    };
    Some(Suspicion { at_ms: record.at_ms, event: record.event.name().to_owned(), told })
}

/// The last one; a claim may need several, when the register moved on meanwhile.
fn swap(incident: &Incident) -> Option<Swap> {
    let (record, asking) = incident.records.iter().rev().find_map(|record| match &record.event {
        Event::Asking(asking) => Some((record, asking)),
        _ => None,
    })?;
    let answer = incident.swap().filter(|(answered, _)| answered.after_ms(record) >= 0.0).map(|(_, answer)| answer);
    Some(Swap {
        asked_at_ms: record.at_ms,
        before: register_before(incident, asking.swap.expect),
        expect: asking.swap.expect,
        holds: answer.and_then(|answer| answer.register),
        new: asking.swap.new,
        outcome: answer.map(|answer| answer.outcome),
        took_ms: answer.and_then(|answer| answer.took_ms),
    })
}

fn register_before(incident: &Incident, expect: Generation) -> Option<Register> {
    let last = incident.before.iter().find_map(|record| match &record.event {
        Event::Cas(answered) => Some(answered),
        _ => None,
    });
    let won = last.filter(|answered| answered.outcome == Outcome::Won)?;
    won.register.filter(|register| register.generation == expect)
}

fn output(incident: &Incident) -> Option<Output> {
    let mut stands = incident.records.iter().filter_map(|record| record.event.standing());
    let first = stands.next()?;
    let last = stands.next_back().unwrap_or(first);
    let grown = |of: fn(&OutputFigures) -> u64| of(&last.output).saturating_sub(of(&first.output));
    let Standing { output: OutputFigures { held, .. }, .. } = first;
    Some(Output { dropped: grown(|o| o.dropped), held: *held, released: grown(|o| o.released) })
}
