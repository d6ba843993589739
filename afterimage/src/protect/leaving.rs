//! QEMU leaves its checkpoints, however long that takes. Until it has, its VM may stand still for good, and nobody else will start
//! it: the register says that it runs here, alone. So whoever commands QEMU tells it again until it obeys.

use super::{
    channel::ToDataPath,
    commanded::{Qemu, Task},
};
use node::exit;
use std::time::{Duration, Instant};

/// From one attempt to the next: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What is left to be done, if anything.
#[derive(Debug, Default)]
pub(super) struct Leaving(Option<Attempt>);

#[derive(Debug)]
struct Attempt {
    at: Instant,
    pause: Duration,
    /// Why the last one failed.
    why: Option<String>,
}

impl Leaving {
    /// QEMU has to leave, from now on.
    pub(super) fn begin(&mut self) {
        self.0 = Some(Attempt { at: Instant::now(), pause: PAUSE.0, why: None });
    }

    /// That is over: the VM is gone, or belongs to somebody else.
    pub(super) fn give_up(&mut self) {
        self.0 = None;
    }

    /// Whether it has not left.
    pub(super) fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    /// When to attend to it at the latest.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.0.as_ref().map(|attempt| attempt.at.saturating_duration_since(Instant::now()))
    }

    /// For a data path that comes while it is pending.
    pub(super) fn news(&self) -> Option<ToDataPath> {
        let attempt = self.0.as_ref()?;
        let why = attempt.why.clone().unwrap_or_else(|| "it was told just now".to_owned());
        Some(ToDataPath::Left { error: Some(why) })
    }

    /// Tries, if it is time; what the data path should hear.
    pub(super) fn attend(&mut self, qemu: &mut Qemu) -> Option<ToDataPath> {
        let attempt = self.0.as_mut().filter(|attempt| attempt.at <= Instant::now())?;
        let error = qemu.perform(&Task::Leave).err().map(|error| exit::words(&error));
        match &error {
            None => self.0 = None,
            Some(why) => {
                if attempt.why.as_ref() != Some(why) {
                    tracing::error!(why, "QEMU has not left checkpoint mode; telling it again");
                }
                attempt.why = Some(why.clone());
                attempt.at = Instant::now() + attempt.pause;
                attempt.pause = (attempt.pause * 2).min(PAUSE.1);
            }
        }
        Some(ToDataPath::Left { error })
    }
}
