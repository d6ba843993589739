//! The supervisor while it waits for the arbiter: at the start, and when its data path died. There is no data path then, so it
//! serves the control socket itself, and hears signals: a process that waits is not one that hangs.

use super::commanded::Qemu;
use crate::config::ProtectConfig;
use anyhow::Result;
use api::{Control, ControlRequest, Request, Response, SCHEMA, Side, Status, done, refused, report};
use mc_core::{
    id::{Generation, Node, Time},
    register::{CasOutcome, Register, Swap},
};
use node::{
    arbiter::{Answer, ArbiterClient, ArbiterSpec, ArbiterWatch, Ask, Stance},
    clock::unix_ms,
    events::{Event, Operator, Order, Role, WaitingForArbiter, emit},
    inbox::{readable, wait},
    signals::Signals,
};
use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// The longest sleep.
const GLANCE: Duration = Duration::from_secs(1);

/// What the wait is for, in the status' words.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    pub(super) role: Role,
    pub(super) generation: Generation,
    pub(super) note: &'static str,
    /// What whoever wants something else is told.
    pub(super) busy: &'static str,
    /// Whether nothing is lost when a successor takes its place.
    pub(super) may_leave: bool,
}

/// What ended the wait.
#[derive(Debug)]
pub(super) enum Heard {
    /// What the register holds; also once a second, unasked.
    Read(Option<Register>),
    /// What came of a swap.
    Cas(CasOutcome),
    /// SIGTERM or SIGINT.
    Signal,
    /// QEMU is gone: it shut down (true), or died.
    VmGone(bool),
    /// A successor takes this process's place.
    Successor,
    /// An operator's word that this node goes on, and the arbiter cannot answer: it counts for what is asked next.
    Operator,
    /// The deadline passed.
    Late,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    pub(super) config: &'a ProtectConfig,
    pub(super) arbiter: ArbiterClient,
    signals: &'a Signals,
    control: Option<Control>,
    what: What,
    /// The operator has said that the other side is stopped, perhaps before that was asked; the arbiter is one, or cannot answer.
    decided: bool,
    /// Why nothing that an operator could say by `solo` would decide anything now.
    pub(super) undecidable: Option<String>,
    pub(super) notes: Vec<String>,
    watch: ArbiterWatch,
    trouble: Option<String>,
    since_ms: u64,
}

impl<'a> Waiting<'a> {
    /// `serve`: the control socket is free; while a process that is to be relieved has it, it answers there.
    pub(super) fn new(
        config: &'a ProtectConfig,
        node: Node,
        signals: &'a Signals,
        what: What,
        serve: bool,
    ) -> Result<Self> {
        let arbiter = ArbiterClient::spawn(&config.asks(node))?;
        let listen = || Control::listen((&config.run_dir, &config.state_dir), config.vm, config.node, Side::Primary);
        let control = serve.then(listen).transpose()?;
        let (decided, notes, watch) = (false, Vec::new(), ArbiterWatch::default());
        let (undecidable, trouble, since_ms) = (None, None, unix_ms());
        Ok(Self { config, arbiter, signals, control, what, decided, undecidable, notes, watch, trouble, since_ms })
    }

    /// Asks; the answer comes in time. What an operator has decided is contested: else it would not be an operator's to decide.
    pub(super) fn ask(&self, ask: Ask) {
        match ask {
            Ask::Cas(swap) => {
                self.arbiter.ask(Ask::Cas(Swap { contested: swap.contested || self.decided, ..swap }));
            }
            Ask::Read => self.arbiter.ask(ask),
        }
        if self.decided {
            self.arbiter.operator_decides();
        }
    }

    /// Nothing is asked for, for this reason: a word that was said before counts for nothing that is asked for later.
    pub(super) fn cannot_be_decided(&mut self, why: String) {
        self.decided = false;
        self.undecidable = Some(why);
    }

