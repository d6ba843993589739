//! What an operator says to a running witness, on its own host: `afterimage witness list`, `assign`, `forget`, over the unix
//! socket `STATE/control.sock`, which only its user can open.

use crate::{cli::WitnessCommand, print};
use api::{ControlError, ControlSocket, Desk, Late, ReplyTo, Request, Response, Serves, ask, done, refused};
use node::exit::{Code, ExitError};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use witness::{Operator, Reply, ReplyTo as Answer, WitnessReport, WitnessRequest};

/// For a write to be durable, and its answer to come.
const PATIENCE: Duration = Duration::from_secs(10);

fn socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Serves the socket, as long as what is returned lives.
pub(super) fn serve(state: &Path, witness: Operator) -> Result<ControlSocket, ControlError> {
    let handler = move |request: Request, answer: ReplyTo| {
        let Request::Witness(request) = request else {
            return answer.give(refused("this is a witness, which has no VM to ask about: ask `protect` or `standby`"));
        };
        // A registrar that is gone drops the answer's way, and that is heard.
        witness.ask(request, Answer::new(move |reply| answer.give(response(reply))));
    };
    let late = || Late { why: "the witness does not answer: is its disk stuck?".to_owned(), status: None };
    ControlSocket::spawn(&socket(state), Desk::new(Serves::Witness, Arc::new(handler)).late(PATIENCE, late))
}

fn response(reply: Reply) -> Response {
    match reply {
        Reply::Report(report) => Response::Witness(report),
        Reply::Done(message) => done(&message),
        Reply::Refused(why) => refused(&why),
    }
}

/// The commands.
pub fn operate(command: &WitnessCommand) -> anyhow::Result<Code> {
    let (state, request) = match command {
        WitnessCommand::List { state, .. } => (state, WitnessRequest::List),
        WitnessCommand::Assign { vm, node, state, yes_the_others_are_stopped } => {
            if !yes_the_others_are_stopped {
                let what = "afterimage witness assign needs --yes-the-others-are-stopped";
                let remedy = format!(
                    "make sure that {vm} can run on no host but {}: power the others off, or kill its QEMU there and look; then \
                     say so",
                    node.name
                );
                return Err(ExitError::usage(what).remedy(remedy).into());
            }
            (state, WitnessRequest::Assign { vm: *vm, node: *node })
        }
        WitnessCommand::Forget { vm, state } => (state, WitnessRequest::Forget { vm: *vm }),
    };
    let json = matches!(command, WitnessCommand::List { json: true, .. });
    let response = ask(&socket(state), Request::Witness(request), PATIENCE + Duration::from_secs(2));
    let text = match response.map_err(|e| nobody(state, &e))? {
        Response::Witness(report) if json => serde_json::to_string_pretty(&report)? + "\n",
        Response::Witness(report) => render(&report),
        Response::Done { message } => message + "\n",
        Response::Refused { message, .. } => return Err(ExitError::new(Code::Failed, message).into()),
        other => anyhow::bail!("the witness answered {request:?} with {other:?}"),
    };
    print(&text)?;
    Ok(Code::Done)
}

fn nobody(state: &Path, error: &ControlError) -> ExitError {
    let what = format!("no witness answers for {}: {error}", state.display());
    let remedy = "these commands need a running `afterimage witness` on this host: use its --state, and run as its \
         user";
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}

fn render(report: &WitnessReport) -> String {
    let stores = match report.probe_age_ms {
        None => "has never been able to store".to_owned(),
        Some(ms) => format!("stored a test {ms} ms ago"),
    };
    let mut out = format!("witness {}, {stores}\n", report.witness);
    for entry in &report.registers {
        let holds = match &entry.register {
            None => "nothing (vacant, or damaged)".to_owned(),
            Some(register) => register.to_string(),
        };
        let told = entry
            .last_told_ms
            .map_or("no node has reported since the start".to_owned(), |ms| format!("told {ms} ms ago"));
        let awaited =
            if entry.awaited.is_empty() { String::new() } else { format!(", waits for {}", entry.awaited.join(", ")) };
        out.push_str(&format!("  {}: {holds}; {}{awaited}; {told}\n", entry.vm, entry.standing));
    }
    out
}
