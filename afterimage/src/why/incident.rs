//! Which events belong together.
//!
//! ```text
//!               trigger                        outcome                          nothing for 5 s,
//!   (quiet) ───────────────> Open ──────────────────────────────> Closed ──────────────────────────> told
//!      ^  suspect, data-path-  │   running, solo, fenced, lost,     │          a new beginning,
//!      │  died, fell-back, ... │   discarded, arbiter-reachable     │          another trigger
//!      │                       └── the process begins anew: it was cut short ──────────────────────> told
//!      └── what else happens is remembered: "protected by whom, since when", and told with the next incident
//! ```

use node::journal::Entry;
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
pub struct Incident {
    /// The VM.
    pub vm: String,
    /// "primary" or "standby".
    pub side: String,
    /// This host.
    pub node: String,
    /// At least one, by time.
    pub entries: Vec<Entry>,
    /// The newest of each name before it.
    pub before: Vec<Entry>,
    outcome_ms: Option<f64>,
}

fn is_trigger(entry: &Entry) -> bool {
    match entry.event.as_str() {
        "suspect"
        | "link-lost"
        | "fell-back"
        | "gave-up"
        | "refused"
        | "epoch-refused"
        | "data-path-died"
        | "source-broken"
        | "vm-gone"
        | "arbiter-unreachable"
        | "arbiter-fault"
        | "rehearsal-failed"
        | "keeping"
        | "gate-failed"
        | "no-commits"
        | "no-session"
        | "not-left"
        | "waiting-qemu-fails"
        | "fenced"
        | "supervisor-died" => true,
        "operator" | "operator-refused" => !is_handover(entry),
        "asking" => entry.fields.get("contested") == Some(&true.into()),
        _ => false,
    }
}

/// A successor wants the VM that runs here alone: no change of role.
fn is_handover(entry: &Entry) -> bool {
    entry.fields.get("request").and_then(|r| r["command"].as_str()) == Some("handover")
}

/// A process begins anew, or leaves for one that does: what was open before is no more.
fn is_beginning(entry: &Entry) -> bool {
    matches!(entry.event.as_str(), "attached" | "started" | "syncing")
        || entry.event == "operator" && is_handover(entry)
}

impl Incident {
    /// The event that it began with.
    #[must_use]
    pub fn first(&self) -> &Entry {
        &self.entries[0]
    }

    /// Its newest event.
    #[must_use]
    pub fn last(&self) -> &Entry {
        self.entries.last().unwrap_or(self.first())
    }

    /// The first event, Unix ms.
    #[must_use]
    pub fn began_ms(&self) -> f64 {
        self.first().at_ms
    }

    /// The newest event, Unix ms.
    #[must_use]
    pub fn last_ms(&self) -> f64 {
        self.last().at_ms
    }

    /// The event that ended it, Unix ms.
    #[must_use]
    pub fn ended_ms(&self) -> Option<f64> {
        self.outcome_ms
    }

