//! Turns the facts of an incident into sentences.

use super::{
    facts::Facts,
    incident::{Incident, Kind},
};
use mc_core::register::{Mode, Register};
use node::{
    events::{
        Epochs, Event, FellBack, NoSession, OperatorRefused, Outcome, PathSilence, Record, Refused, Silence,
        TakeoverFailed, VmGone, Why, WhyNow,
    },
    repeated::and_more,
};

/// What happened, in a few words: the headline.
pub(super) fn headline(kind: Kind) -> &'static str {
    match kind {
        Kind::TookOver => "took the VM over",
        Kind::WentSolo => "went on alone, unprotected",
        Kind::Fenced => "was fenced: its copy was stopped",
        Kind::LostSwap => "asked for the VM and lost",
        Kind::Lost => "found that the other host had the VM already",
        Kind::Discarded => "gave its copy up without asking for the VM",
        Kind::FellBack => "fell back from RDMA to TCP",
        Kind::ArbiterLost => "could not reach the arbiter; failover was impossible",
        Kind::ArbiterFault => "the arbiter would not have decided; failover was impossible",
        Kind::Unloadable => "its QEMU could not load the VM; there was no protection",
        Kind::KeptNetwork => "kept the VM's network",
        Kind::VmGone => "the VM ended",
        Kind::Refused => "no session came about",
        Kind::OrderRefused => "an operator's order was refused; nothing was changed",
        Kind::Open => "no outcome was recorded",
    }
}

/// ms as a person reads them.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{ms:.1} ms"),
    }
}

/// A register's value.
pub(super) fn register(register: &Register) -> String {
    let Register { generation, owner, mode } = register;
    let mode = match mode {
        Mode::Solo => "alone".to_owned(),
        Mode::Protected { standby } => format!("protected by {}", standby.node),
    };
    format!("generation {} ({}, {mode})", generation.0, owner.node)
}

/// The story.
pub(super) fn sentences(incident: &Incident, facts: &Facts) -> Vec<String> {
    let mut told = Vec::new();
    told.extend(cause(incident));
    told.extend(suspicion(facts));
    told.extend(own_lateness(facts));
    told.extend(access(incident));
    told.extend(swap(facts));
    told.extend(outcome(incident, facts));
    // What led to it comes first; the network follows what became of the VM.
    told.extend(each(incident, |record| network(&record.event)));
    told.extend(exit(facts));
    told
}

/// What no suspicion says.
fn cause(incident: &Incident) -> Vec<String> {
    each(incident, |record| happening(incident, record))
}

fn each(incident: &Incident, says: impl Fn(&Record) -> Option<String>) -> Vec<String> {
    let mut told: Vec<String> = incident.records.iter().filter_map(says).collect();
    told.dedup();
    told
}

fn happening(incident: &Incident, record: &Record) -> Option<String> {
    Some(match &record.event {
        Event::DataPathDied(died) => {
            format!(
                "The data path of this host's sidecar died ({}); the VM may have stood still, its output held.",
                died.how
            )
        }
        Event::SupervisorDied => "The supervisor died; the data path went on without it.".to_owned(),
        Event::Operator(order) => format!("An operator asked for `{}`.", order.request.as_str()),
        Event::OperatorRefused(OperatorRefused { why, .. }) => format!("It was refused: {why}."),
        Event::Refused(Refused { why, .. }) if incident.side == "primary" => {
            format!("The standby refused a checkpoint: {why}.")
        }
        Event::Refused(Refused { why, primary, more, .. }) => {
            let node = primary.map_or_else(|| "somebody".to_owned(), |node| node.to_string());
            let more = and_more(more.unwrap_or(0));
            format!("{node} wanted to be protected, and was turned away: {why}{more}.")
        }
        Event::GaveUp(Why { why }) => format!("Protection was given up: {why}."),
        Event::EpochRefused(refused) => format!("A checkpoint was refused: {}.", refused.why),
        Event::SourceBroken(broken) => format!("QEMU's checkpoint stream broke: {}.", broken.why),
        Event::VmGone(VmGone { orderly: true }) => {
            "The VM was shut down: by its guest, or because its QEMU was told to end.".to_owned()
        }
        Event::VmGone(VmGone { orderly: false }) => "The VM's QEMU died.".to_owned(),
        Event::FellBack(FellBack { why, .. }) => {
            format!("RDMA failed while the other host lived: {why}. Checkpoints go over TCP; none was lost.")
        }
        Event::GateFailed(Why { why }) => format!("The gate had trouble, and kept its output: {why}."),
        Event::NoCommits(WhyNow { why, .. }) => format!("Nothing was committed any more: {why}."),
        Event::NotLeft(Why { why }) => format!("QEMU did not leave its checkpoint, and was told again: {why}."),
        Event::WaitingQemuFails(Why { why }) => {
            format!("The QEMU that waits on this host did not start any more: {why}.")
        }
        Event::NoSession(NoSession { why, .. }) => format!("No session with a standby came about: {why}."),
        Event::RehearsalFailed(Why { why }) => {
            format!("A rehearsal failed: this host's QEMU could not load the VM: {why}.")
        }
        Event::TakeoverFailed(TakeoverFailed { why, times, .. }) => {
            format!("Taking the VM over failed (attempt {times}): {why}. The copy was kept.")
        }
        _ => return arbiter(incident, record),
    })
}

