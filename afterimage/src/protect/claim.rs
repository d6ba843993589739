//! The supervisor alone: its data path died, and the VM may stand still with output that was never released. It asks the
//! arbiter, however long that takes, and serves the control socket meanwhile: `--arbiter manual` waits for its operator.

use super::channel::Brief;
use crate::{
    arbiter::{Answer, ArbiterClient, Ask},
    cli::Side,
    clock::Clock,
    control::{Control, done, refused},
    events::emit,
    inbox::{readable, wait},
    report,
    stalls::Swap,
    status::{Request, Response, SCHEMA, Status},
};
use anyhow::{Result, bail};
use mc_core::{
    id::Time,
    register::{CasOutcome, Mode, Register},
};
use serde_json::json;
use std::{os::fd::AsFd, time::Duration};

/// Asks until the arbiter answers. `Some`: the register says (solo, self). `None`: somebody else owns the VM.
///
/// It swaps even when the register says so already: the dead data path may have asked for "protected" as it died, and that
/// request may still be on its way. Once the generation has risen it can only lose; else it could name a standby, which
/// would rightly take over, while the VM runs visibly here.
pub(super) fn claim(brief: &Brief) -> Result<Option<Register>> {
    let owner = brief.register.owner;
    let mut claim = Claim::new(brief)?;
    let mut held = match claim.ask(Ask::Read)? {
        Answer::Read(Some(held)) => held,
        other => bail!("the arbiter knows nothing of this VM any more: {other:?}"),
    };
    emit("register", json!({ "register": held }));
    while held.owner == owner {
        let new = Register { generation: held.generation.next(), owner, mode: Mode::Solo };
        let contested = held.mode != Mode::Solo;
        emit("asking", report::asked(held.generation, &new, contested));
        let mut swap = Swap::default();
        swap.asked(Clock.now());
        let Answer::Cas(outcome) = claim.ask(Ask::Cas { expect: held.generation, new, contested })? else {
            bail!("the arbiter answered a read to a swap")
        };
        emit("cas", swap.answered(Clock.now(), &outcome));
        held = match outcome {
            CasOutcome::Won(register) => return Ok(Some(register)),
            CasOutcome::Lost(Some(newer)) => newer,
            CasOutcome::Lost(None) => bail!("the arbiter knows nothing of this VM any more"),
        };
    }
    Ok(None)
}

struct Claim<'a> {
    brief: &'a Brief,
    arbiter: ArbiterClient,
    /// The dead data path's place.
    control: Control,
    watch: report::ArbiterWatch,
}

impl<'a> Claim<'a> {
    fn new(brief: &'a Brief) -> Result<Self> {
        let config = &brief.config;
        let arbiter = ArbiterClient::spawn(&config.asks(brief.register.owner.node))?;
        let control = Control::listen(&config.run_dir, config.vm, config.node, Side::Primary)?;
        Ok(Self { brief, arbiter, control, watch: report::ArbiterWatch::default() })
    }

    fn ask(&mut self, ask: Ask) -> Result<Answer> {
        self.arbiter.ask(ask);
        loop {
            match (self.arbiter.take_answer(), ask) {
                (Some(answer @ Answer::Read(_)), Ask::Read) | (Some(answer @ Answer::Cas(_)), Ask::Cas { .. }) => {
                    return Ok(answer);
                }
                (Some(_), _) => continue, // a check, or a fault, which is told below
                (None, _) => {}
            }
            let mut fds = [readable(self.arbiter.as_fd()), readable(self.control.as_fd())];
            wait(&mut fds, Time(0), None, Duration::from_secs(1))?;
            self.watch.look(&self.arbiter.health());
            while let Some(request) = self.control.take() {
                let response = self.answer(&request.request);
                request.reply(response);
            }
        }
    }

    fn answer(&self, request: &Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Solo if self.arbiter.operator_decides() => done("going solo"),
            _ => refused("the data path died, and the arbiter has not answered yet whose the VM is"),
        }
    }

    fn status(&self) -> Status {
        let config = &self.brief.config;
        let mut notes = report::standing_notes();
        notes.push("the data path died; the VM waits for the arbiter's verdict".to_owned());
        let mut status = Status {
            schema: SCHEMA,
            side: "primary".into(),
            role: "claiming".into(),
            vm: config.vm.to_string(),
            node: config.node.to_string(),
            transport: "tcp".into(),
            generation: self.brief.register.generation.0,
            notes,
            ..Status::default()
        };
        report::fill_arbiter(&mut status, &self.arbiter);
        status
    }
}