    /// Its first event of this name.
    #[must_use]
    pub fn find(&self, event: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.event == event)
    }

    /// The newest of this name before it.
    #[must_use]
    pub fn before(&self, event: &str) -> Option<&Entry> {
        self.before.iter().find(|e| e.event == event)
    }

    /// How the arbiter answered last: the event, and "won" or "lost".
    #[must_use]
    pub fn swap(&self) -> Option<(&Entry, &str)> {
        self.entries.iter().rev().find(|e| e.event == "cas").and_then(|e| Some((e, e.text("outcome")?)))
    }

    /// How it ended.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let has = |event: &str| self.find(event).is_some();
        let lost = self.swap().is_some_and(|(_, outcome)| outcome == "lost");
        match () {
            () if has("running") => Kind::TookOver,
            () if has("fenced") => Kind::Fenced,
            () if has("solo") => Kind::WentSolo,
            () if has("keeping") => Kind::KeptNetwork,
            () if (has("discarded") || has("lost")) && lost => Kind::LostSwap,
            () if has("discarded") => Kind::Discarded,
            () if has("lost") => Kind::Lost,
            () if has("fell-back") => Kind::FellBack,
            () if has("vm-gone") || self.find("ended").is_some_and(|e| e.fields.get("code").is_none()) => Kind::VmGone,
            () if has("rehearsal-failed") => Kind::Unloadable,
            () if has("asking") || has("suspect") => Kind::Open,
            () if has("arbiter-unreachable") => Kind::ArbiterLost,
            () if has("arbiter-fault") => Kind::ArbiterFault,
            () if self.is_order() && has("operator-refused") => Kind::OrderRefused,
            () if has("no-session") || (has("refused") && self.side == "standby") => Kind::Refused,
            () => Kind::Open,
        }
    }

    /// Whether `entry` settles what is open.
    fn is_settled_by(&self, entry: &Entry) -> bool {
        match entry.event.as_str() {
            "running" | "fenced" | "solo" | "lost" | "discarded" | "ended" | "exit" | "fell-back" | "no-session"
            | "rehearsal-failed" => true,
            "arbiter-reachable" => self.kind() == Kind::ArbiterLost,
            "arbiter-mended" => self.kind() == Kind::ArbiterFault,
            "refused" => self.side == "standby",
            "operator-refused" => self.is_order(),
            _ => false,
        }
    }

    /// Whether nothing happened but that an operator said something.
    fn is_order(&self) -> bool {
        self.entries.iter().all(|e| matches!(e.event.as_str(), "operator" | "operator-refused"))
    }
}

/// Groups the events of one side of a VM, sorted by time.
#[must_use]
pub fn incidents(vm: &str, side: &str, entries: Vec<Entry>) -> Vec<Incident> {
    let mut told = Vec::new();
    let mut open: Option<Incident> = None;
    let mut before: Vec<Entry> = Vec::new();
    for entry in entries {
        let over = open.as_ref().is_some_and(|incident| {
            let settled = incident.outcome_ms.is_some();
            is_beginning(&entry)
                || incident.kind() == Kind::OrderRefused && settled
                || settled && (entry.after_ms(incident.last()) > AFTERMATH_MS || starts_another(incident, &entry))
        });
        if over {
            told.extend(open.take());
        }
        match &mut open {
            Some(incident) => {
                if incident.outcome_ms.is_none() && incident.is_settled_by(&entry) {
                    incident.outcome_ms = Some(entry.at_ms);
                }
                incident.entries.push(entry.clone());
            }
            None if is_trigger(&entry) => open = Some(begin(vm, side, &entry, &before)),
            None => {}
        }
        before.retain(|e| e.event != entry.event);
        before.push(entry);
    }
    told.extend(open);
    told
}

/// A trigger after the outcome is news, unless the outcome itself brought it about.
fn starts_another(incident: &Incident, entry: &Entry) -> bool {
    let echo = matches!(entry.event.as_str(), "link-lost" | "fenced" | "asking" | "supervisor-died");
    is_trigger(entry) && !(echo && entry.after_ms(incident.last()) < 1_000.0)
}

/// Which host wrote it. Journals of older versions name the caller there when they refused one.
fn host(entry: &Entry) -> Option<&str> {
    entry.text("node").filter(|_| entry.event != "refused" || entry.fields.contains_key("primary"))
}

fn begin(vm: &str, side: &str, trigger: &Entry, before: &[Entry]) -> Incident {
    let mut before = before.to_vec();
    // What was said of others by a process that had been away itself.
    let accuses =
        matches!(trigger.event.as_str(), "suspect" | "link-lost" | "asking" | "arbiter-unreachable" | "arbiter-fault");
    let led_to_it = |e: &Entry| accuses && e.event == "stalled" && trigger.after_ms(e) < PRELUDE_MS;
    let mut entries: Vec<Entry> = before.iter().filter(|e| led_to_it(e)).cloned().collect();
    before.retain(|e| !led_to_it(e));
    let node = host(trigger).or_else(|| before.iter().rev().find_map(host)).unwrap_or("an unknown host").to_owned();
    entries.push(trigger.clone());
    let mut incident = Incident { vm: vm.to_owned(), side: side.to_owned(), node, entries, before, outcome_ms: None };
    if incident.is_settled_by(trigger) {
        incident.outcome_ms = Some(trigger.at_ms);
    }
    incident
}