fn arbiter(incident: &Incident, record: &Record) -> Option<String> {
    let since = |wanted: fn(&Event) -> bool| millis(incident.find(wanted).map_or(0.0, |e| record.after_ms(e)));
    Some(match &record.event {
        Event::ArbiterUnreachable(Why { why }) => format!("The arbiter could not be reached: {why}."),
        Event::ArbiterReachable => {
            format!("It answered again {} later.", since(|e| matches!(e, Event::ArbiterUnreachable(_))))
        }
        Event::ArbiterFault(fault) => {
            let todo = fault.remedy.as_ref().map_or_else(String::new, |todo| format!(" What to do: {todo}."));
            format!("The arbiter answered, and a failover was impossible: {}.{todo}", fault.why)
        }
        Event::ArbiterMended => {
            format!("It recovered {} later.", since(|e| matches!(e, Event::ArbiterFault(_))))
        }
        _ => return None,
    })
}

fn network(event: &Event) -> Option<String> {
    Some(match event {
        Event::Keeping(keeping) => {
            let how = if keeping.handed_over > 0 { "handed over by the process before it" } else { "opened anew" };
            format!("A keeper passed the packets of {} NICs, which were {how}.", keeping.nics)
        }
        Event::KeeperStarted(_) => "A keeper was started to pass the VM's packets.".to_owned(),
        Event::KeeperFailed(Why { why }) => format!("No keeper could be started: {why}."),
        Event::KeeperEnded(_) => "The keeper ended.".to_owned(),
        Event::NicLost(Why { why }) => format!("A NIC was lost: {why}."),
        Event::NicsConnected => "All NICs were connected again.".to_owned(),
        _ => return None,
    })
}

fn suspicion(facts: &Facts) -> Option<String> {
    let told = &facts.suspicion.as_ref()?.told;
    let peer = facts.peer.as_deref().unwrap_or("The other side");
    let heard = heard(told.paths.as_deref().unwrap_or_default());
    let Some(Silence { silent_ms, missed, detection_ms, interval_ms }) = told.silence else {
        return Some(format!("The link to {peer} broke: {}.{heard}", told.why));
    };
    let beats = interval_ms.or(facts.peer_beats.map(|beats| beats.interval_ms));
    let beats = beats.map_or_else(String::new, |ms| format!(" (it beats every {})", millis(ms)));
    let (silent, allowed) = (millis(silent_ms), millis(detection_ms));
    Some(format!("{peer} was silent for {silent}, {missed} beats overdue; {allowed} are allowed{beats}.{heard}"))
}

fn heard(paths: &[PathSilence]) -> String {
    let one = |path: &PathSilence| match path.ago_ms {
        Some(ms) => format!("{} before by {}", millis(ms), path.name),
        None => format!("never by {}", path.name),
    };
    let told: Vec<String> = paths.iter().filter(|path| !path.name.is_empty()).map(one).collect();
    if told.is_empty() { String::new() } else { format!(" It had been heard last {}.", told.join(", ")) }
}

fn own_lateness(facts: &Facts) -> Option<String> {
    let late = facts.suspicion.as_ref().and_then(|suspicion| suspicion.told.own_late);
    let late = late.map(|late| match late.max_ms {
        0.0 => "Its own beats were never late".to_owned(),
        ms => format!("Its own beats were late by {} at most, which is discounted", millis(ms)),
    });
    let away = facts.stalled_ms.map(|ms| format!("this process had been away for {}", millis(ms)));
    match (late, away) {
        (Some(late), Some(away)) => Some(format!("{late}; {away}.")),
        (Some(late), None) => Some(format!("{late}.")),
        (None, Some(away)) => Some(format!("T{}.", &away[1..])),
        (None, None) => None,
    }
}

