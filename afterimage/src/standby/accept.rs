//! Primaries that knock: greeted on threads of their own, since a greeting waits for a stranger.

use crate::inbox::{self, Inbox};
use anyhow::{Context, Result};
use mc_core::wire::VERSION;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use transport_tcp::session::{Listener, Offer};

/// Strangers greeted at a time; more are turned away unheard.
const MAX_GREETINGS: usize = 16;

/// Listens on `address`; offers come through the inbox.
pub(super) fn listen(address: SocketAddr) -> Result<Inbox<Offer>> {
    let listener = Listener::bind(address)?;
    let (outbox, inbox) = inbox::inbox()?;
    let greeting = Arc::new(AtomicUsize::new(0));
    let serve = move || {
        loop {
            let knock = match listener.accept() {
                Ok(knock) => knock,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if greeting.fetch_add(1, Ordering::Relaxed) >= MAX_GREETINGS {
                greeting.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (outbox, greeting) = (outbox.clone(), Arc::clone(&greeting));
            std::thread::spawn(move || {
                match knock.greet((VERSION, VERSION)) {
                    Ok(offer) => drop(outbox.put(offer)),
                    Err(error) => tracing::warn!(%error, "a caller was turned away"),
                }
                greeting.fetch_sub(1, Ordering::Relaxed);
            });
        }
    };
    std::thread::Builder::new().name("accept".to_owned()).spawn(serve).context("the accepting thread")?;
    Ok(inbox)
}
