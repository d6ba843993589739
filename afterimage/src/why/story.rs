//! Facts in sentences.

use super::{
    facts::{self, Facts},
    incident::{Incident, Kind},
};
use node::repeated::and_more;
use serde_json::Value;

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
        Kind::Open => "no outcome is written",
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
pub(super) fn register(value: &Value) -> Option<String> {
    let generation = value.get("generation")?.as_u64()?;
    let owner = node(value.get("owner")?)?;
    let mode = match value.get("mode")? {
        Value::String(_) => "alone".to_owned(),
        mode => format!("protected by {}", node(mode.pointer("/protected/standby")?)?),
    };
    Some(format!("generation {generation} ({owner}, {mode})"))
}

/// The name of the host that a register's owner or standby is on.
fn node(owner: &Value) -> Option<&str> {
    owner.pointer("/node/name")?.as_str()
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
    told.extend(exit(facts));
    told
}

/// What no suspicion says.
fn cause(incident: &Incident) -> Vec<String> {
    let mut told = Vec::new();
    for entry in &incident.entries {
        let why = entry.text("why").unwrap_or("for a reason that is not written");
        told.extend(match entry.event.as_str() {
            "data-path-died" => {
                let how = entry.text("how").unwrap_or("nobody knows how");
                Some(format!(
                    "The data path of this host's sidecar died ({how}); the VM may have stood still, its output held."
                ))
            }
            "supervisor-died" => Some("The supervisor died; the data path went on without it.".to_owned()),
            "operator" => {
                let asked = entry.fields.get("request").and_then(|r| r["command"].as_str()).unwrap_or("something");
                Some(format!("An operator asked for `{asked}`."))
            }
            "operator-refused" => Some(format!("It was refused: {why}.")),
            "refused" if incident.side == "primary" => Some(format!("The standby refused a checkpoint: {why}.")),
            "refused" => {
                let caller = entry.fields.get("primary").or_else(|| entry.fields.get("node"));
                let node = caller.and_then(facts::named).unwrap_or("somebody");
                let more = entry.fields.get("more").and_then(Value::as_u64).unwrap_or(0);
                Some(format!("{node} wanted to be protected, and was turned away: {why}{}.", and_more(more)))
            }
            "gave-up" => Some(format!("Protection was given up: {why}.")),
            "epoch-refused" => Some(format!("A checkpoint was refused: {why}.")),
            "source-broken" => Some(format!("QEMU's checkpoint stream broke: {why}.")),
            "vm-gone" if entry.fields.get("orderly") == Some(&true.into()) => {
                Some("The VM was shut down: by its guest, or because its QEMU was told to end.".to_owned())
            }
            "vm-gone" => Some("The VM's QEMU died.".to_owned()),
            "fell-back" => {
                Some(format!("RDMA failed while the other host lived: {why}. Checkpoints go over TCP; none was lost."))
            }
            "gate-failed" => Some(format!("The gate had trouble, and kept its output: {why}.")),
            "no-commits" => Some(format!("Nothing was committed any more: {why}.")),
            "not-left" => Some(format!("QEMU did not leave its checkpoint, and was told again: {why}.")),
            "waiting-qemu-fails" => Some(format!("The QEMU that waits on this host did not start any more: {why}.")),
            "no-session" => Some(format!("No session with a standby came about: {why}.")),
            "arbiter-unreachable" => Some(format!("The arbiter could not be reached: {why}.")),
            "arbiter-reachable" => {
                let later = incident.find("arbiter-unreachable").map_or(0.0, |e| entry.after_ms(e));
                Some(format!("It answered again {} later.", millis(later)))
            }
            "arbiter-fault" => {
                let todo = entry.text("remedy").map_or_else(String::new, |todo| format!(" What to do: {todo}."));
                Some(format!("The arbiter answered, and a failover was impossible: {why}.{todo}"))
            }
            "arbiter-mended" => {
                let later = incident.find("arbiter-fault").map_or(0.0, |e| entry.after_ms(e));
                Some(format!("It was as it should be {} later.", millis(later)))
            }
            "rehearsal-failed" => Some(format!("A rehearsal failed: this host's QEMU could not load the VM: {why}.")),
            "takeover-failed" => {
                let times = entry.fields.get("times").and_then(Value::as_u64).unwrap_or(1);
                Some(format!("Taking the VM over failed (attempt {times}): {why}. The copy was kept."))
            }
            "keeping" => {
                let nics = entry.fields.get("nics").and_then(Value::as_u64).unwrap_or(0);
                let how = match entry.fields.get("handed_over").and_then(Value::as_u64) {
                    Some(n) if n > 0 => "handed over by the process before it",
                    _ => "opened anew",
                };
                Some(format!("A keeper passed the packets of {nics} NICs, which were {how}."))
            }
            "keeper-started" => Some("A keeper was started to pass the VM's packets.".to_owned()),
            "keeper-failed" => Some(format!("No keeper could be started: {why}.")),
            "keeper-ended" => Some("The keeper ended.".to_owned()),
            "nic-lost" => Some(format!("A NIC was lost: {why}.")),
            "nics-connected" => Some("All NICs were connected again.".to_owned()),
            _ => None,
        });
    }
    told.dedup();
    told
}

