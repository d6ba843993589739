//! QEMU leaves its checkpoints, however long that takes. Until it has, its VM may stand still for good, and nobody else will start
//! it: the register says that it runs here, alone. So whoever commands QEMU tells it again until it obeys.

use super::super::channel::ToDataPath;
use mc_core::id::Time;
use std::time::Duration;

/// From one attempt to the next: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the log is told when it fails.
pub(in super::super) const FAILED: &str = "QEMU has not left checkpoint mode; telling it again";

/// What is left to be done, if anything: a value, which whoever holds QEMU's control connection asks.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Leaving(Option<Attempt>);

#[derive(Clone, Debug)]
struct Attempt {
    at: Time,
    pause: Duration,
    /// Why the last one failed.
    why: Option<String>,
}

impl Leaving {
    /// QEMU has to leave, from now on.
    pub(in super::super) fn begin(&mut self, now: Time) {
        self.0 = Some(Attempt { at: now, pause: PAUSE.0, why: None });
    }

    /// That is over: the VM is gone, or belongs to somebody else.
    pub(in super::super) fn give_up(&mut self) {
        self.0 = None;
    }

    /// Whether it has not left.
    pub(in super::super) fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    /// When QEMU is to be told again.
    pub(in super::super) fn deadline(&self) -> Option<Time> {
        self.0.as_ref().map(|attempt| attempt.at)
    }

    /// Whether it is to be told now.
    pub(in super::super) fn is_due(&self, now: Time) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }

    /// For a data path that comes while it is pending.
    pub(in super::super) fn news(&self) -> Option<ToDataPath> {
        let attempt = self.0.as_ref()?;
        let why = attempt.why.clone().unwrap_or_else(|| "it was told just now".to_owned());
        Some(ToDataPath::Left { error: Some(why) })
    }

    /// QEMU was told: it has left, or why not. True if that reason is new.
    pub(in super::super) fn told(&mut self, now: Time, error: Option<&str>) -> bool {
        let (Some(why), Some(attempt)) = (error, &mut self.0) else {
            self.0 = None;
            return false;
        };
        let is_news = attempt.why.as_deref() != Some(why);
        attempt.why = Some(why.to_owned());
        attempt.at = now.after(attempt.pause);
        attempt.pause = (attempt.pause * 2).min(PAUSE.1);
        is_news
    }
}
