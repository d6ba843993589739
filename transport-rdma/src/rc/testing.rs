//! What only tests ask of a link.

use super::{Place, RdmaLink, is_software};
use crate::{
    error::{RdmaError, ack_timeout},
    ffi::{Context, Qp},
    types::PORT,
};
use std::{io, sync::Arc, time::Duration};

impl Place {
    /// The device of that name, its first port, with that entry of its GID table (or the first).
    ///
    /// # Errors
    /// No such device, port down, no such entry.
    pub fn of(device: &str, gid_index: Option<u8>) -> Result<Self, RdmaError> {
        let failed = |doing| move |source| RdmaError::Device { device: device.to_owned(), doing, source };
        let context = Context::open(device).map_err(failed("opening it"))?;
        let port = context.port(PORT).map_err(failed("asking for its port"))?;
        if !port.active {
            let source = io::Error::new(io::ErrorKind::NetworkDown, "port 1 is down");
            return Err(failed("looking at its port")(source));
        }
        let gid_index = gid_index.unwrap_or(0);
        let gid = context.gid(PORT, gid_index).map_err(failed("reading its GID table"))?;
        if port.ethernet && gid == [0; 16] {
            let source = io::Error::new(io::ErrorKind::NotFound, format!("GID index {gid_index} is empty"));
            return Err(failed("reading its GID table")(source));
        }
        Ok(Self {
            context,
            gid_index,
            gid,
            lid: port.lid,
            mtu: port.mtu,
            mbit: port.mbit,
            software: is_software(device),
        })
    }
}

impl RdmaLink {
    /// How long the device takes to give up on a peer that does not answer: the timeouts of all tries. Real devices may take up
    /// to four times as long, and a link with nothing on the wire never learns of it: one that is idle, or whose next slab waits
    /// for a slot of the peer's. Beats tell in any case.
    #[must_use]
    pub fn gives_up_after(&self) -> Duration {
        let (timeout, retry) = self.timeout();
        ack_timeout(timeout) * (u32::from(retry) + 1)
    }

    /// Whether the peer was heard, or may be spoken to unheard. Until then everything submitted waits.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.sender.is_open()
    }

    /// Whether everything submitted has reached the peer's device.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.sender.is_settled()
    }

    /// Breaks the link from outside, as a device that fails does.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        Breaker(self.parts.queues.clone())
    }
}

/// See [`RdmaLink::breaker`].
#[derive(Debug)]
pub struct Breaker(Vec<Arc<Qp>>);

impl Breaker {
    /// Moves the queue pairs to ERR.
    pub fn break_link(&self) {
        for queue in &self.0 {
            // One that is destroyed already is broken enough.
            let _ = queue.fail();
        }
    }
}
