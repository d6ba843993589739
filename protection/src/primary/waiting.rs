//! The supervisor while it waits for the arbiter: at the start, and when its data path died. There is no data path then, so it
//! serves the control socket itself, and hears signals: a process that waits is not one that hangs.

use super::settings::Settings;
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
use rustix::event::PollFd;
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
    /// A successor takes this process's place.
    Successor,
    /// An operator's word that this node goes on, and the arbiter cannot answer: it counts for what is asked next.
    Operator,
    /// The deadline passed.
    Late,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) config: Settings,
    pub(super) arbiter: ArbiterClient,
    control: Option<Control>,
    what: What,
    /// The operator has said that the other side is stopped, perhaps before that was asked; the arbiter is one, or cannot answer.
    decided: bool,
    /// Why nothing that an operator could say by `solo` would decide anything now.
    pub(super) undecidable: Option<String>,
    pub(super) notes: Vec<String>,
    watch: ArbiterWatch,
    trouble: Option<String>,
    /// As [`Waiting::trouble_changed`] said last.
    told: Option<String>,
    since_ms: u64,
}

impl Waiting {
    /// `serve`: the control socket is free; while a process that is to be relieved has it, it answers there.
    pub(super) fn new(config: &Settings, node: Node, what: What, serve: bool) -> Result<Self> {
        let arbiter = ArbiterClient::spawn(&config.asks(node))?;
        let listen = || Control::listen((&config.run_dir, &config.state_dir), config.vm, config.node, Side::Primary);
        let control = serve.then(listen).transpose()?;
        let (decided, notes, watch) = (false, Vec::new(), ArbiterWatch::default());
        let (config, since_ms) = (config.clone(), unix_ms());
        let (undecidable, trouble, told) = (None, None, None);
        Ok(Self { config, arbiter, control, what, decided, undecidable, notes, watch, trouble, told, since_ms })
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

    /// The next thing that comes, until `until`.
    pub(super) fn hear(&mut self, signals: &Signals, until: Option<Instant>) -> Result<Heard> {
        loop {
            if let Some(heard) = self.take() {
                return Ok(heard);
            }
            if signals.take() > 0 {
                return Ok(Heard::Signal);
            }
            let left = until.map_or(GLANCE, |until| until.saturating_duration_since(Instant::now()).min(GLANCE));
            if left.is_zero() {
                return Ok(Heard::Late);
            }
            let mut fds = self.fds();
            fds.push(readable(signals.as_fd()));
            wait(&mut fds, Time(0), None, left)?;
        }
    }

    /// What came of the arbiter or the control socket, if anything did: called in every turn.
    pub(super) fn take(&mut self) -> Option<Heard> {
        while let Some(answer) = self.arbiter.take_answer() {
            match answer {
                Answer::Read(held) => return Some(Heard::Read(held)),
                Answer::Cas(outcome) => {
                    self.decided &= self.config.arbiter == ArbiterSpec::Manual; // a word is for one swap
                    return Some(Heard::Cas(outcome));
                }
                Answer::Fault(_) => {} // decides nothing; said below
            }
        }
        while let Some(request) = self.control.as_ref().and_then(Control::take) {
            if let Some(heard) = self.answer(request) {
                return Some(heard);
            }
        }
        self.tell_health();
        None
    }

    /// What may have something to say.
    pub(super) fn fds(&self) -> Vec<PollFd<'_>> {
        let control = self.control.as_ref().map(|control| readable(control.as_fd()));
        control.into_iter().chain([readable(self.arbiter.as_fd())]).collect()
    }

    /// What the arbiter's client says of its last failure, if that has changed.
    pub(super) fn trouble_changed(&mut self) -> Option<Option<String>> {
        let now = self.arbiter.health().last_error;
        if now == self.told {
            return None;
        }
        self.told.clone_from(&now);
        Some(now)
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
