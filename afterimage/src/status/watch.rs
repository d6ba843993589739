//! `afterimage status --watch`: repeats the status until it is interrupted.
//!
//! | stdout is | then |
//! |---|---|
//! | a terminal | it is redrawn: one VM in full, several in a table |
//! | none | a line for each change: of role, protection, trouble, peer, transport, generation, the arbiter |
//! | none or one, with `--json` | an object on a line per VM and interval |
//!
//! A process that goes away is shown as `gone` until it, or a successor, is back; one that is stopped as one that `does not
//! answer`, and the others beside it as ever.

use super::{for_people, sockets, text::shown};
use crate::cli::StatusArgs;
use api::{OfSide, Status};
use node::{exit::Code, units::time_text};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

/// Cursor home, and clear from there: less flicker than clearing first.
const REDRAW: &str = "\x1b[H\x1b[J";

/// Runs until its reader is gone.
pub(super) fn run(args: &StatusArgs, interval: Duration) -> anyhow::Result<Code> {
    let redraws = io::stdout().is_terminal() && !args.json;
    let mut watch = Watch::default();
    let mut next = Instant::now();
    loop {
        let statuses = watch.look(args);
        let out = match (args.json, redraws) {
            (true, _) => lines_of_json(&statuses)?,
            (false, true) => format!("{REDRAW}{}\n{}", head(args, interval), for_people(&statuses, args.vm.is_some())),
            (false, false) => watch.changes(&statuses),
        };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Code::Done),
            written => written?,
        }
        // From the intended time: an answer that takes long does not stretch the interval.
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn head(args: &StatusArgs, interval: Duration) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    format!("{now}  {}  every {}; press Ctrl-C to end\n", args.run_dir.display(), time_text(interval))
}

fn lines_of_json(statuses: &[Status]) -> anyhow::Result<String> {
    let lines = statuses.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Watch {
    /// Whose socket was there once: one that vanishes is shown.
    known: BTreeSet<PathBuf>,
    told: BTreeMap<(String, String), String>,
    told_nothing: bool,
}

impl Watch {
    fn look(&mut self, args: &StatusArgs) -> Vec<Status> {
        self.known.extend(sockets(args).unwrap_or_default());
        api::statuses(&self.known.iter().cloned().collect::<Vec<_>>())
    }

    /// A line for each that is not as it was told last.
    fn changes(&mut self, statuses: &[Status]) -> String {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let mut out = String::new();
        if statuses.is_empty() && !std::mem::replace(&mut self.told_nothing, true) {
            out.push_str(&format!("{now}  nothing runs here yet\n"));
        }
        for status in statuses {
            let (key, line) = ((status.vm.clone(), status.side.word().to_owned()), line(status));
            if self.told.get(&key) != Some(&line) {
                out.push_str(&format!("{now}  {line}\n"));
                self.told.insert(key, line);
            }
        }
        out
    }
}

/// What a change is a change of.
fn line(s: &Status) -> String {
    let mut line = format!("{} {}: {}", s.vm, s.side.word(), shown(&s.role));
    if !s.is_told() {
        return line + &s.notes.first().map_or_else(String::new, |why| format!(" ({why})"));
    }
    line.push_str(match (s.protected, s.no_failover()) {
        (false, _) => ", NOT PROTECTED",
        (true, None) => "",
        (true, Some(_)) => ", but NO FAILOVER",
    });
    line.push_str(&format!(", generation {}", s.generation));
    for (word, why) in [("STALLED", &s.stalled), ("NETWORK", &s.network)] {
        line.extend(why.iter().map(|why| format!(", {word}: {why}")));
    }
    if !s.peer.is_empty() && !s.transport.is_empty() {
        line.push_str(&format!(", {} over {}", s.peer, s.transport));
    }
    if !s.arbiter.reachable && s.side != OfSide::Keeper {
        line.push_str(", the arbiter is UNREACHABLE");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let mut watch = Watch::default();
        let mut status = Status { vm: "web".into(), role: "syncing".into(), ..Status::default() };
        status.arbiter.reachable = true;
        assert!(watch.changes(&[]).contains("nothing runs here yet") && watch.changes(&[]).is_empty());
        let first = watch.changes(std::slice::from_ref(&status));
        assert!(first.ends_with("web primary: syncing, NOT PROTECTED, generation 0\n"), "{first}");
        (status.epoch, status.released_packets) = (9, 9);
        assert_eq!(watch.changes(std::slice::from_ref(&status)), "", "figures are no change");
        (status.role, status.protected) = ("protected".into(), true);
        assert!(watch.changes(std::slice::from_ref(&status)).contains("web primary: protected, generation"));
        status.network = Some("tap0 is gone".into());
        assert!(watch.changes(std::slice::from_ref(&status)).contains(", NETWORK: tap0 is gone"));
        status.arbiter.failover_impossible = Some("the arbiter cannot be reached".into());
        assert!(watch.changes(std::slice::from_ref(&status)).contains("protected, but NO FAILOVER, generation"));
        status.arbiter.reachable = false;
        assert!(watch.changes(std::slice::from_ref(&status)).contains("UNREACHABLE"));
        (status.role, status.notes) = ("gone".into(), vec!["connection refused".into()]);
        assert!(watch.changes(std::slice::from_ref(&status)).contains("web primary: gone (connection refused)"));
    }
}
