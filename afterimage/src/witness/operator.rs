//! What an operator says to a running witness, on its own host: `afterimage witness list`, `assign`, `forget`, over the unix
//! socket `STATE/control.sock`, which only its user can open.

use super::registrar::Input;
use crate::{
    api::{ControlError, ControlSocket, Desk, ReplyTo, Request, Response, Serves, ask, desk::Late},
    cli::WitnessCommand,
    control::refused,
};
use mc_core::{
    id::{Name, NodeId, WitnessId},
    register::{Mode, Register},
};
use node::exit::{Code, ExitError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

/// For a write to be durable, and its answer to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node, as an operator names it: by its name, if the witness knows one node of that name, or as NAME=ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// For people.
    pub name: Name,
    /// For decisions.
    pub id: Option<NodeId>,
}

impl FromStr for NodeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, id) = text.split_once('=').map_or((text, None), |(name, id)| (name, Some(id)));
        let name = name.parse().map_err(|e| format!("{e}"))?;
        let id = id.map(str::parse).transpose().map_err(|e| format!("{e}"))?;
        Ok(Self { name, id })
    }
}

/// What an operator asks of a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum WitnessRequest {
    /// What is there?
    List,
    /// This VM belongs to this node from now on.
    Assign {
        /// Which VM.
        vm: Name,
        /// Which node.
        node: NodeSpec,
    },
    /// This VM is no more.
    Forget {
        /// Which VM.
        vm: Name,
    },
}

/// A witness, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessReport {
    /// Its identity.
    pub witness: WitnessId,
    /// Since it last proved that it can store, ms; `null`: never.
    pub probe_age_ms: Option<u32>,
    /// The VMs that it knows of.
    pub registers: Vec<RegisterReport>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterReport {
    /// Which.
    pub vm: Name,
    /// What is held.
    pub register: Option<Register>,
    /// "settled", "waiting", "disputed".
    pub standing: String,
    /// The nodes whose word is waited for: names, or identities without one.
    pub awaited: Vec<String>,
    /// When a node that has seen its register asked last, ms ago; `null`: not since the start.
    pub last_told_ms: Option<u64>,
}

fn socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Serves the socket, as long as what is returned lives.
pub(super) fn serve(state: &Path, registrar: Sender<Input>) -> Result<ControlSocket, ControlError> {
    let registrar = Mutex::new(registrar);
    let handler = move |request: Request, answer: ReplyTo| {
        let Request::Witness(request) = request else {
            return answer.give(refused("this is a witness; that is for `protect` or `standby`"));
        };
        // A registrar that is gone drops the answer's way, and that is heard.
        let _ = registrar.lock().send(Input::Operator { request, answer });
    };
    let late = || Late { why: "the witness does not answer: is its disk stuck?".to_owned(), status: None };
    ControlSocket::spawn(&socket(state), Desk::new(Serves::Witness, Arc::new(handler)).late(PATIENCE, late))
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
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(Code::Done),
    }
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
            Some(r) => match r.mode {
                Mode::Solo => format!("{}, {} alone", r.generation, r.owner.node),
                Mode::Protected { standby } => {
                    format!("{}, {} protected by {}", r.generation, r.owner.node, standby.node)
                }
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_its_name_or_with_its_identity() {
        let name = |text: &str| Name::new(text).unwrap();
        assert_eq!("a".parse(), Ok(NodeSpec { name: name("a"), id: None }));
        let id = NodeId([0xab; 16]);
        assert_eq!(format!("a={id}").parse(), Ok(NodeSpec { name: name("a"), id: Some(id) }));
        assert!("a=12".parse::<NodeSpec>().unwrap_err().contains("32 hexadecimal digits"));
        assert!("".parse::<NodeSpec>().is_err());
    }
}
