//! The thread that writes, one register at a time; and once a second something that nobody needs, to know that it could.

use super::{
    registrar::{Input, Work},
    serve::Letter,
    store::Store,
};
use mc_core::id::Time;
use node::clock::Clock;
use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info};

/// From one probe to the next.
const EVERY: Duration = Duration::from_secs(1);

/// Tries whether it can store: when it began, if it can. Says so when it stops working, and when it works again.
pub(crate) fn probe(store: &Store, works: &mut bool) -> Option<Time> {
    let began = Clock.now();
    let result = store.probe();
    match &result {
        Err(why) if *works => error!("swaps fail until this is mended; the nodes are told: {why}"),
        Ok(()) if !*works => info!("the state directory can be written again"),
        _ => {}
    }
    *works = result.is_ok();
    works.then_some(began)
}

/// Writes what the registrar asks for, until it ends.
pub(crate) fn run(store: &Store, work: &Receiver<Work>, done: &UnboundedSender<Letter>, mut works: bool) {
    let mut due = Instant::now() + EVERY;
    loop {
        // However much there is to write: its age is told with every answer.
        if Instant::now() >= due {
            if let Some(at) = probe(store, &mut works) {
                let _ = done.send(Letter::Storage(Input::Probed(at)));
            }
            due = Instant::now() + EVERY;
        }
        let (vm, result) = match work.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Work::Persist(vm, register)) => (vm, store.persist(vm, register)),
            Ok(Work::Remove(vm)) => (vm, store.remove(vm)),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => continue,
        };
        if done.send(Letter::Storage(Input::Stored { vm, result })).is_err() {
            return;
        }
    }
}
