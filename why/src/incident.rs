//! Groups journal events into incidents.
//!
//! ```text
//!               trigger                        outcome                          nothing for 5 s,
//!   (quiet) ───────────────> Open ──────────────────────────────> Closed ──────────────────────────> told
//!      ^  suspect, data-path-  │   running, solo, fenced, lost,     │          a new beginning,
//!      │  died, fell-back, ... │   discarded, arbiter-reachable     │          another trigger
//!      │                       └── the process begins anew: it was cut short ──────────────────────> told
//!      └── what else happens is remembered: "protected by whom, since when", and told with the next incident
//! ```

use node::events::{Answered, Event, Operator, OperatorRefused, Order, Outcome, Record, Syncing};
use serde::Serialize;

/// What comes so long after the outcome belongs to it no more, ms.
const AFTERMATH_MS: f64 = 5_000.0;
/// What came so long before it may have led to it, ms.
const PRELUDE_MS: f64 = 1_000.0;

/// How an incident ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The standby runs the VM now.
    TookOver,
    /// The primary runs the VM alone now.
    WentSolo,
    /// This copy was stopped.
    Fenced,
    /// The standby asked for the VM, and lost.
    LostSwap,
    /// The other host had the VM already when the standby wanted it; its copy is kept.
    Lost,
    /// The standby's copy was given up without having been asked for.
    Discarded,
    /// Checkpoints go over TCP now.
    FellBack,
    /// The arbiter could not be reached for a while, or cannot yet.
    ArbiterLost,
    /// The arbiter answered, and would not have decided, or could not be believed.
    ArbiterFault,
    /// The standby's QEMU could not load the VM.
    Unloadable,
    /// A keeper was the VM's network.
    KeptNetwork,
    /// The VM ended.
    VmGone,
    /// A primary was turned away, or no session came about.
    Refused,
    /// An operator's order was refused: nothing was changed.
    OrderRefused,
    /// No outcome yet, or none was written.
    Open,
}

/// Events that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Incident {
    /// The VM.
    pub vm: String,
    /// "primary" or "standby".
    pub side: String,
    /// This host.
    pub node: String,
    /// At least one, by time.
    pub records: Vec<Record>,
    /// The newest of each name before it.
    pub before: Vec<Record>,
    outcome_ms: Option<f64>,
}

fn is_trigger(record: &Record) -> bool {
    match &record.event {
        Event::Suspect(_)
        | Event::LinkLost(_)
        | Event::FellBack(_)
        | Event::GaveUp(_)
        | Event::Refused(_)
        | Event::EpochRefused(_)
        | Event::DataPathDied(_)
        | Event::SourceBroken(_)
        | Event::VmGone(_)
        | Event::ArbiterUnreachable(_)
        | Event::ArbiterFault(_)
        | Event::RehearsalFailed(_)
        | Event::Keeping(_)
        | Event::GateFailed(_)
        | Event::NoCommits(_)
        | Event::NoSession(_)
        | Event::NotLeft(_)
        | Event::WaitingQemuFails(_)
        | Event::Fenced(_)
        | Event::SupervisorDied => true,
        // A successor wants the VM that runs here alone: no change of role.
        Event::Operator(Operator { request, .. }) | Event::OperatorRefused(OperatorRefused { request, .. }) => {
            *request != Order::Handover
        }
        Event::Asking(asking) => asking.swap.contested,
        _ => false,
    }
}

/// A process begins anew, or leaves for one that does: what was open before is no more.
fn is_beginning(record: &Record) -> bool {
    match &record.event {
        Event::Attached(_) | Event::Started(_) | Event::Syncing(_) => true,
        Event::Operator(Operator { request, .. }) => *request == Order::Handover,
        _ => false,
    }
}

impl Incident {
    /// The event that it began with.
    #[must_use]
    pub(crate) fn first(&self) -> &Record {
        &self.records[0]
    }

    /// Its newest event.
    #[must_use]
    pub(crate) fn last(&self) -> &Record {
        self.records.last().unwrap_or(self.first())
    }

    /// The first event, Unix ms.
    #[must_use]
    pub(crate) fn began_ms(&self) -> f64 {
        self.first().at_ms
    }

    /// The newest event, Unix ms.
    #[must_use]
    pub(crate) fn last_ms(&self) -> f64 {
        self.last().at_ms
    }

    /// The event that ended it, Unix ms.
    #[must_use]
    pub(crate) fn ended_ms(&self) -> Option<f64> {
        self.outcome_ms
    }

    /// The first of its events that is `wanted`.
    #[must_use]
    pub(crate) fn find(&self, wanted: impl Fn(&Event) -> bool) -> Option<&Record> {
        self.records.iter().find(|record| wanted(&record.event))
    }

    /// What `of` makes of the first of its events that it accepts.
    pub(crate) fn first_of<'a, T>(&'a self, of: impl Fn(&'a Event) -> Option<T>) -> Option<T> {
        self.records.iter().find_map(|record| of(&record.event))
    }

    /// The same, of the newest.
    pub(crate) fn newest_of<'a, T>(&'a self, of: impl Fn(&'a Event) -> Option<T>) -> Option<T> {
        self.records.iter().rev().find_map(|record| of(&record.event))
    }

    /// The session that it was in.
    #[must_use]
    pub(crate) fn session(&self) -> Option<&Syncing> {
        self.before.iter().find_map(|record| match &record.event {
            Event::Syncing(syncing) => Some(syncing),
            _ => None,
        })
    }

    /// How the arbiter answered last.
    #[must_use]
    pub(crate) fn swap(&self) -> Option<(&Record, &Answered)> {
        self.records.iter().rev().find_map(|record| match &record.event {
            Event::Cas(answered) => Some((record, answered)),
            _ => None,
        })
    }