    /// The next thing that comes, until `until`. With `qemu`, its end is heard as well.
    pub(super) fn hear(&mut self, mut qemu: Option<&mut Qemu>, until: Option<Instant>) -> Result<Heard> {
        loop {
            match self.arbiter.take_answer() {
                Some(Answer::Read(held)) => return Ok(Heard::Read(held)),
                Some(Answer::Cas(outcome)) => {
                    self.decided &= self.config.arbiter == ArbiterSpec::Manual; // a word is for one swap
                    return Ok(Heard::Cas(outcome));
                }
                Some(Answer::Fault(_)) => continue, // decides nothing; said below
                None => {}
            }
            if let Some(orderly) = qemu.as_mut().and_then(|qemu| qemu.gone()) {
                return Ok(Heard::VmGone(orderly));
            }
            if self.signals.take() > 0 {
                return Ok(Heard::Signal);
            }
            while let Some(request) = self.control.as_ref().and_then(Control::take) {
                if let Some(heard) = self.answer(request) {
                    return Ok(heard);
                }
            }
            self.tell_health();
            let left = until.map_or(GLANCE, |until| until.saturating_duration_since(Instant::now()).min(GLANCE));
            if left.is_zero() {
                return Ok(Heard::Late);
            }
            self.sleep(qemu.as_deref(), left)?;
        }
    }

    fn sleep(&self, qemu: Option<&Qemu>, longest: Duration) -> Result<()> {
        let mut fds = vec![readable(self.arbiter.as_fd()), readable(self.signals.as_fd())];
        fds.extend(self.control.as_ref().map(|control| readable(control.as_fd())));
        fds.extend(qemu.map(|qemu| readable(qemu.as_fd())));
        wait(&mut fds, Time(0), None, longest)?;
        Ok(())
    }

    /// Says once what it waits for, and again when the reason changes.
    fn tell_health(&mut self) {
        let health = self.arbiter.health();
        if health.reachable {
            self.watch.look(&health, Stance::Idle); // an answer that cannot be believed, or would not come to a swap
        }
        if health.last_error.is_none() || health.last_error == self.trouble {
            return;
        }
        self.trouble = health.last_error;
        let why = self.trouble.as_deref().unwrap_or_default();
        tracing::warn!(why, "{}", self.what.note);
        emit(Event::WaitingForArbiter(WaitingForArbiter { role: self.what.role, why: why.to_owned() }));
    }

    /// Whatever has to be done about it.
    fn answer(&mut self, request: ControlRequest) -> Option<Heard> {
        let leaves = self.what.may_leave && request.request == Request::Handover;
        let decides = request.request == Request::Solo && self.arbiter.operator_may_decide();
        let undecidable = self.undecidable.as_deref().filter(|_| decides);
        let decides = decides && undecidable.is_none();
        let response = match request.request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Solo if undecidable.is_some() => refused(undecidable.unwrap_or_default()),
            Request::Solo if decides => {
                emit(Event::Operator(Operator { request: Order::Solo, role: Some(self.what.role) }));
                self.decided = true;
                self.arbiter.operator_decides();
                done("going solo")
            }
            _ if leaves => done("leaving"),
            _ => refused(self.what.busy),
        };
        request.reply(response);
        let by_manual = self.config.arbiter == ArbiterSpec::Manual;
        match decides {
            true => (!by_manual).then_some(Heard::Operator),
            false => leaves.then_some(Heard::Successor),
        }
    }

    fn status(&self) -> Status {
        let mut notes = report::standing_notes();
        notes.push(self.what.note.to_owned());
        notes.extend(self.notes.iter().cloned());
        let mut status = Status {
            schema: SCHEMA,
            side: Side::Primary.into(),
            role: self.what.role.as_str().into(),
            vm: self.config.vm.to_string(),
            node: self.config.node.to_string(),
            generation: self.what.generation.0,
            notes,
            ..Status::default()
        };
        report::fill_arbiter(&mut status, &self.arbiter);
        if self.what.role == Role::Claiming {
            report::fill_claim(&mut status, "the data path died", self.since_ms);
        }
        status
    }
}
