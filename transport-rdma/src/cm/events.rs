//! The manager's events, waited for.

use super::error::{CmError, rejection};
use crate::ffi::{CmEvent, CmId};
use rdma_sys::rdma_cm_event_type as kind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io,
    time::{Duration, Instant},
};

/// When to give up on something, and when it began.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    start: Instant,
    at: Instant,
}

impl Deadline {
    pub(super) fn new(at: Instant) -> Self {
        Self { start: Instant::now(), at }
    }

    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

pub(super) fn call(doing: &'static str) -> impl Fn(io::Error) -> CmError {
    move |source| CmError::Call { doing, source }
}

/// The next event.
pub(super) fn next(id: &mut CmId, doing: &'static str, deadline: Deadline) -> Result<CmEvent, CmError> {
    loop {
        match id.event().map_err(call(doing))? {
            // An interface of a bond has taken over: nothing to do with what is waited for.
            Some(event) if event.kind == kind::RDMA_CM_EVENT_ADDR_CHANGE => {}
            Some(event) => return Ok(event),
            None if deadline.left().is_zero() => {
                return Err(CmError::TimedOut { doing, after: deadline.start.elapsed() });
            }
            None => {
                let limit = Timespec::try_from(deadline.left()).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
                // An interrupted wait is as good as a short one.
                let _ = poll(&mut [PollFd::new(&*id, PollFlags::IN)], Some(&limit));
            }
        }
    }
}

/// The next event, which must be `wanted`.
pub(super) fn expect(id: &mut CmId, wanted: u32, doing: &'static str, deadline: Deadline) -> Result<CmEvent, CmError> {
    let event = next(id, doing, deadline)?;
    let system = |status: i32| io::Error::from_raw_os_error(status.saturating_abs());
    let gone = |why| CmError::Call { doing, source: io::Error::new(io::ErrorKind::ConnectionReset, why) };
    Err(match (event.kind, event.status) {
        (found, 0) if found == wanted => return Ok(event),
        (kind::RDMA_CM_EVENT_ADDR_ERROR | kind::RDMA_CM_EVENT_ROUTE_ERROR, status) => {
            CmError::of(doing, system(status))
        }
        (kind::RDMA_CM_EVENT_UNREACHABLE, status) => CmError::Unreachable { doing, source: system(status) },
        (kind::RDMA_CM_EVENT_REJECTED, status) => rejection(status, &event.data),
        (kind::RDMA_CM_EVENT_DISCONNECTED, _) => gone("the peer has disconnected"),
        (kind::RDMA_CM_EVENT_DEVICE_REMOVAL, _) => gone("the device was removed"),
        (kind, status) => call(doing)(io::Error::other(format!("event {kind} with status {status}"))),
    })
}