    /// How it ended.
    #[must_use]
    pub(crate) fn kind(&self) -> Kind {
        let has = |wanted: fn(&Event) -> bool| self.find(wanted).is_some();
        let lost = self.swap().is_some_and(|(_, answered)| answered.outcome == Outcome::Lost);
        let is_discarded = has(|e| matches!(e, Event::Discarded(_)));
        let is_lost = has(|e| matches!(e, Event::Lost(_)));
        match () {
            () if has(|e| matches!(e, Event::Running(_))) => Kind::TookOver,
            () if has(|e| matches!(e, Event::Fenced(_))) => Kind::Fenced,
            () if has(|e| matches!(e, Event::Solo(_))) => Kind::WentSolo,
            () if has(|e| matches!(e, Event::Keeping(_))) => Kind::KeptNetwork,
            () if (is_discarded || is_lost) && lost => Kind::LostSwap,
            () if is_discarded => Kind::Discarded,
            () if is_lost => Kind::Lost,
            () if has(|e| matches!(e, Event::FellBack(_))) => Kind::FellBack,
            () if has(|e| matches!(e, Event::VmGone(_))) => Kind::VmGone,
            () if has(|e| matches!(e, Event::RehearsalFailed(_))) => Kind::Unloadable,
            () if has(|e| matches!(e, Event::Asking(_) | Event::Suspect(_))) => Kind::Open,
            () if has(|e| matches!(e, Event::ArbiterUnreachable(_))) => Kind::ArbiterLost,
            () if has(|e| matches!(e, Event::ArbiterFault(_))) => Kind::ArbiterFault,
            () if self.is_order() && has(|e| matches!(e, Event::OperatorRefused(_))) => Kind::OrderRefused,
            () if has(|e| matches!(e, Event::NoSession(_))) => Kind::Refused,
            () if has(|e| matches!(e, Event::Refused(_))) && self.side == "standby" => Kind::Refused,
            () => Kind::Open,
        }
    }

    /// Whether `record` settles what is open.
    fn is_settled_by(&self, record: &Record) -> bool {
        match &record.event {
            Event::Running(_)
            | Event::Fenced(_)
            | Event::Solo(_)
            | Event::Lost(_)
            | Event::Discarded(_)
            | Event::Ended(_)
            | Event::Exit(_)
            | Event::FellBack(_)
            | Event::NoSession(_)
            | Event::RehearsalFailed(_) => true,
            Event::ArbiterReachable => self.kind() == Kind::ArbiterLost,
            Event::ArbiterMended => self.kind() == Kind::ArbiterFault,
            Event::Refused(_) => self.side == "standby",
            Event::OperatorRefused(_) => self.is_order(),
            _ => false,
        }
    }

    /// Whether nothing happened but that an operator said something.
    fn is_order(&self) -> bool {
        self.records.iter().all(|record| matches!(record.event, Event::Operator(_) | Event::OperatorRefused(_)))
    }
}

/// Groups the events of one side of a VM, sorted by time.
#[must_use]
pub(crate) fn incidents(vm: &str, side: &str, records: Vec<Record>) -> Vec<Incident> {
    let mut told = Vec::new();
    let mut open: Option<Incident> = None;
    let mut before: Vec<Record> = Vec::new();
    for record in records {
        let over = open.as_ref().is_some_and(|incident| {
            let settled = incident.outcome_ms.is_some();
            is_beginning(&record)
                || incident.kind() == Kind::OrderRefused && settled
                || settled && (record.after_ms(incident.last()) > AFTERMATH_MS || starts_another(incident, &record))
        });
        if over {
            told.extend(open.take());
        }
        match &mut open {
            Some(incident) => {
                if incident.outcome_ms.is_none() && incident.is_settled_by(&record) {
                    incident.outcome_ms = Some(record.at_ms);
                }
                incident.records.push(record.clone());
            }
            None if is_trigger(&record) => open = Some(begin(vm, side, &record, &before)),
            None => {}
        }
        before.retain(|earlier| earlier.event.name() != record.event.name());
        before.push(record);
    }
    told.extend(open);
    told
}

/// A trigger after the outcome is news, unless the outcome itself brought it about.
fn starts_another(incident: &Incident, record: &Record) -> bool {
    let echo = matches!(record.event, Event::LinkLost(_) | Event::Fenced(_) | Event::Asking(_) | Event::SupervisorDied);
    is_trigger(record) && !(echo && record.after_ms(incident.last()) < 1_000.0)
}

fn begin(vm: &str, side: &str, trigger: &Record, before: &[Record]) -> Incident {
    let mut before = before.to_vec();
    // What was said of others by a process that had been away itself.
    let accuses = matches!(
        trigger.event,
        Event::Suspect(_)
            | Event::LinkLost(_)
            | Event::Asking(_)
            | Event::ArbiterUnreachable(_)
            | Event::ArbiterFault(_)
    );
    let led_to_it = |e: &Record| accuses && matches!(e.event, Event::Stalled(_)) && trigger.after_ms(e) < PRELUDE_MS;
    let mut records: Vec<Record> = before.iter().filter(|e| led_to_it(e)).cloned().collect();
    before.retain(|e| !led_to_it(e));
    let who = trigger.who.or_else(|| before.iter().rev().find_map(|record| record.who));
    let node = who.map_or_else(|| "an unknown host".to_owned(), |who| who.node.to_string());
    records.push(trigger.clone());
    let mut incident = Incident { vm: vm.to_owned(), side: side.to_owned(), node, records, before, outcome_ms: None };
    if incident.is_settled_by(trigger) {
        incident.outcome_ms = Some(trigger.at_ms);
    }
    incident
}
