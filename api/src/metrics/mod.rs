//! Metrics for Prometheus: docs/METRICS.md says what each means.
//!
//! ```text
//!   scraper ──GET /metrics──> http (the control plane: few connections) ──"how is it?"──> the loop, between two turns
//!                               ^ text, at most so old                         Snapshot: counts, no formatting │
//!                               └──────────── prometheus-client encodes it <───────────────────────────────────┘
//! ```
//!
//! The loop that holds a VM's output does no more for a scrape than for a `status`, and that not oftener than [`FRESH`]: how
//! many ask, and how slowly they read, is nothing to it. Histograms are the ones that `status` reads; nothing is recorded twice.

mod collect;
mod http;
mod text;
mod witness;

pub use collect::Snapshot;
pub use http::{Content, IfTaken, Server, Source, look};
pub use node::keepalive::{BOUNDS, Buckets};
pub use text::{openmetrics, plain};
pub use witness::Witness;

use crate::status::Status;
use node::inbox::{self, Inbox, Outbox};
use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};

/// A scrape may get what another got so long ago.
const FRESH: Duration = Duration::from_millis(100);
/// A loop that does not answer within this time is stuck, or stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// A scrape on its way to the loop.
#[derive(Debug)]
pub struct Scrape(oneshot::Sender<Snapshot>);

impl Scrape {
    /// Answers it. Who asked may have gone.
    pub fn reply(self, snapshot: Snapshot) {
        let _ = self.0.send(snapshot);
    }
}

/// The endpoint of a loop, and the scrapes that come through it.
#[derive(Debug)]
pub struct Scrapes {
    inbox: Inbox<Scrape>,
    server: Server,
}

impl Scrapes {
    /// Serves metrics at `listen`; nowhere if that is none.
    ///
    /// # Errors
    /// The address cannot be had, and `if_taken` refuses that.
    pub fn serve(listen: Option<SocketAddr>, if_taken: IfTaken) -> anyhow::Result<Option<Self>> {
        let Some(listen) = listen else { return Ok(None) };
        let (outbox, inbox) = inbox::inbox()?;
        let asking = Arc::new(Mutex::new(Asking { outbox, newest: None, who: None }));
        let source: Source = Arc::new(move || {
            let asking = Arc::clone(&asking);
            // Whoever else asks meanwhile waits for the same answer.
            Box::pin(async move { asking.lock().await.snapshot().await })
        });
        let server = Server::spawn(listen, if_taken, source)?;
        Ok(Some(Self { inbox, server }))
    }

    /// What an operator should know of it: metrics that are not served.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        self.server.trouble().map(|why| format!("no metrics are served: {why}"))
    }

    /// The next scrape, if any.
    pub fn take(&self) -> Option<Scrape> {
        self.inbox.take()
    }
}

impl AsFd for Scrapes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }
}

struct Asking {
    outbox: Outbox<Scrape>,
    newest: Option<(Instant, Content)>,
    /// Names only: what is known of a loop that does not answer any more.
    who: Option<Status>,
}

impl Asking {
    async fn snapshot(&mut self) -> Option<Content> {
        if let Some((_, content)) = self.newest.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Some(Arc::clone(content));
        }
        let (reply, answer) = oneshot::channel();
        self.outbox.put(Scrape(reply));
        let snapshot = match timeout(PATIENCE, answer).await {
            Ok(Ok(snapshot)) => snapshot,
            _ => Snapshot { status: self.who.clone()?, ..Snapshot::default() },
        };
        self.who.get_or_insert_with(|| stalled(&snapshot.status));
        let content: Content = openmetrics(snapshot).into();
        self.newest = Some((Instant::now(), Arc::clone(&content)));
        Some(content)
    }
}

/// A loop that was there, and does not turn: the metric `afterimage_stalled` is all that it still has to say.
fn stalled(was: &Status) -> Status {
    let (vm, node, side) = (was.vm.clone(), was.node.clone(), was.side.side().into());
    let why = Some("the main loop makes no progress".to_owned());
    Status { vm, node, side, role: "stalled".into(), stalled: why, ..Status::default() }
}