/// I3, on the standby.
fn access(incident: &Incident) -> Option<String> {
    let asking = incident.find(|event| matches!(event, Event::Asking(_)))?;
    let suspect = incident.find(|event| matches!(event, Event::Suspect(_)))?;
    let ago = asking.event.standing()?.standby?.revoked_ago_ms?;
    let after = (asking.after_ms(suspect) - ago).max(0.0);
    Some(format!(
        "It stopped ACKing, and the other side's access to its memory had ended {} after the suspicion.",
        millis(after)
    ))
}

fn swap(facts: &Facts) -> Option<String> {
    let Some(swap) = &facts.swap else {
        return Some(format!("The register held {}.", register(facts.read.as_ref()?)));
    };
    let before = swap.before.as_ref().map_or_else(|| format!("generation {}", swap.expect.0), register);
    let took = swap.took_ms.map_or_else(String::new, |ms| format!(" after {}", millis(ms)));
    let asked = format!("It asked the arbiter to make {before} into {}:", register(&swap.new));
    Some(match (swap.outcome, &swap.holds) {
        (Some(Outcome::Won), _) => format!("{asked} won{took}."),
        (Some(Outcome::Lost), Some(holds)) => {
            format!("{asked} lost{took}; the register holds {}.", register(holds))
        }
        (Some(Outcome::Lost), None) => format!("{asked} lost{took}; the register is vacant."),
        (None, _) => {
            let error = facts.arbiter.as_ref().and_then(|arbiter| arbiter.last_error.as_ref());
            let error = error.map_or_else(String::new, |error| format!(" ({error})"));
            match facts.read.as_ref().map(register) {
                Some(held) => format!("{asked} no answer is written{error}; read again, the register held {held}."),
                None => format!("{asked} no answer was recorded{error}. Until there is one, output stays held."),
            }
        }
    })
}

fn outcome(incident: &Incident, facts: &Facts) -> Option<String> {
    let acked = match facts.epochs {
        Some(Epochs::Primary { captured, acked, .. }) => {
            format!(" Epoch {} was the last ACKed one, {} the last captured.", acked.0, captured.0)
        }
        _ => String::new(),
    };
    match incident.kind() {
        Kind::TookOver => {
            let took = facts.takeover.map(|took| took.since_suspicion.running_us as f64 / 1e3);
            let after = took.map_or_else(String::new, |ms| format!(", {} after the suspicion", millis(ms)));
            let from = facts.from_epoch;
            let from = from.map_or_else(String::new, |e| format!(" from epoch {}, the last one committed", e.0));
            Some(format!("The VM runs here{from}{after}."))
        }
        Kind::WentSolo => {
            let released = facts.output.map_or(0, |output| output.released);
            Some(format!("The VM runs on here, unprotected; {released} packets were let out since.{acked}"))
        }
        Kind::Fenced => {
            let dropped = match facts.output {
                None => "what the data path held was gone with it".to_owned(),
                Some(output) => format!("{} packets that nobody had ACKed were dropped", output.dropped),
            };
            Some(format!("This copy was stopped; {dropped}.{acked}"))
        }
        Kind::LostSwap | Kind::Lost | Kind::Discarded => {
            let committed = match facts.epochs {
                Some(Epochs::Standby { committed, .. }) => format!(" It had committed epoch {}.", committed.0),
                _ => String::new(),
            };
            let copy = match incident.find(|event| matches!(event, Event::Discarded(_))) {
                Some(_) => "This standby forgot its copy.",
                None => "This standby keeps its copy until a new session needs the room, and lets nothing out.",
            };
            Some(format!("{copy}{committed}"))
        }
        Kind::Open if incident.ended_ms().is_none() && facts.swap.is_some() => None,
        Kind::Open => Some("Nothing more was recorded: this is still in progress, or the process died.".to_owned()),
        _ => None,
    }
}

fn exit(facts: &Facts) -> Option<String> {
    let exit = facts.exit.as_ref()?;
    let why = exit.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    Some(format!("It ended with exit code {}{why}.", exit.code))
}
