//! Arming completion queues: a sleeper must be woken, and a busy poller must not pay for it.
//!
//! ```text
//!             set                    a completion was taken              its event was taken
//!   silent ─────────> armed ─────────────────────────────────> due ─────────────────────────────> silent
//! ```
//!
//! An armed queue gives one event for the next completion. Completions are usually taken by polling before their event is:
//! then the descriptor will become readable, or is, for nothing, and the event must be taken as well, or nobody could sleep
//! again. Both arming and taking events are system calls on some devices; neither happens while a queue is armed and quiet.

use crate::ffi::{Channel, Cq};
use std::{io, sync::Arc};

/// After so many quiet looks events are taken whether due or not: a device that gives one too many must not cost a core.
const QUIET: u32 = 64;

/// Of a link's two queues, send and receive.
#[derive(Debug, Default)]
pub(super) struct Bell {
    armed: [bool; 2],
    /// Events that came or will come for completions that were taken.
    due: u32,
    quiet: u32,
}

impl Bell {
    /// Completions were taken from these queues.
    pub(super) fn rang(&mut self, queues: [bool; 2]) {
        for (armed, rang) in self.armed.iter_mut().zip(queues) {
            if rang && std::mem::take(armed) {
                self.due += 1;
            }
        }
    }

    /// Nothing is there: arms what is not armed. True: look again, a completion may have come just before.
    pub(super) fn set(&mut self, channel: &Channel, queues: [&Arc<Cq>; 2]) -> io::Result<bool> {
        self.quiet += 1;
        if self.due > 0 || self.quiet.is_multiple_of(QUIET) {
            self.due = self.due.saturating_sub(channel.clear());
        }
        let mut look = false;
        for (armed, queue) in self.armed.iter_mut().zip(queues) {
            if !*armed {
                queue.arm()?;
                (*armed, look) = (true, true);
            }
        }
        Ok(look)
    }
}
