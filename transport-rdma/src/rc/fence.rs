//! The end of a peer's access to our memory (I3).
//!
//! ```text
//!   bye posted (best effort: a peer that lives learns of it at once)
//!     -> slabs deregistered     no key of theirs is worth anything; no write lands any more once this has returned
//!     -> a moment               for a peer that lives to take what was posted, the bye last
//!     -> queue pairs to ERR     everything posted comes back
//!     -> drained                what had arrived is reported
//!     -> queue pairs destroyed  waits for packets that are being handled
//!     -> drained once more
//! ```
//!
//! Nothing weaker will do: on SoftRoCE bytes have been seen to land after a queue pair was moved to ERR or RESET, after its
//! access flags were taken away, and after a memory window was invalidated; never after a deregistration or a destruction had
//! returned success. Every return code counts: if one of these calls fails, the peer is *not* fenced.

use super::Parts;
use crate::types::Completion;
use std::{io, time::Instant};

/// How long to wait for our own requests to come back flushed before their queue pair is destroyed: some drivers want that.
/// It is a local matter, and takes microseconds.
pub(super) const FLUSH: std::time::Duration = std::time::Duration::from_millis(20);

/// What the system did not confirm.
pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Moves the queue pairs to ERR, and hands what completes to `done`, successful completions first.
pub(super) fn stop(parts: &Parts, mut done: impl FnMut(bool, Completion)) -> Result<(), String> {
    let stopped = parts.queues.iter().try_for_each(|q| q.fail()).map_err(failed("ibv_modify_qp to ERR"));
    let until = Instant::now() + FLUSH;
    let mut quiet = 0;
    // Flushed requests arrive at once or within moments; two empty looks in a row are the end.
    while quiet < 2 && Instant::now() < until {
        quiet = if drain(parts, &mut done) { 0 } else { quiet + 1 };
    }
    stopped
}

/// Destroys the queue pairs, and hands on what completed until then.
pub(super) fn destroy(parts: &Parts, mut done: impl FnMut(bool, Completion)) -> Result<(), String> {
    let destroyed = parts.queues.iter().try_for_each(|q| q.destroy()).map_err(failed("ibv_destroy_qp"));
    drain(parts, &mut done);
    destroyed
}

/// Empties both completion queues; `done` is told whether it is a receive. Whether there was anything.
pub(super) fn drain(parts: &Parts, done: &mut impl FnMut(bool, Completion)) -> bool {
    let mut any = false;
    while let Ok(Some(completion)) = parts.receive_cq.poll() {
        any = true;
        done(true, completion);
    }
    while let Ok(Some(completion)) = parts.send_cq.poll() {
        any = true;
        done(false, completion);
    }
    any
}
