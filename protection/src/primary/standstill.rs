//! Explains why this side is stalled although its process runs: the VM does not run, no checkpoint of it is committed, or nobody
//! looks at its outputs.

use super::data_path::DataPath;
use mc_core::id::Time;
use node::events::{Event, WhyNow, emit, ms};

impl DataPath {
    /// For the status: in words, if so.
    pub(super) fn stalled(&self) -> Option<String> {
        let now = self.run.host.now();
        let by_vm = self.vm.health().why().map(str::to_owned);
        self.unwatched().or(self.left.stalled(now)).or(by_vm).or_else(|| self.uncommitted_for(now))
    }

    /// An epoch that waits for its ACK is given up by the machine in time; that none is captured any more is seen here. A QEMU that stands
    /// still (its control group is frozen), or hangs, offers no checkpoint, and says nothing either.
    fn uncommitted_for(&self, now: Time) -> Option<String> {
        let last = self.run.driver.figures().last_ack_at.filter(|_| self.run.driver.machine().is_protected())?;
        let since = now.since(last);
        let limit = self.brief.config.commit_deadline(self.run.host.watch.has_rdma());
        (since >= limit).then(|| {
            let (pid, limit) = (self.brief.qemu_pid, ms(limit));
            format!(
                "no checkpoint was captured and ACKed for {} s (limit {limit} ms): check that QEMU (process {pid}) \
                 runs and is not in a frozen control group",
                since.as_secs()
            )
        })
    }

    /// Tells when it begins, and when it ends.
    pub(super) fn notice_standstill(&mut self) {
        let why = self.uncommitted_for(self.run.host.now());
        if why.is_some() == std::mem::replace(&mut self.uncommitted, why.is_some()) {
            return;
        }
        match why {
            Some(why) => {
                tracing::error!(why, "no more checkpoints are committed: the VM is not protected");
                let standing = Some(self.run.standing());
                emit(Event::NoCommits(WhyNow { why, standing }));
            }
            None => emit(Event::CommitsAgain(self.run.standing())),
        }
    }
}
