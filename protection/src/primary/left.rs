//! Whether QEMU has left its checkpoints, as the data path hears it: until then the VM may stand still, and no session begins.

use super::data_path::DataPath;
use mc_core::id::Time;
use node::events::{Event, emit};
use std::time::Duration;

/// QEMU leaves within milliseconds; after so long without a word it is said.
const USUAL: Duration = Duration::from_secs(2);

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Left {
    told_at: Option<Time>,
    why: Option<String>,
}

impl Left {
    /// QEMU was told to leave.
    pub(super) fn told(&mut self, now: Time) {
        *self = Self { told_at: Some(now), why: None };
    }

    /// Whether it has not left, as far as anybody has said.
    pub(super) fn is_pending(&self) -> bool {
        self.told_at.is_some()
    }

    /// Why the VM may stand still.
    pub(super) fn stalled(&self, now: Time) -> Option<String> {
        let since = now.since(self.told_at?);
        let what = "QEMU has not left checkpoint mode, so the VM may stand still; QEMU is told again until it has";
        match &self.why {
            Some(why) => Some(format!("{what} ({why})")),
            None => (since >= USUAL).then(|| what.to_owned()),
        }
    }
}

impl DataPath {
    /// What came of an attempt.
    pub(super) fn hear_left(&mut self, error: Option<String>) {
        match error {
            Some(why) => {
                if self.left.why.as_ref() != Some(&why) {
                    emit(Event::NotLeft(why.as_str().into()));
                }
                self.left.told_at.get_or_insert(self.run.host.now());
                self.left.why = Some(why);
            }
            None => {
                let failed = std::mem::take(&mut self.left).why.is_some();
                if failed {
                    tracing::warn!("QEMU has left its checkpoint; the VM runs");
                    emit(Event::Left);
                }
            }
        }
    }
}
