//! Two queue pairs of one device, connected to each other, and what is outstanding on them.
//!
//! ```text
//! connected ──post, drain──> connected
//!     └── stop: ERR ──> flushed ──> both destroyed: nothing lands any more
//! ```

use super::{LocalError, Options};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use transport_rdma::{
    WorkFailure, ack_timeout,
    ffi::{CHAIN, Context, Cq, Domain, Qp, status_words},
    patiently,
    types::{PORT, Piece, QpSizes, RcPath, Request, Work},
};

/// The pair.
#[derive(Debug)]
pub(super) struct Pair {
    writer: Qp,
    reader: Qp,
    cq: Arc<Cq>,
    domain: Arc<Domain>,
    options: Options,
    /// Writes posted; also the number of the last. They complete in order.
    posted: u64,
    completed: u64,
    signaled: u64,
    /// The last completion, or the first post after none was outstanding.
    progress: Instant,
}

/// A write to post: its pieces, the address in the slab, the slab's key.
pub(super) type Planned<'a> = (&'a [Piece], u64, u32);

impl Pair {
    /// Makes and connects them, in a domain of their own.
    pub(super) fn connect(context: &Arc<Context>, options: &Options) -> Result<Self, LocalError> {
        let device = |doing| move |source| LocalError::Device { device: context.name().to_owned(), doing, source };
        let limits = context.limits().map_err(device("asking for its limits"))?;
        let options = options.bounded(limits.max_sge, limits.max_qp_wr);
        let domain = Domain::new(context).map_err(device("making a protection domain"))?;
        // All that is outstanding comes back flushed when the queue pair fails.
        let cq = Cq::new(context, options.depth + 16, None).map_err(device("making a completion queue"))?;
        let sizes = QpSizes { send: options.depth, receive: 1, pieces: options.gather, inline: 0 };
        let make = || Qp::reliable(&domain, &cq, &cq, sizes).map_err(device("making a queue pair"));
        let (writer, reader) = (make()?, make()?);
        join(context, &options, [&writer, &reader]).map_err(device("connecting queue pairs to each other"))?;
        let (posted, completed, signaled, progress) = (0, 0, 0, Instant::now());
        Ok(Self { writer, reader, cq, domain, options, posted, completed, signaled, progress })
    }

    /// The domain.
    #[must_use]
    pub(super) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// What is in force.
    #[must_use]
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Writes that can be posted with one doorbell now.
    #[must_use]
    pub(super) fn room(&self) -> usize {
        let credits = u64::from(self.options.depth) - self.outstanding();
        usize::try_from(credits.min(self.options.chain.into())).unwrap_or(0)
    }

    fn outstanding(&self) -> u64 {
        self.posted - self.completed
    }

    /// The number of the last write posted.
    #[must_use]
    pub(super) fn last(&self) -> u64 {
        self.posted
    }

    /// Whether the write of that number, and all before it, have landed.
    #[must_use]
    pub(super) fn has_landed(&self, number: u64) -> bool {
        self.completed >= number
    }

    /// Posts at most [`Pair::room`] writes. `complete`: the last shall report, whatever the interval says.
    pub(super) fn post(&mut self, writes: &[Planned<'_>], complete: bool) -> Result<(), LocalError> {
        debug_assert!(writes.len() <= self.room(), "posted without credits");
        if self.outstanding() == 0 {
            self.progress = Instant::now();
        }
        let nothing = Request { id: 0, signaled: false, work: Work::Send(&[]) };
        let mut requests = [nothing; CHAIN];
        for (index, (request, &(from, to, rkey))) in requests.iter_mut().zip(writes).enumerate() {
            self.posted += 1;
            let due = self.posted - self.signaled >= u64::from(self.options.signal_every);
            let signaled = due || (complete && index + 1 == writes.len());
            if signaled {
                self.signaled = self.posted;
            }
            *request = Request { id: self.posted, signaled, work: Work::Write { from, to, rkey } };
        }
        let posted = self.writer.post(&requests[..writes.len()]);
        posted.map_err(|source| {
            // Those that were not posted never complete.
            self.posted -= (writes.len() - source.posted) as u64;
            LocalError::Post { device: self.device(), qpn: self.writer.number(), source }
        })
    }

    /// Takes in what completed. `since`: when the oldest slab was submitted.
    pub(super) fn drain(&mut self, since: Option<Instant>) -> Result<(), LocalError> {
        let failed = |this: &Self, source| LocalError::Device { device: this.device(), doing: "polling", source };
        while let Some(done) = self.cq.poll().map_err(|source| failed(self, source))? {
            if done.status != 0 {
                let failure = WorkFailure {
                    kind: "RDMA WRITE into a slab",
                    status: done.status,
                    words: status_words(done.status),
                    vendor: done.vendor,
                    elapsed: since.map(|since| since.elapsed()),
                    timeout: self.options.timeout,
                    retry: self.options.retry,
                };
                let (device, qpn, failure) = (self.device(), self.writer.number(), Box::new(failure));
                return Err(LocalError::Work { device, qpn, failure });
            }
            self.completed = done.id;
            self.progress = Instant::now();
        }
        self.check_progress()
    }

    fn check_progress(&self) -> Result<(), LocalError> {
        let elapsed = self.progress.elapsed();
        if self.outstanding() == 0 || elapsed < patience(&self.options) {
            return Ok(());
        }
        Err(LocalError::Stalled {
            device: self.device(),
            qpn: self.writer.number(),
            outstanding: self.outstanding(),
            elapsed,
            timeout: self.options.timeout,
            retry: self.options.retry,
        })
    }

    /// Ends it: when this has returned success, nothing lands any more. The second call does nothing.
    pub(super) fn stop(&mut self) -> Result<(), LocalError> {
        self.flush();
        let stopped = self.writer.destroy().and(self.reader.destroy());
        let (device, qpn) = (self.device(), self.writer.number());
        stopped.map_err(|source| LocalError::Unstoppable { device, qpn, source })
    }

    /// Destroying a queue pair with work outstanding has crashed kernels: it comes back first, as far as it does.
    fn flush(&mut self) {
        let began = Instant::now();
        // (An error here is the destruction's to report.)
        let failed = self.writer.fail().is_ok();
        while failed && self.outstanding() > 0 && began.elapsed() < FLUSH_LIMIT {
            match self.cq.poll() {
                Ok(Some(done)) => self.completed = self.completed.max(done.id.min(self.posted)),
                Ok(None) => std::thread::yield_now(),
                Err(_) => return,
            }
        }
    }

    fn device(&self) -> String {
        self.domain.context().name().to_owned()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "local copies could not be stopped");
        }
    }
}

const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// When a queue pair must have reported an error by itself: devices may wait four times the timeout (IBTA 9.7.6.1.3).
fn patience(options: &Options) -> Duration {
    ack_timeout(options.timeout) * 4 * (u32::from(options.retry) + 1) + Duration::from_secs(1)
}

fn join(context: &Context, options: &Options, pair: [&Qp; 2]) -> io::Result<()> {
    let (port, gid) = (context.port(PORT)?, context.gid(PORT, options.gid_index)?);
    for (ours, peer) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        ours.init_reliable(true)?;
        let path = RcPath {
            gid_index: options.gid_index,
            gid,
            lid: port.lid,
            qpn: peer.number(),
            mtu: port.mtu,
            psn: 0,
            peer_psn: 0,
            timeout: options.timeout,
            retry: options.retry,
            rnr_retry: 6,
        };
        patiently(|| ours.connect(&path))?;
    }
    Ok(())
}
