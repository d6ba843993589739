//! Primaries that knock: accepted on a thread of its own, since a handshake waits for a stranger.

use crate::wake::{self, Inbox};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use transport_tcp::session::{Listener, Offer};

/// Listens on `address`; offers come through the inbox.
pub(super) fn listen(address: SocketAddr) -> Result<Inbox<Offer>> {
    let listener = Listener::bind(address)?;
    let (outbox, inbox) = wake::inbox()?;
    let serve = move || {
        loop {
            match listener.accept() {
                Ok(offer) => {
                    if !outbox.put(offer) {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "a caller was turned away"),
            }
        }
    };
    std::thread::Builder::new().name("accept".to_owned()).spawn(serve).context("the accepting thread")?;
    Ok(inbox)
}
