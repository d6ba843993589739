//! The first process's side of every link that is measured: it opens it, loads it, closes it, and hears the sink's account.

use crate::{
    cli::Where,
    link::{Port, QUEUE, RcKnobs},
    load::{self, Outcome, Plan, slabs_per_checkpoint},
    peer::{LinkSpec, Peer},
    progress, units,
};
use anyhow::Result;
use mc_core::slab::SlabPool;

/// A measurement of ours that fails is taken again so often; that it failed is reported.
const TRIES: u32 = 3;

/// What measures over links: the second process, and slabs.
#[derive(Debug)]
pub(crate) struct Side {
    /// The second process.
    pub peer: Peer,
    ports: Option<(Port, Port)>,
    knobs: RcKnobs,
    pool: SlabPool,
    failures: Vec<String>,
}

impl Side {
    /// For links over that network.
    ///
    /// # Errors
    /// A device is not to be had, or the second process does not come up.
    pub(crate) fn new(place: &Where) -> Result<Self> {
        let (ports, pool) = (place.ports()?, SlabPool::new(place.slab, 2 * QUEUE * place.slab));
        Ok(Self { peer: Peer::start()?, ports, knobs: place.knobs(), pool, failures: Vec::new() })
    }

    /// Ours and the peer's; `None` over TCP.
    #[must_use]
    pub(crate) fn ports(&self) -> Option<&(Port, Port)> {
        self.ports.as_ref()
    }

    /// What failed and was taken again.
    #[must_use]
    pub(crate) fn into_failures(self) -> Vec<String> {
        self.failures
    }

    /// Checkpoints on a link of their own, tried again if it fails.
    ///
    /// # Errors
    /// The link could not be opened or failed, as often as it was tried.
    pub(crate) fn checkpoints(&mut self, plan: &Plan) -> Result<Outcome> {
        for _ in 1..TRIES {
            match self.once(plan, &mut || {}) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => {
                    let what = format!("{} at depth {}", units::size(plan.bytes), plan.depth);
                    self.start_again(&what, &error)?;
                }
            }
        }
        self.once(plan, &mut || {})
    }

    /// After a failure: another second process, and other slabs, because those that were on their way went with the link.
    ///
    /// # Errors
    /// The second process does not come up.
    pub(crate) fn start_again(&mut self, what: &str, error: &anyhow::Error) -> Result<()> {
        progress::say(format_args!("taken again: {what}: {error:#}"));
        self.failures.push(format!("{what}: {error:#}"));
        let slab_bytes = self.pool.slab_size();
        self.pool = SlabPool::new(slab_bytes, 2 * QUEUE * slab_bytes);
        self.peer = Peer::start()?;
        Ok(())
    }

    /// Checkpoints on a link of their own; `ready` is called once it is open.
    ///
    /// # Errors
    /// The link could not be opened or failed; [`Side::start_again`] before anything else.
    pub(crate) fn once(&mut self, plan: &Plan, ready: &mut dyn FnMut()) -> Result<Outcome> {
        let slab_bytes = self.pool.slab_size();
        let spec = LinkSpec {
            ports: self.ports.clone(),
            knobs: self.knobs,
            slab_bytes,
            posts: (slabs_per_checkpoint(plan.bytes, slab_bytes) * plan.depth + 2).min(QUEUE),
            poll: plan.poll,
        };
        let (mut link, incarnation) = self.peer.link(&spec)?;
        ready();
        let outcome = load::run(link.as_mut(), plan, &mut self.pool, incarnation);
        drop(link);
        match (outcome, self.peer.account()) {
            (Ok(outcome), Ok(_)) => Ok(outcome),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
            (Err(ours), Err(theirs)) => Err(ours.context(format!("{theirs:#}"))),
        }
    }
}
