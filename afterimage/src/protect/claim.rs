//! The supervisor alone: its data path died, and the VM may stand still with output that was never released. It asks the
//! arbiter, however long that takes, and serves the control socket meanwhile: `--arbiter manual` waits for its operator.

use super::channel::Brief;
use crate::{
    arbiter::{Answer, ArbiterClient, Ask},
    cli::Side,
    control::{Control, done, refused},
    events::emit,
    inbox::{readable, wait},
    report,
    status::{Request, Response, SCHEMA, Status},
};
use anyhow::{Result, bail};
use mc_core::{
    id::Time,
    register::{CasOutcome, Mode, Register},
};
use std::{os::fd::AsFd, time::Duration};

/// Asks until the arbiter answers. `Some`: the register says (solo, self). `None`: somebody else owns the VM.
pub(super) fn claim(brief: &Brief) -> Result<Option<Register>> {
    let owner = brief.register.owner;
    let mut claim = Claim::new(brief)?;
    let held = match claim.ask(Ask::Read)? {
        Answer::Read(Some(held)) => held,
        other => bail!("the arbiter knows nothing of this VM any more: {other:?}"),
    };
    if held.owner != owner {
        return Ok(None);
    }
    if held.mode == Mode::Solo {
        return Ok(Some(held));
    }
    let new = Register { generation: held.generation.next(), owner, mode: Mode::Solo };
    match claim.ask(Ask::Cas { expect: held.generation, new, contested: true })? {
        Answer::Cas(outcome) => {
            emit("cas", report::outcome(&outcome));
            Ok(match outcome {
                CasOutcome::Won(register) => Some(register),
                CasOutcome::Lost(_) => None,
            })
        }
        Answer::Read(_) => bail!("the arbiter answered a read to a swap"),
    }
}

struct Claim<'a> {
    brief: &'a Brief,
    arbiter: ArbiterClient,
    /// The dead data path's place.
    control: Control,
}

impl<'a> Claim<'a> {
    fn new(brief: &'a Brief) -> Result<Self> {
        let config = &brief.config;
        let arbiter = ArbiterClient::spawn(config.arbiter.clone(), config.vm, &config.run_dir)?;
        let control = Control::listen(&config.run_dir, config.vm, Side::Primary)?;
        Ok(Self { brief, arbiter, control })
    }

    fn ask(&mut self, ask: Ask) -> Result<Answer> {
        self.arbiter.ask(ask);
        loop {
            if let Some(answer) = self.arbiter.take_answer() {
                return Ok(answer);
            }
            let mut fds = [readable(self.arbiter.as_fd()), readable(self.control.as_fd())];
            wait(&mut fds, Time(0), None, Duration::from_secs(1))?;
            while let Some(request) = self.control.take() {
                let response = self.answer(request.request);
                request.reply(response);
            }
        }
    }

    fn answer(&self, request: Request) -> Response {
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
