//! Takes what was asked over a socket, hands it to whoever answers, and waits for the reply.

use crate::status::Status;
use crate::{
    answer::Answer,
    journal,
    problem::{Kind, Problem},
    request::{Request, Response},
    route::{Routed, allowed, route},
    serve::{Answering, Asked, Site},
};
use mc_core::id::Name;
use node::{events::Side, units::spoken};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::timeout};

/// A loop that does not answer within this time is stuck, or stopped.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// All of a VM's memory is written to a disk.
pub const EXPORT_PATIENCE: Duration = Duration::from_secs(3 * 3600);
/// For a journal to be read.
const DISK: Duration = Duration::from_secs(5);

/// What stands behind a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serves {
    /// One side of a VM.
    Vm {
        /// Which VM.
        vm: Name,
        /// Which side.
        side: Side,
        /// Where its events are kept.
        journal: Option<PathBuf>,
    },
    /// A witness.
    Witness,
}

/// Where an answer goes. Dropped: there is none.
#[derive(Debug)]
pub struct ReplyTo(oneshot::Sender<Response>);

impl ReplyTo {
    /// Answers. Never waits; who asked may have gone.
    pub fn give(self, response: Response) {
        let _ = self.0.send(response);
    }
}

/// Takes a request to whoever answers it. Called on the control plane: it must not wait.
pub type Handler = Arc<dyn Fn(Request, ReplyTo) + Send + Sync>;

/// What there is to say of whoever did not answer.
#[derive(Clone, Debug)]
pub struct Late {
    /// Why, in words.
    pub why: String,
    /// The status in its place.
    pub status: Option<Status>,
}

/// Answers what is asked over a socket.
pub struct Desk {
    serves: Serves,
    handler: Handler,
    late: Box<dyn Fn() -> Late + Send + Sync>,
    patience: Duration,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("serves", &self.serves).finish_non_exhaustive()
    }
}

impl Desk {
    /// Without anything to say of a handler that does not answer within [`PATIENCE`].
    #[must_use]
    pub fn new(serves: Serves, handler: Handler) -> Self {
        let late = Box::new(|| Late { why: "the process is there, and does not answer".to_owned(), status: None });
        Self { serves, handler, late, patience: PATIENCE }
    }

    /// What to say of a handler that does not answer in time, and what that time is.
    #[must_use]
    pub fn late(self, patience: Duration, late: impl Fn() -> Late + Send + Sync + 'static) -> Self {
        Self { late: Box::new(late), patience, ..self }
    }
}

/// A desk as the connections of a socket share it.
#[derive(Clone, Debug)]
pub(crate) struct Shared(pub(crate) Arc<Desk>);

impl Shared {
    async fn answered(self, asked: Asked) -> Answer {
        let path = asked.target.split('?').next().unwrap_or_default();
        match route(&self.0.serves, &asked.method, &asked.target, &asked.body) {
            Ok(Routed::Ask(request)) => match self.ask(request, path).await {
                Ok(response) => Answer::of(response, path),
                Err(problem) => Answer::problem(&problem),
            },
            Ok(Routed::Vms) => match self.ask(Request::Status, path).await {
                Ok(Response::Status(status)) => Answer::vms(&status),
                Ok(other) => Answer::of(other, path),
                Err(problem) => Answer::problem(&problem),
            },
            Ok(Routed::Events { limit, since_ms }) => self.events(limit, since_ms, path).await,
            Err(problem) => {
                let allow = problem.is(Kind::MethodNotAllowed).then(|| allowed(path).join(", "));
                Answer { allow, ..Answer::problem(&problem) }
            }
        }
    }

    async fn ask(&self, request: Request, path: &str) -> Result<Response, Problem> {
        let desk = &*self.0;
        let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { desk.patience };
        let wants_status = request == Request::Status;
        let (reply, replied) = oneshot::channel();
        (desk.handler)(request, ReplyTo(reply));
        if let Ok(Ok(response)) = timeout(patience, replied).await {
            return Ok(response);
        }
        match (desk.late)() {
            Late { status: Some(status), .. } if wants_status => Ok(Response::Status(Box::new(status))),
            Late { why, .. } => Err(Problem::new(Kind::Stalled, why).instance(path)),
        }
    }

    async fn events(&self, limit: usize, since_ms: u64, path: &str) -> Answer {
        let Serves::Vm { journal: Some(file), .. } = &self.0.serves else {
            return Answer::problem(&Problem::new(Kind::NotFound, "this process keeps no journal").instance(path));
        };
        let file = file.clone();
        // A disk may be stuck: on a thread of its own.
        let read = tokio::task::spawn_blocking(move || journal::newest(&file, limit, since_ms));
        let why = match timeout(DISK, read).await {
            Ok(Ok(Ok(events))) => return Answer::json(&events),
            Ok(Ok(Err(error))) => format!("the journal cannot be read: {error}"),
            Ok(Err(_)) => "the journal's reader ended".to_owned(),
            Err(_) => format!("the disk has not answered within {}", spoken(DISK)),
        };
        Answer::problem(&Problem::new(Kind::Stalled, why).instance(path))
    }
}

impl Site for Shared {
    const NAME: &'static str = "control socket";
    const CONNECTIONS: usize = 16;

    fn answer(&self, asked: Asked) -> Answering {
        Box::pin(self.clone().answered(asked))
    }

    fn older(&self) -> Option<Vec<u8>> {
        Some(super::older::refusal())
    }
}
