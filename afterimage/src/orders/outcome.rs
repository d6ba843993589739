//! Waits for the outcome of `takeover`, `solo` or `unprotect`: the order was taken, and is decided
//! later. The command looks at it until it is, or until nothing has changed for a while.

use api::{ANSWER_PATIENCE, RUNNING, Request, Response, Status, ask, is_served};
use node::{
    exit::{Code, ExitError},
    units::spoken,
};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// No longer without news.
const QUIET: Duration = Duration::from_secs(10);
/// A data path that died has a successor by then, at the same socket.
const GONE: Duration = Duration::from_secs(3);
/// Between two looks. A copy that is fenced can be seen for a few of them.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Won,
    Lost,
}

/// What a side's role says of the order.
fn judge(request: &Request, role: &str) -> Verdict {
    let takes_over = *request == Request::Takeover;
    match role {
        RUNNING if takes_over => Verdict::Won,
        "idle" | "lost" | "syncing" | "rehearsing" | "protecting" if takes_over => Verdict::Lost,
        "solo" if !takes_over => Verdict::Won,
        "handing-back" | "fenced" | "ended" if !takes_over => Verdict::Lost,
        _ => Verdict::Open,
    }
}

/// Waits for it. `peer`: the other side's node.
pub(super) fn wait(path: &Path, request: &Request, (vm, peer): (&str, &str)) -> Result<String, ExitError> {
    let mut last: Option<Status> = None;
    let (mut news, mut heard) = (Instant::now(), Instant::now());
    loop {
        if let Ok(Response::Status(status)) = ask(path, Request::Status, ANSWER_PATIENCE) {
            match judge(request, &status.role) {
                Verdict::Won => return Ok(won(request, vm, &status)),
                Verdict::Lost => return Err(lost(request, (vm, peer), &status.role)),
                Verdict::Open => {}
            }
            if last.as_ref().is_none_or(|last| last.role != status.role) {
                news = Instant::now();
            }
            (last, heard) = (Some(*status), Instant::now());
        }
        if heard.elapsed() >= GONE && !is_served(path) {
            return Err(gone(request, vm));
        }
        if news.elapsed() >= QUIET {
            return Err(open(request, vm, last.as_ref()));
        }
        thread::sleep(LOOK);
    }
}

fn won(request: &Request, vm: &str, status: &Status) -> String {
    let g = status.generation;
    let waits = status.why_not_protected.as_ref().is_some_and(|why| why.next_try_in_ms.is_none());
    let until = if waits { "; no standby is looked for until `afterimage reprotect`" } else { "" };
    match request {
        Request::Takeover => format!("{vm} runs here now (g{g})"),
        _ => format!("{vm} runs here alone (g{g}), unprotected{until}"),
    }
}

fn lost(request: &Request, (vm, peer): (&str, &str), role: &str) -> ExitError {
    let peer = if peer.is_empty() { "the other side" } else { peer };
    let what = match request {
        Request::Takeover => format!("not taken over: {peer} won {vm}; this standby is {role}"),
        _ => format!("{vm} does not go on here: {peer} won it, or it ended; this copy is {role}"),
    };
    ExitError::new(Code::Fenced, what).remedy(format!("`afterimage why --vm {vm}` tells how it went"))
}

fn gone(request: &Request, vm: &str) -> ExitError {
    let what = match request {
        Request::Takeover => format!("the standby of {vm} ended before it reported the outcome"),
        _ => format!(
            "`protect` of {vm} ended before it said what came of the order, as it does when the other side won, or when the VM is gone"
        ),
    };
    let remedy = format!(
        "`afterimage why --vm {vm}` tells how it went; `afterimage status` on the other host shows whether it runs there"
    );
    ExitError::new(Code::Failed, what).remedy(remedy)
}

fn open(request: &Request, vm: &str, last: Option<&Status>) -> ExitError {
    let Some(status) = last else {
        let what =
            format!("not decided yet: the process accepted the order, but has not answered for {}", spoken(QUIET));
        return ExitError::new(Code::Degraded, what).remedy(format!("`afterimage status --vm {vm}` says more"));
    };
    let arbiter = &status.arbiter;
    let why = match (&arbiter.last_error, &arbiter.failover_impossible) {
        _ if status.role == "taking-over" => status.notes.first().cloned(),
        (Some(error), _) if !arbiter.reachable => Some(format!("the arbiter does not answer ({error})")),
        (_, Some(why)) => Some(format!("the arbiter cannot decide ({why})")),
        _ => None,
    };
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    let what = match status.role.as_str() {
        "taking-over" => format!("{vm} is this node's (g{}), and does not run yet{why}", status.generation),
        "disputed" => format!("not decided: {vm} is disputed{why}; it waits for another word"),
        role => format!("not decided yet: {vm} is {role} here{why}; the order stands"),
    };
    let word = request.word();
    ExitError::new(Code::Degraded, what).remedy(format!(
        "follow it with `afterimage status --vm {vm}`. When the arbiter comes back the order is carried out; do not \
         repeat `{word}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_says_whether_the_order_is_decided() {
        use Verdict::{Lost, Open, Won};
        let takeover =
            [("revoking", Open), ("claiming", Open), ("taking-over", Open), ("disputed", Open), ("stalled", Open)];
        let takeover =
            takeover.into_iter().chain([("running", Won), ("idle", Lost), ("lost", Lost), ("protecting", Lost)]);
        for (role, verdict) in takeover {
            assert_eq!(judge(&Request::Takeover, role), verdict, "{role}");
        }
        let alone = [("claiming", Open), ("protected", Open), ("waiting-for-arbiter", Open), ("syncing", Open)];
        let alone = alone.into_iter().chain([("solo", Won), ("fenced", Lost), ("ended", Lost), ("handing-back", Lost)]);
        for (role, verdict) in alone {
            assert_eq!(judge(&Request::Solo, role), verdict, "{role}");
            assert_eq!(judge(&Request::Unprotect, role), verdict, "{role}");
        }
    }

    #[test]
    fn what_is_open_says_why_and_exits_as_degraded() {
        let mut status = Status { role: "claiming".into(), generation: 5, ..Status::default() };
        status.arbiter.last_error = Some("no answer within 1s".into());
        let error = open(&Request::Takeover, "web", Some(&status));
        assert_eq!(error.code, Code::Degraded);
        let expected = "not decided yet: web is claiming here; the arbiter does not answer (no answer within 1s); the order stands";
        assert_eq!(error.message, expected);
        (status.role, status.notes) = ("taking-over".into(), vec!["its disk is full".into()]);
        let error = open(&Request::Takeover, "web", Some(&status));
        assert_eq!(error.message, "web is this node's (g5), and does not run yet; its disk is full");
    }
}