fn suspicion(facts: &Facts) -> Option<String> {
    let s = &facts.suspicion;
    let peer = facts.peer.as_deref().unwrap_or("The other side");
    let number = |name: &str| s.get(name).and_then(Value::as_f64);
    let Some(silent) = number("silent_ms") else {
        let why = s.get("why")?.as_str()?;
        return Some(format!("The link to {peer} broke: {why}.{}", heard(s)));
    };
    let allowed = number("detection_ms").map_or_else(String::new, |ms| format!("; {} are allowed", millis(ms)));
    let missed = number("missed").map_or_else(String::new, |n| format!(", {n} beats overdue"));
    let begun_with = facts.peer_beats.get("interval_ms").and_then(Value::as_f64);
    let beats = number("interval_ms").or(begun_with);
    let beats = beats.map_or_else(String::new, |ms| format!(" (it beats every {})", millis(ms)));
    Some(format!("{peer} was silent for {}{missed}{allowed}{beats}.{}", millis(silent), heard(s)))
}

fn heard(suspicion: &Value) -> String {
    let paths = suspicion.get("paths").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let told: Vec<String> = paths
        .iter()
        .filter_map(|path| {
            let name = path.get("name")?.as_str().filter(|n| !n.is_empty())?;
            Some(match path.get("ago_ms").and_then(Value::as_f64) {
                Some(ms) => format!("{} before by {name}", millis(ms)),
                None => format!("never by {name}"),
            })
        })
        .collect();
    if told.is_empty() { String::new() } else { format!(" It had been heard last {}.", told.join(", ")) }
}

fn own_lateness(facts: &Facts) -> Option<String> {
    let late = facts.suspicion.pointer("/own_late/max_ms").and_then(Value::as_f64);
    let late = late.map(|ms| match ms {
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
    let (asking, suspect) = (incident.find("asking")?, incident.find("suspect")?);
    let ago = asking.number("revoked_ago_ms")?;
    let after = (asking.after_ms(suspect) - ago).max(0.0);
    Some(format!(
        "It stopped ACKing, and the other side's access to its memory had ended {} after the suspicion.",
        millis(after)
    ))
}

fn swap(facts: &Facts) -> Option<String> {
    let s = &facts.swap;
    if s.is_null() {
        return Some(format!("The register held {}.", register(&facts.read)?));
    }
    let new = register(s.get("new")?)?;
    let before = s.get("before").and_then(register);
    let before =
        before.unwrap_or_else(|| format!("generation {}", s.get("expect").and_then(Value::as_u64).unwrap_or(0)));
    let took = s.get("took_ms").and_then(Value::as_f64).map_or_else(String::new, |ms| format!(" after {}", millis(ms)));
    let asked = format!("It asked the arbiter to make {before} into {new}:");
    Some(match (s.get("outcome").and_then(Value::as_str), s.get("holds").and_then(register)) {
        (Some("won"), _) => format!("{asked} won{took}."),
        (Some("lost"), Some(holds)) => format!("{asked} lost{took}; the register holds {holds}."),
        (Some("lost"), None) => format!("{asked} lost{took}; the register is vacant."),
        _ => {
            let error = facts.arbiter.get("last_error").and_then(Value::as_str);
            let error = error.map_or_else(String::new, |error| format!(" ({error})"));
            match register(&facts.read) {
                Some(held) => format!("{asked} no answer is written{error}; read again, the register held {held}."),
                None => format!("{asked} no answer is written{error}. Until there is one, output stays held."),
            }
        }
    })
}

fn packets(facts: &Facts, name: &str) -> u64 {
    facts.output.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn outcome(incident: &Incident, facts: &Facts) -> Option<String> {
    let epoch = |name: &str| facts.epochs.get(name).and_then(Value::as_u64);
    let acked = epoch("acked").zip(epoch("captured"));
    let acked = acked.map_or_else(String::new, |(acked, captured)| {
        format!(" Epoch {acked} was the last ACKed one, {captured} the last captured.")
    });
    match incident.kind() {
        Kind::TookOver => {
            let us = facts.takeover.pointer("/since_suspicion/running_us").and_then(Value::as_f64);
            let after = us.map_or_else(String::new, |us| format!(", {} after the suspicion", millis(us / 1e3)));
            let from =
                facts.from_epoch.map_or_else(String::new, |e| format!(" from epoch {e}, the last one committed"));
            Some(format!("The VM runs here{from}{after}."))
        }
        Kind::WentSolo => {
            let released = packets(facts, "released");
            Some(format!("The VM runs on here, unprotected; {released} packets were let out since.{acked}"))
        }
        Kind::Fenced => {
            let dropped = match facts.output.is_null() {
                true => "what the data path held was gone with it".to_owned(),
                false => format!("{} packets that nobody had ACKed were dropped", packets(facts, "dropped")),
            };
            Some(format!("This copy was stopped; {dropped}.{acked}"))
        }
        Kind::LostSwap | Kind::Lost | Kind::Discarded => {
            let committed = epoch("committed").map_or_else(String::new, |e| format!(" It had committed epoch {e}."));
            let copy = match incident.find("discarded") {
                Some(_) => "This standby forgot its copy.",
                None => "This standby keeps its copy until a new session needs the room, and lets nothing out.",
            };
            Some(format!("{copy}{committed}"))
        }
        Kind::Open if incident.ended_ms().is_none() && !facts.swap.is_null() => None,
        Kind::Open => Some("Nothing more was written: this is still going on, or the process died.".to_owned()),
        _ => None,
    }
}

fn exit(facts: &Facts) -> Option<String> {
    let code = facts.exit.get("code")?.as_u64()?;
    let why = facts.exit.get("why").and_then(Value::as_str).map_or_else(String::new, |why| format!(": {why}"));
    Some(format!("It ended with exit code {code}{why}."))
}
