//! Carries requests from the control socket's threads to the main loop, which owns the state, and answers back.

use crate::{
    desk::{Desk, Late, PATIENCE, ReplyTo, Serves},
    request::{Request, Response},
    socket::ControlSocket,
    sockets::socket_path,
    status::{SCHEMA, Status},
};
use anyhow::Result;
use mc_core::id::Name;
use node::{
    clock::Clock,
    events::{Event, OperatorRefused, Side, emit},
    inbox::{self, Inbox},
    journal,
    progress::Progress,
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
};

/// A request on its way to the loop.
#[derive(Debug)]
pub struct ControlRequest {
    /// The request as the client sent it.
    pub request: Request,
    reply: ReplyTo,
}

impl ControlRequest {
    /// Answers it. Who asked may have gone. That an order was refused belongs into the journal, as the order does.
    pub fn reply(self, response: Response) {
        if let (Some(request), Response::Refused { message, .. }) = (self.request.decision(), &response) {
            emit(Event::OperatorRefused(OperatorRefused { request, role: None, why: message.clone() }));
        }
        self.reply.give(response);
    }
}

/// The socket, and the requests that come through it.
#[derive(Debug)]
pub struct Control {
    requests: Inbox<ControlRequest>,
    turns: Progress,
    _socket: ControlSocket,
}

impl Control {
    /// Serves the control socket of one side of a VM, whose events are in `state_dir`. A loop that does not answer does not make
    /// the operator guess: its socket tells how long it has not turned.
    pub fn listen((run_dir, state_dir): (&Path, &Path), vm: Name, node: Name, side: Side) -> Result<Self> {
        let (outbox, requests) = inbox::inbox()?;
        let turns = Progress::new();
        let turned = turns.clone();
        let serves = Serves::Vm { vm, side, journal: Some(journal::path(state_dir, vm, side.as_str())) };
        let handler = move |request, reply| {
            // A loop that is gone drops the reply, and that is heard.
            let _ = outbox.put(ControlRequest { request, reply });
        };
        let desk = Desk::new(serves, Arc::new(handler)).late(PATIENCE, move || {
            let why = format!("the main loop has made no progress for {} s", turned.since(Clock.now()).as_secs());
            let status = Some(stalled((vm, node, side), why.clone()));
            Late { why: format!("the process is there, but {why}"), status }
        });
        let socket = ControlSocket::spawn(&socket_path(run_dir, vm, side), desk)?;
        Ok(Self { requests, turns, _socket: socket })
    }

    /// The next request, if any. Called in every turn of the loop.
    pub fn take(&self) -> Option<ControlRequest> {
        self.turns.mark();
        self.requests.take()
    }
}

/// What is known of a side whose loop stands still.
fn stalled((vm, node, side): (Name, Name, Side), why: String) -> Status {
    Status {
        schema: SCHEMA,
        side: side.into(),
        role: "stalled".into(),
        vm: vm.to_string(),
        node: node.to_string(),
        stalled: Some(why),
        ..Status::default()
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.requests.as_fd()
    }
}

/// A refusal without a remedy.
#[must_use]
pub fn refused(why: &str) -> Response {
    Response::Refused { message: why.to_owned(), remedy: None }
}

/// It was done.
#[must_use]
pub fn done(what: &str) -> Response {
    Response::Done { message: what.to_owned() }
}
